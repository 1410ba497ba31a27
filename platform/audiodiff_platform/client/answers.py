"""Answers of the server: audio, models, encodings and jobs.

Fields that a newer server adds are kept in `model_extra`.
"""

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic

ENDED = frozenset({"completed", "failed", "cancelled"})


class _Answer(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="allow", protected_namespaces=())


class Audio(_Answer):
    """An audio file, with what determined its bytes.

    Attributes:
        content: The content of the file.
        media_type: The media type, such as audio/wav.
        seed: The seed of the request.
        model: The name of the model.
        digest: The digest of the model.
        provenance: The request with all defaults, the execution profile and measurements, if the server stated them.
    """

    content: bytes = pydantic.Field(repr=False)
    media_type: str
    seed: int | None = None
    model: str | None = None
    digest: str | None = None
    provenance: dict[str, Any] = pydantic.Field(default_factory=dict, repr=False)

    @classmethod
    def of_json(cls, answer: dict[str, Any]) -> "Audio":
        """Return the audio of a JSON object with the file in base64 and its provenance."""
        provenance = {name: value for name, value in answer.items() if name not in ("audio", "media_type")}
        return cls(
            content=base64.b64decode(answer["audio"], validate=True),
            media_type=answer["media_type"],
            seed=provenance.get("request", {}).get("seed"),
            model=provenance.get("model"),
            digest=provenance.get("model_digest"),
            provenance=provenance,
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file, and return its path."""
        Path(path).write_bytes(self.content)
        return Path(path)


class Model(_Answer):
    """A served model.

    Attributes:
        name: The name of the model in requests.
        digest: The digest of the files that determine what the model generates.
        sample_rate: The sample rate of its audio in Hz.
        duration_s: The default duration of a loop in seconds.
        encoding_dim: The number of values of an encoding, or None for an unconditional model.
        latent_shape: Channels, height and width of a latent, or None for a model that works on images.
        conditions: The measured features that the model is conditioned on.
        ranges: The smallest and largest values of those that are numbers, by name.
    """

    name: str
    digest: str
    sample_rate: int
    duration_s: float
    encoding_dim: int | None = None
    latent_shape: tuple[int, int, int] | None = None
    conditions: tuple[str, ...] = ()
    ranges: Mapping[str, tuple[float, float]] = pydantic.Field(default_factory=dict)


class Encoding(_Answer):
    """The encoding of an audio file.

    Attributes:
        index: The index of the file in the call.
        encoding: The values.
    """

    index: int
    encoding: tuple[float, ...] = pydantic.Field(repr=False)


class Latents(_Answer):
    """The latents of an audio file.

    Attributes:
        index: The index of the file in the call.
        latents: The values of the latent of each slice, in row-major order of the `latent_shape` of the model.
    """

    index: int
    latents: tuple[tuple[float, ...], ...] = pydantic.Field(repr=False)


class JobError(_Answer):
    """The reason why a job failed: a code for programs and a message for people."""

    code: str
    message: str


class Job(_Answer):
    """A job. Times are in seconds since the epoch.

    Attributes:
        id: The id of the job.
        status: The status.
        created_at: The time of creation.
        progress: The progress in percent.
        step: The number of finished steps.
        steps: The number of steps.
        queue_position: The number of jobs before this job in the queue.
        estimate_s: The estimated time until the end in seconds.
        completed_at: The time of the end.
        expires_at: The time after which the results are removed.
        error: The reason of a failure.
    """

    id: str
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"]
    created_at: float
    progress: float = 0
    step: int | None = None
    steps: int | None = None
    queue_position: int | None = None
    estimate_s: float | None = None
    completed_at: float | None = None
    expires_at: float | None = None
    error: JobError | None = None

    @property
    def has_ended(self) -> bool:
        """True for a job that is completed, failed or cancelled."""
        return self.status in ENDED


class JobPage(_Answer):
    """Jobs from the newest to the oldest, and whether there are older ones."""

    data: tuple[Job, ...]
    has_more: bool = False
