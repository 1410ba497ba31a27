"""Schedulers of the sampling methods in `methods`.

The scheduler that is saved with a model describes the training of the model: noise schedule, prediction type and
timestep spacing. A request selects the sampling method.
"""

import inspect
from typing import Any, Protocol, get_args

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

from audiodiff_core.diffusion.methods import (
    MAX_STEPS,
    METHODS,
    ZERO_SNR_DEFAULT,
    ZERO_SNR_STEPS,
    PredictionType,
    SchedulerName,
)

SCHEDULERS: dict[SchedulerName, Any] = {name: method.scheduler for name, method in METHODS.items()}


class SchedulerOptions(Protocol):
    """Sampling parameters that select a schedule. None selects the default."""

    @property
    def inverts(self) -> bool: ...

    @property
    def steps(self) -> int | None: ...
    @property
    def scheduler(self) -> SchedulerName | None: ...
    @property
    def eta(self) -> float: ...


def prediction_type(model_scheduler: Any) -> PredictionType:
    """Return the prediction type of a model. A network of type `flow` predicts noise - clean.

    Args:
        model_scheduler: The scheduler that is saved with the model.

    Raises:
        ValueError: If the prediction type is unknown.
    """
    if isinstance(model_scheduler, FlowMatchEulerDiscreteScheduler | FlowMatchHeunDiscreteScheduler):
        return "flow"
    configured: PredictionType = model_scheduler.config.prediction_type
    if configured not in get_args(PredictionType):
        raise ValueError(
            f"prediction_type {configured} of the model is not known: use one of {', '.join(get_args(PredictionType))}"
        )
    return configured


def resolved(model_scheduler: Any, options: SchedulerOptions) -> tuple[SchedulerName, int]:
    """Return the sampling method and the number of steps, with defaults filled in.

    If neither is stated, a model with zero terminal SNR is sampled with ZERO_SNR_DEFAULT, unless the parameters need
    ddim: an inversion, or `eta`. If only the number of steps is stated, the method is that of the saved model: ddim,
    or flow_euler for a flow.

    Args:
        model_scheduler: The scheduler that is saved with the model.
        options: The sampling parameters.

    Raises:
        ValueError: If the method is unknown or not exact for the model, or if the method or the model does not support
            this `eta` or this number of steps.
    """
    predicts = prediction_type(model_scheduler)
    config = model_scheduler.config
    zero_snr = predicts != "flow" and bool(config.get("rescale_betas_zero_snr"))
    name: SchedulerName = options.scheduler or ("flow_euler" if predicts == "flow" else "ddim")
    if name not in METHODS:
        raise ValueError(f"scheduler {name} is not known: use one of {', '.join(METHODS)}")
    method = METHODS[name]
    default = ZERO_SNR_STEPS if zero_snr else method.default_steps
    if zero_snr and options.scheduler is None and options.steps is None and not (options.eta or options.inverts):
        name, default = ZERO_SNR_DEFAULT
        method = METHODS[name]
    levels = config.num_train_timesteps
    if config.get("thresholding"):
        raise ValueError("thresholding of the model's scheduler is not supported: set it to false in its configuration")
    steps = min(default, levels) if options.steps is None else options.steps
    suitable = {other: candidate for other, candidate in METHODS.items() if predicts in candidate.predictions}
    if name not in suitable:
        raise ValueError(
            f"scheduler {name} does not fit a model with prediction_type {predicts}: use one of {', '.join(suitable)}"
        )
    if zero_snr and not method.zero_terminal_snr:
        supporting = ", ".join(other for other, candidate in suitable.items() if candidate.zero_terminal_snr)
        raise ValueError(
            f"scheduler {name} does not support the model's zero terminal SNR (rescale_betas_zero_snr): "
            f"use one of {supporting}"
        )
    if options.eta and not method.takes_eta:
        supporting = ", ".join(other for other, candidate in METHODS.items() if candidate.takes_eta)
        raise ValueError(f"eta {options.eta}: scheduler {name} has no eta, use 0 or scheduler {supporting}")
    if not 1 <= steps <= min(MAX_STEPS, levels):
        raise ValueError(f"steps {steps}: the model has {levels} levels of noise, use 1 to {min(MAX_STEPS, levels)}")
    return name, steps


def scheduler_for(model_scheduler: Any, options: SchedulerOptions) -> Any:
    """Build a diffusers scheduler for one request, with its timesteps set.

    The scheduler keeps state between steps, so every request needs its own scheduler. Its constructor receives every
    entry of the model's configuration that it accepts. diffusers' `from_config` does not keep all entries: an entry
    that equals the default of the model's scheduler class becomes the default of the new class.

    Args:
        model_scheduler: The scheduler that is saved with the model.
        options: The sampling parameters.

    Raises:
        ValueError: As `resolved`, and if the method has fewer distinct timesteps than steps on this model.
    """
    name, steps = resolved(model_scheduler, options)
    method = METHODS[name]
    entries = inspect.signature(method.scheduler.__init__).parameters
    config = {key: value for key, value in model_scheduler.config.items() if key in entries}
    scheduler = method.scheduler(**(config | method.options))
    if name == "flow_euler":
        # The steps have equal size. With diffusers' default, the last step covers only a thousandth of the path.
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    else:
        scheduler.set_timesteps(steps)
    step_timesteps = scheduler.timesteps[:: method.calls_per_step]
    if len(step_timesteps) != steps or bool((step_timesteps.diff() >= 0).any()):
        raise ValueError(f"steps {steps}: {name} has fewer distinct timesteps on this model, use another number")
    if hasattr(scheduler, "sigmas") and bool((scheduler.sigmas.diff() > 0).any()):
        # diffusers caps the sigma of pure noise, which can fall below the sigma of the next level.
        scheduler.sigmas[0] = 2 * scheduler.sigmas.max()
    return scheduler
