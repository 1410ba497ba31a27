"""Values of steps, such as losses, which stay on the device until they are logged or stored in a checkpoint."""

import itertools
from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import reduce


class StepValues:
    """Values of the steps since the last log line, one for each step, by name.

    Args:
        accelerator: Accelerator of this worker.
        values: Values that a checkpoint holds.
    """

    def __init__(self, accelerator: Accelerator, values: Mapping[str, Sequence[float]]) -> None:
        self.accelerator = accelerator
        self._values: dict[str, list[torch.Tensor | float]] = {name: list(steps) for name, steps in values.items()}

    def __bool__(self) -> bool:
        return bool(self._values)

    def add(self, values: Mapping[str, torch.Tensor | float]) -> None:
        """Add the values of a step, without waiting for the device."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(value)

    def read(self) -> dict[str, list[float]]:
        """Return the mean over the workers of each value, on all workers together. This waits for the device."""
        if not self._values:
            return {}
        own = torch.stack(
            [
                torch.as_tensor(value, dtype=torch.float64, device=self.accelerator.device)
                for value in itertools.chain(*self._values.values())
            ]
        )
        numbers = iter(reduce(own, reduction="mean").tolist())
        means = {name: list(itertools.islice(numbers, len(steps))) for name, steps in self._values.items()}
        self._values = {name: list(steps) for name, steps in means.items()}
        return means

    def clear(self) -> None:
        """Forget the values, after they were logged."""
        self._values = {}
