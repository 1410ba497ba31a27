"""Conversion of checkpoints.

Every layout becomes the layout that diffusers reads. Autoencoders of LDM become autoencoders of diffusers. Each change
is reported.
"""

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from diffusers import AudioDiffusionPipeline as OraclePipeline
from diffusers import AutoencoderKL

from audiodiff_core.checkpoint import CheckpointError, convert, load_model, load_vae
from audiodiff_core.checkpoint import __main__ as command
from audiodiff_core.mel import MelConfig
from tests import published
from tests.published import BY_NAME, Networks
from tests.rare import rare

LATENT = "latent-audio-diffusion-256"
LDM_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


@pytest.fixture(scope="module")
def networks() -> dict[str, Networks]:
    return {
        name: Networks.build(BY_NAME[name], divisor=16)
        for name in (LATENT, "conditional-latent-audio-diffusion-512", "audio-diffusion-256")
    }


@pytest.fixture
def oldest(tmp_path: Path, networks: dict[str, Networks]) -> Path:
    return published.write(tmp_path / "oldest", BY_NAME[LATENT], "B", networks[LATENT])


def assert_same(one: Any, other: Any) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


@pytest.mark.parametrize(
    ("name", "layout"),
    [("audio-diffusion-256", "A-0.2.2"), (LATENT, "B"), rare("conditional-latent-audio-diffusion-512", "C")],
)
def test_any_layout_becomes_the_one_that_diffusers_reads(
    name: str, layout: str, tmp_path: Path, networks: dict[str, Networks]
) -> None:
    source = published.write(tmp_path / "source", BY_NAME[name], layout, networks[name])
    convert(source, tmp_path / "models" / "converted")
    before, after = load_model(source), load_model(tmp_path / "models" / "converted")
    oracle = OraclePipeline.from_pretrained(tmp_path / "models" / "converted")
    for part, theirs in (("unet", oracle.unet), ("vae", oracle.vqvae)):
        if getattr(before, part) is None:
            assert getattr(after, part) is None
            assert theirs is None
            continue
        assert_same(getattr(before, part), getattr(after, part))
        assert_same(getattr(before, part), theirs)
        stated = {key: value for key, value in getattr(before, part).config.items() if not key.startswith("_")}
        assert {key: theirs.config[key] for key in stated} == stated
    assert {**before.scheduler.config, "_diffusers_version": None} == {
        **after.scheduler.config,
        "_diffusers_version": None,
    }
    assert before.mel == after.mel == MelConfig(**{key: getattr(oracle.mel, key) for key in MelConfig.model_fields})
    assert after.record is not None
    assert after.record.recipe == {"converted_from": "source", "source_digest": before.digest}
    assert not list((tmp_path / "models" / "converted").rglob("*.bin"))
    assert [entry.name for entry in (tmp_path / "models").iterdir()] == ["converted"]


def test_each_change_is_told_and_what_was_written_needs_none(oldest: Path, tmp_path: Path) -> None:
    changes = convert(oldest, tmp_path / "converted").changes
    for change in (
        "model_index.json: changed class LatentAudioDiffusionPipeline to AudioDiffusionPipeline",
        "unet: renamed 48 weights of attention layers",
        "unet: converted a pickle to safetensors",
        "vqvae: renamed 16 weights of attention layers",
        "vqvae: converted a pickle to safetensors",
        "vqvae: added the default scaling_factor 0.18215",
        "mel: added the original project's defaults at the network's size: 256x256",
        "audiodiff.json: added",
    ):
        assert len([line for line in changes if line.startswith(change)]) == 1, change
    assert any(line.startswith("scheduler: ") and "timestep_spacing leading" in line for line in changes)
    assert not any("\n" in line for line in changes)
    assert convert(tmp_path / "converted", tmp_path / "again").changes == []
    assert load_model(tmp_path / "again").digest == load_model(tmp_path / "converted").digest


def test_settings_that_diffusers_no_longer_has_and_other_precisions_are_told(oldest: Path, tmp_path: Path) -> None:
    file = oldest / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tensor_format": "pt"}))
    weights = torch.load(oldest / "vqvae" / published.WEIGHTS, weights_only=True)
    torch.save({name: weight.half() for name, weight in weights.items()}, oldest / "vqvae" / published.WEIGHTS)
    changes = convert(oldest, tmp_path / "converted").changes
    assert "scheduler: dropped unknown settings: tensor_format" in changes
    assert "vqvae: converted float16 to float32" in changes
    loaded = load_model(tmp_path / "converted").vae
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.encoder.conv_in.weight, weights["encoder.conv_in.weight"].half().float())


