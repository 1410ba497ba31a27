"""Parameters of a request for one loop.

A request is small, frozen and hashable. Its tensors (source, mask, encoding) are in an `Item`.
"""

from typing import Any, Self

import pydantic

from audiodiff_core.diffusion.schedulers import MAX_STEPS, METHODS, SchedulerName, resolved
from audiodiff_core.diffusion.seeds import SEEDS

MAX_WIDTH = 16_384
MAX_GUIDANCE = 100.0


class SamplingParameters(pydantic.BaseModel):
    """Sampling parameters: everything in a request except the seed."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    steps: int | None = pydantic.Field(
        None, ge=1, le=MAX_STEPS, description="denoising steps; none: the usual number of the scheduler, 50 for ddim"
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
    width: int | None = pydantic.Field(
        None,
        ge=1,
        le=MAX_WIDTH,
        description="image columns, one hop of audio each; none: the width that the model was trained for",
    )
    seamless: bool = pydantic.Field(
        False, description="make the end of the loop lead into its beginning: network and phases are circular in time"
    )

    def resolved(self, model_scheduler: Any) -> Self:
        """Return a copy with the default scheduler and number of steps filled in.

        Args:
            model_scheduler: The scheduler that is saved with the model.

        Raises:
            ValueError: If the model cannot be sampled with these parameters.
        """
        name, steps = resolved(model_scheduler, self)
        return self.model_copy(update={"scheduler": name, "steps": steps})


class GenerateRequest(SamplingParameters):
    """A request for one loop, in bulk jobs and over HTTP.

    The seed identifies the loop: equal requests return the same bytes.
    """

    seed: int = pydantic.Field(0, ge=SEEDS[0], le=SEEDS[-1], description="identifies the loop, 0 to 2^32 - 1")
