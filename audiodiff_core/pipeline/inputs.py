"""Validation of requests, and their conversion to items and tasks.

An invalid argument raises a ValueError that names the argument and its value.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from audiodiff_core.embeddings.measured import MeasuredConditions
from audiodiff_core.pipeline.features import requested_encoding
from audiodiff_core.pipeline.geometry import MIN_WIDTH, Geometry
from audiodiff_core.pipeline.interpolation import Noise
from audiodiff_core.pipeline.sources import (
    HERE,
    MAX_TRACK_COLUMNS,
    Audio,
    AudioFiles,
    Mask,
    Source,
    Span,
    kept_pixels,
    source_slice,
    track_image,
)
from audiodiff_core.pipeline.tasks import Loader, Task, Tasks
from audiodiff_core.sampling import Batch, Item
from audiodiff_core.sampling.conditions import Condition, no_encoder
from audiodiff_core.sampling.requests import (
    DEFAULT_STRENGTH,
    ExtendRequest,
    GenerateRequest,
    InpaintRequest,
    InterpolateRequest,
    InvertRequest,
    RemixRequest,
    Request,
    SeededRequest,
    VaryRequest,
)

Encodings = npt.NDArray[np.floating]


def _without_encoder(condition: Condition) -> Encodings:
    raise ValueError(f"{condition.field} {condition.text}: only `generate` and `outcomes` embed it, pass encodings")


@dataclass(frozen=True)
class References:
    """Sources and encodings that requests name by reference, and the embedding of their conditions.

    Attributes:
        sources: Audio or images by reference. A reference that is not a key is a path or a URI.
        encodings: Encodings (dim,) by reference.
        files: Decoding of the files that requests name.
        embedding: Function from a condition to its embedding (dim,), which raises ValueError if there is none.
    """

    sources: Mapping[str, Source] = field(default_factory=dict)
    encodings: Mapping[str, Encodings] = field(default_factory=dict)
    files: AudioFiles = HERE
    embedding: Callable[[Condition], Encodings] = _without_encoder

    def source(self, reference: str, index: int) -> Source:
        """Return a source. An index other than 0 replaces the slice of an Audio."""
        source = self.sources.get(reference)
        if source is None:
            return Audio(reference, slice=index)
        return replace(source, slice=index) if isinstance(source, Audio) and index else source


@dataclass(frozen=True)
class Inputs:
    """Conversion of requests, sources and encodings to items and tasks of one model.

    Attributes:
        geometry: The geometry of the model.
        scheduler: The scheduler that is saved with the model.
        tasks: The tasks of the model.
        conditions: The conditions of the model on measured features, or None.

    Raises:
        ValueError: If the network takes encodings of another size than the conditions.
    """

    geometry: Geometry
    scheduler: Any
    tasks: Tasks
    conditions: MeasuredConditions | None = None

    def __post_init__(self) -> None:
        if self.conditions is not None and self.conditions.dim != self.geometry.encoding_dim:
            raise ValueError(
                f"conditions of {self.conditions.dim} values do not fit the network, which takes "
                f"{self.geometry.encoding_dim or 'none'}: the record of the model is of another model"
            )

    def shape(self, width: int) -> tuple[int, int, int]:
        """Return (channels, height, width) of a sample of `width` columns."""
        return self.geometry.channels, self.geometry.height, width

    @property
    def no_encoder(self) -> str | None:
        """Why the model has no encoder of conditions, with the remedy, or None if it has one."""
        return no_encoder(self.geometry.encoding_dim, self.conditions.names if self.conditions else ())

    def item(
        self, request: SeededRequest, encoding: Encodings | None = None, references: References | None = None
    ) -> Item:
        """Create an item from a request. All defaults of the request are filled in.

        Args:
            request: The request.
            encoding: Encoding (dim,) in place of that of the request.
            references: Encodings by reference, and embeddings of conditions.
        """
        filled = self.geometry.resolved(request, self.scheduler)
        dim = self.geometry.encoding_dim
        references = references or References()
        of_features = requested_encoding(request, self.conditions)
        if encoding is None and request.condition is not None:
            if reason := self.no_encoder:
                raise ValueError(f"{' '.join(request.condition)}: {reason}")
            encoding = references.embedding(request.condition)
        elif encoding is None and isinstance(request.encoding, str):
            known = references.encodings
            if request.encoding not in known:
                raise ValueError(f"encoding {request.encoding}: not among the {len(known)} encodings of the call")
            encoding = known[request.encoding]
        elif encoding is None and request.encoding is not None:
            encoding = np.array(request.encoding, np.float32)
        if encoding is None:
            encoding = of_features
        if encoding is None:
            return Item(filled, self.width(filled))
        if dim is None:
            raise ValueError("encodings: the model is not conditional, omit them")
        if encoding.shape != (dim,) or not np.isfinite(encoding).all():
            raise ValueError(f"encoding of shape {encoding.shape}: the model takes {dim} finite numbers")
        return Item(filled, self.width(filled), encoding=torch.from_numpy(encoding.astype(np.float32)))

    def items(self, requests: Sequence[SeededRequest], encodings: Encodings | None) -> list[Item]:
        """Create items from n requests and their encodings (n, dim).

        Raises:
            ValueError: If the model does not support a request, or a request states an encoding beside `encodings`.
        """
        if encodings is None:
            return [self.item(request) for request in requests]
        self.require_equal("encodings", len(encodings), len(requests))
        if stated := [name for request in requests for name in request.encoding_fields]:
            raise ValueError(f"{stated[0]} with encodings: both state the encoding, set only one of them")
        return [self.item(request, encoding) for request, encoding in zip(requests, encodings, strict=True)]

    def task(self, request: Request, references: References, batch: Batch) -> tuple[Item, Task]:
        """Check a request, and create its item and its task. The task decodes its sources when it starts.

        Args:
            request: The request.
            references: Sources and encodings by reference.
            batch: Any batch of the model, which checks the item.

        Raises:
            ValueError: If the model does not support the request.
        """
        item = self.item(request, references=references)
        batch.check(item)
        if isinstance(request, InvertRequest) or (isinstance(request, InterpolateRequest) and request.sources):
            clean = torch.zeros(self.shape(item.width))
            batch.check(replace(item, clean=clean, inverted=True, refinements=request.refinements))
        return item, self._task(request, item, references)

    def _task(self, request: Request, item: Item, references: References) -> Task:
        """Check the fields of one kind of request, and create its task."""
        tasks = self.tasks

        def slice_of(reference: str, index: int = 0) -> Loader:
            source, width = references.source(reference, index), self.geometry.width(item.request)
            return partial(source_slice, source, self.geometry.mel, width, references.files)

        task: Task
        match request:
            case VaryRequest():
                start = self.start_step(item.request, request.strength, request.start_step)
                task = tasks.vary(item, slice_of(request.source, request.slice), start)
            case InpaintRequest():
                kept = self.kept(request.regenerate, item, request.start_step)
                task = tasks.inpaint(item, slice_of(request.source, request.slice), kept, request.start_step)
            case ExtendRequest():
                source = None if request.source is None else slice_of(request.source, request.slice)
                task = tasks.extend(item, source, self.extended_columns(request), request.overlap)
            case RemixRequest():
                start = self.start_step(item.request, request.strength, request.start_step)
                track = partial(track_image, references.source(request.source, 0), self.geometry.mel, references.files)
                task = tasks.remix(item, track, start, request.overlap)
            case InvertRequest():
                task = tasks.invert(item, slice_of(request.source, request.slice), request.refinements)
            case InterpolateRequest():
                keys = request.seeds or [slice_of(reference) for reference in request.sources or ()]
                task = tasks.interpolate(item, keys, request.position, request.refinements)
            case GenerateRequest():
                task = tasks.generate(item)
        return task

    def kept(self, regenerate: Sequence[Span] | Mask, item: Item, start_step: int) -> Mask:
        """Return the mask of the pixels to keep, and check the range of `start_step`."""
        self.start_step(item.request, None, start_step)
        return kept_pixels(regenerate, self.geometry.mel, self.geometry.width(item.request))

    def width(self, request: SeededRequest) -> int:
        """Return the width of the sample in columns."""
        return self.geometry.width(request) // self.geometry.factor

    def checked_noise(self, noise: Noise, item: Item) -> torch.Tensor:
        """Check the shape and values of a noise (channels, height, width), and return it as a tensor."""
        shape = self.shape(item.width)
        if noise.shape != shape or not np.isfinite(noise).all():
            raise ValueError(f"noise of shape {noise.shape}: pass {shape} finite numbers")
        return torch.from_numpy(noise.astype(np.float32))

    def start_step(self, request: SeededRequest, strength: float | None, start_step: int | None) -> int:
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

    def extended_columns(self, request: ExtendRequest) -> int:
        """Return the width in columns of a long loop of a duration, or of bars."""
        if (samples := self.geometry.samples(request)) is not None:
            return self.columns(samples / self.geometry.mel.sample_rate) + 1
        assert request.duration_s is not None
        return self.columns(request.duration_s)

    @staticmethod
    def require_equal(what: str, count: int, requests: int) -> None:
        """Raise ValueError if the number of sources, masks or encodings is not that of the requests."""
        if count != requests:
            raise ValueError(f"{count} {what} for {requests} requests: pass one per request")
