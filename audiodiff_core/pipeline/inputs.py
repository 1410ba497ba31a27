"""Validation of the caller's arguments, and their conversion to items of the sampler.

An invalid argument raises a ValueError that names the argument and its value.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from audiodiff_core.mel import Images
from audiodiff_core.pipeline.geometry import MIN_WIDTH, Geometry
from audiodiff_core.pipeline.interpolation import Noise
from audiodiff_core.pipeline.sources import MAX_TRACK_COLUMNS, Source, source_image
from audiodiff_core.sampling import GenerateRequest, Item

Encodings = npt.NDArray[np.floating]

DEFAULT_STRENGTH = 0.5


@dataclass(frozen=True)
class Inputs:
    """Conversion of requests, sources and encodings to items of one model.

    Attributes:
        geometry: The geometry of the model.
        scheduler: The scheduler that is saved with the model.
    """

    geometry: Geometry
    scheduler: Any

    def shape(self, width: int) -> tuple[int, int, int]:
        """Return (channels, height, width) of a sample of `width` columns."""
        return self.geometry.channels, self.geometry.mel.y_res // self.geometry.factor, width

    def item(self, request: GenerateRequest, encoding: Encodings | None = None) -> Item:
        """Create an item from a request and its encoding (dim,). All defaults of the request are filled in."""
        filled = self.geometry.resolved(request, self.scheduler)
        dim = self.geometry.encoding_dim
        if encoding is None:
            if dim is not None:
                raise ValueError(
                    f"encodings are missing: the model is conditional, pass one encoding of {dim} numbers per request"
                )
            return Item(filled, self.width(filled))
        if dim is None:
            raise ValueError("encodings: the model is not conditional, omit them")
        if encoding.shape != (dim,) or not np.isfinite(encoding).all():
            raise ValueError(f"encoding of shape {encoding.shape}: the model takes {dim} finite numbers")
        return Item(filled, self.width(filled), encoding=torch.from_numpy(encoding.astype(np.float32)))

    def items(self, requests: Sequence[GenerateRequest], encodings: Encodings | None) -> list[Item]:
        """Create items from n requests and their encodings (n, dim)."""
        if encodings is None:
            return [self.item(request) for request in requests]
        if len(encodings) != len(requests):
            raise ValueError(f"{len(encodings)} encodings for {len(requests)} requests: pass one per request")
        return [self.item(request, encoding) for request, encoding in zip(requests, encodings, strict=True)]

    def items_and_images(
        self, requests: Sequence[GenerateRequest], sources: Sequence[Source], encodings: Encodings | None
    ) -> tuple[list[Item], list[Images]]:
        """Create items, and compute the mel images of their sources."""
        if len(sources) != len(requests):
            raise ValueError(f"{len(sources)} sources for {len(requests)} requests: pass one per request")
        items = self.items(requests, encodings)
        return items, [
            source_image(source, self.geometry.mel, self.geometry.width(item.request))
            for source, item in zip(sources, items, strict=True)
        ]

    def width(self, request: GenerateRequest) -> int:
        """Return the width of the sample in columns."""
        return self.geometry.width(request) // self.geometry.factor

    def checked_noise(self, noise: Noise, item: Item) -> torch.Tensor:
        """Check the shape and values of a noise (channels, height, width), and return it as a tensor."""
        shape = self.shape(item.width)
        if noise.shape != shape or not np.isfinite(noise).all():
            raise ValueError(f"noise of shape {noise.shape}: pass {shape} finite numbers")
        return torch.from_numpy(noise.astype(np.float32))

    def start_step(self, request: GenerateRequest, strength: float | None, start_step: int | None) -> int:
        """Return the number of steps to skip.

        Args:
            request: The request, with its defaults filled in.
            strength: Fraction of the steps to take, in (0, 1]. None selects DEFAULT_STRENGTH if `start_step` is None.
            start_step: Number of steps to skip, as an alternative to `strength`.

        Raises:
            ValueError: If both are set, or if one is out of range.
        """
        steps = request.steps
        assert steps is not None
        if strength is not None and start_step is not None:
            raise ValueError(f"strength {strength} and start_step {start_step}: set only one of them")
        if start_step is not None:
            if not 0 <= start_step < steps:
                raise ValueError(f"start_step {start_step}: there are {steps} steps, use 0 to {steps - 1}")
            return start_step
        strength = DEFAULT_STRENGTH if strength is None else strength
        if not 0 < strength <= 1:
            raise ValueError(f"strength {strength} is not in (0, 1]")
        return min(steps - 1, round(steps * (1 - strength)))

    def columns(self, duration_s: float) -> int:
        """Convert the duration of a long loop to image columns.

        Args:
            duration_s: Duration in seconds.

        Returns:
            The smallest width in columns that lasts at least `duration_s`.

        Raises:
            ValueError: If the duration is too short or too long.
        """
        columns = np.ceil(duration_s * self.geometry.mel.sample_rate / self.geometry.mel.hop_length - 1e-6)
        if not MIN_WIDTH <= columns <= MAX_TRACK_COLUMNS:
            min_s, max_s = self.geometry.duration_s(MIN_WIDTH), self.geometry.duration_s(MAX_TRACK_COLUMNS)
            raise ValueError(f"duration {duration_s} s: use {min_s:.2g} s to {max_s:.0f} s")
        return int(columns)
