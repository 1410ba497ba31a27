"""Record of a model's origin, stored as `audiodiff.json`."""

from importlib.metadata import version
from typing import Any

import pydantic

MODEL_FORMAT_VERSION = 1


class EncoderRecord(pydantic.BaseModel):
    """Encoder whose embeddings condition a model.

    Args:
        name: Hugging Face id of the encoder, or the last part of its local path, after the kind of the encoder and a
            colon.
        digest: Digest of the encoder, as 16 hex digits.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    name: str
    digest: str


class ModelRecord(pydantic.BaseModel):
    """Content of `audiodiff.json`: the origin of a model. Models of the original project have no record."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    format_version: int = MODEL_FORMAT_VERSION
    audiodiff_version: str = pydantic.Field(default_factory=lambda: version("audiodiff"))
    recipe: dict[str, Any] = pydantic.Field(description="training options")
    data_digest: str = pydantic.Field(description="digest of the data set and its mel configuration")
    metrics: dict[str, float] = pydantic.Field(
        description="steps, samples, seconds and last loss of the training; metrics of evaluations"
    )
    encoder: EncoderRecord | None = pydantic.Field(
        None,
        description="encoder of the training encodings; none: they did not state it, or there were none",
    )
