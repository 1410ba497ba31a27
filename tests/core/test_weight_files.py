"""Weight files of diffusers and transformers: shards, half precision and pickles.

The files are read from folders and from object stores.
"""

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import safetensors.torch
import torch
from diffusers import UNet2DModel

from audiodiff_core.checkpoint import CheckpointError, Model, ModelRecord, load_model, load_vae, save_model, save_vae
from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.files.weight_files import DIFFUSERS, MAX_SHARDS, TRANSFORMERS
from audiodiff_core.mel import MelConfig
from tests.rare import rare

BASE = "diffusion_pytorch_model"
Weights = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path, make_unet: Callable[[int], Any], tiny_mel: MelConfig) -> Path:
    record = ModelRecord(recipe={}, data_digest="none", metrics={})
    save_model(tmp_path / "model", make_unet(0), Objective().scheduler("ddim"), tiny_mel, record)
    return tmp_path / "model"


@pytest.fixture
def weights(folder: Path) -> Weights:
    """Return the weights of the network and delete their file."""
    file = folder / "unet" / f"{BASE}.safetensors"
    weights = safetensors.torch.load_file(file)
    file.unlink()
    return {name: weight.clone() for name, weight in weights.items()}


def write(file: Path, weights: Weights) -> None:
    if file.suffix == ".bin":
        torch.save(weights, file)
    else:
        safetensors.torch.save_file(weights, file)


def write_shards(
    folder: Path, weights: Weights, shard: str = BASE + "-{}.safetensors", index: str = f"{BASE}.safetensors.index.json"
) -> dict[str, str]:
    """Write two shards and their index, and return the map of the index."""
    names = sorted(weights)
    weight_map: dict[str, str] = {}
    for number in range(2):
        file = shard.format(f"{number + 1:05d}-of-00002")
        write(folder / file, {name: weights[name] for name in names[number::2]})
        weight_map |= dict.fromkeys(names[number::2], file)
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return weight_map


def assert_weights(model: Model, weights: Weights) -> None:
    loaded = model.unet.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(
        loaded[name].dtype == torch.float32 and torch.equal(loaded[name], weight.float())
        for name, weight in weights.items()
    )


def assert_refused(source: Path | str, *parts: str) -> None:
    with pytest.raises(CheckpointError) as raised:
        load_model(source)
    assert str(raised.value).startswith(f"{source}: ")
    assert "\n" not in str(raised.value)
    for part in parts:
        assert part in str(raised.value)


def uploaded(folder: Path) -> str:
    """Copy a folder to an object store and return the address."""
    target = f"memory://{uuid.uuid4().hex}/model"
    filesystem, path = fsspec.url_to_fs(target)
    filesystem.put(str(folder), path, recursive=True)
    return target


HALVES = [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]


@pytest.mark.parametrize(("variant", "kind"), HALVES)
@pytest.mark.parametrize("suffix", ["safetensors", rare("bin")])
def test_a_variant_alone_is_loaded_as_float32(
    folder: Path, weights: Weights, variant: str, kind: torch.dtype, suffix: str
) -> None:
    half = {name: weight.to(kind) for name, weight in weights.items()}
    write(folder / "unet" / f"{BASE}.{variant}.{suffix}", half)
    changes: list[str] = []
    assert_weights(load_model(folder, changes), half)
    assert any("float32" in change for change in changes) == (kind != torch.float32)
    assert_weights(load_model(uploaded(folder)), half)


SHARDS = [
    (BASE + "-{}.safetensors", f"{BASE}.safetensors.index.json"),
    (BASE + ".fp16-{}.safetensors", f"{BASE}.safetensors.index.fp16.json"),
    (BASE + "-{}.fp16.safetensors", f"{BASE}.safetensors.index.fp16.json"),
    (BASE + "-{}.bin", f"{BASE}.bin.index.json"),
]


