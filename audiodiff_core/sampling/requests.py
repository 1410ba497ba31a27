"""Requests: everything that shapes one result, as a discriminated union on `kind`.

A request is small, frozen and hashable. Rows of request files, bodies over HTTP and Python calls are requests. Audio is
named by reference: a path, a URI, or a key of the sources that are passed beside the requests.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic

from audiodiff_core.diffusion.methods import MAX_STEPS
from audiodiff_core.sampling.conditions import Conditioned, Reference
from audiodiff_core.sampling.parameters import FEATURE_FIELDS, MAX_DURATION_S, SamplingParameters

SEEDS = range(2**32)
"""Valid seeds."""
MAX_ENCODING = 65_536
MAX_SPANS = 1_024
MAX_KEYS = 256
MAX_REFINEMENTS = 100
DEFAULT_REFINEMENTS = 3
DEFAULT_STRENGTH = 0.5
DEFAULT_OVERLAP = 0.5

Seed = Annotated[int, pydantic.Field(ge=SEEDS[0], le=SEEDS[-1])]
Finite = Annotated[float, pydantic.Field(allow_inf_nan=False)]
Encoding = Annotated[tuple[Finite, ...], pydantic.Field(min_length=1, max_length=MAX_ENCODING)]
Span = tuple[Annotated[float, pydantic.Field(ge=0, le=MAX_DURATION_S, allow_inf_nan=False)], Finite]
Overlap = Annotated[float, pydantic.Field(gt=0, lt=1)]


class SeededRequest(Conditioned, SamplingParameters):
    """Fields that every kind of request has.

    The seed identifies the result: equal requests return the same bytes.
    """

    id: str | None = pydantic.Field(
        None, min_length=1, max_length=200, description="name of the result, which does not affect it"
    )
    seed: Seed = pydantic.Field(0, description="identifies the loop, 0 to 2^32 - 1")
    encoding: Encoding | Reference | None = pydantic.Field(
        None,
        description="encoding of a conditional model: its values, or the reference of an encoding; "
        "none: the zero encoding, which conditioning dropout trained",
    )

    @pydantic.model_validator(mode="after")
    def _one_condition(self) -> Self:
        stated = self.encoding_fields
        if len(stated) > 1 and stated[0] not in FEATURE_FIELDS:
            raise ValueError(f"{stated[1]} with {stated[0]}: both state the encoding, set only one of them")
        return self

    @property
    def encoding_fields(self) -> list[str]:
        """Names of the fields that state the encoding. Beside bars, bpm states the length."""
        features = [name for name in self.features if name != "bpm" or self.bars is None]
        return [name for name in ("encoding", "like", "prompt") if getattr(self, name) is not None] + features


class GenerateRequest(SeededRequest):
    """A request for a loop from noise."""

    kind: Literal["generate"] = pydantic.Field("generate", description="what to make")


class Strength(SeededRequest):
    """Fields of requests that start from noised content (SDEdit, Meng et al. 2021)."""

    strength: float | None = pydantic.Field(
        None,
        gt=0,
        le=1,
        description=f"fraction of the steps to take: 1 keeps almost nothing of the source; none: {DEFAULT_STRENGTH:g}",
    )
    start_step: int | None = pydantic.Field(
        None, ge=0, lt=MAX_STEPS, description="steps to skip, as an alternative to strength"
    )

    @pydantic.model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.strength is not None and self.start_step is not None:
            raise ValueError(f"strength {self.strength} and start_step {self.start_step}: set only one of them")
        return self


class VaryRequest(Strength):
    """A request for a variation of a slice of a source."""

    kind: Literal["vary"]
    source: Reference = pydantic.Field(description="audio to vary")
    slice: int = pydantic.Field(0, ge=0, description="index of the slice, which has the width of the request")


class InpaintRequest(SeededRequest):
    """A request to regenerate spans of a slice. A span at an end of the slice is outpainted."""

    kind: Literal["inpaint"]
    source: Reference = pydantic.Field(description="audio to keep outside the spans")
    slice: int = pydantic.Field(0, ge=0, description="index of the slice, which has the width of the request")
    regenerate: tuple[Span, ...] = pydantic.Field(
        min_length=1, max_length=MAX_SPANS, description="spans (start, end) of the slice in seconds to regenerate"
    )
    start_step: int = pydantic.Field(
        0, ge=0, lt=MAX_STEPS, description="steps to skip: above 0, the source shapes the spans too"
    )

    @pydantic.model_validator(mode="after")
    def _is_as_long_as_its_slice(self) -> Self:
        if self.bars is not None:
            raise ValueError("an inpainted slice keeps the samples of its source: omit bars and bpm, state the width")
        return self


class ExtendRequest(SeededRequest):
    """A request for a long loop, generated window by window, which begins with a source if there is one."""

    kind: Literal["extend"]
    source: Reference | None = pydantic.Field(None, description="audio with which the loop begins")
    slice: int = pydantic.Field(0, ge=0, description="index of the slice, which has the width of a window")
    overlap: Overlap = pydantic.Field(DEFAULT_OVERLAP, description="fraction of a window that the next window shares")
    has_windows: ClassVar[bool] = True

    @pydantic.model_validator(mode="after")
    def _has_a_length_and_an_end(self) -> Self:
        if self.duration_s is None and self.bars is None:
            raise ValueError("extend needs the length of the whole loop: set duration_s, or bars and bpm")
        if self.seamless:
            raise ValueError("seamless requests have no end to continue from: use seamless False")
        return self


class RemixRequest(Strength):
    """A request for a variation of a whole track, window by window."""

    kind: Literal["remix"]
    source: Reference = pydantic.Field(description="track to vary")
    overlap: Overlap = pydantic.Field(DEFAULT_OVERLAP, description="fraction of a window that the next window shares")
    has_windows: ClassVar[bool] = True

    @pydantic.model_validator(mode="after")
    def _is_as_long_as_its_track(self) -> Self:
        if self.seamless:
            raise ValueError("seamless requests have no end to continue from: use seamless False")
        if self.duration_s is not None or self.bars is not None:
            raise ValueError("a remix is as long as its track: omit duration_s, bars and bpm")
        return self


class InvertRequest(SeededRequest):
    """A request to invert a slice to noise and to generate from that noise, which reproduces the slice."""

    kind: Literal["invert"]
    source: Reference = pydantic.Field(description="audio to invert")
    slice: int = pydantic.Field(0, ge=0, description="index of the slice, which has the width of the request")
    refinements: int = pydantic.Field(
        DEFAULT_REFINEMENTS,
        ge=0,
        le=MAX_REFINEMENTS,
        description="corrections per step, each of which costs a network call",
    )

    @property
    def inverts(self) -> bool:
        """True: the slice is inverted."""
        return True


class InterpolateRequest(SeededRequest):
    """A request for one loop on the way through several seeds or sources."""

    kind: Literal["interpolate"]
    seeds: tuple[Seed, ...] | None = pydantic.Field(
        None, min_length=2, max_length=MAX_KEYS, description="seeds to interpolate between"
    )
    sources: tuple[Reference, ...] | None = pydantic.Field(
        None, min_length=2, max_length=MAX_KEYS, description="audio to interpolate between, which is inverted"
    )
    position: float = pydantic.Field(
        0.5, ge=0, le=1, allow_inf_nan=False, description="position from the first key (0) to the last key (1)"
    )
    refinements: int = pydantic.Field(
        DEFAULT_REFINEMENTS, ge=0, le=MAX_REFINEMENTS, description="corrections per step of the inversion of sources"
    )

    @property
    def inverts(self) -> bool:
        """True if the keys are sources, which are inverted."""
        return self.sources is not None

    @pydantic.model_validator(mode="after")
    def _one_kind_of_key(self) -> Self:
        if (self.seeds is None) == (self.sources is None):
            raise ValueError("interpolate needs seeds or sources: set exactly one of them")
        return self


def _kind(value: Any) -> str:
    kind = value.get("kind", "generate") if isinstance(value, dict) else getattr(value, "kind", "generate")
    return str(kind)


Request = Annotated[
    Annotated[GenerateRequest, pydantic.Tag("generate")]
    | Annotated[VaryRequest, pydantic.Tag("vary")]
    | Annotated[InpaintRequest, pydantic.Tag("inpaint")]
    | Annotated[ExtendRequest, pydantic.Tag("extend")]
    | Annotated[RemixRequest, pydantic.Tag("remix")]
    | Annotated[InvertRequest, pydantic.Tag("invert")]
    | Annotated[InterpolateRequest, pydantic.Tag("interpolate")],
    pydantic.Discriminator(_kind),
]
"""A request of any kind. `kind` defaults to generate."""

REQUEST: pydantic.TypeAdapter[Request] = pydantic.TypeAdapter(Request)
"""Validator of requests: `REQUEST.validate_python({"kind": "vary", "source": "loop.wav"})`."""
