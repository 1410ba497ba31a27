"""Two workers train every kind of network like one worker: the same samples and weights, also after a kill.

One group runs all trainings, because starting a group takes longer than these trainings.
"""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from safetensors.torch import load_file

from audiodiff_platform.mel_data.encodings import encoded_table
from audiodiff_platform.mel_data.mel_dataset import MelDataset
from audiodiff_platform.storage import Folder
from audiodiff_platform.train import checkpoint_writer, checkpoints
from audiodiff_platform.train import loop as loop_module
from audiodiff_platform.train.autoencoder import train_vae, train_vae_worker
from audiodiff_platform.train.diffusion import train
from audiodiff_platform.train.diffusion_worker import train_worker
from audiodiff_platform.train.options import TrainOptions, TrainVaeOptions
from tests.in_process import in_process
from tests.rare import rare

pytestmark = pytest.mark.workers

COMMON: dict[str, Any] = {
    "max_train_steps": 20,
    "train_batch_size": 4,
    "mixed_precision": "no",
    "learning_rate": 1e-3,
    "lr_warmup_steps": 5,
    "report_to": (),
}
KINDS = ("pixel", "latent", "conditional", "autoencoder")


def _options(kind: str, dataset: Path, vae: Path, encodings: Path, output: Path, workers: int) -> Any:
    stated = {**COMMON, "dataset_name": str(dataset), "output_dir": str(output), "num_workers": workers}
    match kind:
        case "autoencoder":
            return TrainVaeOptions(preset="vae-tiny", adversarial_start=10, **stated)
        case "latent":
            return TrainOptions(preset="tiny-latent", vae=str(vae), preview_count=0, **stated)
        case "conditional":
            return TrainOptions(preset="tiny-conditional", encodings=str(encodings), preview_count=0, **stated)
        case _:
            return TrainOptions(preview_count=0, **stated)


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, local_ray: None, dataset: Path, vae: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Run folders KIND-1 of one worker and KIND-2 of two workers, of the kinds of the parameter.

    KIND-rankN.pt holds the weights of rank N of the two workers.
    """
    kinds: tuple[str, ...] = request.param
    root = tmp_path_factory.mktemp("runs")
    names = sorted(MelDataset(str(dataset)).audio_files())
    vectors = np.random.default_rng(0).standard_normal((len(names), 8)).astype(np.float32)
    (root / "encodings.parquet").write_bytes(encoded_table(names, vectors, "test", "0"))

    def options(kind: str, workers: int) -> Any:
        return _options(kind, dataset, vae, root / "encodings.parquet", root / f"{kind}-{workers}", workers)

    stated = {kind: options(kind, 2).model_dump() for kind in kinds}

    def worker(config: dict[str, Any]) -> None:
        """Train every kind, and save the live weights of this rank."""
        checkpoint = loop_module._Loop._checkpoint
        for kind, values in stated.items():

            def save(loop: Any, kind: str = kind, **when: bool) -> None:
                weights = loop.learner.state.state_dict()
                rank = ray.train.get_context().get_world_rank()
                torch.save(weights, root / f"{kind}-rank{rank}.pt")
                checkpoint(loop, **when)

            setattr(loop_module._Loop, "_checkpoint", save)  # noqa: B010
            train_one = train_vae_worker if kind == "autoencoder" else train_worker
            assert train_one({"options": values, "token": None}) is None

    TorchTrainer(
        worker,
        train_loop_config={},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="ray", storage_path=str(root / "ray")),
    ).fit()
    with in_process():
        for kind in kinds:
            (train_vae if kind == "autoencoder" else train)(options(kind, 1))
    return root


@pytest.mark.parametrize(
    ("runs", "kind"), [(("pixel",), "pixel"), *(rare(KINDS, kind) for kind in KINDS)], indirect=["runs"]
)
def test_two_workers_train_as_one(runs: Path, kind: str) -> None:
    one, two = (
        [json.loads(line)["loss"] for line in (runs / f"{kind}-{workers}" / "metrics.jsonl").read_text().splitlines()]
        for workers in (1, 2)
    )
    assert len(one) == 2
    assert two == pytest.approx(one, rel=1e-4 if kind == "pixel" else 1e-3)
    first, second = (torch.load(runs / f"{kind}-rank{rank}.pt") for rank in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    averaged = []
    for workers in (1, 2):
        (checkpoint,) = (runs / f"{kind}-{workers}" / "state").glob("step-000000020-*")
        averaged.append(torch.cat([tensor.flatten() for tensor in load_file(checkpoint / "ema.safetensors").values()]))
    expected, averaged_by_two = averaged
    assert float((expected - averaged_by_two).norm() / expected.norm()) < (1e-5 if kind == "pixel" else 1e-3)


@pytest.fixture
def killed(runs: Path, dataset: Path, vae: Path) -> Path:
    """Run folders KIND-killed of two workers, of which rank 0 was killed after the first checkpoint of each kind."""

    def options(kind: str) -> Any:
        folder = runs / f"{kind}-killed"
        given = _options(kind, dataset, vae, runs / "encodings.parquet", folder, workers=2)
        return given.model_copy(update={"checkpoint_minutes": 1e-6})

    stated = {kind: options(kind).model_dump() for kind in KINDS}

    def mortal_worker() -> None:
        """Train every kind. Kill the process once for each kind, after the first whole checkpoint."""

        def put_checkpoint(output: Folder, name: str, *arguments: Any) -> None:
            checkpoints.put_checkpoint(output, name, *arguments)
            died = Path(output.path("died"))
            if not died.exists():
                died.write_text(name)
                os.kill(os.getpid(), signal.SIGKILL)

        vars(checkpoint_writer)["put_checkpoint"] = put_checkpoint
        for kind, values in stated.items():
            train_one = train_vae_worker if kind == "autoencoder" else train_worker
            assert train_one({"options": values, "token": None}) is None

    TorchTrainer(
        mortal_worker,
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name="killed", storage_path=str(runs / "ray"), failure_config=FailureConfig(max_failures=len(KINDS))
        ),
    ).fit()
    return runs


@pytest.mark.soak
@pytest.mark.parametrize("runs", [KINDS], indirect=True)
def test_a_kill_changes_no_weights(killed: Path) -> None:
    for kind in KINDS:
        assert "step-000000010-" in (killed / f"{kind}-killed" / "died").read_text()
        expected, resumed = (
            load_file(next((killed / f"{kind}-{end}" / "state").glob("step-000000020-*")) / "ema.safetensors")
            for end in ("2", "killed")
        )
        assert all(torch.equal(resumed[name], weights) for name, weights in expected.items()), kind
