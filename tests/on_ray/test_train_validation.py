"""Results of a training while it runs: metrics, validation, and the best checkpoint.

A run on an object store is covered too.
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from accelerate import Accelerator
from ray.train import ValidationConfig
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from audiodiff_core.audio import decode_audio
from audiodiff_core.checkpoint import load_model, load_vae
from audiodiff_core.latents.posteriors import posterior_moments
from audiodiff_core.mel import to_image
from audiodiff_core.models import build_vae
from audiodiff_core.training import TrainState
from audiodiff_platform.cluster import capacity
from audiodiff_platform.mel_data.mel_dataset import VALIDATION_SPLIT, MelDataset
from audiodiff_platform.prepare.job import PrepareOptions, prepare
from audiodiff_platform.storage import Folder
from audiodiff_platform.train import checkpoint_writer
from audiodiff_platform.train import checkpoints as training_state
from audiodiff_platform.train import diffusion as train_module
from audiodiff_platform.train.autoencoder import train_vae
from audiodiff_platform.train.checkpoints import best_checkpoint, step_of, validation_results, whole_checkpoints
from audiodiff_platform.train.diffusion import train
from audiodiff_platform.train.diffusion_worker import train_worker
from audiodiff_platform.train.inputs import load_training_inputs
from audiodiff_platform.train.options import MIN_FRECHET_PREVIEWS, TrainOptions, TrainVaeOptions
from audiodiff_platform.train.validation.autoencoder import Reconstructions, reconstruct_held_out
from audiodiff_platform.train.validation.beside_training import (
    MAX_TASKS,
    validate_in_task,
    validation_beside,
    with_validation_place,
)
from audiodiff_platform.train.validation.diffusion import HeldOutLosses, held_out_losses, previews, validate
from audiodiff_platform.train.validation_marks import in_validation, queue_for_validation, start_validation
from audiodiff_platform.train.worker_group import Group
from tests.in_process import in_process
from tests.rare import rare
from tests.servers.stores import Store, Stores


@pytest.fixture(scope="module")
def split(local_ray: None, loops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with held-out tracks."""
    folder = tmp_path_factory.mktemp("split") / "mel"
    with in_process():
        prepare(
            PrepareOptions(
                input_dir=str(loops),
                output_dir=str(folder),
                resolution="32",
                hop_length=1024,
                overlap=0.5,
                validation_fraction=0.3,
                num_workers=1,
            )
        )
    return folder


def _options(dataset: Path, output: str, **changes: Any) -> TrainOptions:
    settings: dict[str, Any] = {
        "max_train_steps": 20,
        "train_batch_size": 4,
        "learning_rate": 1e-3,
        "lr_warmup_steps": 5,
        "num_workers": 1,
    }
    return TrainOptions(dataset_name=str(dataset), output_dir=output, **(settings | changes))


