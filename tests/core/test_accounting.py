"""Estimates of the cost of training against measurements."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from audiodiff_core.mel import MelConfig
from audiodiff_core.models import build_network, build_vae, parameter_count
from audiodiff_core.training import TrainBatch
from audiodiff_core.training.cost import (
    BF16_PEAKS,
    FP16_PEAKS,
    TrainingCost,
    peak_flops,
    share_of_peak,
    training_cost,
)
from audiodiff_core.training.vae_cost import vae_memory_bytes
from audiodiff_core.training.vae_losses import VaeObjective
from audiodiff_core.training.vae_state import VaeTrainState
from audiodiff_core.training.vae_step import train_vae_step
from tests.rare import rare


@pytest.fixture(scope="module")
def tiny() -> Any:
    with torch.device("meta"):
        return build_network("tiny", MelConfig(x_res=64, y_res=32))


def test_the_originals_network_costs_what_was_measured() -> None:
    with torch.device("meta"):
        cost = training_cost(build_network("ddpm-64", MelConfig(x_res=64, y_res=64)), 2)
    assert cost.flops_per_sample == pytest.approx(3 * 31.0e9, rel=2e-3)
    assert cost.state_bytes == cost.parameters * 20
    assert "113.7 M parameters, 93.0 GFLOP per sample" in cost.describe()


def allocated_peak(step: Callable[[], object]) -> int:
    """Return the peak bytes that the CPU allocator gives during `step`."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    changes: list[tuple[int, int]] = sorted(
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    return int(max(itertools.accumulate(nbytes for _, nbytes in changes)))


@pytest.mark.parametrize("gradient_checkpointing", [rare(False), True])
def test_activations_are_what_the_allocator_gives(tiny: Any, gradient_checkpointing: bool) -> None:
    real = build_network("tiny", MelConfig(x_res=64, y_res=32)).train()
    if gradient_checkpointing:
        real.enable_gradient_checkpointing()
    for parameter in real.parameters():
        parameter.grad = torch.zeros_like(parameter)
    sample, times = torch.randn(3, 1, 32, 64), torch.tensor([1.0, 2.0, 3.0])
    most = allocated_peak(lambda: real(sample, times, return_dict=False)[0].square().mean().backward())
    assert training_cost(tiny, 3, gradient_checkpointing=gradient_checkpointing).activation_bytes == pytest.approx(
        most, rel=0.1
    )


@pytest.mark.parametrize("objective", [rare(VaeObjective(adversarial_weight=0)), VaeObjective(adversarial_start=0)])
def test_a_vae_step_takes_what_was_estimated(objective: VaeObjective) -> None:
    """The first step allocates the state, so that the second allocates activations only."""
    accelerator = Accelerator(cpu=True)
    state = VaeTrainState(accelerator, build_vae("vae-tiny", MelConfig(x_res=32, y_res=32)), objective, 1e-4, seed=0)
    batch = TrainBatch(torch.arange(32), torch.zeros((32, 32, 32), dtype=torch.uint8))
    train_vae_step(accelerator, state, [batch], 1e-4)
    parameters = [*state.bare.parameters(), *state.bare_discriminator.parameters()]
    state_bytes = 16 * sum(parameter.numel() for parameter in parameters) + 4 * parameter_count(state.bare)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    most = allocated_peak(lambda: train_vae_step(accelerator, state, [batch], 1e-4))
    assert vae_memory_bytes(state.bare, 32, objective) - state_bytes == pytest.approx(most, rel=0.1)


@pytest.mark.soak_short
def test_options_change_what_they_should(tiny: Any) -> None:
    plain = training_cost(tiny, 2)
    checkpointed = training_cost(tiny, 2, gradient_checkpointing=True)
    assert checkpointed.flops_per_sample == pytest.approx(plain.flops_per_sample * 4 / 3)
    assert checkpointed.activation_bytes < 0.6 * plain.activation_bytes
    assert training_cost(tiny, 4).activation_bytes == pytest.approx(2 * plain.activation_bytes, rel=0.05)
    assert training_cost(tiny, 2, precision="bf16").activation_bytes == pytest.approx(
        0.9 * plain.activation_bytes + 2 * plain.parameters, abs=1
    )
    assert training_cost(tiny, 2, optimizer="adamw_8bit").state_bytes == plain.parameters * 14
    assert plain.memory_bytes == plain.state_bytes + plain.activation_bytes


