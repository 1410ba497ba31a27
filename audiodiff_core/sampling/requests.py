"""Requests: everything that shapes one result, as a discriminated union on `kind`.

A request is small, frozen and hashable. Rows of request files, bodies over HTTP and Python calls are requests. Audio is
named by reference: a path, a URI, or a key of the sources that are passed beside the requests.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic

from audiodiff_core.audio.wav_chunks import BEATS_PER_BAR, LOOP_TEMPO_RANGE_BPM
from audiodiff_core.diffusion.schedulers import MAX_STEPS, METHODS, ZERO_SNR_STEPS, SchedulerName, resolved
from audiodiff_core.diffusion.seeds import SEEDS
from audiodiff_core.sampling.conditions import Conditioned, Reference

MAX_WIDTH = 16_384
MAX_GUIDANCE = 100.0
MAX_DURATION_S = 3_600.0
MAX_BARS = 1_024
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


class SamplingParameters(pydantic.BaseModel):
    """Sampling parameters: everything in a request except its seed, its encoding and its sources."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")
    has_windows: ClassVar[bool] = False
    """True if `width` is the width of a window, and not the length of the result."""

    steps: int | None = pydantic.Field(
        None,
        ge=1,
        le=MAX_STEPS,
        description=f"denoising steps; none: {ZERO_SNR_STEPS} for a model with zero terminal SNR, otherwise the usual "
        f"number of the scheduler, {METHODS['ddim'].default_steps} for ddim",
    )
    scheduler: SchedulerName | None = pydantic.Field(
        None, description=f"sampling method: {', '.join(METHODS)}; none: flow_euler for a flow model, otherwise ddim"
    )
    eta: float = pydantic.Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="noise added in each step of ddim: 0 is deterministic, 1 adds as much as ddpm",
    )
    guidance_scale: float = pydantic.Field(
        1.0,
        ge=0,
        le=MAX_GUIDANCE,
        allow_inf_nan=False,
        description="classifier-free guidance by the encoding: 1 is off, 0 ignores the encoding",
    )
    guidance_rescale: float = pydantic.Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="share of the guided prediction that is rescaled to the deviation of the prediction by the "
        "encoding, which prevents overexposure at large guidance_scale: 0 is off",
    )
    width: int | None = pydantic.Field(
        None,
        ge=1,
        le=MAX_WIDTH,
        description="image columns, one hop of audio each; none: the width that the model was trained for",
    )
    duration_s: float | None = pydantic.Field(
        None,
        gt=0,
        le=MAX_DURATION_S,
        allow_inf_nan=False,
        description="duration in seconds, rounded up to the next width of the model, instead of width",
    )
    bars: int | None = pydantic.Field(
        None,
        ge=1,
        le=MAX_BARS,
        description=f"bars of {BEATS_PER_BAR} beats at bpm, which fix the duration exactly; needs bpm",
    )
    bpm: float | None = pydantic.Field(
        None,
        ge=LOOP_TEMPO_RANGE_BPM[0],
        le=LOOP_TEMPO_RANGE_BPM[1],
        allow_inf_nan=False,
        description="tempo in beats per minute; needs bars",
    )
    seamless: bool = pydantic.Field(
        False, description="make the end of the loop lead into its beginning: network and phases are circular in time"
    )

    @pydantic.model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.bars is None) != (self.bpm is None):
            raise ValueError(f"bars {self.bars} with bpm {self.bpm}: set both or neither")
        other = "bars" if self.bars is not None else "width" if self.width is not None else None
        if self.duration_s is not None and other is not None and not (self.has_windows and other == "width"):
            raise ValueError(f"duration_s and {other} both state the length: set only one of them")
        return self

    def resolved(self, model_scheduler: Any) -> Self:
        """Return a copy with the default scheduler and number of steps filled in.

        Args:
            model_scheduler: The scheduler that is saved with the model.

        Raises:
            ValueError: If the model cannot be sampled with these parameters.
        """
        name, steps = resolved(model_scheduler, self)
        return self.model_copy(update={"scheduler": name, "steps": steps})


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
        stated = [name for name in ("encoding", "like", "prompt") if getattr(self, name) is not None]
        if len(stated) > 1:
            raise ValueError(f"{stated[1]} with {stated[0]}: both state the encoding, set only one of them")
        return self


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
