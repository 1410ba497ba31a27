"""Fixtures of the core's tests: the shipped loops, signals, and networks with steps of milliseconds.

Slow libraries are imported by the fixtures that use them: the process that shares tests among others needs none.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from audiodiff_core.mel import MelConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def loop_files(loops: Path) -> list[Path]:
    files = sorted(loops.glob("*.flac"))
    assert len(files) >= 14
    return files


@pytest.fixture(scope="session")
def tiny_mel() -> MelConfig:
    return MelConfig(x_res=16, y_res=16, sample_rate=22_050, n_fft=512, hop_length=256)


@pytest.fixture(scope="session")
def make_unet() -> Callable[[int], Any]:
    """Return a builder of networks for 16x16 images, with attention and seeded weights.

    The output is scaled down, so that sampling does not amplify rounding.
    """

    import torch
    from diffusers import UNet2DModel

    def build(seed: int) -> Any:
        torch.manual_seed(seed)
        unet = UNet2DModel(
            sample_size=(16, 16),
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=8,
        )
        with torch.no_grad():
            unet.conv_out.weight.mul_(0.1)
            unet.conv_out.bias.mul_(0.1)
        return unet

    return build


@pytest.fixture
def unet(make_unet: Callable[[int], Any]) -> Any:
    return make_unet(0)


@pytest.fixture(scope="session")
def wav() -> Callable[..., bytes]:
    """Return a function that encodes samples (n,) or (n, channels) as a WAV file of floats."""

    def write(samples: npt.NDArray[np.floating], sample_rate: int = 22_050) -> bytes:
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, sample_rate, format="WAV", subtype="FLOAT")
        return buffer.getvalue()

    return write


@pytest.fixture(scope="session")
def hum() -> Callable[..., npt.NDArray[np.float32]]:
    """Return a function that makes a sine with a little noise, of which all slices differ."""

    def make(count: int, frequency_hz: float = 330.0, sample_rate: int = 22_050) -> npt.NDArray[np.float32]:
        noise = np.random.default_rng(count).standard_normal(count) * 0.02
        return (0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(count) / sample_rate) + noise).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def make_conditional() -> Callable[[int], Any]:
    """Return a builder of conditional networks for samples of 16x16 and encodings of 8 values.

    The output is scaled down as in `make_unet`.
    """

    import torch
    from diffusers import UNet2DConditionModel

    def build(seed: int) -> Any:
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=(16, 16),
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=8,
            norm_num_groups=4,
            attention_head_dim=2,
        )
        with torch.no_grad():
            unet.conv_out.weight.mul_(0.1)
            unet.conv_out.bias.mul_(0.1)
        return unet

    return build


@pytest.fixture(scope="session")
def make_vae() -> Callable[[int], Any]:
    """Return a builder of autoencoders with latents of 16x16 for images of 32x32."""

    import torch
    from diffusers import AutoencoderKL

    def build(seed: int) -> Any:
        torch.manual_seed(seed)
        return AutoencoderKL(
            in_channels=1,
            out_channels=1,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 8),
            latent_channels=1,
            norm_num_groups=4,
            sample_size=(32, 32),
        ).eval()

    return build
