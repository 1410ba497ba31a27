"""Calls of the ingress to the generation deployment, and the events that it answers with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from audiodiff_core.audio import AudioFormat
from audiodiff_core.sampling.requests import Request
from audiodiff_platform.serve.errors import Problem

Vector = tuple[float, ...]
"""Values of an encoding, or of a latent in row-major order."""


@dataclass(frozen=True)
class ModelFacts:
    """Facts of a served model.

    Attributes:
        name: Name of the model in requests.
        path: Folder, URI or Hugging Face id.
        digest: Digest of the files that determine what the model generates.
        sample_rate: Sample rate of its audio in Hz.
        duration_s: Default duration of a loop in seconds.
        width: Columns of the image of such a loop.
        encoding_dim: Values per encoding, or None for an unconditional model.
        encoder_digest: Digest of the encoder of the training encodings, or None if the model does not state it.
        latent_shape: Channels, height and width of the latent of a slice, or None for a model that works on images.
        conditions: Names of the measured features that the model is conditioned on.
        ranges: Smallest and largest values of those that are numbers, by name.
    """

    name: str
    path: str
    digest: str
    sample_rate: int
    duration_s: float
    width: int
    encoding_dim: int | None
    encoder_digest: str | None = None
    latent_shape: tuple[int, int, int] | None = None
    conditions: tuple[str, ...] = ()
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class EncoderFacts:
    """Facts of a served encoder.

    Attributes:
        name: Name of the encoder in requests.
        path: Name for `load_encoder`.
        digest: Digest of weights and settings.
        dim: Values per encoding.
        embeds_text: Whether the encoder embeds texts.
    """

    name: str
    path: str
    digest: str
    dim: int
    embeds_text: bool


@dataclass(frozen=True)
class Call:
    """A request to a model.

    Attributes:
        model: Name of the model.
        request: The request. Its sources are keys of `uploads`.
        format: File format.
        uploads: Contents of uploaded audio files by reference.
        measured: Whether to measure the tempo and the level of the audio.
        progress: Whether to send an event for every step.
        preview_every: Number of steps between previews, or 0 for none.
        known: Entity tags of results that the client holds.
        condition: Content of an audio file, or a text, whose embedding is the encoding of the request; or None.
    """

    model: str
    request: Request
    format: AudioFormat
    uploads: Mapping[str, bytes] = field(default_factory=dict)
    measured: bool = False
    progress: bool = False
    preview_every: int = 0
    known: frozenset[str] = frozenset()
    condition: bytes | str | None = None


@dataclass(frozen=True)
class Accepted:
    """The request was accepted.

    Attributes:
        etag: Entity tag of the result.
        position: Number of requests that wait before it.
        wait_s: Estimate of its wait in seconds.
    """

    etag: str
    position: int
    wait_s: float


@dataclass(frozen=True)
class NotModified:
    """The client holds the result.

    Attributes:
        etag: Entity tag of the result.
    """

    etag: str


@dataclass(frozen=True)
class Joined:
    """The request joined the batch.

    Attributes:
        waited_s: Seconds that it waited.
    """

    waited_s: float


@dataclass(frozen=True)
class Progress:
    """A step of the request was made. For a long loop, it is a step of the current window.

    Attributes:
        step: Number of steps made.
        steps: Number of steps.
    """

    step: int
    steps: int


@dataclass(frozen=True)
class Preview:
    """The mel image that a step predicted.

    Attributes:
        step: Number of steps made.
        png: The image as a PNG, with the lowest band in row 0.
    """

    step: int
    png: bytes


@dataclass(frozen=True)
class Audio:
    """The result of the request.

    Attributes:
        content: The audio file.
        media_type: Its media type.
        etag: Its entity tag.
        provenance: Model, request with all defaults, execution profile and measurements, as JSON values.
        seconds: Seconds per stage.
        png: The mel image as a PNG, with the lowest band in row 0, if the call asks for previews.
    """

    content: bytes
    media_type: str
    etag: str
    provenance: dict[str, Any]
    seconds: dict[str, float]
    png: bytes | None = None


@dataclass(frozen=True)
class Failed:
    """The request has no result.

    Attributes:
        problem: The reason.
    """

    problem: Problem


Event = Accepted | NotModified | Joined | Progress | Preview | Audio | Failed
