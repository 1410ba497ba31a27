"""Sampling methods by name: diffusers' schedulers, each only where it was seen to be exact on an ideal denoiser.

A model's own scheduler says how it was trained (noise schedule, prediction type, spacing of timesteps); a request names the method
by which it is sampled. `Schedule` is one request's walk down the levels of noise:

    level i    sample = signal_i * clean + noise_i * noise      i = 0: where sampling starts, i = calls: the clean image itself
    call i     the network's at timestep i, which takes the sample from level i to level i + 1

A step of Heun's takes two calls of the network, the last one and all of the others' steps one.
"""

import inspect
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]
SchedulerName = Literal[
    "ddim", "ddpm", "dpm++", "dpm++_sde", "unipc", "euler", "euler_a", "heun", "flow_euler", "flow_heun"
]
Space = Literal["preserving", "exploding", "flow"]

MAX_STEPS = 1_000
LARGEST_FIRST_SIGNAL = 0.1
"""Sampling starts from pure noise: where the first level holds more of the image than this, the user is warned."""

_ALL: frozenset[PredictionType] = frozenset({"epsilon", "v_prediction", "sample"})
_NOISE: frozenset[PredictionType] = frozenset({"epsilon", "v_prediction"})
_FLOW: frozenset[PredictionType] = frozenset({"flow"})

LARGEST_ETA_FROM_PURE_NOISE = 1 - 1e-6
"""At zero terminal SNR an eta of 1 makes DDIM's first step take the root of 1 - 1, which rounding makes negative."""


@dataclass(frozen=True)
class Method:
    """A diffusers scheduler, its usual number of steps, and the models that it is exact for.

    space: how samples between start and end are scaled: variance preserving, variance exploding (clean + sigma * noise) or straight lines.
    """

    scheduler: Any
    default_steps: int
    predictions: frozenset[PredictionType]
    space: Space
    zero_terminal_snr: bool = True
    calls_per_step: int = 1
    takes_eta: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def takes_generator(self) -> bool:
        return "generator" in inspect.signature(self.scheduler.step).parameters


METHODS: dict[SchedulerName, Method] = {
    "ddim": Method(DDIMScheduler, 50, _ALL, "preserving", takes_eta=True),
    "ddpm": Method(DDPMScheduler, 1_000, _ALL, "preserving"),
    "dpm++": Method(DPMSolverMultistepScheduler, 25, _ALL, "preserving"),
    "dpm++_sde": Method(
        DPMSolverMultistepScheduler, 50, _ALL, "preserving", options={"algorithm_type": "sde-dpmsolver++"}
    ),
    "unipc": Method(UniPCMultistepScheduler, 25, _ALL, "preserving"),
    "euler": Method(EulerDiscreteScheduler, 50, _ALL, "exploding"),
    "euler_a": Method(EulerAncestralDiscreteScheduler, 50, _NOISE, "exploding"),
    "heun": Method(HeunDiscreteScheduler, 25, _ALL, "exploding", zero_terminal_snr=False, calls_per_step=2),
    "flow_euler": Method(FlowMatchEulerDiscreteScheduler, 50, _FLOW, "flow"),
    "flow_heun": Method(FlowMatchHeunDiscreteScheduler, 25, _FLOW, "flow", calls_per_step=2),
}
assert tuple(METHODS) == get_args(SchedulerName)

SCHEDULERS: dict[SchedulerName, Any] = {name: method.scheduler for name, method in METHODS.items()}


class Wanted(Protocol):
    """The part of a request's parameters that chooses a schedule; None stands for the default."""

    @property
    def steps(self) -> int | None: ...
    @property
    def scheduler(self) -> SchedulerName | None: ...
    @property
    def eta(self) -> float: ...


