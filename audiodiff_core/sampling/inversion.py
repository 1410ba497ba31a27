"""Inversion of an image to the noise from which DDIM or Euler's method generates the image."""

from typing import Any

import numpy as np

from audiodiff_core.diffusion.noise_schedule import Schedule
from audiodiff_core.diffusion.schedulers import SchedulerOptions, prediction_type
from audiodiff_core.diffusion.step_probe import Column
from audiodiff_core.diffusion.step_tables import StepTable, clean_coefficients

INVERTIBLE = ("ddim", "flow_euler")


def inversion_table(model_scheduler: Any, options: SchedulerOptions, refinements: int) -> StepTable:
    """Return the table of an inversion, which goes from an image to noise against the direction of sampling.

    The sampling step from level i to i + 1 is x[i+1] = signal[i+1] * clean(x[i]) + noise[i+1] * eps(x[i]). The clean
    image and eps are computed from the prediction at x[i], for every prediction type. Solved for x[i], the step is

        x[i] = signal[i] * (x[i+1] - noise[i+1] * eps) / signal[i+1] + noise[i] * eps

    At first, eps is predicted at x[i+1], as in the usual DDIM inversion (Song et al., "Denoising Diffusion Implicit
    Models", 2020). Then eps is predicted `refinements` times at the latest estimate of x[i]. This fixed-point iteration
    converges to the exact x[i].

    At pure noise (zero terminal SNR), x[i] does not depend on the clean image. The clean image is then predicted, and
    eps is (x[i+1] - signal[i+1] * clean) / noise[i+1].

    In the table, the anchor is x[i+1], and the sample is the estimate of x[i].

    Args:
        model_scheduler: The scheduler that is saved with the model.
        options: The sampling parameters.
        refinements: Fixed-point iterations per step.

    Raises:
        ValueError: If the sampling method cannot be inverted.
    """
    schedule = Schedule(model_scheduler, options)
    if schedule.name not in INVERTIBLE or options.eta:
        raise ValueError(
            f"scheduler {schedule.name} with eta {options.eta} cannot be inverted: "
            f"use {' or '.join(INVERTIBLE)} with eta 0"
        )
    levels = [(float(signal), float(noise)) for signal, noise in schedule.levels]
    if schedule.calls == 1 and levels[0][0] == 0:
        raise ValueError("steps 1: one step from pure noise keeps no trace of the noise, use 2 or more to invert")
    predicts = prediction_type(model_scheduler)
    rows = np.zeros((schedule.calls, 1 + refinements, len(Column)))
    for step_rows, level in zip(rows, reversed(range(schedule.calls)), strict=True):
        (signal, noise), (next_signal, next_noise) = levels[level], levels[level + 1]
        row = np.zeros(len(Column))
        row[Column.TIMESTEP], row[Column.INPUT_SCALE] = schedule.timesteps[level], 1
        if signal == 0:
            clean = clean_coefficients(predicts, signal, noise)
            of_source, of_clean = noise / next_noise, -noise * next_signal / next_noise
            row[Column.NEXT_ANCHOR] = of_source
            row[Column.NEXT_SAMPLE], row[Column.NEXT_PREDICTION] = (of_clean * share for share in clean)
        else:
            of_eps = noise - signal * next_noise / next_signal
            row[Column.NEXT_ANCHOR] = signal / next_signal
            row[Column.NEXT_SAMPLE], row[Column.NEXT_PREDICTION] = (
                of_eps * share for share in _eps_coefficients(predicts, signal, noise)
            )
        row[Column.SIGNAL], row[Column.NOISE_SCALE] = signal, noise
        row[Column.ANCHOR_ANCHOR] = 1
        step_rows[:] = row
        step_rows[-1, Column.ANCHOR_ANCHOR], step_rows[-1, Column.ANCHOR_NEXT] = 0, 1
    return StepTable(
        schedule.name,
        schedule.steps,
        rows.reshape(-1, len(Column)).astype(np.float32),
        (False,) * (schedule.calls * (1 + refinements)),
        levels[-1],
        schedule.init_noise_sigma,
        1 + refinements,
        schedule.warning,
    )


def _eps_coefficients(predicts: str, signal: float, noise: float) -> tuple[float, float]:
    """Return (a, b) of the predicted noise a * sample + b * prediction."""
    match predicts:
        case "epsilon":
            return 0.0, 1.0
        case "v_prediction":
            return noise, signal
        case "sample":
            return 1 / noise, -signal / noise
        case _:  # flow
            return 1.0, signal
