"""Record of a model's origin, stored as `audiodiff.json`."""

from importlib.metadata import version
from typing import Any

import pydantic

from audiodiff_core.embeddings.measured import MeasuredConditions

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
    conditions: MeasuredConditions | None = pydantic.Field(
        None, description="measured features that the model is conditioned on, and their encoding; none: there are none"
    )

    @pydantic.model_serializer(mode="wrap")
    def _without_absent_conditions(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave conditions out of the records of models without them, which earlier versions read."""
        content: dict[str, Any] = handler(self)
        if self.conditions is None:
            del content["conditions"]
        return content
