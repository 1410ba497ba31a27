"""What can be asked for. A request is small, frozen and hashable; tensors (sources, masks, encodings) travel beside it in an `Item`."""

from typing import Any, Self

import pydantic

from audiodiff_core.diffusion.schedulers import MAX_STEPS, METHODS, SchedulerName, resolved
from audiodiff_core.seeds import SEEDS

MAX_WIDTH = 16_384
MAX_GUIDANCE = 100.0


class SamplingParameters(pydantic.BaseModel):
    """How a loop is sampled, whichever loop it is."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    steps: int | None = pydantic.Field(
        None, ge=1, le=MAX_STEPS, description="denoising steps; none: the scheduler's usual number (ddim 50)"
    )
    scheduler: SchedulerName | None = pydantic.Field(
        None, description=f"sampling method: {', '.join(METHODS)}; none: flow_euler for a flow model, ddim for others"
    )
    eta: float = pydantic.Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="share of fresh noise in each step of ddim: 0 none, 1 as much as ddpm",
    )
    guidance_scale: float = pydantic.Field(
        1.0,
        ge=0,
        le=MAX_GUIDANCE,
        allow_inf_nan=False,
        description="classifier-free guidance by the encoding: 1 none, 0 disregards it",
    )
    width: int | None = pydantic.Field(
        None, ge=1, le=MAX_WIDTH, description="image columns, a hop each; none: as the model was trained"
    )
    seamless: bool = pydantic.Field(
        False, description="the loop's end leads into its beginning: network and phases are circular in time"
    )

    def resolved(self, model_scheduler: Any) -> Self:
        """The same with the scheduler and steps that None stands for on a model. Raises ValueError where the model cannot be sampled so."""
        name, steps = resolved(model_scheduler, self)
        return self.model_copy(update={"scheduler": name, "steps": steps})


class GenerateRequest(SamplingParameters):
    """One loop to be made: the same for bulk jobs and for HTTP. The seed names the loop: the same seed, the same bytes."""

    seed: int = pydantic.Field(0, ge=SEEDS[0], le=SEEDS[-1], description="names the loop, 0 to 2^32 - 1")
