"""Saving and loading of latent and conditional models.

diffusers makes the same images from the files. Layouts differ in the settings that they state.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import AudioDiffusionPipeline as OraclePipeline
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel

from audiodiff_core.checkpoint import CheckpointError, ModelRecord, load_model, load_vae, save_model
from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.diffusion.seeds import derived, initial_noise
from audiodiff_core.mel import MelConfig
from audiodiff_core.pipeline import load_pipeline
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest

RECORD = ModelRecord(recipe={"preset": "tiny"}, data_digest="0123456789abcdef", metrics={"steps": 3, "loss": 0.25})
MEL = MelConfig(x_res=32, y_res=32, sample_rate=22_050, n_fft=512, hop_length=256)
ENCODING_DIM = 5


@pytest.fixture(scope="session")
def vae() -> Any:
    """Return an autoencoder for images of twice the height and width of its latents."""
    torch.manual_seed(2)
    types = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return AutoencoderKL(
        1,
        1,
        **types,
        block_out_channels=(8, 16),
        latent_channels=1,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.5,
    ).eval()


@pytest.fixture(scope="session")
def conditional_unet() -> Any:
    torch.manual_seed(3)
    unet = UNet2DConditionModel(
        sample_size=(16, 16),
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=ENCODING_DIM,
        attention_head_dim=2,
    ).eval()
    with torch.no_grad():
        unet.conv_out.weight.mul_(0.1)  # so that sampling does not amplify rounding
    return unet


@pytest.fixture
def folder(tmp_path: Path, conditional_unet: Any, vae: Any) -> Path:
    save_model(tmp_path / "model", conditional_unet, Objective().scheduler("ddim"), MEL, RECORD, vae=vae)
    return tmp_path / "model"


def change(file: Path, **values: Any) -> None:
    """Set keys of a JSON file. None removes the key."""
    content = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def assert_same_weights(one: Any, other: Any) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def test_a_conditional_latent_model_comes_back_whole(folder: Path, conditional_unet: Any, vae: Any) -> None:
    changes: list[str] = []
    model = load_model(folder, changes)
    assert changes == []
    assert_same_weights(model.unet, conditional_unet)
    assert_same_weights(model.vae, vae)
    assert model.unet.config.cross_attention_dim == ENCODING_DIM
    assert model.vae.config.scaling_factor == 0.5
    assert (model.mel, model.record) == (MEL, RECORD)
    assert_same_weights(load_vae(folder), vae)


@pytest.mark.parametrize("kind", ["latent", "conditional"])
def test_diffusers_loads_it_and_makes_the_same_image(
    kind: str, tmp_path: Path, make_unet: Callable[[int], Any], conditional_unet: Any, vae: Any
) -> None:
    unet = conditional_unet if kind == "conditional" else make_unet(0)
    save_model(tmp_path / "model", unet, Objective().scheduler("ddim"), MEL, RECORD, vae=vae)
    encodings = (
        np.random.default_rng(0).standard_normal((1, ENCODING_DIM)).astype(np.float32)
        if kind == "conditional"
        else None
    )
    (loop,) = load_pipeline(tmp_path / "model", ExecutionProfile(batch_size=2)).generate(
        [GenerateRequest(seed=11, steps=5)], encodings
    )
    oracle = OraclePipeline.from_pretrained(tmp_path / "model")
    oracle.set_progress_bar_config(disable=True)
    encoding = None if encodings is None else torch.from_numpy(encodings[:, None])
    (expected,), _ = oracle(
        steps=5, generator=initial_noise(11), step_generator=derived(11, "step"), encoding=encoding, return_dict=False
    )
    assert np.abs(np.asarray(expected).astype(int) - loop.image).max() <= 1
    assert loop.image.shape == (32, 32)
    assert loop.image.std() > 5
    if encoding is not None:
        other = oracle(
            steps=5,
            generator=initial_noise(11),
            step_generator=derived(11, "step"),
            encoding=-encoding,
            return_dict=False,
        )[0][0]
        assert np.abs(np.asarray(other).astype(int) - loop.image).max() > 1


def test_a_flow_model_comes_back_whole(tmp_path: Path, make_unet: Callable[[int], Any], tiny_mel: MelConfig) -> None:
    save_model(tmp_path / "model", make_unet(0), FlowMatchEulerDiscreteScheduler(shift=2.0), tiny_mel, RECORD)
    scheduler = load_model(tmp_path / "model").scheduler
    assert type(scheduler) is FlowMatchEulerDiscreteScheduler
    assert scheduler.config.shift == 2.0


def test_the_autoencoder_is_found_under_the_key_of_other_tools(folder: Path, vae: Any) -> None:
    digest = load_model(folder).digest
    (folder / "vqvae").rename(folder / "vae")
    change(folder / "model_index.json", vqvae=None, vae=["diffusers", "AutoencoderKL"])
    changes: list[str] = []
    model = load_model(folder, changes)
    assert_same_weights(model.vae, vae)
    assert_same_weights(load_vae(folder), vae)
    assert model.digest == digest
    assert changes == ["model_index.json: renamed component vae to vqvae"]


def test_without_a_mel_configuration_images_are_as_large_as_the_decoder_makes_them(folder: Path) -> None:
    """Check that the image size does not depend on `sample_size` in the autoencoder's configuration."""
    change(folder / "model_index.json", mel=None)
    for sample_size in (32, None, 256):
        change(folder / "vqvae" / "config.json", sample_size=sample_size)
        assert load_model(folder).mel == MelConfig(x_res=32, y_res=32)
    change(folder / "unet" / "config.json", sample_size=[8, 32])
    assert load_model(folder).mel == MelConfig(x_res=64, y_res=16)
    change(folder / "unet" / "config.json", sample_size=8)
    assert load_model(folder).mel == MelConfig(x_res=16, y_res=16)