@pytest.mark.parametrize(("shard", "index"), SHARDS)
def test_shards_are_one_network(folder: Path, weights: Weights, shard: str, index: str) -> None:
    write_shards(folder / "unet", weights, shard, index)
    changes: list[str] = []
    model = load_model(folder, changes)
    assert_weights(model, weights)
    assert "unet: merged 2 shards into one file" in changes
    remote = load_model(uploaded(folder))
    assert_weights(remote, weights)
    assert remote.digest == model.digest
    file = folder / "unet" / shard.format("00001-of-00002")
    write(file, {name: weight + 1 for name, weight in safetensors_or_pickle(file).items()})
    assert load_model(folder).digest != model.digest


def safetensors_or_pickle(file: Path) -> Weights:
    if file.suffix == ".bin":
        return dict(torch.load(file, weights_only=True))
    return dict(safetensors.torch.load_file(file))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_what_diffusers_writes_is_read(folder: Path, make_unet: Callable[[int], Any], variant: str | None) -> None:
    unet: UNet2DModel = make_unet(7)
    (folder / "unet" / f"{BASE}.safetensors").unlink()
    unet.save_pretrained(folder / "unet", max_shard_size="100KB", variant=variant)
    assert len(list((folder / "unet").glob("*-of-*"))) > 1
    assert_weights(load_model(folder), unet.state_dict())


def test_full_precision_comes_first_then_safetensors(folder: Path, weights: Weights) -> None:
    """Check that each file takes precedence over all files before it."""
    order = [
        f"{BASE}.bf16.safetensors",
        f"{BASE}.fp16.bin",
        f"{BASE}.fp16.safetensors",
        f"{BASE}.fp32.safetensors",
        f"{BASE}.bin",
        f"{BASE}.safetensors",
    ]
    for number, name in enumerate(order):
        written = {key: torch.full_like(weight, float(number)) for key, weight in weights.items()}
        write(folder / "unet" / name, written)
        assert_weights(load_model(folder), written)


def test_an_autoencoder_alone_is_read_from_a_variant_and_shards(make_vae: Callable[[int], Any], tmp_path: Path) -> None:
    save_vae(tmp_path / "vae", vae := make_vae(0))
    weights = safetensors.torch.load_file(tmp_path / "vae" / f"{BASE}.safetensors")
    weights = {name: weight.clone() for name, weight in weights.items()}
    (tmp_path / "vae" / f"{BASE}.safetensors").unlink()
    write(tmp_path / "vae" / f"{BASE}.fp16.safetensors", {name: weight.half() for name, weight in weights.items()})
    assert torch.equal(load_vae(tmp_path / "vae").quant_conv.weight, vae.quant_conv.weight.half().float())
    write_shards(tmp_path / "vae", weights)
    for source in (tmp_path / "vae", uploaded(tmp_path / "vae")):
        assert torch.equal(load_vae(source).quant_conv.weight, vae.quant_conv.weight)


def test_a_missing_shard_is_named(folder: Path, weights: Weights) -> None:
    write_shards(folder / "unet", weights)
    (folder / "unet" / f"{BASE}-00002-of-00002.safetensors").unlink()
    for source in (folder, uploaded(folder)):
        assert_refused(
            source,
            f"unet/{BASE}.safetensors.index.json names missing files: ",
            f"{BASE}-00002-of-00002.safetensors",
        )


