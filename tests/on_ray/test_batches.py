"""Batches of training workers: the same samples for any number of data workers, in any share, after any resume."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.models import build_network
from audiodiff_core.training import TrainBatch, TrainState, train_step
from audiodiff_platform.mel_data.mel_dataset import MelDataset
from audiodiff_platform.mel_data.sample_order import DataOrder
from audiodiff_platform.train.batches import Batches, Reads, Share
from tests.rare import rare

CPU = torch.device("cpu")


def _open_order(dataset: str) -> DataOrder:
    return DataOrder(MelDataset(dataset), seed=3)


def _fails(dataset: str) -> DataOrder:
    raise ValueError(f"dataset_name {dataset}: cannot be read")


def _unchanged(batch: TrainBatch) -> TrainBatch:
    return batch


def _read(open_order: Callable[[], DataOrder], share: Share, data_workers: int, count: int = 5) -> list[TrainBatch]:
    batches = Batches(Reads(open_order, share, first=2), data_workers, CPU, _unchanged)
    try:
        return [batch for batch, _ in zip(batches, range(count), strict=False)]
    finally:
        batches.close()


def _equal(one: TrainBatch, other: TrainBatch) -> bool:
    assert one.images is not None
    assert other.images is not None
    return torch.equal(one.numbers, other.numbers) and torch.equal(one.images, other.images)


@pytest.mark.parametrize("world", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_shares_and_their_parts_are_the_batch(world: int, parts: int) -> None:
    for first in (0, 7, 1_001):
        shares = [Share(7, rank, world) for rank in range(world)]
        assert sorted(number for share in shares for number in share.numbers(first)) == list(range(first, first + 7))
        for share in shares:
            read = [number for part in range(parts) for number in share.part(part, parts).numbers(first)]
            assert sorted(read) == list(share.numbers(first))


@pytest.mark.parametrize("data_workers", [rare(1), 2, rare(3)])
def test_data_workers_do_not_change_the_batches(dataset: Path, data_workers: int) -> None:
    open_order, share = partial(_open_order, str(dataset)), Share(5, 1, 2)
    expected, read = _read(open_order, share, 0), _read(open_order, share, data_workers)
    assert [batch.numbers.tolist() for batch in expected] == [list(share.numbers(2 + 5 * index)) for index in range(5)]
    assert all(map(_equal, expected, read))


def test_an_error_of_a_data_worker_is_raised(dataset: Path) -> None:
    with pytest.raises(ValueError, match=f"dataset_name {dataset}: cannot be read"):
        _read(partial(_fails, str(dataset)), Share(4, 0, 1), 1)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread, as training workers on CPUs do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _gradients(dataset: Path, rank: int, world: int) -> tuple[float, list[torch.Tensor]]:
    """Return the loss and the gradients that one of `world` workers computes in a step of 26 samples."""
    torch.manual_seed(0)
    order = _open_order(str(dataset))
    network = build_network("tiny", order.dataset.mel)
    gradients: list[torch.Tensor] = []
    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(lambda of: gradients.append(of.grad.clone()))
    accelerator = Accelerator(cpu=True)
    state = TrainState(accelerator, network, Objective(), 1e-3, seed=0)
    batch = order.batch(Share(26, rank, world).numbers(52))
    loss, _ = train_step(accelerator, state, [batch], 0.0, samples=26 / world)
    return float(loss), gradients


@pytest.mark.parametrize("world", [8, rare(16), rare(24)])
def test_gradients_of_many_workers_average_to_those_of_one(one_thread: None, dataset: Path, world: int) -> None:
    """Check the shares of many workers in one process. DDP averages the gradients over the workers."""
    loss, gradients = _gradients(dataset, 0, 1)
    shares = [_gradients(dataset, rank, world) for rank in range(world)]
    assert sum(share for share, _ in shares) / world == pytest.approx(loss, rel=1e-5)
    scale = max(float(gradient.abs().max()) for gradient in gradients)
    for number, gradient in enumerate(gradients):
        mean = torch.stack([own[number] for _, own in shares]).mean(dim=0)
        assert float((mean - gradient).abs().max()) <= 1e-5 * scale