def test_a_destination_that_exists_is_left_alone(oldest: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("train")
    for destination in (tmp_path / "notes", oldest):
        with pytest.raises(ValueError, match="exists"):
            convert(oldest, destination)
    assert (tmp_path / "notes" / "todo.txt").read_text() == "train"
    with pytest.raises(CheckpointError, match="absent"):
        convert(tmp_path / "absent", tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_a_model_is_converted_between_object_stores(oldest: Path) -> None:
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(oldest) + "/", "/old/model/", recursive=True)
    filesystem.pipe("/old/model/optimizer.bin", b"never read")
    convert("memory://old/model", "memory://new/model")
    assert_same(load_model("memory://new/model").vae, load_model(oldest).vae)
    assert filesystem.exists("/new/model/vqvae/diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match="exists"):
        convert("memory://old/model", "memory://new/model")


def ldm_names(vae: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights of an AutoencoderKL with the names and shapes of CompVis latent-diffusion."""
    levels = len(vae.config.block_out_channels)
    for name, weight in vae.state_dict().items():
        parts = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut").split(".")
        match parts:
            case [coder, "mid_block", "resnets", number, *rest]:
                yield ".".join([coder, "mid", f"block_{int(number) + 1}", *rest]), weight
            case [coder, "mid_block", "attentions", "0", *layer, kind]:
                is_matrix = kind == "weight" and layer != ["group_norm"]
                yield (
                    ".".join([coder, "mid", "attn_1", LDM_ATTENTION[".".join(layer)], kind]),
                    weight[:, :, None, None] if is_matrix else weight,
                )
            case ["encoder", "down_blocks", level, "resnets", *rest]:
                yield ".".join(["encoder", "down", level, "block", *rest]), weight
            case ["encoder", "down_blocks", level, "downsamplers", "0", *rest]:
                yield ".".join(["encoder", "down", level, "downsample", *rest]), weight
            case ["decoder", "up_blocks", level, "resnets", *rest]:
                yield ".".join(["decoder", "up", str(levels - 1 - int(level)), "block", *rest]), weight
            case ["decoder", "up_blocks", level, "upsamplers", "0", *rest]:
                yield ".".join(["decoder", "up", str(levels - 1 - int(level)), "upsample", *rest]), weight
            case _:
                yield ".".join(parts), weight


@pytest.fixture(scope="module")
def ldm_vae() -> Any:
    torch.manual_seed(1)
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=2,
        block_out_channels=(32, 64, 96),
        layers_per_block=2,
        norm_num_groups=32,
        sample_size=64,
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
    ).eval()


def lightning(vae: Any, file: Path, **more: torch.Tensor) -> Path:
    """Write a checkpoint in the format of the original's train_vae."""
    state = {
        **dict(ldm_names(vae)),
        "loss.logvar": torch.zeros(()),
        "loss.discriminator.main.3.num_batches_tracked": torch.tensor(7),
        **more,
    }
    callbacks = {
        "ModelCheckpoint{'monitor': 'val/rec_loss'}": {"best_model_score": torch.tensor(0.5), "dirpath": "logs"}
    }
    progress = {"epoch": 3, "global_step": 900, "pytorch-lightning_version": "1.7.7", "optimizer_states": []}
    torch.save({**progress, "callbacks": callbacks, "state_dict": state}, file)
    return file


def test_the_names_of_an_ldm_autoencoder_are_those_of_compvis(ldm_vae: Any) -> None:
    """Check the layout that the tests build against names in the checkpoints of CompVis."""
    shapes = {name: tuple(weight.shape) for name, weight in ldm_names(ldm_vae)}
    assert shapes["encoder.down.1.block.0.nin_shortcut.weight"] == (64, 32, 1, 1)
    assert shapes["decoder.up.2.block.0.conv1.weight"] == (96, 96, 3, 3)
    assert shapes["decoder.up.0.block.0.conv1.weight"] == (32, 64, 3, 3)
    assert shapes["decoder.up.2.upsample.conv.weight"] == (96, 96, 3, 3)
    assert shapes["encoder.mid.attn_1.q.weight"] == shapes["decoder.mid.attn_1.proj_out.weight"] == (96, 96, 1, 1)
    assert shapes["encoder.mid.attn_1.norm.weight"] == shapes["decoder.mid.block_2.norm1.bias"] == (96,)
    assert {
        "encoder.norm_out.weight",
        "decoder.conv_out.bias",
        "quant_conv.weight",
        "encoder.down.0.downsample.conv.bias",
    } <= shapes.keys()
    assert "decoder.up.0.upsample.conv.weight" not in shapes


def test_an_ldm_checkpoint_becomes_an_autoencoder_of_diffusers(ldm_vae: Any, tmp_path: Path) -> None:
    conversion = convert(lightning(ldm_vae, tmp_path / "last.ckpt"), tmp_path / "vae")
    assert conversion.kind == "autoencoder"
    assert any("dropped 2 weights of the training loss" in line for line in conversion.changes)
    assert any("channels [32, 64, 96], 2 layers per block" in line for line in conversion.changes)
    oracle = AutoencoderKL.from_pretrained(tmp_path / "vae").eval()
    assert_same(oracle, ldm_vae)
    images = torch.rand((2, 1, 32, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
    for converted in (oracle, load_vae(tmp_path / "vae"), load_vae(tmp_path / "last.ckpt")):
        assert converted.config.scaling_factor == 0.18215
        with torch.no_grad():
            latents = ldm_vae.encode(images).latent_dist.mode()
            assert latents.shape == (2, 2, 8, 4)
            assert torch.equal(converted.encode(images).latent_dist.mode(), latents)
            assert torch.equal(converted.decode(latents).sample, ldm_vae.decode(latents).sample)
    assert {file.name for file in (tmp_path / "vae").iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }


@pytest.mark.parametrize(
    "damage", ["foreign", "missing", "attention at another level", "embed_dim", "not one", "other"]
)
def test_an_ldm_checkpoint_that_does_not_fit_is_refused(damage: str, ldm_vae: Any, tmp_path: Path) -> None:
    state = dict(ldm_names(ldm_vae))
    match damage:
        case "foreign":
            state["encoder.stem.weight"] = torch.zeros(3)
        case "missing":
            del state["decoder.mid.attn_1.k.bias"]
        case "attention at another level":
            state["encoder.down.2.attn.0.q.weight"] = torch.zeros((96, 96, 1, 1))
        case "embed_dim":
            state["post_quant_conv.weight"] = torch.zeros((2, 4, 1, 1))
        case "not one":
            state = {"weight": torch.zeros(3)}
        case "other":
            state = {name: weight for name, weight in state.items() if not name.startswith("encoder.down.1.")}
    torch.save(state, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError) as raised:
        load_vae(tmp_path / "last.ckpt")
    assert str(raised.value).startswith(f"{tmp_path / 'last.ckpt'}: ")
    assert "\n" not in str(raised.value)
    with pytest.raises(CheckpointError):
        convert(tmp_path / "last.ckpt", tmp_path / "vae")
    assert not (tmp_path / "vae").exists()


def test_an_autoencoder_alone_is_converted(ldm_vae: Any, tmp_path: Path) -> None:
    ldm_vae.save_pretrained(tmp_path / "old", safe_serialization=False)
    assert convert(tmp_path / "old", tmp_path / "new").changes == ["old: converted a pickle to safetensors"]
    assert_same(AutoencoderKL.from_pretrained(tmp_path / "new"), ldm_vae)


def test_a_model_of_images_has_no_autoencoder(tmp_path: Path, networks: dict[str, Networks]) -> None:
    folder = published.write(tmp_path / "model", BY_NAME["audio-diffusion-256"], "D", networks["audio-diffusion-256"])
    with pytest.raises(CheckpointError, match="no autoencoder"):
        load_vae(folder)


def test_the_command_tells_each_change(
    ldm_vae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["checkpoint", str(lightning(ldm_vae, tmp_path / "last.ckpt")), str(tmp_path / "vae")]
    )
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(command.__file__), run_name="__main__")
    assert ended.value.code == 0
    *changes, summary = capsys.readouterr().out.splitlines()
    assert json.loads(summary) == {
        "verb": "convert",
        "kind": "autoencoder",
        "destination": str(tmp_path / "vae"),
        "changes": len(changes),
    }
    assert len(changes) >= 4
    assert_same(load_vae(tmp_path / "vae"), ldm_vae)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["{0}/absent", "{0}/new"], "absent"), (["{0}", "{0}"], "exists"), (["{0}"], "DESTINATION")],
)
def test_mistakes_end_the_command_with_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["checkpoint", *(argument.format(tmp_path) for argument in arguments)])
    try:
        ended = command.main()
    except SystemExit as error:
        ended = int(error.code or 0)
    assert ended == 2
    assert message in capsys.readouterr().err


def test_a_destination_that_cannot_be_written_ends_the_command_with_1(
    ldm_vae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(
        sys, "argv", ["checkpoint", str(lightning(ldm_vae, tmp_path / "last.ckpt")), str(tmp_path / "file" / "vae")]
    )
    assert command.main() == 1
    assert "error: " in capsys.readouterr().err
