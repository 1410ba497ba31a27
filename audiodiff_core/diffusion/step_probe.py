"""Columns of a table of coefficients (see `step_tables`), and their measurement on diffusers' schedulers."""

import copy
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from audiodiff_core.diffusion.noise_schedule import Schedule
from audiodiff_core.diffusion.schedulers import SchedulerOptions

MAX_OTHER_COEFFICIENT = 1e-3
"""Larger coefficients of earlier calls mean that a table cannot describe the scheduler."""


class Column(IntEnum):
    """Columns of a table."""

    TIMESTEP = 0
    INPUT_SCALE = 1
    CLEAN_SAMPLE = 2
    CLEAN_PREDICTION = 3
    NEXT_SAMPLE = 4
    NEXT_PREDICTION = 5
    NEXT_CLEAN = 6
    NEXT_CLEAN_1 = 7
    NEXT_CLEAN_2 = 8
    NEXT_ANCHOR = 9
    NEXT_NOISE = 10
    ANCHOR_SAMPLE = 11
    ANCHOR_CLEAN = 12
    ANCHOR_CLEAN_1 = 13
    ANCHOR_CLEAN_2 = 14
    ANCHOR_ANCHOR = 15
    ANCHOR_NEXT = 16
    SIGNAL = 17
    """Signal of the level after the call."""
    NOISE_SCALE = 18
    """Noise of the level after the call."""


class Probe:
    """Measurement of the coefficients of one diffusers scheduler.

    Coordinates of the unit vectors: the samples of the last PERIOD calls, their clean samples, and the anchor. Two
    schedulers step opposite vectors with equal noise. Half of the difference of the results is the affine map, without
    noise. A third scheduler steps zeros, so that its result is the noise alone. Without noise, the first scheduler
    suffices.
    """

    PERIOD = 4
    ANCHOR = 2 * PERIOD

    def __init__(self, model_scheduler: Any, options: SchedulerOptions, start_step: int) -> None:
        schedule = Schedule(model_scheduler, options, clip=False)
        self._schedules = [schedule, *(copy.deepcopy(schedule) for _ in range(2 if schedule.may_draw else 0))]
        self._generators = [torch.Generator() for _ in self._schedules]
        for schedule in self._schedules:
            schedule.begin(start_step)
        self._first = True

    def measure(self, row: npt.NDArray[np.float64], call: int) -> bool:
        """Fill the measured columns of the row of a call. Calls must be in order.

        Returns:
            True if the call draws noise.
        """
        at_sample, at_clean = call % self.PERIOD, self.PERIOD + call % self.PERIOD
        sample, clean, anchor = (torch.zeros(1, self.ANCHOR + 1, dtype=torch.float64) for _ in range(3))
        sample[0, at_sample] = clean[0, at_clean] = anchor[0, self.ANCHOR] = 1
        # The prediction for which the predicted clean sample is `clean`.
        prediction = (clean - row[Column.CLEAN_SAMPLE] * sample) / row[Column.CLEAN_PREDICTION]
        state = self._generators[0].get_state()
        results, anchors = [], []
        for sign, schedule, generator in zip((1, -1, 0), self._schedules, self._generators, strict=False):
            dtype = torch.float64 if sign else torch.float32
            scaled = schedule.network_input(torch.ones(1, self.ANCHOR + 1), call)
            row[Column.INPUT_SCALE] = float(scaled[0, 0])
            if not self._first:
                schedule.set_anchor((sign * anchor).to(dtype))
            stepped = schedule.step((sign * prediction).to(dtype), (sign * sample).to(dtype), call, generator)
            results.append(stepped.double())
            anchors.append(schedule.anchor)
        draws = not torch.equal(state, self._generators[0].get_state())
        if draws:
            assert len(results) == 3, "the method draws noise"
            drawn = torch.Generator()
            drawn.set_state(state)
            noise = torch.randn(1, self.ANCHOR + 1, generator=drawn)
            row[Column.NEXT_NOISE] = float((results[2] / noise).mean())
        affine = (results[0][0] if len(results) == 1 else (results[0] - results[1])[0] / 2).numpy()
        before = [(call - back) % self.PERIOD for back in (1, 2)]
        row[Column.NEXT_SAMPLE], row[Column.NEXT_CLEAN] = self._take(affine, at_sample, at_clean)
        row[Column.NEXT_CLEAN_1], row[Column.NEXT_CLEAN_2] = self._take(affine, *(self.PERIOD + at for at in before))
        if anchors[0] is None:  # an earlier sample is the sample before the last call
            (row[Column.NEXT_ANCHOR],) = self._take(affine, before[0])
            row[Column.ANCHOR_SAMPLE] = 1
        else:
            (row[Column.NEXT_ANCHOR],) = self._take(affine, self.ANCHOR)
            corrected = anchors[0].double()[0].numpy().copy()
            row[Column.ANCHOR_SAMPLE], row[Column.ANCHOR_CLEAN] = self._take(corrected, at_sample, at_clean)
            row[Column.ANCHOR_CLEAN_1], row[Column.ANCHOR_CLEAN_2] = self._take(
                corrected, *(self.PERIOD + at for at in before)
            )
            (row[Column.ANCHOR_ANCHOR],) = self._take(corrected, self.ANCHOR)
            self._require_empty(corrected)
        self._require_empty(affine)
        self._first = False
        return draws

    @staticmethod
    def _take(vector: npt.NDArray[np.float64], *coordinates: int) -> list[float]:
        """Return coordinates of a vector, and set them to 0."""
        taken = [float(vector[coordinate]) for coordinate in coordinates]
        vector[list(coordinates)] = 0
        return taken

    @staticmethod
    def _require_empty(vector: npt.NDArray[np.float64]) -> None:
        if np.abs(vector).max() > MAX_OTHER_COEFFICIENT:
            raise ValueError(
                "the model's scheduler depends on more than three predictions: use solver_order 2 in its configuration"
            )
