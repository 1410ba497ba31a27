"""Untrusted model files.

No code in the files runs. Sizes are limited before memory is allocated. Errors name the part that does not fit.
"""

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from audiodiff_core.checkpoint import CheckpointError, ModelRecord, load_model, load_vae, save_model
from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.mel import MelConfig

SAFE = "unet/diffusion_pytorch_model.safetensors"
PICKLED = "unet/diffusion_pytorch_model.bin"
Weights = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path, make_unet: Callable[[int], Any], tiny_mel: MelConfig) -> Path:
    record = ModelRecord(recipe={}, data_digest="none", metrics={})
    save_model(tmp_path / "model", make_unet(0), Objective().scheduler("ddim"), tiny_mel, record)
    return tmp_path / "model"


@pytest.fixture
def weights(folder: Path) -> Weights:
    """Return the weights of the model and delete their file."""
    weights = safetensors.torch.load_file(folder / SAFE)
    (folder / SAFE).unlink()
    return {name: weight.clone() for name, weight in weights.items()}


def assert_refused(folder: Path, *parts: str) -> None:
    with pytest.raises(CheckpointError) as raised:
        load_model(folder)
    assert str(raised.value).startswith(f"{folder}: ")
    assert "\n" not in str(raised.value)
    for part in parts:
        assert part in str(raised.value)


class Trap:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("weights were unpickled",))


def test_pickled_tensors_load_as_they_are(folder: Path, weights: Weights) -> None:
    torch.save(weights, folder / PICKLED)
    changes: list[str] = []
    loaded = load_model(folder, changes).unet.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())
    assert changes == ["unet: converted a pickle to safetensors"]


def test_loaded_weights_do_not_change_with_their_file(folder: Path, weights: Weights) -> None:
    torch.save(weights, folder / PICKLED)
    model = load_model(folder)
    with (folder / PICKLED).open("r+b") as file:
        file.write(bytes((folder / PICKLED).stat().st_size))
    loaded = model.unet.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())


def test_safetensors_are_read_where_both_are(folder: Path) -> None:
    torch.save({"trap": Trap()}, folder / PICKLED)
    assert load_model(folder).mel.x_res == 16


def test_code_in_pickled_weights_is_never_run(folder: Path, weights: Weights) -> None:
    torch.save({**weights, "trap": Trap()}, folder / PICKLED)
    assert_refused(folder, "never run", "_pytest.outcomes")
    torch.save({"state_dict": weights, "callbacks": Trap()}, folder / "last.ckpt")
    with pytest.raises(CheckpointError, match="never run"):
        load_vae(folder / "last.ckpt")


