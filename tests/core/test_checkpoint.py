"""Saving and loading of checkpoints.

A loaded model equals the saved model, and diffusers loads the files too. Errors name damaged files in one line. A
failed save leaves the earlier model intact.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import AudioDiffusionPipeline as OraclePipeline

from audiodiff_core.checkpoint import CheckpointError, ModelRecord, card, load_model, save_model, upload_model
from audiodiff_core.diffusion.objectives import Objective, SavedScheduler
from audiodiff_core.diffusion.seeds import derived, initial_noise
from audiodiff_core.mel import MelConfig
from audiodiff_core.pipeline import LoopPipeline
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest

RECORD = ModelRecord(recipe={"preset": "tiny"}, data_digest="0123456789abcdef", metrics={"steps": 3, "loss": 0.25})
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path, make_unet: Callable[[int], Any], tiny_mel: MelConfig) -> Save:
    """Return a function that saves a model as tmp_path/models/loops."""

    def build(seed: int = 0, scheduler: Any = None) -> Path:
        folder = tmp_path / "models" / "loops"
        save_model(folder, make_unet(seed), scheduler or Objective().scheduler("ddim"), tiny_mel, RECORD)
        return folder

    return build


def assert_same_weights(one: Any, other: Any) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def assert_refused(folder: str | Path, *parts: str) -> None:
    """Assert that loading `folder` raises a CheckpointError of one line with the folder and `parts`."""
    with pytest.raises(CheckpointError) as raised:
        load_model(folder)
    message = str(raised.value)
    assert message.startswith(f"{folder}: ")
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_model_comes_back_whole(save: Save, make_unet: Callable[[int], Any], tiny_mel: MelConfig) -> None:
    model = load_model(save())
    assert_same_weights(model.unet, make_unet(0))
    assert model.mel == tiny_mel
    assert type(model.scheduler).__name__ == "DDIMScheduler"
    assert (model.scheduler.config.prediction_type, model.scheduler.config.rescale_betas_zero_snr) == (
        "v_prediction",
        True,
    )
    assert not model.unet.training


def test_digest_names_what_decides_the_result(save: Save, tmp_path: Path) -> None:
    folder = save()
    digest = load_model(folder).digest
    assert len(digest) == 16
    assert load_model(save()).digest == digest
    (folder / "README.md").write_text("another card")
    assert load_model(folder).digest == digest
    assert load_model(folder.rename(tmp_path / "elsewhere")).digest == digest
    others = {
        load_model(save(seed=1)).digest,
        load_model(save(scheduler=Objective(num_train_timesteps=500).scheduler("ddim"))).digest,
    }
    folder = save()
    (folder / "mel" / "mel_config.json").write_text(MelConfig(x_res=16, y_res=16, n_fft=512, hop_length=128).to_json())
    assert len({digest, *others, load_model(folder).digest}) == 4


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_diffusers_loads_it_and_makes_the_same_image(save: Save, name: SavedScheduler) -> None:
    folder = save(scheduler=Objective().scheduler(name))
    oracle = OraclePipeline.from_pretrained(folder)
    oracle.set_progress_bar_config(disable=True)
    request = GenerateRequest(seed=11, steps=5, scheduler=name)
    (loop,) = LoopPipeline.of(load_model(folder), ExecutionProfile(batch_size=4)).generate([request])
    (expected,), (rate, (audio,)) = oracle(
        steps=5, generator=initial_noise(11), step_generator=derived(11, "step"), return_dict=False
    )
    assert np.abs(np.asarray(expected).astype(int) - loop.image).max() <= 1
    assert loop.image.std() > 10
    assert (rate, len(audio)) == (22_050, len(loop.audio))


def test_only_plain_files_are_written(save: Save) -> None:
    folder = save()
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert files == {
        "model_index.json",
        "audiodiff.json",
        "README.md",
        "mel/mel_config.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        WEIGHTS,
    }
    index = json.loads((folder / "model_index.json").read_text())
    assert {key: value for key, value in index.items() if key != "_diffusers_version"} == {
        "_class_name": "AudioDiffusionPipeline",
        "mel": ["diffusers", "Mel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
        "vqvae": [None, None],
    }
    assert ModelRecord.model_validate_json((folder / "audiodiff.json").read_text()) == RECORD
    assert "0123456789abcdef" in (folder / "README.md").read_text()


def test_folders_that_are_no_models_are_named(tmp_path: Path) -> None:
    assert_refused(tmp_path / "absent", "no such folder")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("train")
    assert_refused(tmp_path / "notes", "not a model folder", "model_index.json")
    assert_refused("memory://nowhere/model", "no such folder")
    assert_refused("nonsense", "no such folder")


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "audiodiff.json",
        "mel/mel_config.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
    ],
)
@pytest.mark.parametrize("content", ["{broken", "[1, 2]", ""], ids=["broken", "list", "empty"])
def test_broken_json_is_named(save: Save, file: str, content: str) -> None:
    folder = save()
    (folder / file).write_text(content)
    assert_refused(folder)


@pytest.mark.parametrize(
    "file", ["model_index.json", "mel/mel_config.json", "scheduler/scheduler_config.json", "unet/config.json", WEIGHTS]
)
def test_a_missing_file_is_named(save: Save, file: str) -> None:
    folder = save()
    (folder / file).unlink()
    assert_refused(folder, Path(file).name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("unet", ["diffusers", "UNet3DConditionModel"]),
        ("unet", None),
        ("scheduler", ["diffusers", "PNDMScheduler"]),
        ("scheduler", ["diffusers"]),
        ("scheduler", 3),
        ("scheduler", None),
    ],
)
def test_a_part_that_cannot_be_loaded_is_named(save: Save, key: str, value: Any) -> None:
    folder = save()
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, key: value}))
    assert_refused(folder, f"unsupported {key}")


def test_an_unknown_format_version_is_named(save: Save) -> None:
    folder = save()
    record = json.loads((folder / "audiodiff.json").read_text())
    (folder / "audiodiff.json").write_text(json.dumps({**record, "format_version": 99}))
    assert_refused(folder, "format version 99", "reads 1")


def test_a_model_without_a_record_loads(save: Save) -> None:
    folder = save()
    (folder / "audiodiff.json").unlink()
    assert load_model(folder).mel.x_res == 16


@pytest.mark.parametrize("damage", ["truncated", "tensor missing", "tensor of another shape"])
def test_damaged_weights_are_refused(save: Save, damage: str) -> None:
    folder = save()
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    if damage == "truncated":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1_000])
    else:
        removed = weights.pop("conv_out.weight")
        extra = {} if damage == "tensor missing" else {"conv_out.weight": removed[..., :1].contiguous()}
        safetensors.torch.save_file({**weights, **extra}, folder / WEIGHTS, metadata={"format": "pt"})
    assert_refused(folder)


def test_pickled_weights_are_never_read(save: Save) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("weights were unpickled",))

    folder = save()
    (folder / WEIGHTS).unlink()
    torch.save({"conv_in.weight": Trap()}, folder / "unet" / "diffusion_pytorch_model.bin")
    assert_refused(folder, "safetensors")


@pytest.mark.parametrize("part", ["scheduler", "card", "last rename"])
def test_a_failed_save_leaves_the_earlier_model(save: Save, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    folder = save()
    before = load_model(folder)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    scheduler = Objective().scheduler("ddim")
    match part:
        case "scheduler":
            monkeypatch.setattr(scheduler, "save_pretrained", fail)
        case "card":
            monkeypatch.setattr(card, "text", fail)
        case "last rename":
            rename, errors = os.rename, [OSError("no space left on device")]

            def fail_once(source: Any, target: Any) -> None:
                if Path(target) == folder and errors:
                    raise errors.pop()
                rename(source, target)

            monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises(OSError, match="no space left"):
        save(seed=1, scheduler=scheduler)
    assert [entry.name for entry in folder.parent.iterdir()] == ["loops"]
    after = load_model(folder)
    assert after.digest == before.digest
    assert_same_weights(after.unet, before.unet)


def test_a_failed_first_save_leaves_nothing(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(card, "text", fail)
    with pytest.raises(OSError, match="no space left"):
        save()
    assert list((tmp_path / "models").iterdir()) == []


def test_saving_again_replaces(save: Save) -> None:
    first = save()
    (first / "stale.txt").write_text("from an earlier version")
    digest = load_model(first).digest
    second = save(seed=1)
    assert load_model(second).digest != digest
    assert not (second / "stale.txt").exists()
    assert [entry.name for entry in second.parent.iterdir()] == ["loops"]


def test_a_model_travels_through_an_object_store(save: Save) -> None:
    folder = save()
    upload_model(folder, "memory://bucket/models/loops")
    remote, local = load_model("memory://bucket/models/loops"), load_model(folder)
    assert remote.digest == local.digest
    assert remote.mel == local.mel
    assert_same_weights(remote.unet, local.unet)
    assert load_model("memory://bucket/models/loops/").digest == local.digest


def test_the_index_and_the_record_are_uploaded_last(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, order = save(), list[str]()
    filesystem = fsspec.filesystem("memory")
    put = filesystem.put_file

    def note(_: Any, local: str, remote: str, **options: Any) -> None:
        order.append(remote)
        put(local, remote, **options)

    monkeypatch.setattr(type(filesystem), "put_file", note)
    upload_model(folder, "memory://bucket/ordered")
    assert len(order) == 7
    assert [name.rpartition("/")[2] for name in order[-2:]] == ["model_index.json", "audiodiff.json"]


def test_an_upload_that_breaks_off_leaves_no_record(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that no record remains, neither of the new model nor of the replaced model."""
    folder, filesystem = save(), fsspec.filesystem("memory")
    upload_model(folder, "memory://bucket/broken")
    assert filesystem.exists("/bucket/broken/audiodiff.json")
    put = filesystem.put_file

    def break_off(_: Any, local: str, remote: str, **options: Any) -> None:
        if remote.endswith(".safetensors"):
            raise OSError("connection lost")
        put(local, remote, **options)

    monkeypatch.setattr(type(filesystem), "put_file", break_off)
    with pytest.raises(OSError, match="connection lost"):
        upload_model(folder, "memory://bucket/broken")
    assert not filesystem.exists("/bucket/broken/audiodiff.json")


def test_a_model_travels_to_a_file_uri(save: Save, tmp_path: Path) -> None:
    folder = save()
    upload_model(folder, (tmp_path / "new" / "place").as_uri())
    assert load_model(tmp_path / "new" / "place").digest == load_model(folder).digest


def test_a_hub_id_that_cannot_be_fetched_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert_refused("nobody/no-such-model", "Hugging Face")
