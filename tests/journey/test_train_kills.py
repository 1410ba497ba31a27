"""Training while workers, nodes and the driver are killed: the weights equal an undisturbed run.

Nodes also join the cluster, and leave it after an announcement.
"""

import contextlib
import json
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from audiodiff_platform.storage import Folder
from audiodiff_platform.train.checkpoints import newest_checkpoint, step_of, validation_results, whole_checkpoints
from audiodiff_platform.train.diffusion import train
from audiodiff_platform.train.options import MIN_FRECHET_PREVIEWS, TrainOptions
from audiodiff_platform.train.validation_marks import in_validation
from tests.simulated import Driver, SimulatedCluster

DEADLINE_S = 400  # Ray Train starts several times per test, for a minute each on a busy machine
FLAGS: dict[str, Any] = {
    "train_batch_size": 4,
    "learning_rate": 1e-3,
    "lr_warmup_steps": 5,
    "checkpoint_minutes": 1e-6,
    "preview_count": 0,
    "report_to": "none",
}


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[SimulatedCluster]:
    made = SimulatedCluster(nodes=request.param)
    yield made
    made.cluster.shutdown()


def _until(happens: Callable[[], bool], driver: Driver, log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not happens():
        assert driver.process.poll() is None, log.read_text()[-4_000:]
        assert time.monotonic() < deadline, log.read_text()[-4_000:]
        time.sleep(0.02)


def _ended(driver: Driver, log: Path) -> dict[str, Any]:
    printed, _ = driver.process.communicate(timeout=900)
    assert driver.process.returncode == 0, log.read_text()[-4_000:]
    return dict(json.loads(printed.splitlines()[-1]))


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def _difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the norm of the difference of all weights, relative to the norm of all weights."""
    first, second = (torch.cat([weights[name].flatten().double() for name in one]) for weights in (one, other))
    return float((first - second).norm() / first.norm())


def _step(out: Path) -> int:
    name = newest_checkpoint(Folder(str(out)))
    return 0 if name is None else step_of(name)


def _workers(out: Path) -> int:
    """Return the number of workers that wrote the newest checkpoint, or 0 without a checkpoint."""
    name = newest_checkpoint(Folder(str(out)))
    return 0 if name is None else int(Folder(str(out)).read_json(f"{name}/progress.json")["workers"])


@pytest.mark.soak
@pytest.mark.parametrize(
    ("cluster", "workers", "tolerance"), [(1, 1, 0.0), (2, 2, 0.0), (4, 4, 1e-5)], indirect=["cluster"]
)
def test_kills_cost_nothing_but_time(
    local_ray: None, dataset: Path, tmp_path: Path, cluster: SimulatedCluster, workers: int, tolerance: float
) -> None:
    out, whole, log = tmp_path / "out", tmp_path / "whole", tmp_path / "log"
    flags = {**FLAGS, "dataset_name": str(dataset), "max_train_steps": 120, "num_workers": workers}
    train(TrainOptions(output_dir=str(whole), **{**flags, "checkpoint_minutes": 60}))
    chance = random.Random(workers)
    kinds = ["worker", "node", "driver"]
    chance.shuffle(kinds)
    with Driver(cluster, "train", {**flags, "output_dir": str(out)}, log) as driver:
        for kind in kinds:
            reached = _step(out)
            _until(lambda reached=reached: _step(out) > reached, driver, log)  # type: ignore[misc]
            # A random moment. The end of the job cuts the wait short.
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.process.wait(chance.uniform(0, 0.5))
            match kind:
                case "worker":
                    cluster.kill_worker(("RayTrainWorker",), chance)
                case "node":
                    cluster.kill_node(chance)
                case "driver":
                    driver.kill()
                    driver.begin()
        assert _ended(driver, log)["steps"] == 120
        assert _difference(_weights(whole), _weights(out)) <= tolerance


@pytest.mark.soak
@pytest.mark.parametrize("cluster", [5], indirect=True)
def test_an_elastic_group_that_loses_nodes_trains_the_same_weights(
    local_ray: None, dataset: Path, tmp_path: Path, cluster: SimulatedCluster
) -> None:
    out, whole, log = tmp_path / "out", tmp_path / "whole", tmp_path / "log"
    flags = {**FLAGS, "dataset_name": str(dataset), "max_train_steps": 60, "num_workers": "3:5", "train_batch_size": 8}
    train(TrainOptions(output_dir=str(whole), **{**flags, "checkpoint_minutes": 60, "num_workers": 3}))
    chance = random.Random(0)
    with Driver(cluster, "train", {**flags, "output_dir": str(out)}, log) as driver:
        for workers in (5, 4):
            _until(lambda workers=workers: _workers(out) == workers, driver, log)  # type: ignore[misc]
            cluster.remove_node(chance.choice(cluster.nodes))
        assert _ended(driver, log)["steps"] == 60
    assert _workers(out) == 3
    assert _difference(_weights(whole), _weights(out)) <= 1e-5


@pytest.mark.soak
@pytest.mark.parametrize("cluster", [1], indirect=True)
def test_an_elastic_group_takes_any_number_of_workers(
    local_ray: None, dataset: Path, tmp_path: Path, cluster: SimulatedCluster
) -> None:
    out, whole, log = tmp_path / "out", tmp_path / "whole", tmp_path / "log"
    flags = {**FLAGS, "dataset_name": str(dataset), "max_train_steps": 300, "num_workers": "1:4"}
    with Driver(cluster, "train", {**flags, "output_dir": str(out)}, log) as driver:
        _until(lambda: _workers(out) == 1, driver, log)
        for _ in range(2):
            cluster.add_node()
        _until(lambda: _workers(out) == 3, driver, log)
        assert _ended(driver, log)["steps"] == 300
        seen = {json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()}
        assert seen == set(range(10, 301, 10))
        train(TrainOptions(output_dir=str(whole), **{**flags, "checkpoint_minutes": 60, "num_workers": 1}))
        losses = [
            [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()[:10]]
            for folder in (out, whole)
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.soak
@pytest.mark.parametrize("cluster", [2], indirect=True)
def test_a_node_that_is_announced_to_go_costs_no_steps(
    local_ray: None, dataset: Path, tmp_path: Path, cluster: SimulatedCluster
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    flags = {
        **FLAGS,
        "dataset_name": str(dataset),
        "max_train_steps": 300,
        "num_workers": "1:2",
        "checkpoint_minutes": 60,
        "output_dir": str(out),
    }
    with Driver(cluster, "train", flags, log) as driver:
        _until((out / "metrics.jsonl").exists, driver, log)
        leaving = cluster.nodes[0]
        cluster.announce_preemption(leaving, deadline_s=20)
        _until(lambda: bool(whole_checkpoints(Folder(str(out)))), driver, log)
        saved = _step(out)
        # Ray forwards the output of workers with a delay.
        _until(lambda: "will be preempted: writing a checkpoint" in log.read_text(), driver, log)
        cluster.remove_node(leaving)
        assert _ended(driver, log)["steps"] == 300
        assert 0 < saved < 300


@pytest.mark.soak
@pytest.mark.parametrize("cluster", [1], indirect=True)
def test_what_is_in_validation_when_the_driver_is_killed_is_validated(
    held_out: Path, tmp_path: Path, cluster: SimulatedCluster
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    flags = {
        **FLAGS,
        "dataset_name": str(held_out),
        "max_train_steps": 150,
        "num_workers": 1,
        "preview_count": MIN_FRECHET_PREVIEWS,
        "checkpoints_kept": 1,
    }
    with Driver(cluster, "train", {**flags, "output_dir": str(out)}, log) as driver:

        def in_hand() -> set[int]:
            return {step_of(name) for name, begun in in_validation(Folder(str(out))).items() if begun}

        _until(lambda: bool(in_hand()) and _step(out) > max(in_hand()), driver, log)
        driver.kill()
        (before,) = in_hand()
        assert "frechet" not in validation_results(Folder(str(out))).get(before, {})
        driver.begin()
        assert _ended(driver, log)["steps"] == 150
    results = validation_results(Folder(str(out)))
    assert {before, 150} <= {step for step, values in results.items() if "frechet" in values}
    assert in_validation(Folder(str(out))) == {}
