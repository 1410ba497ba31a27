"""Tables of the coefficients of sampling steps, so that one call steps samples of any methods.

Every sampling method is an affine map of the sample, the prediction, the clean samples that were predicted before, and
noise. Only the predicted clean sample may be clamped. For call i of the network:

    model input = input_scale * sample
    clean       = clean_sample * sample + clean_prediction * prediction, clamped if the model sets `clip_sample`
    sample'     = next_sample * sample + next_prediction * prediction + next_clean * clean
                  + next_clean_1 * clean of call i - 1 + next_clean_2 * clean of call i - 2
                  + next_anchor * anchor + next_noise * noise
    anchor'     = anchor_sample * sample + anchor_clean * clean + ... + anchor_anchor * anchor + anchor_next * sample'

The anchor is an earlier sample: the corrected sample of UniPC, or the sample before the first call of a step of Heun's
method. The coefficients are measured on diffusers' own scheduler, which steps unit vectors instead of samples.
"""

import json
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from audiodiff_core.diffusion.methods import METHODS, SchedulerName
from audiodiff_core.diffusion.noise_schedule import Schedule
from audiodiff_core.diffusion.schedulers import SchedulerOptions, prediction_type
from audiodiff_core.diffusion.step_probe import Column, Probe

MIN_COEFFICIENT = 5e-7
"""Smaller coefficients are rounding errors of the schedulers, some of which calculate in float32."""

MAX_TABLES = 256
"""Number of tables in memory. A table of 1,000 calls takes 0.1 MB."""


@dataclass(frozen=True, eq=False)
class StepTable:
    """Coefficients of the network calls of one sampling method.

    Attributes:
        name: The sampling method.
        steps: Number of steps of a whole trajectory.
        rows: float32 (calls, columns), in the order of `Column`.
        draws: Whether a call draws noise, for each call.
        first_level: (signal, noise) of the level at the first call.
        init_noise_sigma: Standard deviation of pure noise.
        calls_per_step: Network calls per step.
        warning: Warning about the number of steps, or None.
    """

    name: SchedulerName
    steps: int
    rows: npt.NDArray[np.float32]
    draws: tuple[bool, ...]
    first_level: tuple[float, float]
    init_noise_sigma: float
    calls_per_step: int = 1
    warning: str | None = None

    @property
    def calls(self) -> int:
        """Number of network calls."""
        return len(self.rows)


@dataclass(frozen=True)
class _Options:
    steps: int | None
    scheduler: SchedulerName | None
    eta: float
    inverts: bool = False


def step_table(model_scheduler: Any, options: SchedulerOptions, start_step: int = 0) -> StepTable:
    """Return the table of a sampling method. Tables are cached.

    A process measures one table at a time: the measurement holds the interpreter, so that threads would only delay each
    other. Threads that ask for the same table wait for one measurement.

    Args:
        model_scheduler: The scheduler that is saved with the model.
        options: The sampling parameters.
        start_step: Number of steps to skip. Multistep methods then start without earlier predictions.

    Raises:
        ValueError: As `scheduler_for`, and if `start_step` is out of range.
    """
    saved = _Saved(model_scheduler)
    entry = _entry(saved, _Options(options.steps, options.scheduler, options.eta, options.inverts), start_step)
    return entry.table()


class _Saved:
    """Key of a cache: two saved schedulers are equal if their class and configuration are equal."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self._key = (type(scheduler), json.dumps(dict(scheduler.config), sort_keys=True, default=repr))

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Saved) and self._key == other._key


class _Entry:
    """Entry of the cache, whose table is measured when it is first asked for."""

    _measuring = threading.Lock()

    def __init__(self, saved: _Saved, options: _Options, start_step: int) -> None:
        self._arguments = saved, options, start_step
        self._table: StepTable | None = None

    def table(self) -> StepTable:
        """Return the table."""
        if self._table is None:
            with self._measuring:
                if self._table is None:
                    self._table = _measured(*self._arguments)
        return self._table


@lru_cache(maxsize=MAX_TABLES)
def _entry(saved: _Saved, options: _Options, start_step: int) -> _Entry:
    return _Entry(saved, options, start_step)


def _measured(saved: _Saved, options: _Options, start_step: int) -> StepTable:
    schedule = Schedule(saved.scheduler, options, clip=False)
    first = schedule.begin(start_step)
    probe = Probe(saved.scheduler, options, start_step)
    rows = np.zeros((schedule.calls - first, len(Column)), np.float64)
    draws = []
    predicts = prediction_type(saved.scheduler)
    for row, call in zip(rows, range(first, schedule.calls), strict=True):
        signal, noise = (float(value) for value in schedule.levels[call])
        clean_sample, clean_prediction = clean_coefficients(predicts, signal, noise)
        row[Column.TIMESTEP] = schedule.timesteps[call]
        row[Column.CLEAN_SAMPLE], row[Column.CLEAN_PREDICTION] = clean_sample, clean_prediction
        row[Column.SIGNAL], row[Column.NOISE_SCALE] = (float(value) for value in schedule.levels[call + 1])
        draws.append(probe.measure(row, call))
        if schedule.name == "ddim":
            _separate_ddim_noise(row)
    rows[np.abs(rows) < MIN_COEFFICIENT] = 0
    if not rows[:, Column.NEXT_ANCHOR].any():
        rows[:, Column.ANCHOR_SAMPLE : Column.ANCHOR_NEXT + 1] = 0
    _check_columns(rows)
    return StepTable(
        schedule.name,
        schedule.steps,
        rows.astype(np.float32),
        tuple(draws),
        (float(schedule.levels[first][0]), float(schedule.levels[first][1])),
        schedule.init_noise_sigma,
        METHODS[schedule.name].calls_per_step,
        schedule.warning,
    )


def clean_coefficients(predicts: str, signal: float, noise: float) -> tuple[float, float]:
    """Return (a, b) of the predicted clean sample a * sample + b * prediction.

    Args:
        predicts: The prediction type.
        signal: Signal of the level.
        noise: Noise of the level.
    """
    match predicts:
        case "epsilon":
            return 1 / signal, -noise / signal
        case "v_prediction":  # of the sample that is scaled to unit variance
            return signal / (signal**2 + noise**2), -noise / (signal**2 + noise**2) ** 0.5
        case "sample":
            return 0.0, 1.0
        case _:  # flow
            return 1.0, -noise


def _separate_ddim_noise(row: npt.NDArray[np.float64]) -> None:
    """Express the noise of a DDIM step by the prediction.

    A clamp acts on the clean sample of the step, but not on its noise (`use_clipped_model_output` False).
    """
    of_noise = row[Column.NEXT_CLEAN] - row[Column.SIGNAL]
    row[Column.NEXT_CLEAN] = row[Column.SIGNAL]
    row[Column.NEXT_SAMPLE] += of_noise * row[Column.CLEAN_SAMPLE]
    row[Column.NEXT_PREDICTION] = of_noise * row[Column.CLEAN_PREDICTION]


def _check_columns(rows: npt.NDArray[np.float64]) -> None:
    if not np.isfinite(rows).all():
        call, column = (int(index[0]) for index in np.nonzero(~np.isfinite(rows)))
        raise ValueError(f"{Column(column).name.lower()} of network call {call} is not finite: use another method")