@pytest.mark.parametrize(
    "name",
    [
        "../other.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        "..",
        "",
        "x.bin",
        "x.safetensors\n",
        "~/x.safetensors",
        "a\\b.safetensors",
        7,
        None,
        ["x"],
    ],
)
def test_an_index_names_no_file_outside_its_folder(folder: Path, weights: Weights, name: Any) -> None:
    write(folder / "other.safetensors", weights)
    weight_map = write_shards(folder / "unet", weights)
    index = {"weight_map": {**weight_map, min(weight_map): name}}
    (folder / "unet" / f"{BASE}.safetensors.index.json").write_text(json.dumps(index))
    for source in (folder, uploaded(folder)):
        assert_refused(
            source, f"{BASE}.safetensors.index.json names the file", "must be a .safetensors file in the index's folder"
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": ["a.safetensors"]}', "has no weight_map"),
        ("[]", "is not a JSON object"),
        ("not JSON", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        (" " * (1 << 21), "bytes: must be at most 1,048,576"),
        (
            json.dumps({"weight_map": {str(number): f"{number}.safetensors" for number in range(MAX_SHARDS + 1)}}),
            f"must be at most {MAX_SHARDS}",
        ),
    ],
)
def test_an_index_that_is_none_is_refused(folder: Path, weights: Weights, content: str, message: str) -> None:
    write_shards(folder / "unet", weights)
    (folder / "unet" / f"{BASE}.safetensors.index.json").write_text(content)
    for source in (folder, uploaded(folder)):
        assert_refused(source, f"{BASE}.safetensors.index.json", message)


def test_shards_hold_what_their_index_states(folder: Path, weights: Weights) -> None:
    weight_map = write_shards(folder / "unet", weights)
    first, second = (f"{BASE}-0000{number}-of-00002.safetensors" for number in (1, 2))
    moved = next(name for name, file in weight_map.items() if file == first)
    index = folder / "unet" / f"{BASE}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {**weight_map, moved: second}}))
    assert_refused(folder, f"{first} does not match its index: missing weights: none; unexpected weights: {moved}")
    index.write_text(json.dumps({"weight_map": {**weight_map, "made.up": second}}))
    assert_refused(folder, f"{second} does not match its index: missing weights: made.up; unexpected weights: none")
    left_out = {name: file for name, file in weight_map.items() if name != moved}
    index.write_text(json.dumps({"weight_map": left_out}))
    assert_refused(folder, f"unexpected weights: {moved}")
    write(folder / "unet" / first, {name: weights[name] for name, file in left_out.items() if file == first})
    assert_refused(folder, f"unet: missing weights: {moved}; unexpected weights: none")


def test_all_differences_are_named_in_one_line(folder: Path, weights: Weights) -> None:
    first, second, third, *_ = sorted(weights)
    changed = {name: weight for name, weight in weights.items() if name != first}
    changed |= {"made.up": torch.zeros(2), second: torch.zeros(99), third: torch.zeros(98)}
    write(folder / "unet" / f"{BASE}.safetensors", changed)
    shape = tuple(weights[second].shape)
    assert_refused(
        folder,
        f"unet: missing weights: {first}; unexpected weights: made.up",
        f"unet: weight {second} has shape (99,), the configuration requires {shape} "
        "(1 of 2 weights with a wrong shape)",
    )


def test_weights_of_another_name_are_named(folder: Path, weights: Weights) -> None:
    assert_refused(folder, f"unet contains no {BASE}.safetensors or {BASE}.bin", "weight files present: none")
    write(folder / "unet" / "model.safetensors", weights)
    write(folder / "unet" / f"{BASE}.non_ema.safetensors", weights)
    assert_refused(
        folder,
        f"unet contains no {BASE}.safetensors",
        f"weight files present: {BASE}.non_ema.safetensors, model.safetensors",
    )


def test_names_of_both_libraries() -> None:
    assert TRANSFORMERS.preferred({"pytorch_model.bin", "model.fp16.safetensors"}) == "pytorch_model.bin"
    assert (
        TRANSFORMERS.preferred({"pytorch_model.bin", "model.safetensors.index.json"}) == "model.safetensors.index.json"
    )
    assert TRANSFORMERS.preferred({"model.bin", f"{BASE}.safetensors"}) is None
    assert DIFFUSERS.preferred({f"{BASE}.bin.index.fp16.json"}) == f"{BASE}.bin.index.fp16.json"
