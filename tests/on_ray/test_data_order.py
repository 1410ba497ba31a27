"""The order of the data: each row once per epoch, and a share of the rows for each stream.

Checkpoints rely on the order, so it must never change.
"""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from audiodiff_core.mel import Images
from audiodiff_core.training import TrainBatch
from audiodiff_platform.mel_data.mel_dataset import MelDataset
from audiodiff_platform.mel_data.sample_order import STREAMS, DataOrder, Epoch

SMALL = (7, 200, 64, 1, 256, 300)
LARGE = (200,) * 40 + (64,) * 60 + (255,) * 7


def located(group_rows: tuple[int, ...], seed: int, epoch: int) -> list[tuple[int, int]]:
    order = Epoch(group_rows, seed, epoch)
    return [order.locate(sample) for sample in range(order.total)]


@pytest.mark.parametrize(
    ("group_rows", "seed", "epoch", "first", "digest"),
    [
        (SMALL, 0, 0, [(2, 3), (2, 43), (5, 9), (5, 40)], "027e508d35df899a"),
        (SMALL, 0, 5, [(4, 3), (4, 65), (4, 77), (4, 111)], "3eeeeff9f1cf2d09"),
        (LARGE, 11, 2, [(98, 46), (61, 9), (0, 80), (81, 38)], "bce8ac4eb0136c83"),
    ],
)
def test_the_order_is_what_it_always_was(
    group_rows: tuple[int, ...], seed: int, epoch: int, first: list[tuple[int, int]], digest: str
) -> None:
    places = located(group_rows, seed, epoch)
    assert places[:4] == first
    assert hashlib.sha256(np.array(places, np.int64).tobytes()).hexdigest()[:16] == digest


def test_every_row_is_read_once_and_streams_share_row_groups_only_at_their_borders() -> None:
    assert STREAMS % 2 == STREAMS % 3 == STREAMS % 4 == 0
    places = located(LARGE, 0, 0)
    assert sorted(places) == [(group, row) for group, rows in enumerate(LARGE) for row in range(rows)]
    readers = [
        {stream for stream in range(STREAMS) if any(place[0] == group for place in places[stream::STREAMS])}
        for group in range(len(LARGE))
    ]
    assert max(map(len, readers)) <= 2
    assert sum(len(streams) == 2 for streams in readers) < STREAMS


def images_of(batch: TrainBatch) -> Images:
    assert batch.images is not None
    images: Images = batch.images.numpy()
    return images


def test_an_epoch_has_each_row_once_and_the_next_has_another_order(dataset: Path) -> None:
    data = MelDataset(str(dataset))
    images = sorted(image.tobytes() for image in data.all_images())
    order = DataOrder(data, 0)
    first, second = (images_of(order.batch(range(epoch * data.rows, (epoch + 1) * data.rows))) for epoch in (0, 1))
    assert sorted(image.tobytes() for image in first) == sorted(image.tobytes() for image in second) == images
    assert not np.array_equal(first, second)


def test_a_batch_does_not_depend_on_those_before_it(dataset: Path) -> None:
    data = MelDataset(str(dataset))
    numbers = range(3 * data.rows)
    whole = DataOrder(data, 4).batch(numbers)
    assert whole.numbers.tolist() == list(numbers)
    in_turn = DataOrder(data, 4)
    for start in (0, 20, 40, 60):
        part = numbers[start : start + 20]
        assert np.array_equal(images_of(in_turn.batch(part)), images_of(whole)[start : start + 20])
    back = numbers[5:9]
    assert np.array_equal(images_of(in_turn.batch(back)), images_of(whole)[5:9])
