"""The log of a run and its trackers: reported values, their steps, and failures to write them."""

import os
import random
from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker

from audiodiff_platform.mel_data.run_folder import METRICS, VALIDATION_RESULTS
from audiodiff_platform.storage import Folder
from audiodiff_platform.train import run_log, trackers
from audiodiff_platform.train.checkpoints import checkpoint_name, put_checkpoint
from audiodiff_platform.train.options import TrainOptions
from audiodiff_platform.train.run_log import RunLog
from audiodiff_platform.train.run_options import TrackerName
from audiodiff_platform.train.trackers import report_last_validations


class Orderly(GeneralTracker):  # type: ignore[misc]  # accelerate states no types
    """Tracker that, like wandb, ignores steps before its last step."""

    name = "orderly"
    requires_logging_directory = False
    tracker = None

    def __init__(self) -> None:
        super().__init__(_blank=True)
        self.taken: list[tuple[int, dict[str, Any]]] = []
        self.finished = False
        self.reachable = True
        self.attempts = 0

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        raise AssertionError("it is begun already")

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        assert step is not None
        self.attempts += 1
        if not self.reachable:
            raise ConnectionError("tracker.example\nrefused")
        if not self.taken or step > self.taken[-1][0]:
            self.taken.append((step, values))

    def finish(self) -> None:
        if not self.reachable:
            raise ConnectionError("tracker.example\nrefused")
        self.finished = True


def _options(folder: Path, *trackers: TrackerName) -> TrainOptions:
    return TrainOptions(dataset_name="none", output_dir=str(folder), report_to=trackers)


def _log(folder: Path, *trackers: Orderly, reported: Mapping[str, Collection[int]] = MappingProxyType({})) -> RunLog:
    log = RunLog(_options(folder), 0, reported, writes=True)
    log.trackers = [*trackers]
    return log


def test_a_loss_that_was_never_finite_is_not_logged_as_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_log, "CONSOLE_INTERVAL_S", -1.0)
    log = _log(tmp_path)
    log.add(SimpleNamespace(step=10, samples=40, seconds=1.0), {"learning_rate": 1e-3}, 0.5, None)
    assert capsys.readouterr().err == "step 10, 50%, loss not finite\n"
    log.close()


def test_validation_is_told_once_just_after_the_log(tmp_path: Path) -> None:
    tracker, output = Orderly(), Folder(str(tmp_path))
    log = _log(tmp_path, tracker, reported={"orderly": [5]})
    for step in (10, 20):
        log.add(SimpleNamespace(step=step, samples=4 * step, seconds=1.0), {"loss": 0.5}, 0.5, None)
    output.write_json(f"{VALIDATION_RESULTS}/5.json", {"validation_loss": 0.5})
    output.write_json(f"{VALIDATION_RESULTS}/10.json", {"validation_loss": 0.25})
    log.report_validations()
    log.report_validations()
    assert [step for step, _ in tracker.taken] == [10, 20, 21]
    assert tracker.taken[-1] == (21, {"validation_loss": 0.25, "validated_step": 10})
    assert log.reported == {"orderly": {5, 10}}


def test_the_last_validation_is_told_by_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job reports to the same run of the tracker, after all reports of the workers."""
    tracker, output = Orderly(), Folder(str(tmp_path))
    for step in (90, 100, 110):
        output.write_json(f"{VALIDATION_RESULTS}/{step}.json", {"validation_loss": 1 / step})
    put_checkpoint(
        output, checkpoint_name(110, "aaaa"), lambda folder: None, {"step": 110, "validations_told": {"wandb": [90]}}
    )
    for module in (run_log, trackers):
        monkeypatch.setattr(module, "start_tracker", lambda name, options: tracker)
    report_last_validations(_options(tmp_path, "tensorboard"))
    assert not tracker.taken
    tracker.taken.append((110, {"loss": 0.5}))
    report_last_validations(_options(tmp_path, "tensorboard", "wandb"))
    assert tracker.taken[1:] == [
        (110 + nth, {"validation_loss": 1 / step, "validated_step": step}) for nth, step in ((1, 100), (2, 110))
    ]
    assert tracker.finished


def test_a_tracker_out_of_reach_costs_nothing_but_what_it_misses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log retries at the next checkpoint and then reports each missing validation."""
    tracker, output = Orderly(), Folder(str(tmp_path))
    log = _log(tmp_path, tracker)
    output.write_json(f"{VALIDATION_RESULTS}/10.json", {"validation_loss": 0.5})
    output.write_json(f"{VALIDATION_RESULTS}/20.json", {"validation_loss": 0.25})
    tracker.reachable = False
    for step in (10, 20):
        log.add(SimpleNamespace(step=step, samples=4 * step, seconds=1.0), {"loss": 0.5}, 0.5, None)
    assert tracker.attempts == 1
    assert (
        "orderly failed to log step 10 (tracker.example refused): "
        "training continues, and the run folder holds the values" in capsys.readouterr().err
    )
    log.report_validations()
    assert (tracker.attempts, log.reported) == (2, {"orderly": set()})
    tracker.reachable = True
    log.report_validations()
    log.add(SimpleNamespace(step=30, samples=120, seconds=2.0), {"loss": 0.5}, 0.5, None)
    assert [step for step, _ in tracker.taken] == [21, 22, 30]
    assert log.reported == {"orderly": {10, 20}}
    tracker.reachable = False
    log.close()
    assert "orderly failed to finish its run (tracker.example refused)" in capsys.readouterr().err
    assert len((tmp_path / METRICS).read_text().splitlines()) == 3