def prediction_type(model_scheduler: Any) -> PredictionType:
    """What a model's network predicts, from the scheduler that is saved with it. 'flow' is noise - clean on straight lines between them."""
    if isinstance(model_scheduler, FlowMatchEulerDiscreteScheduler | FlowMatchHeunDiscreteScheduler):
        return "flow"
    found: PredictionType = model_scheduler.config.prediction_type
    if found not in get_args(PredictionType):
        raise ValueError(
            f"prediction_type {found} of the model is not known: {', '.join(get_args(PredictionType))} are"
        )
    return found


def resolved(model_scheduler: Any, wanted: Wanted) -> tuple[SchedulerName, int]:
    """The method and the number of steps that `wanted` stands for on this model.

    Raises ValueError, naming what does not fit, where the method is not exact for the model or cannot take so many steps or an eta.
    """
    predicts = prediction_type(model_scheduler)
    name: SchedulerName = wanted.scheduler or ("flow_euler" if predicts == "flow" else "ddim")
    if name not in METHODS:
        raise ValueError(f"scheduler {name} is not known: {', '.join(METHODS)} are")
    method = METHODS[name]
    config = model_scheduler.config
    levels = config.num_train_timesteps
    steps = min(method.default_steps, levels) if wanted.steps is None else wanted.steps
    if predicts not in method.predictions:
        fitting = ", ".join(other for other, one in METHODS.items() if predicts in one.predictions)
        raise ValueError(f"scheduler {name} does not fit a model with prediction_type {predicts}: use one of {fitting}")
    if predicts != "flow" and config.get("rescale_betas_zero_snr") and not method.zero_terminal_snr:
        fitting = ", ".join(
            other for other, one in METHODS.items() if predicts in one.predictions and one.zero_terminal_snr
        )
        raise ValueError(
            f"scheduler {name} does not know zero terminal SNR (rescale_betas_zero_snr), which the model has: use one of {fitting}"
        )
    if wanted.eta and not method.takes_eta:
        taking = ", ".join(other for other, one in METHODS.items() if one.takes_eta)
        raise ValueError(f"eta {wanted.eta}: scheduler {name} takes none (0), only {taking} does")
    if not 1 <= steps <= min(MAX_STEPS, levels):
        raise ValueError(f"steps {steps}: the model has {levels} levels of noise, use 1 to {min(MAX_STEPS, levels)}")
    return name, steps


def scheduler_for(model_scheduler: Any, wanted: Wanted) -> Any:
    """A fresh diffusers scheduler with its timesteps set, over the noise schedule of a model's own: one for each request, since it keeps state.

    All of the model's configuration that the method has an entry for is handed on (diffusers' `from_config` would replace what equals
    a default by the other class's default). Raises ValueError as `resolved` does.
    """
    name, steps = resolved(model_scheduler, wanted)
    method = METHODS[name]
    entries = inspect.signature(method.scheduler.__init__).parameters
    config = {key: value for key, value in model_scheduler.config.items() if key in entries}
    scheduler = method.scheduler(**(config | method.options))
    if (
        name == "flow_euler"
    ):  # even steps from noise to image; diffusers' own default spends the last one on the last thousandth
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    else:
        scheduler.set_timesteps(steps)
    starts = scheduler.timesteps[:: method.calls_per_step]
    if len(starts) != steps or bool((starts.diff() >= 0).any()):
        raise ValueError(
            f"steps {steps}: {name} does not find as many different timesteps on this model, use another number"
        )
    if hasattr(scheduler, "sigmas") and bool(
        (scheduler.sigmas.diff() > 0).any()
    ):  # pure noise, which diffusers caps, below its neighbour
        scheduler.sigmas[0] = 2 * scheduler.sigmas.max()
    return scheduler


