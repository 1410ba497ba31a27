"""Complete CLAP checkpoints are loaded, and incomplete ones are refused.

No weight is initialized at random or invented. Memory is allocated only for data that the files hold.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from audiodiff_core.embeddings import load_encoder
from audiodiff_core.embeddings.clap import ClapEncoder
from tests import tiny_clap

SAFE = "model.safetensors"
Weights = dict[str, torch.Tensor]
Change = Callable[[Weights], Weights]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clap")
    tiny_clap.write(folder, fused=False)
    return folder


@pytest.fixture(scope="module")
def digest(whole: Path) -> str:
    return load_encoder(whole).digest


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "clap"))


def assert_refused(folder: Path, *parts: str) -> None:
    with pytest.raises(ValueError, match="cannot be loaded") as raised:
        load_encoder(folder)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"encoder {folder}: ")
    for part in parts:
        assert part in str(raised.value)


def without(part: str) -> Change:
    return lambda weights: {name: weight for name, weight in weights.items() if part not in name}


LAYER = "audio_model.audio_encoder.layers.0.blocks.0."


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            without("audio_encoder.layers"),
            [
                "missing weights: audio_model.audio_encoder.layers.0.blocks.0.attention.output.dense.bias",
                "more; unexpected weights: none",
            ],
        ),
        (without("logit_scale_a"), ["missing weights: logit_scale_a; unexpected weights: none"]),
        (without("batch_norm.running_mean"), ["missing weights: audio_model.audio_encoder.batch_norm.running_mean;"]),
        (
            without("num_batches_tracked"),
            ["missing weights: audio_model.audio_encoder.batch_norm.num_batches_tracked;"],
        ),
        (without("text_model."), ["missing weights: text_model.embeddings"]),
        (without(""), ["missing weights: audio_model"]),
        (
            lambda weights: {f"model.{name}": weight for name, weight in weights.items()},
            ["missing weights: audio_model", "unexpected weights: model.audio_model"],
        ),
        (
            lambda weights: {**weights, "head.weight": torch.zeros(2)},
            ["missing weights: none; unexpected weights: head.weight"],
        ),
        (
            lambda weights: {**weights, "logit_scale_a": torch.zeros(3)},
            ["weight logit_scale_a has shape (3,), the configuration requires ()"],
        ),
        (
            lambda weights: {
                **without("logit_scale_t")(weights),
                "head.weight": torch.zeros(2),
                "logit_scale_a": torch.zeros(3),
            },
            ["missing weights: logit_scale_t; unexpected weights: head.weight", "weight logit_scale_a has shape (3,)"],
        ),
        (lambda weights: {**weights, "logit_scale_a": torch.tensor(torch.nan)}, ["weight logit_scale_a contains NaN"]),
    ],
)
def test_weights_that_are_not_the_models_are_named(folder: Path, change: Change, parts: list[str]) -> None:
    save_file(change(load_file(folder / SAFE)), folder / SAFE)
    assert_refused(folder, *parts)


def test_a_configuration_of_another_size_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    assert_refused(folder, "missing weights: text_model.encoder.layer.1.")


@pytest.mark.parametrize("change", ["cut", "empty", "garbage"])
@pytest.mark.parametrize("name", [SAFE, "pytorch_model.bin"])
def test_a_damaged_file_is_refused(folder: Path, name: str, change: str) -> None:
    weights = load_file(folder / SAFE)
    (folder / SAFE).unlink()
    save_file(weights, folder / name) if name == SAFE else torch.save(weights, folder / name)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes({"cut": content[: len(content) // 2], "empty": b"", "garbage": bytes(1_000)}[change])
    assert_refused(folder, name)


def pickled(folder: Path, weights: Weights) -> None:
    torch.save(weights, folder / "pytorch_model.bin")


def constants_left_out(folder: Path, weights: Weights) -> None:
    save_file(
        {
            name: weight
            for name, weight in weights.items()
            if not name.endswith(("position_ids", "relative_position_index"))
        },
        folder / SAFE,
    )


def constants_of_others(folder: Path, weights: Weights) -> None:
    save_file({**weights, "text_model.position_ids": torch.arange(4)}, folder / SAFE)


def in_shards(folder: Path, weights: Weights) -> None:
    write_shards(folder, weights, "model-{}.safetensors", "model.safetensors.index.json")


def in_pickled_shards(folder: Path, weights: Weights) -> None:
    write_shards(folder, weights, "pytorch_model-{}.bin", "pytorch_model.bin.index.json")


def write_shards(folder: Path, weights: Weights, shard: str, index: str) -> None:
    names = sorted(weights)
    parts = {shard.format(f"{number + 1:05d}-of-00003"): names[number::3] for number in range(3)}
    for file, inside in parts.items():
        part = {name: weights[name] for name in inside}
        save_file(part, folder / file) if file.endswith(".safetensors") else torch.save(part, folder / file)
    weight_map = {name: file for file, inside in parts.items() for name in inside}
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


@pytest.mark.parametrize("write", [pickled, constants_left_out, constants_of_others, in_shards, in_pickled_shards])
def test_the_same_weights_in_other_files_are_the_same_encoder(
    folder: Path, digest: str, write: Callable[[Path, Weights], None]
) -> None:
    weights = load_file(folder / SAFE)
    (folder / SAFE).unlink()
    write(folder, {name: weight.clone() for name, weight in weights.items()})
    assert load_encoder(folder).digest == digest


@pytest.mark.parametrize(("variant", "kind"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision_is_loaded_as_float32(folder: Path, digest: str, variant: str, kind: torch.dtype) -> None:
    weights = load_file(folder / SAFE)
    half = {name: weight.to(kind) if weight.is_floating_point() else weight for name, weight in weights.items()}
    save_file(half, folder / f"model.{variant}.safetensors")
    assert load_encoder(folder).digest == digest, "full precision comes first"
    (folder / SAFE).unlink()
    encoder = load_encoder(folder)
    assert isinstance(encoder, ClapEncoder)
    loaded = encoder.model.state_dict()
    assert all(torch.equal(loaded[name], weight.to(loaded[name].dtype)) for name, weight in half.items())
    assert {weight.dtype for weight in loaded.values()} == {torch.float32, torch.int64}


def test_a_missing_shard_is_named(folder: Path) -> None:
    weights = load_file(folder / SAFE)
    (folder / SAFE).unlink()
    in_shards(folder, weights)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert_refused(folder, "model.safetensors.index.json names missing files: model-00002-of-00003.safetensors")


@pytest.mark.parametrize("missing", ["tokenizer.json", "preprocessor_config.json", SAFE])
def test_a_missing_file_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    assert_refused(folder, missing)


@pytest.mark.parametrize(
    ("file", "path", "value", "message"),
    [
        (
            "config.json",
            ["text_config", "num_hidden_layers"],
            10**9,
            "num_hidden_layers 1000000000: must be at most 256",
        ),
        ("config.json", ["text_config", "hidden_size"], 10**9, "hidden_size 1000000000: must be at most"),
        (
            "config.json",
            ["text_config", "vocab_size"],
            1 << 20,
            "weight text_model.embeddings.word_embeddings.weight has shape",
        ),
        ("config.json", ["audio_config", "depths"], [10**6, 1], "depths 1000000: must be at most 256"),
        ("config.json", ["quantization_config"], {"quant_method": "bitsandbytes"}, "quantization_config"),
        ("preprocessor_config.json", ["max_length_s"], 10**9, "max_length_s 1000000000: must be 1 to 600"),
        ("preprocessor_config.json", ["fft_window_size"], 10**9, "fft_window_size 1000000000: must be"),
        ("preprocessor_config.json", ["feature_size"], 10**9, "feature_size 1000000000: must be"),
        ("preprocessor_config.json", ["sampling_rate"], 0, "sampling_rate 0: must be"),
        ("preprocessor_config.json", ["hop_length"], 0.5, "hop_length 0.5: must be"),
    ],
)
def test_numbers_are_bounded(folder: Path, file: str, path: list[str], value: Any, message: str) -> None:
    content = json.loads((folder / file).read_text())
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (folder / file).write_text(json.dumps(content))
    assert_refused(folder, message)


def test_json_that_is_none_is_refused(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text("[" * 100_000)
    assert_refused(folder, "preprocessor_config.json is not valid JSON")
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        load_encoder(folder)
