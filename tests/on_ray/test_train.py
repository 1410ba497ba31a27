"""train: distributed, the same samples for any number of workers, resumable, a diffusers model."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AudioDiffusionPipeline
from safetensors.torch import load_file

from audiodiff_core.checkpoint import load_model
from audiodiff_core.pipeline import LoopPipeline
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest
from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.storage import Folder
from audiodiff_platform.train import checkpoint_writer
from audiodiff_platform.train import checkpoints as training_state
from audiodiff_platform.train import diffusion as train_module
from audiodiff_platform.train.checkpoints import newest_checkpoint
from audiodiff_platform.train.diffusion import train
from audiodiff_platform.train.diffusion_worker import DiffusionLearner, train_worker
from audiodiff_platform.train.options import TrainOptions
from tests.in_process import in_process
from tests.servers.hub import Hub

ROOT = Path(__file__).parents[2]


def _options(dataset: Path, output: Path, **changes: Any) -> TrainOptions:
    settings: dict[str, Any] = {
        "max_train_steps": 30,
        "train_batch_size": 4,
        "learning_rate": 1e-3,
        "lr_warmup_steps": 5,
        "num_workers": 1,
        "preview_count": 0,
    }
    return TrainOptions(dataset_name=str(dataset), output_dir=str(output), **(settings | changes))


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def _losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(local_ray: None, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 30 steps by one worker."""
    folder = tmp_path_factory.mktemp("run") / "train"
    with in_process():
        summary = train(_options(dataset, folder))
    assert (summary["steps"], summary["samples"]) == (30, 120)
    return folder


