"""Training by two workers with shares of different sizes against training by one worker.

The tests cover VAE and discriminator (DDP), and weights that are sharded over both workers (FSDP 2) and saved whole.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn

from audiodiff_core.mel import MelConfig
from audiodiff_core.models import build_vae
from audiodiff_core.training import TrainBatch, TrainState, sharding, train_step
from audiodiff_core.training.vae_losses import VaeObjective
from audiodiff_core.training.vae_state import VaeTrainState
from audiodiff_core.training.vae_step import train_vae_step
from tests.process_group import free_port, joined, joined_with_fsdp, tiny_state

WORLD = 2
STEPS = 2


def trained(accelerator: Accelerator, rank: int, world: int) -> TrainState:
    state = tiny_state(accelerator)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (10, 16, 16), dtype=np.uint8))
    for _ in range(STEPS):
        shares = [torch.arange(first + rank, first + 5, world) for first in (0, 5)]
        train_step(
            accelerator, state, [TrainBatch(numbers, images[numbers]) for numbers in shares], 1e-4, samples=10 / world
        )
    return state


def weights_of(state: TrainState) -> dict[str, Any]:
    return {"live": state.state_dict(), "average": state.ema_state_dict(), "optimizer": state.optimizer_state_dict()}


def sharded_worker(rank: int, port: int, folder: str) -> None:
    state = trained(joined_with_fsdp(rank, port, WORLD), rank, WORLD)
    assert all(isinstance(weight, DTensor) for weight in [*state.network.parameters(), *state.ema.weights])
    weights = weights_of(state)
    if rank == 0:
        torch.save(weights, f"{folder}/weights.pt")
    other = {name: weight + 1 for name, weight in weights["live"].items()}
    state.load_ema_state_dict(other)
    state.load_state_dict(other)
    for given in (state.ema_state_dict(), state.state_dict()):
        assert all(torch.equal(weight, other[name]) for name, weight in given.items())


def trained_vae(accelerator: Accelerator, rank: int, world: int) -> VaeTrainState:
    torch.manual_seed(0)
    objective = VaeObjective(adversarial_start=1)
    state = VaeTrainState(
        accelerator,
        build_vae("vae-tiny", MelConfig(x_res=32, y_res=32)),
        objective,
        1e-3,
        seed=0,
        discriminator_channels=8,
    )
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (10, 32, 32), dtype=np.uint8))
    for _ in range(STEPS):
        shares = [torch.arange(first + rank, first + 5, world) for first in (0, 5)]
        train_vae_step(
            accelerator, state, [TrainBatch(numbers, images[numbers]) for numbers in shares], 1e-4, samples=10 / world
        )
    return state


def vae_worker(rank: int, port: int, folder: str) -> None:
    weights = trained_vae(joined(rank, port, WORLD), rank, WORLD).state_dict()
    torch.save(weights, f"{folder}/weights-{rank}.pt")


@pytest.mark.soak
def test_two_workers_train_one_vae_and_one_discriminator(tmp_path: Path) -> None:
    spawn(vae_worker, (free_port(), str(tmp_path)), nprocs=WORLD)
    first, second = (torch.load(tmp_path / f"weights-{rank}.pt", weights_only=True) for rank in range(WORLD))
    alone = trained_vae(Accelerator(cpu=True), 0, 1).state_dict()
    assert first.keys() == second.keys() == alone.keys()
    for name, weight in alone.items():
        assert torch.equal(first[name], second[name]), name
        # Two steps of Adam change a weight by up to 2e-4.
        torch.testing.assert_close(first[name], weight, atol=5e-5, rtol=0)


@pytest.mark.soak
def test_two_shards_are_one_network(tmp_path: Path) -> None:
    spawn(sharded_worker, (free_port(), str(tmp_path)), nprocs=WORLD)
    sharded = torch.load(tmp_path / "weights.pt", weights_only=True)
    alone = weights_of(trained(Accelerator(cpu=True), 0, 1))
    for kind in ("live", "average"):
        assert sharded[kind].keys() == alone[kind].keys()
        for name, weight in alone[kind].items():
            torch.testing.assert_close(sharded[kind][name], weight, atol=5e-5, rtol=0)
    assert sharded["optimizer"]["state"].keys() == alone["optimizer"]["state"].keys()
    for name, moments in alone["optimizer"]["state"].items():
        torch.testing.assert_close(
            sharded["optimizer"]["state"][name]["exp_avg"], moments["exp_avg"], atol=1e-6, rtol=1e-4
        )
        assert float(sharded["optimizer"]["state"][name]["step"]) == STEPS


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_gradients_are_summed_in_float32(precision: str) -> None:
    plugin = sharding()
    plugin.set_mixed_precision(precision)  # by accelerate, unless the plugin states a policy
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (None, None, None)


def test_the_older_fsdp_is_refused() -> None:
    accelerator = Accelerator(cpu=True)
    plugin = sharding()
    plugin.fsdp_version = 1
    before = accelerator.state.distributed_type
    accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
    try:
        with pytest.raises(ValueError, match="FSDP version 1 is not supported"):
            trained(accelerator, 0, 1)
    finally:
        accelerator.state.distributed_type = before
