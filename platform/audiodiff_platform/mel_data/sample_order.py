"""The order in which training reads a mel dataset.

The order is a function of (seed, epoch) alone. Row groups are permuted and laid end to end; the sequence is cut into STREAMS equal
parts; each part is shuffled within windows; sample i of the epoch is the next of stream i mod STREAMS. Any place in an epoch is
found by arithmetic, and memory holds a window per stream, whatever the dataset's size. Where the number of workers w divides STREAMS,
a worker owns every w-th stream and reads its own row groups; where it does not, workers read some row groups of each other too.

A window of 256 rows lies in up to three of the row groups of 128 that prepare writes, and a lone worker turns from stream to stream
with each sample. So it has 3 * STREAMS row groups in use at once, which is what the dataset keeps read (`dataset.HELD_ROW_GROUPS`):
with fewer, it would read a row group anew for nearly every sample.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from audiodiff_core.training import TrainBatch
from audiodiff_platform.mel_data.encodings import Encodings
from audiodiff_platform.mel_data.latents import LatentsDataset
from audiodiff_platform.mel_data.mel_dataset import TrainingImages

STREAMS = 24
WINDOW_ROWS = 256

Numbers = npt.NDArray[np.int64]
Place = tuple[int, int]
"""A row group, an index into the dataset's, and a row in it."""


class DataOrder:
    """A dataset's samples by their numbers: training counts them through all epochs, number = epoch * rows + place in the epoch."""

    def __init__(
        self,
        dataset: TrainingImages,
        seed: int,
        *,
        latents: LatentsDataset | None = None,
        encodings: Encodings | None = None,
    ) -> None:
        """`latents` of the same dataset are read instead of its images; `encodings` go along with them."""
        self.dataset, self.seed, self.latents, self.encodings = dataset, seed, latents, encodings
        self._group_rows = [rows for _, _, rows in dataset.groups]
        self._epochs: dict[int, Epoch] = {}

    def batch(self, numbers: Sequence[int]) -> TrainBatch:
        """The samples of those numbers, of which the lowest says which epochs are over."""
        first = min(numbers) // self.dataset.rows
        self._epochs = {epoch: order for epoch, order in self._epochs.items() if epoch >= first}
        return samples(
            numbers, [self._locate(number) for number in numbers], self.dataset, self.latents, self.encodings
        )

    def _locate(self, number: int) -> Place:
        epoch, place = divmod(number, self.dataset.rows)
        if epoch not in self._epochs:
            self._epochs[epoch] = Epoch(self._group_rows, self.seed, epoch)
        return self._epochs[epoch].locate(place)


def samples(
    numbers: Sequence[int],
    places: Sequence[Place],
    dataset: TrainingImages,
    latents: LatentsDataset | None = None,
    encodings: Encodings | None = None,
) -> TrainBatch:
    """What training sees of a dataset's rows: their latents or else their images, and the encodings of their files."""
    vectors = None if encodings is None else encodings.vectors_for([dataset.audio_file(*place) for place in places])
    if latents is None:
        return TrainBatch(numbers, np.stack([dataset.image(*place) for place in places]), vectors)
    return TrainBatch(numbers, None, vectors, np.stack([latents.moments(*place) for place in places]))


class Epoch:
    """Where each sample of an epoch lies, by the rule in the module's docstring."""

    def __init__(self, group_rows: Sequence[int], seed: int, epoch: int) -> None:
        self.key = (seed, epoch)
        self.groups = np.random.default_rng(self.key).permutation(len(group_rows))
        self.ends = np.array(list(accumulate(group_rows[group] for group in self.groups)), np.int64)
        self.total = int(self.ends[-1])
        self._windows: dict[int, tuple[int, Numbers]] = {}

    def locate(self, sample: int) -> Place:
        """(row group, row in it) of a sample in [0, total)."""
        stream, place = sample % STREAMS, sample // STREAMS
        first = stream * (self.total // STREAMS) + min(stream, self.total % STREAMS)
        window = place // WINDOW_ROWS
        position = first + window * WINDOW_ROWS + int(self._shuffled(stream, window)[place % WINDOW_ROWS])
        group = int(np.searchsorted(self.ends, position, side="right"))
        return int(self.groups[group]), position - (int(self.ends[group - 1]) if group else 0)

    def _shuffled(self, stream: int, window: int) -> Numbers:
        """The order within a stream's window; the last one used of each stream is kept."""
        kept, order = self._windows.get(stream, (-1, None))
        if order is None or kept != window:
            length = (self.total - stream + STREAMS - 1) // STREAMS
            order = np.random.default_rng([*self.key, stream, window]).permutation(
                min(WINDOW_ROWS, length - window * WINDOW_ROWS)
            )
            self._windows[stream] = (window, order)
        return order


def spread_places(dataset: TrainingImages | LatentsDataset, at_most: int) -> list[Place]:
    """Up to `at_most` rows, evenly spread."""
    ends = np.cumsum([rows for _, _, rows in dataset.groups])
    numbers = np.unique(np.linspace(0, dataset.rows - 1, min(at_most, dataset.rows)).astype(np.int64))
    groups = np.searchsorted(ends, numbers, side="right")
    return [
        (int(group), int(number - (ends[group - 1] if group else 0)))
        for number, group in zip(numbers, groups, strict=True)
    ]
