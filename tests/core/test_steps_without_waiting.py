"""Training steps never need a value of the device on the host, for which a GPU would be waited for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.diffusion.philox import Purpose, normals
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import build_network, build_vae, objective_for
from audiodiff_core.training import TrainBatch, TrainState, train_step, with_draws
from audiodiff_core.training.vae_losses import VaeObjective
from audiodiff_core.training.vae_state import VaeTrainState
from audiodiff_core.training.vae_step import train_vae_step

DIM = 6
MEL = MelConfig(x_res=32, y_res=32)
WAITING = (
    torch.ops.aten._local_scalar_dense,  # float(), int(), bool() and item()
    torch.ops.aten.is_nonzero,
    torch.ops.aten.equal,
    torch.ops.aten.nonzero,
    torch.ops.aten.masked_select,
)

TakeStep = Callable[[list[TrainBatch]], Any]


class NeverWaiting(TorchDispatchMode):
    """Dispatch mode that refuses operations whose results the host needs: values, or shapes that depend on values."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert operator.overloadpacket not in WAITING, f"{operator} waits for the device"
        if operator.overloadpacket is torch.ops.aten.index:
            assert not any(index is not None and index.dtype == torch.bool for index in args[1]), "a mask as an index"
        return operator(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def batches(kind: str, count: int = 1) -> list[TrainBatch]:
    made = []
    for first in range(0, 2 * count, 2):
        generator = torch.Generator().manual_seed(first)
        images = torch.randint(0, 256, (2, 32, 32), generator=generator, dtype=torch.uint8)
        encodings = torch.randn(2, DIM, generator=generator) if kind == "conditional" else None
        made.append(TrainBatch(torch.arange(first, first + 2), images, encodings))
    return made


def diffusion_step(accelerator: Accelerator, kind: str) -> TakeStep:
    vae = build_vae("vae-tiny", MEL) if kind == "latent" else None
    presets: dict[str, Any] = {"latent": "tiny-latent", "conditional": "tiny-conditional"}
    preset = presets.get(kind, "tiny")
    objective = {
        "conditional": lambda: objective_for(preset, conditioning_dropout=0.5),
        "flow": lambda: Objective(prediction_type="flow"),
        "weighted": lambda: Objective(min_snr_gamma=5.0),
    }.get(kind, lambda: objective_for(preset))()
    network = build_network(preset, MEL, vae, DIM if kind == "conditional" else None)
    state = TrainState(accelerator, network, objective, 1e-3, seed=0, vae=vae)
    return lambda micro_batches: train_step(accelerator, state, micro_batches, 1e-3)


def vae_step(accelerator: Accelerator) -> TakeStep:
    objective = VaeObjective(adversarial_start=0)
    state = VaeTrainState(accelerator, build_vae("vae-tiny", MEL), objective, 1e-3, seed=0, discriminator_channels=8)
    return lambda micro_batches: train_vae_step(accelerator, state, micro_batches, 1e-3)


@pytest.mark.parametrize("kind", ["images", "latent", "conditional", "flow", "weighted", "vae"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_step_does_not_wait(accelerator: Accelerator, kind: str, micro_batches: int) -> None:
    take_step = vae_step(accelerator) if kind == "vae" else diffusion_step(accelerator, kind)
    given = batches(kind, micro_batches)
    with NeverWaiting():
        result, norm = take_step(given)
    losses = result.values() if kind == "vae" else [result]
    assert all(value.isfinite() for value in (*losses, norm))
    assert norm > 0


def test_draws_and_batches_do_not_wait(accelerator: Accelerator) -> None:
    state = TrainState(accelerator, build_network("tiny", MEL), Objective(), 1e-3, seed=0)
    with NeverWaiting():
        parts = [with_draws(state, batch) for batch in TrainBatch.joined(batches("images", 3)).split(4)]
        noise = normals(0, parts[1].numbers, Purpose.NOISE, (1, 32, 32), "cpu")
    assert parts[1].drawn is not None
    assert torch.equal(parts[1].drawn.noise, noise)


@pytest.mark.parametrize(
    "wait",
    [float, bool, torch.Tensor.item, torch.Tensor.nonzero, lambda value: value[value > 0]],
    ids=["float", "bool", "item", "nonzero", "mask"],
)
def test_what_would_wait_is_refused(wait: Callable[[torch.Tensor], Any]) -> None:
    value = torch.ones(1)
    with NeverWaiting(), pytest.raises(AssertionError):
        wait(value)
