"""Fixtures of the core's tests: the shipped loops, signals, and networks with steps of milliseconds."""

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel

from audiodiff_core.mel import MelConfig

ROOT = Path(__file__).parents[2]

IMPORT_ALONE = """
import importlib, importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "fastapi", "starlette", "audiodiff_platform"):
            raise ModuleNotFoundError(f"{name} is refused", name=name)

sys.meta_path.insert(0, Refuse())
for name in sys.argv[1:]:
    importlib.import_module(name)
print("imported", len(sys.argv) - 1)
"""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def core_alone(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str] | None]:
    """Start an interpreter that imports every module of the core while Ray and HTTP are blocked.

    The imports take seconds, so the process runs beside the other tests. test_structure.py reads the result. Runs
    without test_structure.py start no process.
    """
    if not any(item.path.name == "test_structure.py" for item in request.session.items):
        yield None
        return
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in (ROOT / "audiodiff_core").rglob("*.py")
    ]
    command = [sys.executable, "-c", IMPORT_ALONE, *modules]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


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
