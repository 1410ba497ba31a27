"""Fields of requests that state a condition: audio or text, which the encoder of a conditional model embeds."""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import pydantic

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
