"""What training is said to cost is what it does."""

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


def test_activations_are_those_that_autograd_keeps(tiny: Any) -> None:
    real = build_network("tiny", MelConfig(x_res=64, y_res=32))
    weights = {parameter.data_ptr() for parameter in real.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        real(torch.randn(3, 1, 32, 64), torch.tensor([1.0, 2.0, 3.0]))
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert training_cost(tiny, 3).activation_bytes == pytest.approx(measured, rel=0.05)


def test_options_change_what_they_should(tiny: Any) -> None:
    plain = training_cost(tiny, 2)
    checkpointed = training_cost(tiny, 2, gradient_checkpointing=True)
    assert checkpointed.flops_per_sample == pytest.approx(plain.flops_per_sample * 4 / 3)
    assert checkpointed.activation_bytes < 0.6 * plain.activation_bytes
    assert training_cost(tiny, 4).activation_bytes == 2 * plain.activation_bytes
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