@pytest.fixture(scope="module")
def run(split: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that saves at each log line, validates each checkpoint and keeps the best checkpoint."""
    folder = tmp_path_factory.mktemp("validated") / "run"
    with in_process():
        train(_options(split, str(folder), checkpoint_minutes=1e-6, checkpoints_kept=1, preview_count=2, keep="best"))
    return folder


def _beside_once(*arguments: Any) -> ValidationConfig:
    """Return a validation whose task is not retried when its process dies."""
    config = validation_beside(*arguments)
    config.task_config.fn_kwargs["resources"]["max_retries"] = 0
    return config


def _board(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "audio": 0}).Reload()


def test_the_last_checkpoint_is_validated_by_noise_level(run: Path) -> None:
    results = validation_results(Folder(str(run)))
    assert 20 in results
    bands = [value for name, value in results[20].items() if name.startswith("validation_loss_noise_")]
    assert len(bands) == 4
    assert min(bands) < results[20]["validation_loss"] < max(bands)


def test_the_model_is_the_best_checkpoint(run: Path) -> None:
    output = Folder(str(run))
    best = best_checkpoint(output, "validation_loss")
    assert best is not None
    losses = {step: values["validation_loss"] for step, values in validation_results(output).items()}
    assert losses[step_of(best)] == min(losses.values())
    assert len(whole_checkpoints(output)) <= 2
    expected = load_file(run / best / "ema.safetensors")
    weights = load_model(run / "model").unet.state_dict()
    assert all(torch.equal(expected[name], weights[name]) for name in expected)
    record = json.loads((run / "model" / "audiodiff.json").read_text())
    assert record["metrics"]["steps"] == step_of(best)
    assert record["metrics"]["validation_loss"] == losses[step_of(best)]


def test_tensorboard_shows_figures_pictures_and_sounds(run: Path) -> None:
    figures = _board(run / "tensorboard" / "train")
    assert {"loss", "gradient_norm", "learning_rate", "samples_per_second"} <= set(figures.Tags()["scalars"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(event.step, event.value) for event in figures.Scalars("loss")] == [
        (line["step"], pytest.approx(line["loss"])) for line in lines
    ]
    shown = _board(run / "tensorboard" / "validation")
    assert shown.Tags()["images"] == shown.Tags()["audio"] == ["seed 0", "seed 1"]
    (last,) = [event for event in shown.Audio("seed 1") if event.step == 20]
    assert np.abs(decode_audio(last.encoded_audio_string, int(last.sample_rate))).max() > 0.5
    assert shown.Scalars("validation_loss")[-1].step == 20


def test_the_same_seeds_make_the_same_previews_and_losses(run: Path, split: Path) -> None:
    """A repeated validation of a checkpoint gives the same result."""
    output = Folder(str(run))
    name = whole_checkpoints(output)[-1]
    before = validation_results(output)[step_of(name)]
    assert validate(name, _options(split, str(run), preview_count=0).model_dump(mode="json")) == pytest.approx(
        before, rel=1e-6
    )


@pytest.mark.parametrize("world", [rare(2), 3])
def test_shares_of_workers_are_the_whole_validation(run: Path, split: Path, world: int) -> None:
    options = _options(split, str(run), preview_count=3)
    inputs = load_training_inputs(options)
    accelerator = Accelerator(cpu=True)
    state = TrainState(accelerator, inputs.network, inputs.objective, learning_rate=0.0, seed=options.seed)
    whole = held_out_losses(options, inputs, accelerator, state)
    shares = [held_out_losses(options, inputs, accelerator, state, rank=rank, world=world) for rank in range(world)]
    assert min(len(share.numbers) for share in shares) > 0
    joined = HeldOutLosses.joined(shares)
    assert (joined.numbers, joined.noise_fractions) == (whole.numbers, whole.noise_fractions)
    assert joined.values == pytest.approx(whole.values, rel=1e-5)
    loops = [loop for rank in range(world) for loop in previews(options, inputs, rank=rank, world=world)]
    assert sorted(loop.request.seed for loop in loops) == [0, 1, 2]


def test_pictures_of_workers_are_in_order(split: Path) -> None:
    dataset = MelDataset(str(split))
    vae = build_vae("vae-tiny", dataset.mel).eval()
    whole = reconstruct_held_out(dataset, vae)
    joined = Reconstructions.joined([reconstruct_held_out(dataset, vae, rank, 3) for rank in (2, 0, 1)])
    assert joined.numbers == whole.numbers
    assert np.array_equal(joined.images, whole.images)
    assert np.abs(joined.made.astype(int) - whole.made).max() <= 1


def test_losses_stay_where_previews_cannot_be_made(run: Path, split: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    output = Folder(str(tmp_path / "run"))
    name = whole_checkpoints(output)[-1]
    expected = validation_results(output)[step_of(name)]
    output.remove(VALIDATION_SPLIT)
    options = _options(split, str(tmp_path / "run"), scheduler="flow_euler", preview_count=1)
    with pytest.raises(ValueError, match="flow_euler"):
        validate(name, options.model_dump(mode="json"))
    assert validation_results(output) == {step_of(name): pytest.approx(expected, rel=1e-6)}


@pytest.mark.soak_short
@pytest.mark.workers
def test_the_best_can_be_told_by_frechet_distance(split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def validate_by_step(name: str, options: dict[str, Any]) -> dict[str, Any]:
        step = step_of(name)
        values = {"validation_loss": 1 / step, "frechet": float(step), "n_candidate": options["preview_count"]}
        Folder(options["output_dir"]).write_json(f"{VALIDATION_SPLIT}/{step}.json", values)
        return {}

    def patient_worker(config: dict[str, Any]) -> str | None:
        """Write the second checkpoint after the first is validated, so that both are validated."""

        def put_checkpoint(output: Folder, name: str, *arguments: Any) -> None:
            while in_validation(output):
                time.sleep(0.1)
            training_state.put_checkpoint(output, name, *arguments)

        vars(checkpoint_writer).update(put_checkpoint=put_checkpoint)
        return train_worker(config)

    for name, function in (("validate", validate_by_step), ("train_worker", patient_worker)):
        monkeypatch.setattr(train_module, name, function)
    options = {
        "checkpoint_minutes": 1e-6,
        "checkpoints_kept": 1,
        "preview_count": MIN_FRECHET_PREVIEWS,
        "keep": "best",
        "best_by": "frechet",
    }
    summary = train(_options(split, str(tmp_path / "run"), **options))
    assert (summary["steps"], summary["frechet"]) == (10, 10.0)


@pytest.mark.workers
def test_without_a_spare_gpu_validation_sees_none(split: Path, tmp_path: Path) -> None:
    def seen() -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    resources = validation_beside(
        validate, _options(split, str(tmp_path)), Group(workers=1, gpu=True)
    ).task_config.fn_kwargs["resources"]
    assert ray.get(ray.remote(seen).options(**resources).remote()) == ""


@pytest.mark.parametrize(
    ("free", "place", "validation_gpus"),
    [(4, "group", 0), (5, "task", 1)],
    ids=["others hold the rest", "one is free"],
)
def test_a_gpu_of_another_job_is_no_spare_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, place: str, validation_gpus: int
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 8.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"GPU": float(free)})
    monkeypatch.setattr(capacity, "started_here", lambda: True)
    options, group = _options(tmp_path, str(tmp_path)), Group(workers=4, gpu=True)
    assert with_validation_place(options, group).validate_in == place
    resources = validation_beside(validate, options, group).task_config.fn_kwargs["resources"]
    assert resources["num_gpus"] == validation_gpus


@pytest.mark.parametrize(("precision", "expected"), [("no", "ieee"), ("tf32", "tf32")])
def test_a_validation_on_a_gpu_computes_like_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, expected: str
) -> None:
    cudnn: Any = torch.backends.cudnn
    before = torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision
    output, name = Folder(str(tmp_path)), "state/step-000000010-aaaa"
    queue_for_validation(output, name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    try:
        cudnn.conv.fp32_precision = "ieee" if expected == "tf32" else "tf32"
        options = {"output_dir": str(tmp_path), "mixed_precision": precision}
        found = validate_in_task(
            lambda name, options: {"precision": cudnn.conv.fp32_precision}, name, options, all_cores=False
        )
        assert found == {"precision": expected}
    finally:
        torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision = before


@pytest.mark.soak_short
@pytest.mark.workers
def test_a_validation_that_dies_costs_only_itself(
    split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two validations die while training waits for their death, the last after the workers finished."""
    begun, died = tmp_path / "begun", tmp_path / "died"
    begun.touch()
    died.touch()

    def mortal(name: str, options: dict[str, Any]) -> dict[str, Any]:
        with died.open("a") as file:
            file.write(f"{name}\n")
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    def waiting_worker(config: dict[str, Any]) -> str | None:
        """Wait before checkpoints 2 and 3 until the validation of the previous checkpoint has died."""

        def put_checkpoint(output: Folder, name: str, *arguments: Any) -> None:
            while len(died.read_text().splitlines()) < training_state.step_of(name) // 10 - 1 or in_validation(output):
                time.sleep(0.1)
            training_state.put_checkpoint(output, name, *arguments)

        with begun.open("a") as file:
            file.write("begun\n")
        vars(checkpoint_writer).update(put_checkpoint=put_checkpoint)
        return train_worker(config)

    for name, function in (("validate", mortal), ("train_worker", waiting_worker), ("validation_beside", _beside_once)):
        monkeypatch.setattr(train_module, name, function)
    options = _options(
        split,
        str(tmp_path / "run"),
        max_train_steps=30,
        checkpoint_minutes=1e-6,
        preview_count=0,
        report_to=(),
        keep="best",
    )
    assert train(options)["steps"] == 30
    assert begun.read_text() == "begun\n", "the workers were started again"
    assert [step_of(name) for name in died.read_text().splitlines()] == [10, 20, 30]
    errors = capsys.readouterr().err
    assert (
        "warning: keep best: no remaining checkpoint has a validation_loss: "
        "writing the model from the last checkpoint (state/step-000000030" in errors
    )


@pytest.mark.soak_short
@pytest.mark.workers
def test_the_last_checkpoint_is_validated_though_the_one_before_it_dies(
    split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers have ended by then, and Ray Train drops what waits behind the dead validation."""
    workers = tmp_path / "workers"
    workers.touch()

    def mortal(name: str, options: dict[str, Any]) -> dict[str, Any]:
        output = Folder(options["output_dir"])
        if step_of(name) == 10:
            while not (pids := workers.read_text().split()) or Path(f"/proc/{pids[0]}").exists():
                time.sleep(0.1)
            assert len(in_validation(output)) == 2
            os.kill(os.getpid(), signal.SIGKILL)
        output.write_json(f"{VALIDATION_SPLIT}/{step_of(name)}.json", {"validation_loss": 0.5})
        return {}

    def told_worker(config: dict[str, Any]) -> str | None:
        failure = train_worker(config)
        with workers.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return failure

    for name, function in (("validate", mortal), ("train_worker", told_worker), ("validation_beside", _beside_once)):
        monkeypatch.setattr(train_module, name, function)
    options = _options(
        split, str(tmp_path / "run"), checkpoint_minutes=1e-6, preview_count=0, report_to=(), keep="best"
    )
    summary = train(options)
    assert (summary["steps"], summary["validation_loss"]) == (20, 0.5)
    assert in_validation(Folder(options.output_dir)) == {}
    assert len(workers.read_text().split()) == 1, "the workers were started again"


@pytest.mark.soak_short
@pytest.mark.workers
def test_a_checkpoint_that_ends_its_validations_is_left(split: Path, tmp_path: Path) -> None:
    """Ray restarts tasks that end for lack of memory without limit."""
    output, name = Folder(str(tmp_path)), "state/step-000000010-aaaa"

    def succeeds(name: str, options: dict[str, Any]) -> dict[str, Any]:
        return {"begun": in_validation(Folder(options["output_dir"]))}

    config = validation_beside(succeeds, _options(split, str(tmp_path)), Group(workers=1, gpu=False))
    task = ray.remote(lambda: config.fn(None, name=name, **config.task_config.fn_kwargs)).options(
        **config.ray_remote_kwargs
    )
    outcomes = []
    for begun in (0, MAX_TASKS):
        queue_for_validation(output, name)
        for _ in range(begun):
            start_validation(output, name)
        outcomes.append(ray.get(task.remote()))
        assert in_validation(output) == {}
    assert outcomes == [{"begun": {name: 1}}, {}]


@pytest.mark.soak_short
@pytest.mark.workers
def test_a_validation_whose_process_is_told_to_end_is_begun_anew(split: Path, tmp_path: Path) -> None:
    """`ray stop` on a node raises an exception in the task, unlike a kill."""
    output, name, signaled = Folder(str(tmp_path)), "state/step-000000010-aaaa", tmp_path / "told"

    def ended(name: str, options: dict[str, Any]) -> dict[str, Any]:
        if not signaled.exists():
            signaled.touch()
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        return {"begun": in_validation(Folder(options["output_dir"]))[name]}

    config = validation_beside(ended, _options(split, str(tmp_path)), Group(workers=1, gpu=False))
    task = ray.remote(lambda: config.fn(None, name=name, **config.task_config.fn_kwargs)).options(
        **config.ray_remote_kwargs
    )
    queue_for_validation(output, name)
    assert ray.get(task.remote()) == {"begun": 2}
    assert in_validation(output) == {}


@pytest.mark.soak_short
@pytest.mark.workers
def test_a_validation_that_cannot_begin_has_nothing_in_hand(split: Path, tmp_path: Path) -> None:
    """A mark that stays would delay the validations after it."""
    output, name = Folder(str(tmp_path)), "state/step-000000010-aaaa"
    config = validation_beside(lambda name, options: {}, _options(split, str(tmp_path)), Group(workers=1, gpu=False))
    task = ray.remote(lambda: config.fn(None, name=name, **config.task_config.fn_kwargs)).options(
        **config.ray_remote_kwargs
    )
    queue_for_validation(output, name)
    (mark,) = output.names("_in_validation/*")
    output.write(mark, b"{")
    with pytest.raises(ValueError, match="Expecting property name"):
        ray.get(task.remote())
    assert not output.exists(mark)


@pytest.mark.soak_short
@pytest.mark.workers
def test_a_checkpoint_that_validation_is_told_of_twice_is_validated_once(split: Path, tmp_path: Path) -> None:
    name = "state/step-000000010-aaaa"
    config = validation_beside(
        lambda name, options: {"found": 1}, _options(split, str(tmp_path)), Group(workers=1, gpu=False)
    )
    task = ray.remote(lambda: config.fn(None, name=name, **config.task_config.fn_kwargs)).options(
        **config.ray_remote_kwargs
    )
    queue_for_validation(Folder(str(tmp_path)), name)
    assert [ray.get(task.remote()) for _ in range(2)] == [{"found": 1}, {}]


@pytest.mark.soak_short
@pytest.mark.workers
def test_a_checkpoint_in_validation_outlives_its_workers(
    split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best checkpoint survives the death of its workers during its validation.

    The first checkpoint is in validation when the workers die. Their successors write more checkpoints, of which one is
    kept. Then the result of the validation makes the first checkpoint the best.
    """
    seen, result_due = tmp_path / "seen", tmp_path / "result-due"

    def slow(name: str, options: dict[str, Any]) -> dict[str, Any]:
        while step_of(name) == 10 and not result_due.exists():
            time.sleep(0.1)
        result = {"validation_loss": float(step_of(name))}
        Folder(options["output_dir"]).write_json(f"{VALIDATION_SPLIT}/{step_of(name)}.json", result)
        return result

    def mortal_worker(config: dict[str, Any]) -> str | None:
        def put_checkpoint(output: Folder, name: str, *arguments: Any) -> None:
            step = training_state.step_of(name)
            if step == 20 and not seen.exists():
                while 1 not in in_validation(output).values():
                    time.sleep(0.1)
                seen.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if step == 50:
                seen.write_text(" ".join(training_state.whole_checkpoints(output)))
                result_due.touch()
            training_state.put_checkpoint(output, name, *arguments)

        vars(checkpoint_writer).update(put_checkpoint=put_checkpoint)
        return train_worker(config)

    for name, function in (("validate", slow), ("train_worker", mortal_worker)):
        monkeypatch.setattr(train_module, name, function)
    short = {
        "max_train_steps": 50,
        "checkpoint_minutes": 1e-6,
        "checkpoints_kept": 1,
        "preview_count": 0,
        "report_to": (),
    }
    options = _options(split, str(tmp_path / "run"), keep="best", **short)
    assert train(options)["steps"] == 10
    assert [step_of(name) for name in seen.read_text().split()] == [10, 40]


@pytest.mark.parametrize(
    "kind", [pytest.param("gs", marks=pytest.mark.soak_short), pytest.param("s3", marks=pytest.mark.soak)]
)
def test_a_run_on_an_object_store_survives_its_faults(split: Path, stores: Stores, run: Path, kind: str) -> None:
    store: Store = getattr(stores, kind)
    uri = f"{store.make_bucket()}/run"
    faults = [
        store.fail_write("unavailable", f"{uri}/state/step-000000010", times=2),
        store.fail_write("drop", f"{uri}/state/step-000000020"),
    ]
    train(_options(split, uri, checkpoint_minutes=1e-6, preview_count=1))
    assert [fault.fired for fault in faults] == [2, 1]
    output = Folder(uri)
    assert [step_of(name) for name in whole_checkpoints(output)] == [10, 20]
    assert 20 in validation_results(output)
    local = (run / "metrics.jsonl").read_text().splitlines()
    remote = output.read("metrics.jsonl").decode().splitlines()
    assert [json.loads(line)["loss"] for line in remote] == [json.loads(line)["loss"] for line in local]
    assert output.names("tensorboard/train/*")
    assert output.names("tensorboard/validation/*")
    assert load_model(f"{uri}/model").unet is not None
    store.proxy.clear()


def test_an_autoencoder_is_validated_by_its_reconstructions(split: Path, tmp_path: Path) -> None:
    common = {
        "max_train_steps": 20,
        "train_batch_size": 4,
        "learning_rate": 1e-3,
        "lr_warmup_steps": 5,
        "num_workers": 1,
    }
    train_vae(TrainVaeOptions(dataset_name=str(split), output_dir=str(tmp_path), preset="vae-tiny", **common))
    images = MelDataset(str(split), VALIDATION_SPLIT).all_images()
    vae = load_vae(tmp_path / "model")
    with torch.no_grad():
        made = vae.decode(posterior_moments(vae, torch.from_numpy(images))[:, 0]).sample[:, 0].numpy()
    expected = np.abs(to_image(made).astype(int) - images).mean() * 2 / 255
    board = _board(tmp_path / "tensorboard" / "validation")
    assert validation_results(Folder(str(tmp_path)))[20]["validation_loss"] == pytest.approx(expected, rel=1e-3)
    assert board.Scalars("validation_loss")[-1].value == pytest.approx(expected, rel=1e-3)
    titles = board.Tags()["images"]
    assert len(titles) == 4
    assert all((board.Images(title)[-1].width, board.Images(title)[-1].height) == (32, 64) for title in titles)
