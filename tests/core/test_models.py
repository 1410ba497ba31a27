"""The presets are the published networks, and refuse pictures that they cannot halve."""

from typing import Any, get_args

import pytest
import torch

from audiodiff_core.mel import MelConfig
from audiodiff_core.models import PRESETS, PresetName, build_unet, check_resolution, parameter_count

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
        ours = build_unet("ddpm-256", MelConfig())
    config = {key: plain(ours.config[key]) for key in PUBLISHED}
    assert config == {**PUBLISHED, "sample_size": [256, 256]}
    assert round(parameter_count(ours) / 1e6, 1) == 113.7
    assert PRESETS["ddpm-256"].objective.prediction_type == "epsilon"
    assert not PRESETS["ddpm-256"].objective.zero_terminal_snr


@pytest.mark.parametrize("preset", get_args(PresetName))
def test_every_preset_builds_for_any_suitable_picture(preset: PresetName) -> None:
    multiple = PRESETS[preset].side_multiple
    mel = MelConfig(x_res=4 * multiple, y_res=2 * multiple)
    with torch.device("meta"):
        unet = build_unet(preset, mel)
    assert tuple(unet.config.sample_size) == (mel.y_res, mel.x_res)


@pytest.mark.parametrize(("preset", "multiple"), [("ddpm-256", 32), ("ddpm-64", 32), ("tiny", 8)])
@pytest.mark.parametrize("axis", ["x_res", "y_res"])
def test_a_side_that_cannot_be_halved_is_refused(preset: PresetName, multiple: int, axis: str) -> None:
    mel = MelConfig(**{"x_res": 64, "y_res": 64, axis: 100})
    with pytest.raises(ValueError, match=rf"resolution {mel.x_res},{mel.y_res} .*preset {preset}: .* divide by {multiple}"):
        check_resolution(preset, mel)
    with pytest.raises(ValueError, match="resolution"):
        build_unet(preset, mel)
    check_resolution(preset, MelConfig(**{"x_res": 64, "y_res": 64, axis: 96}))


def test_a_tiny_network_runs_at_the_smallest_picture_it_accepts() -> None:
    mel = MelConfig(x_res=8, y_res=8, n_fft=512)
    picture = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        made = build_unet("tiny", mel)(picture, torch.tensor([0, 999])).sample
    assert made.shape == picture.shape
    assert made.isfinite().all()