def test_a_frozen_autoencoder_adds_its_weights(tiny: Any) -> None:
    with torch.device("meta"):
        vae = build_vae("vae-tiny", MelConfig(x_res=32, y_res=32))
    plain, latent = training_cost(tiny, 2), training_cost(tiny, 2, vae=vae)
    assert latent.memory_bytes - plain.memory_bytes == latent.frozen_bytes == 4 * parameter_count(vae)
    assert (plain.frozen_bytes, " autoencoder)" in latent.describe(), "autoencoder" in plain.describe()) == (
        0,
        True,
        False,
    )


def test_a_conditional_network_is_counted_too() -> None:
    with torch.device("meta"):
        network = build_network("tiny-conditional", MelConfig(x_res=32, y_res=32), encoding_dim=10)
    assert training_cost(network, 1).flops_per_sample > 0


def test_rates_by_hand() -> None:
    assert share_of_peak(1.5e12, 200, 989e12) == pytest.approx(0.3033, rel=1e-3)
    assert TrainingCost(1, 1.0, 3, 4).memory_bytes == 7


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("A100-SXM4-40GB", 312),
        ("NVIDIA A100-SXM-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A800-SXM4-80GB", 312),
        ("NVIDIA A800 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA GH200 120GB", 989),
        ("NVIDIA GH200 144G HBM3e", 989),
        ("NVIDIA B200", 2_250),
        ("NVIDIA GB200", 2_500),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA A30", 165),
        ("NVIDIA A40", 150),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA RTX A6000", 155),
        ("NVIDIA RTX 6000 Ada Generation", 364),
        ("NVIDIA GeForce RTX 5090", 209),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 3090", 71),
        ("GeForce RTX 3090", 71),
    ],
)
def test_peaks_by_cuda_name(name: str, tera: float) -> None:
    assert peak_flops(name) == peak_flops(name, "fp16") == tera * 1e12


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("Tesla T4", 65),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-SXM2-32GB", 125),
        ("Tesla V100-SXM3-32GB", 125),
        ("Tesla V100-PCIE-16GB", 112),
        ("Tesla V100S-PCIE-32GB", 130),
    ],
)
def test_gpus_without_bf16_have_a_peak_in_fp16_alone(name: str, tera: float) -> None:
    assert peak_flops(name) is None
    assert peak_flops(name, "fp16") == tera * 1e12


@pytest.mark.parametrize(
    "name",
    [
        *(
            "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
            "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
            "NVIDIA H100 NVL MIG 3g.47gb",
            "NVIDIA A30 MIG 2g.12gb",
        ),
        *(
            "GRID A100-10C",
            "NVIDIA A100-20C",
            "NVIDIA A100-1-5C",
            "NVIDIA A10-24Q",
            "NVIDIA L40S-8Q",
            "GRID T4-16Q",
            "GRID V100D-32Q",
        ),
        *(
            "NVIDIA GeForce RTX 4090 Laptop GPU",
            "NVIDIA GeForce RTX 5090 Laptop GPU",
            "NVIDIA GeForce RTX 2080 with Max-Q Design",
        ),
        *(
            "NVIDIA GeForce RTX 4090 D",
            "NVIDIA GeForce RTX 5090 D",
            "NVIDIA GeForce RTX 3090 Ti",
            "NVIDIA GeForce RTX 4080 SUPER",
        ),
        *(
            "NVIDIA RTX 6000 Ada Generation Laptop GPU",
            "Quadro RTX 6000",
            "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
            "NVIDIA RTX A600",
        ),
        *(
            "NVIDIA A100-SXM-64GB",
            "NVIDIA H100 64GB HBM2",
            "NVIDIA A1000",
            "NVIDIA A10M",
            "NVIDIA A2",
            "NVIDIA A16",
            "NVIDIA L4S",
            "NVIDIA T400",
            "Tesla P100",
        ),
        *("AMD Instinct MI300X", "Orin", "cpu", "Some CPU", "NVIDIA", "80GB", ""),
    ],
)
def test_other_devices_have_no_known_peak(name: str) -> None:
    assert peak_flops(name) is peak_flops(name, "fp16") is None


def test_every_peak_can_be_looked_up() -> None:
    for model, peak in FP16_PEAKS.items():
        assert peak_flops(f"NVIDIA {model}", "fp16") == peak
        assert peak_flops(f"NVIDIA {model}") == BF16_PEAKS.get(model)