def test_a_scaling_factor_is_the_one_stated_or_the_one_that_all_had(folder: Path) -> None:
    assert load_model(folder).vae.config.scaling_factor == 0.5
    change(folder / "vqvae" / "config.json", scaling_factor=None)
    assert load_model(folder).vae.config.scaling_factor == 0.18215


def test_the_digest_covers_every_file_that_decides_the_output(folder: Path) -> None:
    digests = [load_model(folder).digest]
    for part in ("unet", "vqvae"):
        file = folder / part / "diffusion_pytorch_model.safetensors"
        weights = safetensors.torch.load_file(file)
        file.unlink()
        torch.save(weights, file.with_suffix(".bin"))
        digests.append(load_model(folder).digest)
        torch.save({name: weight + 1e-3 for name, weight in weights.items()}, file.with_suffix(".bin"))
        digests.append(load_model(folder).digest)
    change(folder / "vqvae" / "config.json", scaling_factor=0.25)
    digests.append(load_model(folder).digest)
    change(folder / "scheduler" / "scheduler_config.json", _class_name=None)
    change(folder / "model_index.json", scheduler=["diffusers", "DDPMScheduler"])
    digests.append(load_model(folder).digest)
    assert len(set(digests)) == 7


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("mel/mel_config.json", {"x_res": 64}, "mel/mel_config.json: resolution 64x32: must be 32x32"),
        ("unet/config.json", {"_class_name": "UNet2DModel"}, "must be UNet2DConditionModel"),
        (
            "unet/config.json",
            {"class_embed_type": "identity"},
            "class_embed_type identity: must be null or simple_projection",
        ),
        ("unet/config.json", {"sample_size": [16, 16, 16]}, "sample_size"),
        ("vqvae/config.json", {"scaling_factor": 0}, "scaling_factor 0: must be a positive number"),
        ("vqvae/config.json", {"scaling_factor": "much"}, "scaling_factor much: must be a positive number"),
        ("vqvae/config.json", {"shift_factor": 0.1}, "shift_factor 0.1 is not supported"),
        ("model_index.json", {"vqvae": ["diffusers", "VQModel"]}, "VQModel"),
        ("model_index.json", {"vqvae": [None, None]}, "must be 16x16"),
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "StableDiffusionPipeline"),
        (
            "model_index.json",
            {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]},
            "class DDIMScheduler: must be FlowMatch",
        ),
        ("scheduler/scheduler_config.json", {"prediction_type": "colour"}, "prediction_type colour"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "steep"}, "steep"),
        ("scheduler/scheduler_config.json", {"beta_end": float("nan")}, "beta_end nan"),
    ],
)
def test_parts_that_do_not_fit_are_named(folder: Path, file: str, values: dict[str, Any], message: str) -> None:
    change(folder / file, **values)
    with pytest.raises(CheckpointError) as raised:
        load_model(folder)
    assert str(raised.value).startswith(f"{folder}: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_card_tells_what_the_model_is_and_how_it_is_loaded(folder: Path) -> None:
    import yaml

    _, metadata, text = (folder / "README.md").read_text().split("---\n", 2)
    described = yaml.safe_load(metadata)
    assert {"conditional-audio-generation", "latent-diffusion", "audiodiff"} <= set(described["tags"])
    assert (described["library_name"], described["pipeline_tag"]) == ("diffusers", "audio-to-audio")
    for line in (
        "| loss | 0.25 |",
        "| hop_length | 256 |",
        f"| conditioned by | one encoding of {ENCODING_DIM} values per loop |",
    ):
        assert line in text.splitlines()
    for call in ("load_pipeline(SOURCE)", "AudioDiffusionPipeline.from_pretrained(SOURCE)"):
        assert call in text
