"""Fields of requests that state a condition: audio or text, which the encoder of a conditional model embeds."""

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