def test_a_tracker_out_of_reach_keeps_nothing_from_another(tmp_path: Path) -> None:
    """The other tracker receives each validation once."""
    lost, sound, output = Orderly(), Orderly(), Folder(str(tmp_path))
    lost.name, lost.reachable = "lost", False
    log = _log(tmp_path, lost, sound)
    for step in (10, 20):
        log.add(SimpleNamespace(step=step, samples=4 * step, seconds=1.0), {"loss": 0.5}, 0.5, None)
        output.write_json(f"{VALIDATION_RESULTS}/{step}.json", {"validation_loss": 1 / step})
        log.report_validations()
    assert [values.get("validated_step") for _, values in sound.taken] == [None, 10, None, 20]
    assert log.reported == {"lost": set(), "orderly": {10, 20}}
    attempts = lost.attempts
    log.add(SimpleNamespace(step=30, samples=120, seconds=2.0), {"loss": 0.5}, 0.5, None)
    assert lost.attempts == attempts


def test_a_tracker_out_of_reach_at_the_end_costs_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreached(name: str, options: TrainOptions) -> Orderly:
        raise ConnectionError(f"{name}.example refused")

    put_checkpoint(
        Folder(str(tmp_path)), checkpoint_name(110, "aaaa"), lambda folder: None, {"step": 110, "validations_told": {}}
    )
    for module in (run_log, trackers):
        monkeypatch.setattr(module, "start_tracker", unreached)
    report_last_validations(_options(tmp_path, "wandb"))
    assert "wandb did not receive the last validation results (wandb.example refused)" in capsys.readouterr().err


def test_a_log_that_cannot_be_written_hides_no_other_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Orderly()
    log = _log(tmp_path, tracker)
    os.remove(tmp_path / METRICS)
    log.close()
    assert "the last lines of metrics.jsonl or tensorboard cannot be written ([Errno 2]" in capsys.readouterr().err
    assert tracker.finished


@pytest.mark.package("mlflow")
def test_mlflow_goes_on_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = import_module("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    ids = []
    for steps in (10, 20):
        tracker = trackers.start_tracker(
            "mlflow", _options(tmp_path, "mlflow").model_copy(update={"max_train_steps": steps})
        )
        tracker.log({"loss": 0.5}, step=steps)
        ids.append(tracker.tracker.info.run_id)
        tracker.finish()
    assert ids[0] == ids[1]
    assert [point.step for point in mlflow.MlflowClient().get_metric_history(ids[0], "loss")] == [10, 20]


def test_a_training_that_diverges_to_a_finite_loss_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, chance = _log(tmp_path), random.Random(0)

    def losses(first: int, mean: float, **others: float) -> str:
        for step in range(first, first + 1_000, 10):
            loss = mean * chance.uniform(0.4, 1.6)
            counts = SimpleNamespace(step=step, samples=4 * step, seconds=1.0)
            log.add(counts, {"loss": loss, **others}, 0.5, None)
        return capsys.readouterr().err

    assert losses(10, 0.6) == losses(1_010, 0.15) == losses(2_010, 0.2) == ""
    told = losses(3_010, 0.4)
    assert "the training has diverged; train in another folder with a lower learning_rate\n" in told
    assert told.count("\n") == 1
    assert losses(4_010, 0.8) == ""
    log.close()
    log = _log(tmp_path / "autoencoder")
    assert losses(10, 0.1, reconstruction=0.1) == ""
    assert losses(1_010, 0.4, reconstruction=0.1) == "", "the discriminator has started"
    assert "the mean loss is 0.1" in losses(2_010, 0.4, reconstruction=0.2)
    log.close()
