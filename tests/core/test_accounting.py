"""What training is said to cost is what it does."""

import itertools
from typing import Any

import pytest
import torch

from audiodiff_core.accounting import TrainingCost, peak_flops, seconds_needed, share_of_peak, training_cost
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import build_network


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


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_activations_are_what_the_allocator_gives(tiny: Any, gradient_checkpointing: bool) -> None:
    real = build_network("tiny", MelConfig(x_res=64, y_res=32)).train()
    if gradient_checkpointing:
        real.enable_gradient_checkpointing()
    for parameter in real.parameters():
        parameter.grad = torch.zeros_like(parameter)
    sample, times = torch.randn(3, 1, 32, 64), torch.tensor([1.0, 2.0, 3.0])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        real(sample, times, return_dict=False)[0].square().mean().backward()
    changes = sorted((event.start_ns(), event.nbytes()) for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")
    most = max(itertools.accumulate(nbytes for _, nbytes in changes))
    assert training_cost(tiny, 3, gradient_checkpointing=gradient_checkpointing).activation_bytes == pytest.approx(most, rel=0.1)


def test_options_change_what_they_should(tiny: Any) -> None:
    plain = training_cost(tiny, 2)
    checkpointed = training_cost(tiny, 2, gradient_checkpointing=True)
    assert checkpointed.flops_per_sample == pytest.approx(plain.flops_per_sample * 4 / 3)
    assert checkpointed.activation_bytes < 0.6 * plain.activation_bytes
    assert training_cost(tiny, 4).activation_bytes == pytest.approx(2 * plain.activation_bytes, rel=0.05)
    assert training_cost(tiny, 2, precision="bf16").activation_bytes == plain.activation_bytes // 2
    assert training_cost(tiny, 2, optimizer="adamw_8bit").state_bytes == plain.parameters * 14
    assert plain.memory_bytes == plain.state_bytes + plain.activation_bytes


def test_a_conditional_network_is_counted_too() -> None:
    with torch.device("meta"):
        network = build_network("tiny-conditional", MelConfig(x_res=32, y_res=32), encoding_dim=10)
    assert training_cost(network, 1).flops_per_sample > 0


def test_rates_by_hand() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("NVIDIA L4") == 121e12
    assert peak_flops("Some CPU") is None
    assert share_of_peak(1.5e12, 200, 989e12) == pytest.approx(0.3033, rel=1e-3)
    assert seconds_needed(1_000, 4.0) == 250
    assert TrainingCost(1, 1.0, 3, 4).memory_bytes == 7
