"""Presets equal to the published networks, and refusal of image sizes that they cannot halve."""

from typing import Any, get_args

import pytest
import torch

from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.latents import latent_factor
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import (
    PRESETS,
    VAE_PRESETS,
    PresetName,
    build_network,
    build_vae,
    check_resolution,
    image_sides,
    objective_for,
    parameter_count,
    sample_channels,
)

# unet/config.json of teticio/audio-diffusion-256.
PUBLISHED = {
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 1,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 1,
    "sample_size": 256,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
}


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_ddpm_256_is_the_published_network() -> None:
    with torch.device("meta"):
        ours = build_network("ddpm-256", MelConfig())
    config = {key: plain(ours.config[key]) for key in PUBLISHED}
    assert config == {**PUBLISHED, "sample_size": [256, 256]}
    assert round(parameter_count(ours) / 1e6, 1) == 113.7


@pytest.fixture(scope="module")
def published_vae() -> Any:
    with torch.device("meta"):
        return build_vae("vae-256", MelConfig())


def test_vae_256_is_the_published_autoencoder(published_vae: Any) -> None:
    published = {  # vqvae/config.json of teticio/latent-audio-diffusion-256
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 1,
        "latent_channels": 1,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 1,
        "sample_size": 256,
        "scaling_factor": 0.18215,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    config = {key: plain(published_vae.config[key]) for key in published}
    assert config == {**published, "sample_size": [256, 256]}
    assert parameter_count(published_vae) == pytest.approx(83.7e6, rel=2e-3)
    assert latent_factor(published_vae) == VAE_PRESETS["vae-256"].factor == 8


def test_latent_256_is_the_same_network_on_latents(published_vae: Any) -> None:
    with torch.device("meta"):
        ours = build_network("latent-256", MelConfig(), published_vae)
    assert {key: plain(ours.config[key]) for key in PUBLISHED} == {**PUBLISHED, "sample_size": [32, 32]}


def test_conditional_latent_512_is_the_network_of_the_original() -> None:
    mel = MelConfig(x_res=512, y_res=512, n_fft=2_000)
    with torch.device("meta"):
        ours = build_network("conditional-latent-512", mel, build_vae("vae-256", mel), encoding_dim=100)
    expected = {
        "sample_size": [64, 64],
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 2,
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "cross_attention_dim": 100,
        "attention_head_dim": 8,
    }
    assert type(ours).__name__ == "UNet2DConditionModel"
    assert {key: plain(ours.config[key]) for key in expected} == expected


@pytest.mark.parametrize("preset", get_args(PresetName))
def test_every_preset_builds_for_any_suitable_picture(preset: PresetName) -> None:
    shape = PRESETS[preset]
    factor = VAE_PRESETS["vae-tiny"].factor if shape.latent else 1
    rows, columns = shape.side_multiples
    mel = MelConfig(x_res=4 * columns * factor, y_res=2 * rows * factor)
    with torch.device("meta"):
        vae = build_vae("vae-tiny", mel) if shape.latent else None
        network = build_network(preset, mel, vae, 10 if shape.conditional else None)
    assert image_sides(network) == (mel.y_res // factor, mel.x_res // factor)
    assert sample_channels(network) == (4 if shape.latent else 1)
    assert ("cross_attention_dim" in network.config) == shape.conditional


@pytest.mark.parametrize("preset", get_args(PresetName))
def test_defaults_of_the_presets(preset: PresetName) -> None:
    shape, objective = PRESETS[preset], PRESETS[preset].objective
    assert objective.clip_sample is not shape.latent
    assert (objective.conditioning_dropout > 0) is shape.conditional
    assert Objective.model_validate(objective.model_dump()) == objective
    assert objective_for(preset) == objective


def test_an_objective_asked_for_is_the_presets_otherwise() -> None:
    assert objective_for("tiny-conditional-latent", prediction_type="flow") == Objective(
        prediction_type="flow", conditioning_dropout=0.1
    )
    epsilon = objective_for("tiny-latent", prediction_type="epsilon", beta_schedule="scaled_linear", min_snr_gamma=None)
    assert epsilon == Objective(prediction_type="epsilon", clip_sample=False, beta_schedule="scaled_linear")
    flow = objective_for("tiny-latent", prediction_type="flow")
    assert objective_for("tiny", flow, prediction_type="v_prediction").clip_sample
    assert not objective_for("tiny", flow, latent=True, prediction_type="v_prediction").clip_sample
    assert objective_for("tiny", zero_terminal_snr=False) == Objective(zero_terminal_snr=False)
    with pytest.raises(ValueError, match=r"conditioning_dropout 0\.2: preset tiny takes no encodings"):
        objective_for("tiny", conditioning_dropout=0.2)
    with pytest.raises(ValueError, match="epsilon cannot have zero_terminal_snr"):
        objective_for("tiny", prediction_type="epsilon", zero_terminal_snr=True)


def test_what_does_not_go_together_is_refused(published_vae: Any) -> None:
    mel = MelConfig()
    with pytest.raises(ValueError, match="latent-256 works on latents: pass the VAE"):
        build_network("latent-256", mel)
    with pytest.raises(ValueError, match=r"ddpm-256 works on images.*tiny-latent"):
        build_network("ddpm-256", mel, published_vae)
    with pytest.raises(ValueError, match="conditional-latent-512 is conditional: pass encodings"):
        build_network("conditional-latent-512", mel, published_vae)
    with pytest.raises(ValueError, match=r"tiny takes no encodings.*tiny-conditional"):
        build_network("tiny", mel, encoding_dim=10)
    with pytest.raises(
        ValueError,
        match=r"128,256 does not fit preset latent-256 with a VAE that divides sides by 8: .* multiples of 256",
    ):
        check_resolution("latent-256", MelConfig(x_res=128), published_vae)
    with pytest.raises(ValueError, match="100,64 does not fit preset vae-256: both sides must be multiples of 8"):
        build_vae("vae-256", MelConfig(x_res=100, y_res=64))


@pytest.mark.parametrize(("preset", "multiple"), [("ddpm-256", 32), ("ddpm-64", 32), ("tiny", 8)])
@pytest.mark.parametrize("axis", ["x_res", "y_res"])
def test_a_side_that_cannot_be_halved_is_refused(preset: PresetName, multiple: int, axis: str) -> None:
    mel = MelConfig(**{"x_res": 64, "y_res": 64, axis: 100})
    with pytest.raises(
        ValueError, match=rf"resolution {mel.x_res},{mel.y_res} .*preset {preset}: .* multiples of {multiple}"
    ):
        check_resolution(preset, mel)
    with pytest.raises(ValueError, match="resolution"):
        build_network(preset, mel)
    check_resolution(preset, MelConfig(**{"x_res": 64, "y_res": 64, axis: 96}))


def test_a_tiny_network_runs_at_the_smallest_picture_it_accepts() -> None:
    mel = MelConfig(x_res=8, y_res=8, n_fft=512)
    picture = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        made = build_network("tiny", mel)(picture, torch.tensor([0, 999])).sample
    assert made.shape == picture.shape
    assert made.isfinite().all()
