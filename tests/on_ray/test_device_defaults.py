"""Batch size, precision, micro-batches and reading processes, chosen for devices that are stated as values."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from audiodiff_core.mel import MelConfig
from audiodiff_core.models import build_network, build_vae, parameter_count
from audiodiff_core.training import TrainBatch, TrainState
from audiodiff_core.training.vae_state import VaeTrainState
from audiodiff_platform.cluster.gpu_kinds import Gpu, least
from audiodiff_platform.storage import Folder
from audiodiff_platform.train import choices, worker_process
from audiodiff_platform.train.autoencoder import VaeLearner
from audiodiff_platform.train.choices import choose, describe, least_micro_batch, with_recorded
from audiodiff_platform.train.device_defaults import (
    MEMORY_SHARE,
    default_batch_size,
    default_data_workers,
    default_precision,
    micro_batch_size,
)
from audiodiff_platform.train.diffusion_worker import DiffusionLearner, worker_memory
from audiodiff_platform.train.options import TrainOptions, TrainVaeOptions
from audiodiff_platform.train.run_options import Precision
from audiodiff_platform.train.worker_group import Group
from tests.rare import rare

GIB = 2**30
T4 = Gpu("Tesla T4", 16 * GIB, (7, 5))
A10G = Gpu("NVIDIA A10G", 24 * GIB, (8, 6))
H100 = Gpu("NVIDIA H100 80GB HBM3", 80 * GIB, (9, 0))
MANY_ROWS = 1_000_000
MEL = MelConfig(x_res=32, y_res=32, hop_length=1_024)


def gib_per_sample(samples: int) -> int:
    """Estimate 2 GiB of state and 1 GiB for each sample."""
    return (2 + samples) * GIB


def test_bf16_where_the_gpu_supports_it() -> None:
    assert [default_precision(gpu) for gpu in (None, T4, A10G, H100)] == ["no", "no", "bf16", "bf16"]


def test_the_least_of_several_gpus() -> None:
    assert least([H100, A10G, H100]) == Gpu("NVIDIA A10G and NVIDIA H100 80GB HBM3", 24 * GIB, (8, 6))
    assert least([H100, T4]) == Gpu("NVIDIA H100 80GB HBM3 and Tesla T4", 16 * GIB, (7, 5))


@pytest.mark.parametrize(
    ("workers", "gpu", "rows", "accumulation_steps", "expected"),
    [
        (1, None, 5, 1, 16),
        (40, None, MANY_ROWS, 1, 40),  # a sample for each worker
        (1, H100, MANY_ROWS, 1, 32),  # 34 GiB; 64 samples would take 66, more than 80 % of 80
        (4, H100, MANY_ROWS, 1, 128),
        (1, A10G, MANY_ROWS, 1, 16),
        (1, T4, MANY_ROWS, 1, 8),
        (1, replace(H100, memory_bytes=1_000 * GIB), MANY_ROWS, 1, 64),
        (1, replace(H100, memory_bytes=GIB), MANY_ROWS, 1, 1),  # the estimate refuses nothing
        (4, H100, 1_000, 1, 64),  # at most 125 samples for each of 8 steps
        (4, H100, 1_000, 4, 16),
        (1, H100, 50, 1, 16),
        (8, H100, 50, 1, 16),
        (32, H100, 50, 1, 32),
        (3, H100, MANY_ROWS, 1, 96),
    ],
)
def test_batch_size(workers: int, gpu: Gpu | None, rows: int, accumulation_steps: int, expected: int) -> None:
    assert default_batch_size(workers, gpu, rows, accumulation_steps, gib_per_sample) == expected


@pytest.mark.parametrize(
    ("samples", "device_gib", "expected"),
    [(256, None, 256), (32, 80, 32), (64, 80, 32), (256, 80, 32), (100, 24, 13), (5, 6, 2), (8, 1, 1), (1, 1, 1)],
)
def test_a_share_is_split_to_fit_the_device(samples: int, device_gib: int | None, expected: int) -> None:
    device_bytes = None if device_gib is None else device_gib * GIB
    size = micro_batch_size(samples, device_bytes, gib_per_sample)
    assert size == expected
    if device_bytes is not None and size > 1:
        assert gib_per_sample(size) <= MEMORY_SHARE * device_bytes


@pytest.mark.parametrize("samples", [2, 3, 5, 7, 9, 16, 61])
@pytest.mark.parametrize("device_gib", [1, 6, rare(12), rare(24), 80])
def test_workers_with_a_sample_less_make_as_many_micro_batches(samples: int, device_gib: int) -> None:
    """FSDP gathers weights in every forward pass of all workers together."""
    size = micro_batch_size(samples, device_gib * GIB, gib_per_sample, same_count=True)
    assert math.ceil(samples / size) == math.ceil((samples - 1) / size)
    assert size <= samples


@pytest.mark.parametrize(("cpus_per_gpu", "expected"), [(None, 0), (0, 0), (1, 0), (2, 1), (8, 7), (24, 8)])
def test_reading_processes_take_the_cpus_of_a_gpu_that_its_worker_leaves(
    cpus_per_gpu: int | None, expected: int
) -> None:
    assert default_data_workers(cpus_per_gpu) == expected


def _options(output: Path, **changes: Any) -> TrainOptions:
    return TrainOptions(dataset_name="none", output_dir=str(output), **changes)


def test_the_original_network_on_gpus(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = build_network("ddpm-64", MelConfig(x_res=64, y_res=64))

    def memory(precision: Any, samples: int, **changes: Any) -> float:
        options = _options(tmp_path, mixed_precision=precision, **changes)
        return worker_memory(network, None, options, 4, samples) / GIB

    # The state takes 2.1 GiB, a sample 0.13 GiB in float32.
    assert memory("no", 64) == pytest.approx(2.1 + 8.1, abs=0.2)
    assert memory("bf16", 64) == pytest.approx(2.1 + 7.5, abs=0.2)
    assert memory("no", 1) - memory("no", 1, fsdp=True) == pytest.approx(2.1 * 3 / 4, abs=0.1)


def test_a_worker_holds_the_autoencoder_whole(tmp_path: Path) -> None:
    with torch.device("meta"):
        vae = build_vae("vae-tiny", MEL)
        network = build_network("tiny-latent", MEL, vae)
    options = _options(tmp_path, mixed_precision="no", fsdp=True)
    with_vae, without = (worker_memory(network, held, options, 4, 1) for held in (vae, None))
    assert with_vae - without == 4 * parameter_count(vae)


def test_tf32_is_refused_where_a_gpu_lacks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, group = _options(tmp_path, mixed_precision="tf32"), Group(workers=2, gpu=True)
    monkeypatch.setattr(choices, "least_gpu", lambda _: T4)
    with pytest.raises(ValueError, match=r"^mixed_precision tf32: Tesla T4 has no TF32, use no$"):
        choose(options, group, 100, lambda *_: 0)
    monkeypatch.setattr(choices, "least_gpu", lambda _: H100)
    assert choose(options, group, 100, lambda *_: 0)[0].autocast == "no"


def _settings(folder: Path, **settings: Any) -> None:
    Folder(str(folder)).write_json("train.json", settings)


def test_a_resumed_run_keeps_its_batch_and_its_precision(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    unset = _options(tmp_path)
    assert with_recorded(unset, output, "train.json") == unset
    _settings(tmp_path, train_batch_size=256, mixed_precision="bf16")
    kept = with_recorded(unset, output, "train.json")
    assert (kept.train_batch_size, kept.mixed_precision) == (256, "bf16")
    stated = _options(tmp_path, train_batch_size=8, mixed_precision="no")
    assert with_recorded(stated, output, "train.json") == stated
    fewer, _, _ = choose(kept, Group(workers=2, gpu=False), 100, lambda *_: 0)
    assert (fewer.batch_size, fewer.precision, fewer.data_workers) == (256, "bf16", 0)
    with pytest.raises(ValueError, match=r"^num_workers 300: must be at most train_batch_size \(256\)"):
        with_recorded(_options(tmp_path, num_workers=300), output, "train.json")


def test_an_elastic_group_has_no_worker_without_a_sample(local_ray: None, tmp_path: Path) -> None:
    options, group, gpu = choose(_options(tmp_path), Group(workers=(2, 100), gpu=False), 100, lambda *_: 0)
    assert (options.batch_size, options.precision, group.workers, gpu) == (16, "no", (2, 16), None)


def test_the_line_on_the_terminal(tmp_path: Path) -> None:
    unset, group = _options(tmp_path), Group(workers=4, gpu=True, cpus=8)
    options = unset.filled_in({"train_batch_size": 256, "mixed_precision": "bf16", "data_workers": 7})
    assert describe(options, group, H100, unset, unset) == (
        "batch 256 (chosen: 64 on each of 4 GPUs, NVIDIA H100 80GB HBM3), bf16 (chosen: compute capability 9.0), "
        "TF32 off, fused AdamW, no compilation, data_workers 7 (chosen)"
    )
    recorded = unset.filled_in({"train_batch_size": 256, "mixed_precision": "bf16"})
    assert describe(options, Group((1, 3), gpu=True), T4, unset, recorded, optimizer="adamw_8bit", compiled=True) == (
        "batch 256 (recorded: up to 86 on each of 3 GPUs, Tesla T4), bf16 (recorded), "
        "TF32 off, 8-bit AdamW, compilation, data_workers 0 (chosen)"
    )
    assert describe(options, Group(1, gpu=True), H100, unset, recorded).startswith(
        "batch 256 (recorded: 256 on a GPU, NVIDIA H100 80GB HBM3), "
    )
    rounded = _options(tmp_path, train_batch_size=16, mixed_precision="tf32")
    assert "float32 (set), TF32 on, fused AdamW" in describe(rounded, Group(1, gpu=True), H100, rounded, rounded)
    stated = _options(tmp_path, train_batch_size=16, mixed_precision="no")
    assert describe(stated, Group(workers=4, gpu=False), None, stated, stated) == (
        "batch 16 (set: 4 on each of 4 CPUs), float32 (set), fused AdamW, no compilation"
    )


def test_micro_batches_of_the_fewest_workers_fit_the_least_gpu(tmp_path: Path) -> None:
    options = _options(tmp_path, train_batch_size=256, mixed_precision="bf16")

    def memory(options: TrainOptions, workers: int, samples: int) -> int:
        assert workers == 2
        return gib_per_sample(samples)

    assert least_micro_batch(options, Group((2, 8), gpu=True), H100, memory) == 32
    assert least_micro_batch(options, Group((2, 8), gpu=False), None, memory) == 128


@pytest.fixture(scope="module")
def accelerator() -> Iterator[Accelerator]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Accelerator(cpu=True)
    torch.set_num_threads(threads)


def _batches(side: int) -> list[TrainBatch]:
    """Return two batches of 8 random images."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (16, side, side), np.uint8))
    return [TrainBatch(torch.arange(first, first + 8), images[first : first + 8]) for first in (0, 8)]


