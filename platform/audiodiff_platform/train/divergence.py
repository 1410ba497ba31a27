"""Detection of a training that has diverged to a finite loss."""

from collections import deque
from statistics import fmean

WINDOW = 30
"""Number of values whose means are compared."""
DIVERGED = 1.75
"""Multiple of the lowest mean from which a training counts as diverged."""


class LossWatch:
    """Watch for a loss that rises far above its lowest mean.

    If the learning rate is too high, the loss of a network can jump to about that of an untrained one, and stay there,
    while all gradients are finite. The values of single steps vary by more than that, so means of WINDOW values are
    compared.
    """

    def __init__(self) -> None:
        self._values = deque[float](maxlen=WINDOW)
        self._lowest, self._lowest_step = float("inf"), 0
        self._told = False

    def add(self, step: int, loss: float) -> str | None:
        """Add a loss, and return the notice for the user at the first sign of a divergence.

        Args:
            step: Step of the loss.
            loss: A loss, which is positive.
        """
        self._values.append(loss)
        if len(self._values) < WINDOW or self._told:
            return None
        mean = fmean(self._values)
        if mean < self._lowest:
            self._lowest, self._lowest_step = mean, step
        if mean <= DIVERGED * self._lowest:
            return None
        self._told = True
        return (
            f"step {step}: the mean loss is {mean:.4f}, and was {self._lowest:.4f} at step {self._lowest_step}: the "
            "training has diverged; train in another folder with a lower learning_rate"
        )
