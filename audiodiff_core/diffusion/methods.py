"""Names and facts of the sampling methods.

A sampling method is a diffusers scheduler. For each method, METHODS lists the prediction types with which the method is
exact on an ideal denoiser, according to tests. diffusers itself is imported only for a scheduler's class, so that
requests can be checked without it.
"""

import inspect
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, get_args

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]
SchedulerName = Literal[
    "ddim", "ddpm", "dpm++", "dpm++_sde", "unipc", "euler", "euler_a", "heun", "flow_euler", "flow_heun"
]
Space = Literal["preserving", "exploding", "flow"]

MAX_STEPS = 1_000
ZERO_SNR_STEPS = 15
"""Default number of steps of a stated method for models with zero terminal SNR.

With these steps, the distances of the loops to real audio lie within the confidence intervals of the best method and
number of steps (docs/measurements.md).
"""
ZERO_SNR_DEFAULT: tuple[SchedulerName, int] = ("dpm++_sde", 8)
"""Default method and number of steps for models with zero terminal SNR.

They are the cheapest whose distances lie within the intervals of the best, and nearest to the best at their price.
"""

_DIFFUSION: frozenset[PredictionType] = frozenset({"epsilon", "v_prediction", "sample"})
_EPSILON_OR_V: frozenset[PredictionType] = frozenset({"epsilon", "v_prediction"})
_FLOW: frozenset[PredictionType] = frozenset({"flow"})


@dataclass(frozen=True)
class Method:
    """A sampling method: a diffusers scheduler and the models for which it is exact.

    Attributes:
        class_name: Name of the scheduler's class in diffusers.
        default_steps: Number of steps if the request does not set `steps`, for models without zero terminal SNR. See
            ZERO_SNR_STEPS and ZERO_SNR_DEFAULT for the others.
        predictions: Supported prediction types.
        space: Scaling of intermediate samples: variance preserving, variance exploding (clean + sigma * noise), or
            straight lines between noise and image.
        zero_terminal_snr: Whether the method supports models trained with zero terminal SNR.
        calls_per_step: Network calls per step.
        takes_eta: Whether the scheduler's `step` takes `eta`.
        options: Further arguments of the scheduler's constructor.
    """

    class_name: str
    default_steps: int
    predictions: frozenset[PredictionType]
    space: Space
    zero_terminal_snr: bool = True
    calls_per_step: int = 1
    takes_eta: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def scheduler(self) -> Any:
        """The scheduler's class, imported on first use."""
        return getattr(import_module("diffusers"), self.class_name)

    @property
    def takes_generator(self) -> bool:
        """True if the scheduler's `step` draws noise from a generator."""
        return "generator" in inspect.signature(self.scheduler.step).parameters


METHODS: dict[SchedulerName, Method] = {
    "ddim": Method("DDIMScheduler", 50, _DIFFUSION, "preserving", takes_eta=True),
    "ddpm": Method("DDPMScheduler", 1_000, _DIFFUSION, "preserving"),
    "dpm++": Method("DPMSolverMultistepScheduler", 25, _DIFFUSION, "preserving"),
    "dpm++_sde": Method(
        "DPMSolverMultistepScheduler",
        50,
        _DIFFUSION,
        "preserving",
        options={"algorithm_type": "sde-dpmsolver++"},
    ),
    "unipc": Method("UniPCMultistepScheduler", 25, _DIFFUSION, "preserving"),
    "euler": Method("EulerDiscreteScheduler", 50, _DIFFUSION, "exploding"),
    "euler_a": Method("EulerAncestralDiscreteScheduler", 50, _EPSILON_OR_V, "exploding"),
    "heun": Method("HeunDiscreteScheduler", 25, _DIFFUSION, "exploding", zero_terminal_snr=False, calls_per_step=2),
    "flow_euler": Method("FlowMatchEulerDiscreteScheduler", 15, _FLOW, "flow"),
    "flow_heun": Method("FlowMatchHeunDiscreteScheduler", 25, _FLOW, "flow", calls_per_step=2),
}
assert tuple(METHODS) == get_args(SchedulerName)
