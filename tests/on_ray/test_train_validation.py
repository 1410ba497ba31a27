"""What a training shows while it runs: figures, validation beside it, the best checkpoint, and all of it on an object store too."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from audiodiff_core.audio import decode
from audiodiff_core.checkpoint import load_model, load_vae
from audiodiff_core.mel import to_image
from audiodiff_core.posteriors import posterior_moments
from audiodiff_platform.dataset import VALIDATION, MelDataset
from audiodiff_platform.prepare import PrepareOptions, prepare
from audiodiff_platform.storage import Folder
from audiodiff_platform.train import train
from audiodiff_platform.train_options import TrainOptions, TrainVaeOptions
from audiodiff_platform.train_vae import train_vae
from audiodiff_platform.training_state import best_checkpoint, step_of, validation_results, whole_checkpoints
from audiodiff_platform.validation import validate
from tests.servers.stores import Store, Stores


@pytest.fixture(scope="module")
def split(local_ray: None, loops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with held-out tracks."""
    folder = tmp_path_factory.mktemp("split") / "mel"
    prepare(
        PrepareOptions(
            input_dir=str(loops), output_dir=str(folder), resolution="32", hop_length=1024, overlap=0.5, validation_fraction=0.3, num_workers=2
        )
    )
    return folder


def _options(dataset: Path, output: str, **changes: Any) -> TrainOptions:
    settings: dict[str, Any] = {"max_train_steps": 20, "train_batch_size": 4, "learning_rate": 1e-3, "lr_warmup_steps": 5, "num_workers": 1}
    return TrainOptions(dataset_name=str(dataset), output_dir=output, **(settings | changes))


@pytest.fixture(scope="module")
def run(split: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint at each line of the log, validated beside it, of which the best is kept."""
    folder = tmp_path_factory.mktemp("validated") / "run"
    train(_options(split, str(folder), checkpoint_minutes=1e-6, checkpoints_kept=1, preview_count=2, keep="best"))
    return folder


def _board(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "audio": 0}).Reload()


def test_the_last_checkpoint_is_validated_by_noise_level(run: Path) -> None:
    found = validation_results(Folder(str(run)))
    assert 20 in found
    bands = [value for name, value in found[20].items() if name.startswith("validation_loss_noise_")]
    assert len(bands) == 4
    assert min(bands) < found[20]["validation_loss"] < max(bands)


def test_the_model_is_the_best_checkpoint(run: Path) -> None:
    output = Folder(str(run))
    best = best_checkpoint(output)
    assert best is not None
    losses = {step: found["validation_loss"] for step, found in validation_results(output).items()}
    assert losses[step_of(best)] == min(losses.values())
    assert len(whole_checkpoints(output)) <= 2
    expected = load_file(run / best / "ema.safetensors")
    found = load_model(run / "model").unet.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    record = json.loads((run / "model" / "audiodiff.json").read_text())
    assert record["metrics"]["steps"] == step_of(best)
    assert record["metrics"]["validation_loss"] == losses[step_of(best)]


def test_tensorboard_shows_figures_pictures_and_sounds(run: Path) -> None:
    figures = _board(run / "tensorboard" / "train")
    assert {"loss", "gradient_norm", "learning_rate", "samples_per_second"} <= set(figures.Tags()["scalars"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(event.step, event.value) for event in figures.Scalars("loss")] == [(line["step"], pytest.approx(line["loss"])) for line in lines]
    shown = _board(run / "tensorboard" / "validation")
    assert shown.Tags()["images"] == shown.Tags()["audio"] == ["seed 0", "seed 1"]
    (last,) = [event for event in shown.Audio("seed 1") if event.step == 20]
    assert np.abs(decode(last.encoded_audio_string, int(last.sample_rate))).max() > 0.5
    assert shown.Scalars("validation_loss")[-1].step == 20


def test_the_same_seeds_make_the_same_previews_and_losses(run: Path, split: Path) -> None:
    """Validated once more, a checkpoint gets what it got."""
    output = Folder(str(run))
    name = whole_checkpoints(output)[-1]
    before = validation_results(output)[step_of(name)]
    assert validate(None, name=name, options=_options(split, str(run), preview_count=0).model_dump(mode="json")) == pytest.approx(before, rel=1e-6)


@pytest.mark.parametrize("kind", ["gs", pytest.param("s3", marks=pytest.mark.soak)])
def test_a_run_on_an_object_store_survives_its_faults(split: Path, stores: Stores, run: Path, kind: str) -> None:
    store: Store = getattr(stores, kind)
    uri = f"{store.make_bucket()}/run"
    faults = [store.fail_write("unavailable", f"{uri}/state/step-000000010", times=2), store.fail_write("drop", f"{uri}/state/step-000000020")]
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
    common = {"max_train_steps": 20, "train_batch_size": 4, "learning_rate": 1e-3, "lr_warmup_steps": 5, "num_workers": 1}
    train_vae(TrainVaeOptions(dataset_name=str(split), output_dir=str(tmp_path), preset="vae-tiny", **common))
    images = MelDataset(str(split), VALIDATION).all_images()
    vae = load_vae(tmp_path / "model")
    with torch.no_grad():
        made = vae.decode(posterior_moments(vae, images)[:, 0]).sample[:, 0].numpy()
    expected = np.abs(to_image(made).astype(int) - images).mean() * 2 / 255
    board = _board(tmp_path / "tensorboard" / "validation")
    assert validation_results(Folder(str(tmp_path)))[20]["validation_loss"] == pytest.approx(expected, rel=1e-3)
    assert board.Scalars("validation_loss")[-1].value == pytest.approx(expected, rel=1e-3)
    titles = board.Tags()["images"]
    assert len(titles) == 4
    assert all((board.Images(title)[-1].width, board.Images(title)[-1].height) == (32, 64) for title in titles)