def test_code_beside_a_model_is_never_imported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check files that name classes of any module.

    diffusers would import the file of a pipeline or the library of a component.
    """
    for name in ("pipeline.py", "my_mel.py", "unet/my_unet.py"):
        (folder / name).write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "mel": ["my_mel", "Mel"]}))
    assert load_model(folder).mel.x_res == 16
    for key, value in (
        ("unet", ["my_unet", "UNet2DModel"]),
        ("_class_name", ["pipeline", "AudioDiffusionPipeline"]),
        ("mel", ["my_mel", "Other"]),
    ):
        (folder / "model_index.json").write_text(json.dumps({**index, key: value}))
        assert_refused(folder, str(value[1]) if key != "unet" else "my_unet")
    assert not {"pipeline", "my_mel", "my_unet"} & sys.modules.keys()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, folder: Path, weights: Weights) -> None:
    weights["mid_block.resnets.0.conv1.weight"][0, 0, 0, 0] = value
    torch.save(weights, folder / PICKLED)
    assert_refused(folder, "mid_block.resnets.0.conv1.weight contains NaN or infinite values")


def test_finite_weights_whose_sum_is_not_are_taken(folder: Path, weights: Weights) -> None:
    weights["conv_in.weight"].fill_(3e38)
    torch.save(weights, folder / PICKLED)
    assert bool((load_model(folder).unet.conv_in.weight == 3e38).all())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "missing weights: conv_out.weight"),
        ("unknown", "unexpected weights: stem.weight"),
        ("shape", "conv_out.weight has shape (1, 8, 3, 1), the configuration requires (1, 8, 3, 3)"),
        ("integers", "conv_out.weight is torch.int64"),
        ("both names", "to_q.weight is stored twice"),
        ("not a table", "not a mapping of names to tensors"),
        ("text", "not a mapping of names to tensors"),
        ("sparse", "must be dense"),
        ("meta", "must be dense"),
    ],
)
def test_weights_that_are_not_the_networks_are_named(damage: str, message: str, folder: Path, weights: Weights) -> None:
    content: Any = weights
    match damage:
        case "missing":
            del weights["conv_out.weight"]
        case "unknown":
            weights["stem.weight"] = torch.zeros(3)
        case "shape":
            weights["conv_out.weight"] = torch.zeros((1, 8, 3, 1))
        case "integers":
            weights["conv_out.weight"] = torch.zeros((1, 8, 3, 3), dtype=torch.int64)
        case "both names":
            weights["mid_block.attentions.0.query.weight"] = weights["mid_block.attentions.0.to_q.weight"]
        case "not a table":
            content = list(weights.values())
        case "text":
            content = {**weights, "note": "trained in 2022"}
        case "sparse":
            weights["conv_out.weight"] = torch.zeros((1, 8, 3, 3)).to_sparse()
        case "meta":
            weights["conv_out.weight"] = torch.zeros((1, 8, 3, 3), device="meta")
    torch.save(content, folder / PICKLED)
    assert_refused(folder, message)


@pytest.mark.parametrize("cut", [0, 1, 100, 5_000, -1, -1_000])
@pytest.mark.parametrize("name", [SAFE, PICKLED])
def test_weights_cut_short_are_refused(cut: int, name: str, folder: Path, weights: Weights) -> None:
    (safetensors.torch.save_file if name == SAFE else torch.save)(weights, folder / name)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:cut])
    assert_refused(folder, Path(name).name)


def test_a_pointer_of_git_lfs_is_named(folder: Path, weights: Weights) -> None:
    (folder / PICKLED).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 454741108\n")
    assert_refused(folder, "git lfs pull")


def test_more_weights_than_bytes_are_refused(folder: Path, weights: Weights) -> None:
    weights["conv_out.weight"] = torch.zeros(()).expand((1 << 20, 1 << 20))
    torch.save(weights, folder / PICKLED)
    assert (folder / PICKLED).stat().st_size < 1 << 20
    assert_refused(folder, "bytes of weights, more than its")


def test_compressed_records_are_refused(folder: Path, weights: Weights) -> None:
    torch.save({**weights, "zeros": torch.zeros(1 << 22)}, folder / "whole.bin")
    with (
        zipfile.ZipFile(folder / "whole.bin") as whole,
        zipfile.ZipFile(folder / PICKLED, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for record in whole.infolist():
            packed.writestr(record.filename, whole.read(record))
    assert_refused(folder, "compressed")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"block_out_channels": [8, 1 << 30]}, "block_out_channels 1073741824"),
        ({"block_out_channels": [8] * 1_000, "down_block_types": ["DownBlock2D"] * 1_000}, "1000 entries"),
        ({"layers_per_block": 10**9}, "layers_per_block 1000000000"),
        ({"layers_per_block": 1e400}, "layers_per_block inf"),
        ({"time_embedding_dim": 65_536, "block_out_channels": [8, 65_536]}, ""),
        ({"block_out_channels": "many"}, ""),
        ({"down_block_types": ["DownBlock9D", "DownBlock2D"]}, "DownBlock9D"),
        ({"norm_num_groups": 0}, ""),
        ({"in_channels": 3, "out_channels": 3}, ""),
    ],
)
def test_a_configuration_cannot_make_a_giant(values: dict[str, Any], message: str, folder: Path) -> None:
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    assert_refused(folder, message)


def test_a_configuration_of_a_megabyte_is_not_read(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text(json.dumps({"notes": "x" * (1 << 20)}))
    assert_refused(folder, "unet/config.json has 1,048,")


def test_numbers_of_the_noise_schedule_are_bounded(folder: Path) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_train_timesteps": 10**12}))
    assert_refused(folder, "num_train_timesteps 1000000000000")
