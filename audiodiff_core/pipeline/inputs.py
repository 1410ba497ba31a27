"""What a caller gives, checked and made ready for the sampler. A mistake is a ValueError that names what is wrong and its value."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from audiodiff_core.mel import Images
from audiodiff_core.pipeline.geometry import NARROWEST, Geometry
from audiodiff_core.pipeline.interpolation import Noise
from audiodiff_core.pipeline.sources import LONGEST_TRACK, Source, source_image
from audiodiff_core.sampling import GenerateRequest, Item

Encodings = npt.NDArray[np.floating]

DEFAULT_STRENGTH = 0.5


@dataclass(frozen=True)
class Inputs:
    """Inputs of a model of this geometry and noise schedule."""

    geometry: Geometry
    scheduler: Any

    def shape(self, width: int) -> tuple[int, int, int]:
        """(channels, height, width) of what the network sees."""
        return self.geometry.channels, self.geometry.mel.y_res // self.geometry.factor, width

    def item(self, request: GenerateRequest, encoding: Encodings | None = None) -> Item:
        """A request with its encoding (dim,), its defaults filled in."""
        filled = self.geometry.resolved(request, self.scheduler)
        dim = self.geometry.encoding_dim
        if encoding is None:
            if dim is not None:
                raise ValueError(
                    f"encodings are missing: the model is conditional, each request needs one of {dim} numbers"
                )
            return Item(filled, self.width(filled))
        if dim is None:
            raise ValueError("encodings: the model is not conditional, it takes none")
        if encoding.shape != (dim,) or not np.isfinite(encoding).all():
            raise ValueError(f"encoding of shape {encoding.shape}: the model takes {dim} finite numbers")
        return Item(filled, self.width(filled), encoding=torch.from_numpy(encoding.astype(np.float32)))

    def items(self, requests: Sequence[GenerateRequest], encodings: Encodings | None) -> list[Item]:
        """Requests with their encodings (n, dim)."""
        if encodings is None:
            return [self.item(request) for request in requests]
        if len(encodings) != len(requests):
            raise ValueError(f"{len(encodings)} encodings for {len(requests)} requests: each needs one")
        return [self.item(request, encoding) for request, encoding in zip(requests, encodings, strict=True)]

    def sourced(
        self, requests: Sequence[GenerateRequest], sources: Sequence[Source], encodings: Encodings | None
    ) -> tuple[list[Item], list[Images]]:
        """The items and the mel images of their sources."""
        if len(sources) != len(requests):
            raise ValueError(f"{len(sources)} sources for {len(requests)} requests: each needs one")
        items = self.items(requests, encodings)
        return items, [
            source_image(source, self.geometry.mel, self.geometry.width(item.request))
            for source, item in zip(sources, items, strict=True)
        ]

    def width(self, request: GenerateRequest) -> int:
        """Columns of what the network sees."""
        return self.geometry.width(request) // self.geometry.factor

    def checked_noise(self, noise: Noise, item: Item) -> torch.Tensor:
        """A given noise as an item takes it."""
        shape = self.shape(item.width)
        if noise.shape != shape or not np.isfinite(noise).all():
            raise ValueError(f"noise of shape {noise.shape}: {shape} finite numbers are taken")
        return torch.from_numpy(noise.astype(np.float32))

    def start_step(self, request: GenerateRequest, strength: float | None, start_step: int | None) -> int:
        """The step that a strength, or a start_step, stands for."""
        steps = request.steps
        assert steps is not None
        if strength is not None and start_step is not None:
            raise ValueError(f"strength {strength} and start_step {start_step}: one says all, give one")
        if start_step is not None:
            if not 0 <= start_step < steps:
                raise ValueError(f"start_step {start_step}: {steps} steps are taken, use 0 to {steps - 1}")
            return start_step
        strength = DEFAULT_STRENGTH if strength is None else strength
        if not 0 < strength <= 1:
            raise ValueError(f"strength {strength} is not in (0, 1]")
        return min(steps - 1, round(steps * (1 - strength)))

    def columns(self, duration_s: float) -> int:
        """Convert the duration of a long loop to image columns; raises ValueError if it is too short or too long."""
        columns = np.ceil(duration_s * self.geometry.mel.sample_rate / self.geometry.mel.hop_length - 1e-6)
        if not NARROWEST <= columns <= LONGEST_TRACK:
            least, most = self.geometry.duration_s(NARROWEST), self.geometry.duration_s(LONGEST_TRACK)
            raise ValueError(f"duration {duration_s} s: use {least:.2g} s to {most:.0f} s")
        return int(columns)
