"""Bodies of HTTP requests."""

import secrets
from typing import Annotated, Any

import pydantic

from audiodiff_core.audio import AudioFormat
from audiodiff_core.diffusion.seeds import SEEDS
from audiodiff_core.sampling import GenerateRequest
from audiodiff_core.sampling.requests import Seed


def _or_random(seed: Any) -> Any:
    return secrets.randbelow(len(SEEDS)) if seed is None else seed


class HttpGenerateRequest(GenerateRequest):
    """Body of a request to /v1/generate: a request, with the model and the file format."""

    model: str | None = pydantic.Field(
        None, max_length=200, description="name of a model from /v1/models; null: the first model"
    )
    seed: Annotated[Seed, pydantic.BeforeValidator(_or_random)] = pydantic.Field(
        default_factory=lambda: _or_random(None),
        description="seed of the loop; null: a random seed, see the response headers",
    )
    format: AudioFormat = pydantic.Field("wav", description="file format")

    @pydantic.field_validator("encoding")
    @classmethod
    def _values_only(cls, encoding: Any) -> Any:
        """Reject the reference of an encoding, which would name a file of the server."""
        if isinstance(encoding, str):
            raise ValueError(f"encoding {encoding!r} is a reference: send the values")
        return encoding

    @pydantic.field_validator("like", "prompt")
    @classmethod
    def _no_condition(cls, condition: Any, info: pydantic.ValidationInfo) -> Any:
        """Reject a condition: a server has no encoder."""
        if condition is not None:
            raise ValueError(
                f"{info.field_name}: servers embed neither audio nor text, send the values of the encoding"
            )
        return condition

    def request(self) -> GenerateRequest:
        """Return the request without the model and the file format."""
        return GenerateRequest(**self.model_dump(include=set(GenerateRequest.model_fields)))