class Schedule:
    """One request's levels of noise, and the steps between them. Keeps the state of multistep methods: never shared.

    timesteps: what the network is told at each call. levels: (signal, noise) of each level, one more than calls, the last being (1, 0).
    Raises ValueError as `resolved` does; warns where the steps do not start from pure noise.
    """

    def __init__(self, model_scheduler: Any, wanted: Wanted) -> None:
        self.name, self.steps = resolved(model_scheduler, wanted)
        self._method = METHODS[self.name]
        self._scheduler = scheduler_for(model_scheduler, wanted)
        self._eta = wanted.eta
        self.timesteps: list[float] = self._scheduler.timesteps.tolist()
        self.levels = self._levels()
        self._warn()

    @property
    def calls(self) -> int:
        return len(self.timesteps)

    @property
    def first_scale(self) -> float:
        """Standard deviation of the pure noise that sampling starts from."""
        return float(getattr(self._scheduler, "init_noise_sigma", 1.0))

    def begin(self, step: int) -> int:
        """Prepares to start at `step` in [0, steps) instead of the first; the number of the call with which it begins."""
        if not 0 <= step < self.steps:
            raise ValueError(f"start_step {step}: {self.steps} steps are taken, use 0 to {self.steps - 1}")
        call = step * self._method.calls_per_step
        if hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(call)
        return call

    def noised(self, clean: torch.Tensor, noise: torch.Tensor, level: int) -> torch.Tensor:
        """`clean` with as much of `noise` as samples have at `level` in [0, calls]."""
        signal, share = self.levels[level]
        return signal * clean + share * noise

    def network_input(self, sample: torch.Tensor, call: int) -> torch.Tensor:
        """The sample as the network expects it: at unit variance."""
        if not hasattr(self._scheduler, "scale_model_input"):
            return sample
        scaled: torch.Tensor = self._scheduler.scale_model_input(sample, self._scheduler.timesteps[call])
        return scaled

    def step(
        self, prediction: torch.Tensor, sample: torch.Tensor, call: int, generator: torch.Generator
    ) -> torch.Tensor:
        """The sample at level `call` + 1 from that at level `call`; all noise that it takes is drawn from `generator`."""
        options: dict[str, Any] = {"generator": generator} if self._method.takes_generator else {}
        if self._method.takes_eta:
            options["eta"] = min(self._eta, LARGEST_ETA_FROM_PURE_NOISE) if self.levels[call][0] == 0 else self._eta
        if self.name == "ddim":
            self._aim_at(call + 1)
        timestep = self._scheduler.timesteps[call]
        moved: torch.Tensor = self._scheduler.step(prediction, timestep, sample, **options, return_dict=False)[0]
        return moved

    def _aim_at(self, level: int) -> None:
        """Has DDIM's next step end at this level. By itself it goes num_train_timesteps // num_inference_steps down, wherever its timesteps are:
        where the one does not divide by the other, samples would be left at levels of which the network is not told.
        """
        start, end = self.timesteps[level - 1], self.timesteps[level] if level < self.calls else -1
        self._scheduler.num_inference_steps = 1
        self._scheduler.register_to_config(num_train_timesteps=int(start - end))

    def _levels(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        one = torch.ones(())
        if not hasattr(self._scheduler, "sigmas"):
            signals = self._scheduler.alphas_cumprod[self._scheduler.timesteps.long()]
            return [(signal**0.5, (1 - signal) ** 0.5) for signal in signals] + [(one, 0 * one)]
        match self._method.space:
            case "preserving":
                return [(1 / (sigma**2 + 1) ** 0.5, sigma / (sigma**2 + 1) ** 0.5) for sigma in self._scheduler.sigmas]
            case "exploding":
                return [(one, sigma) for sigma in self._scheduler.sigmas]
            case "flow":
                return [(1 - sigma, sigma) for sigma in self._scheduler.sigmas]

    def _warn(self) -> None:
        levels = self._scheduler.config.num_train_timesteps
        signal, noise = self.levels[0]
        if signal / (signal**2 + noise**2) ** 0.5 > LARGEST_FIRST_SIGNAL:
            first = f"{self.timesteps[0]:.0f} of {levels}"
            warnings.warn(
                f"steps {self.steps} with {self.name}: sampling starts from noise at level {first}, which is not pure noise",
                stacklevel=4,
            )
