"""Record of a model's origin, stored as `audiodiff.json`."""

from importlib.metadata import version
from typing import Any

import pydantic

MODEL_FORMAT_VERSION = 1


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
