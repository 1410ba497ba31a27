"""Results of diffusers' own tests for the original's pipeline on a CPU, reproduced by `compat`.

The golden values include the faults of the original.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel, UNet2DModel

from audiodiff_core.compat import AudioDiffusionPipeline, Mel

CROSS_ATTENTION_DIM = 10


def golden_unet() -> Any:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=(32, 64),
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(128, 128),
        down_block_types=("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D"),
    )


def golden_conditional_unet() -> Any:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=(64, 32),
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(128, 128),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=CROSS_ATTENTION_DIM,
    )


def golden_vae_and_unet() -> tuple[Any, Any]:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        sample_size=(128, 64),
        in_channels=1,
        out_channels=1,
        latent_channels=1,
        layers_per_block=2,
        block_out_channels=(128, 128),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
    )
    unet = UNet2DModel(
        sample_size=(64, 32),
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(128, 128),
        down_block_types=("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D"),
    )
    return vae, unet


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def first_bytes(picture: Any) -> list[int]:
    return list(picture.tobytes()[:10])


@pytest.fixture(params=[1, pytest.param(2, marks=pytest.mark.soak)])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("threads")
def test_golden_pixels() -> None:
    pipe = quiet(
        AudioDiffusionPipeline(vqvae=None, unet=golden_unet(), mel=Mel(x_res=64, y_res=32), scheduler=DDPMScheduler())
    )
    output = pipe(generator=torch.Generator().manual_seed(42), steps=4)
    assert output.audios.shape == (1, 1, 63 * 512)
    assert first_bytes(output.images[0]) == [69, 255, 255, 255, 0, 0, 77, 181, 12, 127]
    pictures, (rate, audios) = pipe(generator=torch.Generator().manual_seed(42), steps=4, return_dict=False)
    assert first_bytes(pictures[0]) == [69, 255, 255, 255, 0, 0, 77, 181, 12, 127]
    assert rate == 22_050
    assert np.array_equal(audios[0], output.audios[0, 0]), "the same picture gives the same audio"


@pytest.mark.soak
@pytest.mark.usefixtures("threads")
def test_golden_latents_and_conditional() -> None:
    mel = Mel(x_res=64, y_res=128)
    vae, unet = golden_vae_and_unet()
    pipe = quiet(AudioDiffusionPipeline(vqvae=vae, unet=unet, mel=mel, scheduler=DDIMScheduler()))
    np.random.seed(0)  # the seed of the golden values
    raw_audio = np.random.uniform(-1, 1, (63 * 512,))
    generator = torch.Generator().manual_seed(42)
    output = pipe(raw_audio=raw_audio, generator=generator, start_step=5, steps=10)
    assert first_bytes(output.images[0]) == [120, 117, 110, 109, 138, 167, 138, 148, 132, 121]

    conditional = golden_conditional_unet()
    vae, _ = golden_vae_and_unet()
    pipe = quiet(AudioDiffusionPipeline(vqvae=vae, unet=conditional, mel=mel, scheduler=DDIMScheduler()))
    encoding = torch.rand((1, 1, CROSS_ATTENTION_DIM))
    output = pipe(generator=generator, encoding=encoding)
    assert first_bytes(output.images[0]) == [107, 103, 120, 127, 142, 122, 113, 122, 97, 111]