def _trained(learner: Any, batches: Sequence[TrainBatch]) -> tuple[list[dict[str, float]], torch.Tensor]:
    """Take two steps, and return the logged values and the weights."""
    values = [learner.learn([learner.ready(batch) for batch in batches], 0.0) for _ in range(2)]
    return values, torch.cat([tensor.flatten() for tensor in learner.state.state_dict().values()])


@pytest.mark.parametrize("kind", ["diffusion", "autoencoder"])
@pytest.mark.parametrize("size", [3, rare(1)])
def test_micro_batches_change_rounding_only(accelerator: Accelerator, tmp_path: Path, kind: str, size: int) -> None:
    common: dict[str, Any] = {"train_batch_size": 8, "gradient_accumulation_steps": 2, "mixed_precision": "no"}

    def learner() -> DiffusionLearner | VaeLearner:
        torch.manual_seed(0)
        if kind == "diffusion":
            options = _options(tmp_path, **common)
            state = TrainState(accelerator, build_network("tiny", MEL), options.objective(), 1e-3, seed=0)
            return DiffusionLearner(options, accelerator, state)
        vae_options = TrainVaeOptions(
            dataset_name="none", output_dir=str(tmp_path), preset="vae-tiny", adversarial_start=1, **common
        )
        vae_state = VaeTrainState(
            accelerator, build_vae("vae-tiny", MEL), vae_options.objective(), 1e-3, 0, discriminator_channels=8
        )
        return VaeLearner(vae_options, accelerator, vae_state)

    whole, split = learner(), learner()
    assert whole.samples_per_pass == 8
    split.samples_per_pass = size
    (values, weights), (split_values, split_weights) = (_trained(each, _batches(32)) for each in (whole, split))
    for expected, found in zip(values, split_values, strict=True):
        assert {name: float(value) for name, value in found.items()} == pytest.approx(
            {name: float(value) for name, value in expected.items()}, rel=1e-5
        )
    assert float((split_weights - weights).norm() / weights.norm()) < 1e-5


@pytest.mark.parametrize(("precision", "expected"), [("no", "ieee"), ("bf16", "ieee"), ("tf32", "tf32")])
def test_training_computes_float32_as_stated(precision: Precision, expected: str) -> None:
    cudnn: Any = torch.backends.cudnn
    before = torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision
    try:
        other = "ieee" if expected == "tf32" else "tf32"
        torch.backends.cuda.matmul.fp32_precision = cudnn.conv.fp32_precision = other
        worker_process.set_float32(precision)
        assert (torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision) == (expected, expected)
    finally:
        torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision = before
