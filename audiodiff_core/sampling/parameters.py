"""Sampling parameters: what shapes a result beside its seed, its encoding and its sources."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic

from audiodiff_core.audio.key_names import key_name
from audiodiff_core.audio.wav_chunks import BEATS_PER_BAR, LOOP_TEMPO_RANGE_BPM
from audiodiff_core.diffusion.methods import MAX_STEPS, METHODS, ZERO_SNR_DEFAULT, ZERO_SNR_STEPS, SchedulerName

MAX_WIDTH = 16_384
MAX_GUIDANCE = 100.0
MAX_DURATION_S = 3_600.0
MAX_BARS = 1_024
MAX_KEY = 16
LOUDNESS_BOUNDS_LUFS = (-70.0, 0.0)
"""From the gate of the measurement to full scale."""
BRIGHTNESS_BOUNDS_HZ = (1.0, 96_000.0)
"""Up to half of the largest sample rate of images."""
CONDITION_OF_FIELD: Mapping[str, Literal["tempo", "key", "loudness", "brightness"]] = {
    "bpm": "tempo",
    "key": "key",
    "loudness": "loudness",
    "brightness": "brightness",
}
"""Measured features by the field of requests that states them."""
FEATURE_FIELDS = tuple(CONDITION_OF_FIELD)
"""Fields that state a feature of the loop to a model that is conditioned on it."""

KeyName = Annotated[str, pydantic.StringConstraints(max_length=MAX_KEY), pydantic.AfterValidator(key_name)]


class Numeric(pydantic.BaseModel):
    """A model that does not take true and false for 1 and 0, nor numbers for true and false, as pydantic does."""

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        assert info.field_name is not None
        if cls.model_fields[info.field_name].annotation is bool:
            if isinstance(value, int | float) and not isinstance(value, bool):
                raise ValueError(f"{value} is a number: use true or false")
        elif _holds_boolean(value):
            raise ValueError(f"{value} holds true or false: use numbers")
        return value


def _holds_boolean(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_holds_boolean, value)))


class SamplingParameters(Numeric):
    """Sampling parameters: everything in a request except its seed, its encoding and its sources."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")
    has_windows: ClassVar[bool] = False
    """True if `width` is the width of a window, and not the length of the result."""

    steps: int | None = pydantic.Field(
        None,
        ge=1,
        le=MAX_STEPS,
        description=f"denoising steps; none, for a model with zero terminal SNR: {ZERO_SNR_DEFAULT[1]}, or "
        f"{ZERO_SNR_STEPS} if the scheduler is stated; for other models: the usual number of the scheduler, "
        f"{METHODS['ddim'].default_steps} for ddim",
    )
    scheduler: SchedulerName | None = pydantic.Field(
        None,
        description=f"sampling method: {', '.join(METHODS)}; none: {ZERO_SNR_DEFAULT[0]} for a model with zero "
        "terminal SNR if steps is not stated either, otherwise flow_euler for a flow model and ddim for others",
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
        description="tempo in beats per minute; without bars, for a model that is conditioned on tempo",
    )
    key: KeyName | None = pydantic.Field(
        None, description="key, such as C, Am or F# minor, for a model that is conditioned on key"
    )
    loudness: float | None = pydantic.Field(
        None,
        ge=LOUDNESS_BOUNDS_LUFS[0],
        le=LOUDNESS_BOUNDS_LUFS[1],
        allow_inf_nan=False,
        description="loudness in LUFS of the recordings that the loop resembles, for a model that is conditioned on "
        "loudness; the level of the loop does not follow it",
    )
    brightness: float | None = pydantic.Field(
        None,
        ge=BRIGHTNESS_BOUNDS_HZ[0],
        le=BRIGHTNESS_BOUNDS_HZ[1],
        allow_inf_nan=False,
        description="spectral centroid in Hz, for a model that is conditioned on brightness",
    )
    seamless: bool = pydantic.Field(
        False, description="make the end of the loop lead into its beginning: network and phases are circular in time"
    )

    @pydantic.model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.bars is not None and self.bpm is None:
            raise ValueError(f"bars {self.bars} without bpm: set bpm too, or omit bars")
        other = "bars" if self.bars is not None else "width" if self.width is not None else None
        if self.duration_s is not None and other is not None and not (self.has_windows and other == "width"):
            raise ValueError(
                f"duration_s {self.duration_s:g} with {other}: both state the length, set only one of them"
            )
        return self

    @property
    def features(self) -> dict[str, float | str]:
        """Features that are stated, by the name of the field."""
        stated = {name: getattr(self, name) for name in FEATURE_FIELDS}
        return {name: value for name, value in stated.items() if value is not None}

    @property
    def inverts(self) -> bool:
        """True if a source is inverted, for which the sampling method must be ddim or flow_euler."""
        return False

    def resolved(self, model_scheduler: Any) -> Self:
        """Return a copy with the default scheduler and number of steps filled in.

        Args:
            model_scheduler: The scheduler that is saved with the model.

        Raises:
            ValueError: If the model cannot be sampled with these parameters.
        """
        from audiodiff_core.diffusion.schedulers import resolved  # imports diffusers

        name, steps = resolved(model_scheduler, self)
        return self.model_copy(update={"scheduler": name, "steps": steps})
