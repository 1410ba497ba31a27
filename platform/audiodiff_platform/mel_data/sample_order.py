"""The order in which training reads the samples of a mel dataset.

The order depends only on (seed, epoch):

1. The row groups of the dataset are permuted and laid end to end.
2. The sequence of rows is cut into STREAMS equal parts, the streams.
3. Each stream is shuffled within windows of WINDOW_ROWS rows.
4. Sample i of the epoch is the next sample of stream i mod STREAMS.

The place of any sample is computed without a scan. Memory holds one window per stream for any size of dataset. If the
number of workers w divides STREAMS, each worker owns every w-th stream and reads row groups of its own. Otherwise,
workers share some row groups.

A window of 256 rows overlaps up to three of the row groups of 128 rows that prepare writes. A single worker
alternates between all streams, so it uses 3 * STREAMS row groups at a time. Datasets cache this number of row groups
(`MAX_CACHED_ROW_GROUPS`). With a smaller cache, almost every sample would read a row group again.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch

from audiodiff_core.training import TrainBatch
from audiodiff_platform.mel_data.encodings import SliceEncodings
from audiodiff_platform.mel_data.latents import LatentsDataset
from audiodiff_platform.mel_data.mel_dataset import Place, TrainingImages

STREAMS = 24
WINDOW_ROWS = 256

Numbers = npt.NDArray[np.int64]


class DataOrder:
    """The samples of a dataset by number.

    Numbers continue through all epochs: the number of a sample is epoch * rows + place in the epoch.

    Args:
        dataset: The dataset.
        seed: Seed of the order.
        latents: Latents of the dataset, which are read instead of the images.
        encodings: Encodings of the slices, which are added to the samples.
    """

    def __init__(
        self,
        dataset: TrainingImages,
        seed: int,
        *,
        latents: LatentsDataset | None = None,
        encodings: SliceEncodings | None = None,
    ) -> None:
        self.dataset, self.seed, self.latents, self.encodings = dataset, seed, latents, encodings
        self._group_rows = [rows for _, _, rows in dataset.groups]
        self._epochs: dict[int, Epoch] = {}

    def batch(self, numbers: Sequence[int]) -> TrainBatch:
        """Return the samples of `numbers`. The orders of epochs before the lowest number are discarded."""
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
    encodings: SliceEncodings | None = None,
) -> TrainBatch:
    """Read samples of a dataset.

    Args:
        numbers: Numbers of the samples.
        places: Row group and row of each sample.
        dataset: The dataset.
        latents: Latents of the dataset, which are read instead of the images.
        encodings: Encodings of the slices, which are added to the samples.
    """
    numbered = torch.from_numpy(np.asarray(numbers, np.int64))
    vectors = None
    if encodings is not None:
        vectors = torch.from_numpy(encodings.at(dataset, places))
    if latents is None:
        return TrainBatch(numbered, torch.from_numpy(np.stack([dataset.image(*place) for place in places])), vectors)
    moments = torch.from_numpy(np.stack([latents.moments(*place) for place in places]))
    return TrainBatch(numbered, None, vectors, moments)


class Epoch:
    """The order of one epoch, as described at the top of this module.

    Args:
        group_rows: Number of rows of each row group.
        seed: Seed of the order.
        epoch: Number of the epoch.
    """

    def __init__(self, group_rows: Sequence[int], seed: int, epoch: int) -> None:
        self.key = (seed, epoch)
        self.groups = np.random.default_rng(self.key).permutation(len(group_rows))
        self.ends = np.array(list(accumulate(group_rows[group] for group in self.groups)), np.int64)
        self.total = int(self.ends[-1])
        self._windows: dict[int, tuple[int, Numbers]] = {}

    def locate(self, sample: int) -> Place:
        """Return the row group and the row of `sample`, a number in [0, total)."""
        stream, place = sample % STREAMS, sample // STREAMS
        first = stream * (self.total // STREAMS) + min(stream, self.total % STREAMS)
        window = place // WINDOW_ROWS
        position = first + window * WINDOW_ROWS + int(self._shuffled(stream, window)[place % WINDOW_ROWS])
        group = int(np.searchsorted(self.ends, position, side="right"))
        return int(self.groups[group]), position - (int(self.ends[group - 1]) if group else 0)

    def _shuffled(self, stream: int, window: int) -> Numbers:
        """Return the order within a window of a stream. The last window of each stream is cached."""
        cached_window, order = self._windows.get(stream, (-1, None))
        if order is None or cached_window != window:
            length = (self.total - stream + STREAMS - 1) // STREAMS
            order = np.random.default_rng([*self.key, stream, window]).permutation(
                min(WINDOW_ROWS, length - window * WINDOW_ROWS)
            )
            self._windows[stream] = (window, order)
        return order


def spread_places(dataset: TrainingImages | LatentsDataset, max_places: int) -> list[Place]:
    """Return the places of up to `max_places` rows, evenly spread over the dataset."""
    ends = np.cumsum([rows for _, _, rows in dataset.groups])
    numbers = np.unique(np.linspace(0, dataset.rows - 1, min(max_places, dataset.rows)).astype(np.int64))
    groups = np.searchsorted(ends, numbers, side="right")
    return [
        (int(group), int(number - (ends[group - 1] if group else 0)))
        for number, group in zip(numbers, groups, strict=True)
    ]
