"""Clock of rank 0, on which all workers agree at steps that they all know in advance.

Between two agreements, no worker waits for another worker or for its device. Each agreement states the step of the next
agreement, about `interval_s` later, and the duration of a step. From these, all workers compute the same training time
for every step until then.
"""

import time
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

INTERVAL_S = 2.0


class SharedClock:
    """Training time of a group of workers.

    Args:
        accelerator: Accelerator of this worker.
        step: Step from which training starts or resumes.
        seconds: Training time up to `step`.
        interval_s: Time between agreements. At least one step lies between them.
    """

    def __init__(self, accelerator: Accelerator, step: int, seconds: float, interval_s: float = INTERVAL_S) -> None:
        self.accelerator, self.interval_s = accelerator, interval_s
        self.next_step = step
        self._step, self._seconds, self._seconds_per_step = step, seconds, 0.0
        self._offset = seconds - time.monotonic()

    def seconds_at(self, step: int) -> float:
        """Return the training time at a step, which is the same number on all workers."""
        return self._seconds + (step - self._step) * self._seconds_per_step

    def agree(self, step: int, notice: Any) -> Any:
        """Set the time of all workers to the time of rank 0.

        Args:
            step: The current step, equal to `next_step`.
            notice: An object that rank 0 sends to all workers. The objects of other workers are ignored.

        Returns:
            The notice of rank 0.
        """
        assert step == self.next_step, f"agreement at step {step} instead of {self.next_step}"
        seconds = self._offset + time.monotonic()
        passed = step - self._step
        pace = (seconds - self._seconds) / passed if passed else 0.0
        # The first steps take longer. The interval therefore at most doubles each time.
        wanted = 1 if not passed else min(2 * passed, max(1, int(self.interval_s / max(pace, 1e-9))))
        values = broadcast_object_list([seconds, pace, step + wanted, notice])
        self._step = step
        self._seconds, self._seconds_per_step, self.next_step, sent = values
        return sent
