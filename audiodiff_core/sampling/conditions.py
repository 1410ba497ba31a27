"""Fields of requests that state a condition, and which of them a model takes.

A condition is a measured feature, or audio or a text that the encoder of a conditional model embeds.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import pydantic

from audiodiff_core.sampling.parameters import CONDITION_OF_FIELD, SamplingParameters

MAX_REFERENCE = 4_096
MAX_PROMPT = 4_096

Reference = Annotated[str, pydantic.StringConstraints(min_length=1, max_length=MAX_REFERENCE)]
Prompt = Annotated[str, pydantic.StringConstraints(min_length=1, max_length=MAX_PROMPT)]

LIKE = "audio whose embedding by the encoder of the model is the encoding of the loop: a path or a URI"
PROMPT = "text whose embedding by the encoder of the model is the encoding of the loop; needs an encoder of text (CLAP)"


class Condition(NamedTuple):
    """A condition to embed.

    Args:
        field: Field of the request that states the condition.
        text: Reference of the audio, or the text of the prompt.
    """

    field: Literal["like", "prompt"]
    text: str


class Conditioned(pydantic.BaseModel):
    """Model with the fields that state a condition."""

    like: Reference | None = pydantic.Field(None, description=LIKE)
    prompt: Prompt | None = pydantic.Field(None, description=PROMPT)

    @property
    def condition(self) -> Condition | None:
        """The condition to embed, or None."""
        if self.like is not None:
            return Condition("like", self.like)
        return None if self.prompt is None else Condition("prompt", self.prompt)


def no_encoder(encoding_dim: int | None, features: Sequence[str]) -> str | None:
    """Return the reason why a model has no encoder of conditions, with the remedy, or None if it has one.

    Args:
        encoding_dim: Number of values of an encoding, or None for an unconditional model.
        features: Names of the measured features that the model is conditioned on.
    """
    if encoding_dim is None:
        return "the model is not conditional, omit it"
    if features:
        return f"the model has no encoder, it is conditioned on {', '.join(features)}: omit it"
    return None


def no_guidance(guidance_scale: float, encoding_dim: int | None) -> str | None:
    """Return the reason why a model cannot be guided, with the remedy, or None if it can or need not be.

    Args:
        guidance_scale: The requested scale.
        encoding_dim: Number of values of an encoding, or None for an unconditional model.
    """
    if guidance_scale == 1 or encoding_dim is not None:
        return None
    return f"guidance_scale {guidance_scale}: the model is not conditional, use 1 (no guidance)"


def no_feature(parameters: SamplingParameters, field: str, features: Sequence[str]) -> str | None:
    """Return the reason why a model cannot be conditioned on a feature, with the remedy, or None if it can.

    With bars, the tempo is a length for every model.

    Args:
        parameters: The request.
        field: A field of the request that states a feature.
        features: Names of the measured features that the model is conditioned on.
    """
    name, value = CONDITION_OF_FIELD[field], parameters.features[field]
    if name in features or (field == "bpm" and parameters.bars is not None):
        return None
    shown = f"{field} {value:g}" if isinstance(value, float) else f"{field} {value}"
    without = " without bars" if field == "bpm" else ""
    known = f"only on {', '.join(features)}" if features else "and has no measured conditions"
    remedy = "set bars, or omit bpm" if field == "bpm" else "omit it"
    return f"{shown}{without}: the model is not conditioned on {name}, {known}: {remedy}"
