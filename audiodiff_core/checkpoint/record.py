"""Record of a model's origin, stored as `audiodiff.json`."""

from importlib.metadata import version
from typing import Any

import pydantic

MODEL_FORMAT_VERSION = 1


class ModelRecord(pydantic.BaseModel):
    """`audiodiff.json`: where a model comes from. Models of the original have none."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    format_version: int = MODEL_FORMAT_VERSION
    audiodiff_version: str = pydantic.Field(default_factory=lambda: version("audiodiff"))
    recipe: dict[str, Any] = pydantic.Field(description="the options that it was trained with")
    data_digest: str = pydantic.Field(description="names the dataset and its mel configuration")
    metrics: dict[str, float] = pydantic.Field(description="steps, samples, seconds and the last loss")