@pytest.mark.soak_short
def test_a_finished_model_is_published_without_another_run(run: Path, dataset: Path, hub: Hub, tmp_path: Path) -> None:
    options = {
        **_options(dataset, run).model_dump(exclude_none=True, exclude={"report_to", "num_workers", "condition"}),
        "push_to_hub": "tester/trained",
    }
    flags = [f"--{name}={value}" for name, value in options.items() if not isinstance(value, bool)]
    done = subprocess.run(
        [sys.executable, "jobs/train.py", *flags],
        cwd=ROOT,
        env=os.environ | hub.environment(tmp_path / "cache"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 30
    published = hub.files("models", "tester/trained")
    assert {"README.md", "model_index.json", "unet/diffusion_pytorch_model.safetensors"} <= published.keys()
    assert published["unet/config.json"] == (run / "model/unet/config.json").read_bytes()


def test_the_model_is_one_that_diffusers_loads_and_that_makes_the_same_image(run: Path) -> None:
    profile = ExecutionProfile.here(batch_size=1)
    (ours,) = LoopPipeline.of(load_model(run / "model"), profile).generate([GenerateRequest(seed=5, steps=10)])
    pipeline = AudioDiffusionPipeline.from_pretrained(str(run / "model"))
    pipeline.set_progress_bar_config(disable=True)
    theirs = np.asarray(pipeline(steps=10, generator=torch.Generator().manual_seed(5)).images[0])
    assert np.abs(theirs.astype(int) - ours.image).max() <= 1
    record = json.loads((run / "model" / "audiodiff.json").read_text())
    assert record["metrics"]["steps"] == 30
    assert record["data_digest"] == json.loads((run / "train.json").read_text())["data_digest"]


@pytest.mark.soak
@pytest.mark.workers
def test_four_workers_see_the_same_samples_with_the_same_noise(run: Path, dataset: Path, tmp_path: Path) -> None:
    train(_options(dataset, tmp_path / "run", num_workers=4))
    assert _losses(tmp_path / "run") == pytest.approx(_losses(run), rel=1e-4)
    expected, trained = (
        torch.cat([tensor.flatten() for tensor in _weights(folder).values()]) for folder in (run, tmp_path / "run")
    )
    assert float((expected - trained).norm() / expected.norm()) < 1e-5


def _metrics(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines()


@pytest.fixture(scope="module")
def killed(local_ray: None, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 30 steps whose worker was killed after its first checkpoint.

    The checkpoints are of steps 10, 20 and 30.
    """
    folder = tmp_path_factory.mktemp("killed") / "train"

    def mortal_worker(config: dict[str, Any]) -> str | None:
        """Kill the process once, after its first whole checkpoint."""

        def put_checkpoint(output: Folder, *arguments: Any) -> None:
            training_state.put_checkpoint(output, *arguments)
            probe_file = Path(output.path("died"))
            if not probe_file.exists():
                shutil.copy(output.path("metrics.jsonl"), probe_file)
                os.kill(os.getpid(), signal.SIGKILL)

        vars(checkpoint_writer)["put_checkpoint"] = put_checkpoint
        return train_worker(config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "train_worker", mortal_worker)
        train(_options(dataset, folder, checkpoint_minutes=1e-6))
    seen = (folder / "died").read_text().splitlines()
    assert [json.loads(line)["step"] for line in seen] == [10]
    assert _metrics(folder)[:1] == seen, "it began anew instead of going on"
    return folder


@pytest.mark.soak_short
def test_a_killed_worker_costs_nothing_but_time(run: Path, killed: Path) -> None:
    expected, resumed = _weights(run), _weights(killed)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert _losses(killed) == _losses(run)


def test_a_checkpoint_is_of_its_step_though_training_goes_on(
    local_ray: None, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first checkpoint is written when training has taken nine more steps."""
    later = threading.Event()
    take_step = DiffusionLearner.learn

    def counted(learner: DiffusionLearner, *arguments: Any) -> Any:
        if learner.state.step == 18:
            later.set()
        return take_step(learner, *arguments)

    def delayed(*arguments: Any) -> None:
        assert later.wait(60), "training waits for the checkpoint"
        training_state.put_checkpoint(*arguments)

    options = {"lr_scheduler": "constant", "checkpoint_minutes": 1e-6, "checkpoints_kept": 9}
    train(_options(dataset, tmp_path / "short", max_train_steps=10, **options))
    monkeypatch.setattr(DiffusionLearner, "learn", counted)
    monkeypatch.setattr(checkpoint_writer, "put_checkpoint", delayed)
    train(_options(dataset, tmp_path / "long", **options))
    assert len(list((tmp_path / "long" / "state").iterdir())) == 3
    for name in ("network.safetensors", "ema.safetensors"):
        short, written = (
            load_file(next((tmp_path / run / "state").glob("step-000000010-*")) / name) for run in ("short", "long")
        )
        assert all(torch.equal(written[key], weights) for key, weights in short.items()), name
    expected, moments = (
        torch.load(next((tmp_path / run / "state").glob("step-000000010-*")) / "optimizer.pt")["state"]
        for run in ("short", "long")
    )
    assert all(torch.equal(moments[key][name], values[name]) for key, values in expected.items() for name in values)


@pytest.mark.soak_short
def test_what_a_kill_cuts_off_is_passed_over(run: Path, killed: Path, dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(killed, folder)
    shutil.rmtree(folder / "model")
    newest = newest_checkpoint(Folder(str(folder)))
    assert newest is not None
    optimizer = folder / newest / "optimizer.pt"
    os.truncate(optimizer, optimizer.stat().st_size // 2)
    unfinished = folder / "state" / "step-000000001-deadbeef"
    unfinished.mkdir()
    (unfinished / "progress.json").write_text("")
    train(_options(dataset, folder))
    assert _metrics(folder)[0] == _metrics(killed)[0]
    expected, resumed = _weights(run), _weights(folder)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert not unfinished.exists()


def test_numbers_that_leave_the_finite_ones_end_a_training_at_once(
    local_ray: None, dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        JobError,
        match=r"^training failed: gradient norm nan for 20 steps up to step 30 \(loss nan\): "
        r"train in another folder with a lower learning_rate$",
    ) as raised:
        train(_options(dataset, tmp_path / "run", learning_rate=1e30))
    assert raised.value.__cause__ is None, "a worker's error, which Ray Train answers with more attempts"
    assert not (tmp_path / "run" / "model").exists()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], "loss" in line, line["skipped_steps"]) for line in lines[1:]] == [(20, False, 10)]


def test_a_finished_run_is_not_trained_again_and_needs_no_space(
    run: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    before = (run / "model" / "model_index.json").stat().st_mtime_ns
    assert train(_options(dataset, run))["steps"] == 30
    # The stated values are the defaults.
    assert train(_options(dataset, run, preset="tiny", prediction_type="v_prediction"))["steps"] == 30
    assert (run / "model" / "model_index.json").stat().st_mtime_ns == before


def test_batch_and_precision_are_chosen_once_for_a_run(
    local_ray: None, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"

    def steps(count: int, **changes: Any) -> str:
        unset = {"train_batch_size": None, "max_train_steps": count, **changes}
        assert train(_options(dataset, folder, **unset))["samples"] == 16 * count
        return capsys.readouterr().err

    rest = "fused AdamW, no compilation\n"
    assert f"batch 16 (chosen: 16 on a CPU), float32 (chosen), {rest}" in steps(1)
    settings = json.loads((folder / "train.json").read_text())
    assert (settings["train_batch_size"], settings["mixed_precision"]) == (16, "no")
    assert f"batch 16 (recorded: 16 on a CPU), float32 (recorded), {rest}" in steps(2)
    assert f"batch 16 (set: 16 on a CPU), float32 (set), {rest}" in steps(3, train_batch_size=16, mixed_precision="no")
    for changes in ({"train_batch_size": 8}, {"mixed_precision": "bf16"}):
        with pytest.raises(ValueError, match=r"is (16|'no') in the folder, (8|'bf16') in this job"):
            steps(4, **changes)


def test_other_settings_in_the_same_folder_are_refused(run: Path, dataset: Path) -> None:
    with pytest.raises(ValueError, match=r"learning_rate is 0\.001 in the folder, 0\.002 in this job"):
        train(_options(dataset, run, learning_rate=2e-3))


def test_a_run_of_another_format_is_refused(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('{"format_version": 3}')
    with pytest.raises(
        ValueError, match=r"holds a training run of format version 3, and .* draws other noise or timesteps: [^\n]+$"
    ):
        train(_options(dataset, tmp_path))


def test_numbers_of_workers_that_cannot_be_are_refused(local_ray: None, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_workers 5: must be at most train_batch_size"):
        _options(dataset, tmp_path, num_workers=5, train_batch_size=4)
    with pytest.raises(ValueError, match="needs 8 CPUs, the cluster has 4"):
        train(_options(dataset, tmp_path, num_workers=8, train_batch_size=8))
    assert not (tmp_path / "model").exists()
