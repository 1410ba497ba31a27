"""The order in which training reads a mel dataset.

The order is a function of (seed, epoch) alone. Row groups are permuted and laid end to end; the sequence is cut into STREAMS equal
parts; each part is shuffled within windows; sample i of the epoch is the next of stream i mod STREAMS. A worker of w (w divides
STREAMS) owns every w-th stream, so it reads its own row groups (two neighbours may share the one at their border), any place in an
epoch is found by arithmetic, and memory holds a window per stream, whatever the dataset's size.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from audiodiff_core.training import TrainBatch
from audiodiff_platform.dataset import TrainingImages

STREAMS = 24
WINDOW_ROWS = 256


def train_batch(dataset: TrainingImages, seed: int, numbers: Sequence[int]) -> TrainBatch:
    """The samples of those numbers: training counts them through all epochs, number = epoch * rows + place in the epoch."""
    group_rows = tuple(rows for _, _, rows in dataset.groups)
    orders = {epoch: Order(group_rows, seed, epoch) for epoch in {number // dataset.rows for number in numbers}}
    images = [dataset.image(*orders[number // dataset.rows].locate(number % dataset.rows)) for number in numbers]
    return TrainBatch(numbers, np.stack(images))


class Order:
    """Where sample i of an epoch lies, by the rule in the module's docstring."""

    def __init__(self, group_rows: tuple[int, ...], seed: int, epoch: int) -> None:
        self.key = (seed, epoch)
        self.groups, self.ends = _permuted(group_rows, seed, epoch)
        self.total = int(self.ends[-1])

    def locate(self, sample: int) -> tuple[int, int]:
        """(row group, row in it) of a sample in [0, total)."""
        stream, place = sample % STREAMS, sample // STREAMS
        first = stream * (self.total // STREAMS) + min(stream, self.total % STREAMS)
        length = (self.total - stream + STREAMS - 1) // STREAMS
        window = place // WINDOW_ROWS
        size = min(WINDOW_ROWS, length - window * WINDOW_ROWS)
        position = first + window * WINDOW_ROWS + int(_shuffled(*self.key, stream, window, size)[place % WINDOW_ROWS])
        group = int(np.searchsorted(self.ends, position, side="right"))
        return int(self.groups[group]), position - (int(self.ends[group - 1]) if group else 0)


@lru_cache(maxsize=2)
def _permuted(group_rows: tuple[int, ...], seed: int, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Row groups in the epoch's order, and where each ends in the sequence of all rows."""
    groups = np.random.default_rng([seed, epoch]).permutation(len(group_rows))
    return groups, np.array(list(accumulate(group_rows[group] for group in groups)), np.int64)


@lru_cache(maxsize=2 * STREAMS)
def _shuffled(seed: int, epoch: int, stream: int, window: int, size: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch, stream, window]).permutation(size)
