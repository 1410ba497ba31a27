"""Fields of requests, which are all optional. The ranges and defaults are those of the server (`/docs`)."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

AudioSource = bytes | str | os.PathLike[str]
"""The content of an audio file, or its path."""

JobRequest = Mapping[str, Any]
"""A request of a job: `kind`, the fields of that kind, and `audio` for the kinds that take audio."""

Verb = Literal["generate", "variations", "inpaint", "extend", "remix", "interpolate"]


class GenerateFields(TypedDict, total=False):
    """Fields that all requests for audio have."""

    model: str
    format: str
    id: str
    seed: int | None
    encoding: Sequence[float]
    like: AudioSource
    prompt: str
    steps: int
    scheduler: str
    eta: float
    guidance_scale: float
    guidance_rescale: float
    width: int
    duration_s: float
    bars: int
    bpm: float
    key: str
    loudness: float
    brightness: float
    seamless: bool


class VaryFields(GenerateFields, total=False):
    """Fields of a variation of a slice."""

    strength: float
    start_step: int
    slice: int


class InpaintFields(GenerateFields, total=False):
    """Fields of a slice whose spans (start, end) in seconds are regenerated."""

    regenerate: Sequence[tuple[float, float]]
    slice: int
    start_step: int


class ExtendFields(GenerateFields, total=False):
    """Fields of a long loop."""

    slice: int
    overlap: float


class RemixFields(GenerateFields, total=False):
    """Fields of a variation of a whole track."""

    strength: float
    start_step: int
    overlap: float


class InterpolateFields(GenerateFields, total=False):
    """Fields of a loop between seeds or audio files."""

    seeds: Sequence[int]
    position: float
    refinements: int
