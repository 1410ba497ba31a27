"""The narrowest loops of a model: audio, files and figures.

Narrower loops are refused before any work.
"""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from audiodiff_core.audio import AudioFormat, decode_audio
from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.loops import level_db, seam_score
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import PRESETS, build_network
from audiodiff_core.pipeline import Audio, Loop, LoopPipeline
from audiodiff_core.pipeline.windows import Windows
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest

FORMATS: tuple[AudioFormat, ...] = ("wav", "flac", "ogg", "mp3")
PROFILE = ExecutionProfile(batch_size=2)
RATE = 22_050


def tone(length: int, periods: float) -> Any:
    return (0.5 * np.sin(2 * np.pi * periods * np.arange(length) / length + 1)).astype(np.float32)


@pytest.fixture(scope="module")
def one_level() -> LoopPipeline:
    """Return a model that accepts any width, because its network has one level, with the shortest hop."""
    torch.manual_seed(0)
    blocks: Any = {
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "block_out_channels": (8,),
        "norm_num_groups": 4,
    }
    unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, **blocks).eval()
    mel = MelConfig(x_res=8, y_res=8, hop_length=16, n_fft=64, n_iter=2, sample_rate=RATE)
    return LoopPipeline(unet, Objective().scheduler("ddim"), mel, PROFILE)


def check(loop: Loop, length: int) -> None:
    """Check the number of samples, the figures of a manifest, and the files of all formats."""
    assert loop.audio.shape == (length,)
    assert np.isfinite(loop.audio).all()
    assert 0 <= seam_score(loop.audio, RATE) < np.inf
    assert -200 <= level_db(loop.audio) < 0
    for file_format in FORMATS:
        assert len(decode_audio(loop.file(RATE, file_format), RATE)) == length


@pytest.mark.parametrize(("hop_length", "n_fft"), [(128, 2_048), (16, 2_048), (16, 64)])
@pytest.mark.parametrize("seamless", [False, True])
def test_eight_columns(hop_length: int, n_fft: int, seamless: bool) -> None:
    torch.manual_seed(0)
    mel = MelConfig(x_res=8, y_res=16, hop_length=hop_length, n_fft=n_fft, n_iter=2)
    pipeline = LoopPipeline(build_network("tiny", mel), PRESETS["tiny"].objective.scheduler("ddim"), mel, PROFILE)
    (loop,) = pipeline.generate([GenerateRequest(seed=1, steps=1, seamless=seamless)])
    check(loop, (8 if seamless else 7) * hop_length)


def test_two_columns_are_the_narrowest(one_level: LoopPipeline) -> None:
    for width, seamless in itertools.product((2, 3, 4), (False, True)):
        (loop,) = one_level.generate([GenerateRequest(steps=1, width=width, seamless=seamless)])
        check(loop, (width if seamless else width - 1) * 16)
    for seamless in (False, True):
        with pytest.raises(ValueError, match="width 1: audio needs at least 2 columns"):
            one_level.resolved(GenerateRequest(steps=1, width=1, seamless=seamless))


def test_long_loops_that_are_short(one_level: LoopPipeline) -> None:
    request = GenerateRequest(steps=1)
    (extended,) = one_level.extend([request], 32 / RATE)
    check(extended, 16)
    with pytest.raises(ValueError, match=r"duration 0.0004 s: use 0.0015 s to 12 s"):
        one_level.extend([request], 0.0004)
    (remixed,) = one_level.remix([request], [Audio(tone(17, 2), RATE)])
    check(remixed, 16)
    with pytest.raises(ValueError, match="audio of 16 samples: a track needs at least 17"):
        one_level.remix([request], [Audio(tone(16, 2), RATE)])


def test_windows_of_one_column_are_refused() -> None:
    with pytest.raises(ValueError, match="width 4: windows this narrow"):
        Windows.over(64, 4, 0.5, factor=4)


@pytest.mark.parametrize("length", [16, 17, 63, 128, 441, 896, 1_000, 1_763])
def test_seams_in_short_audio(length: int) -> None:
    assert seam_score(tone(length, 2), RATE) <= 1.3, "whole periods"
    assert seam_score(tone(length, 2.5), RATE) > 1.5, "cut in the middle of a period"
    assert seam_score(np.zeros(length, np.float32), RATE) == 0
    assert seam_score(np.ones(length, np.float32), RATE) <= 1


def test_the_windows_of_longer_audio_last_20_ms() -> None:
    window, audio = 441, np.random.default_rng(0).standard_normal(4 * 441).astype(np.float32)
    spectra = np.abs(np.fft.rfft(np.roll(audio, window).reshape(4, window) * np.hanning(window)))
    flux = np.abs(np.diff(np.concatenate([spectra, spectra[:1]]), axis=0)).sum(axis=1)
    flat = np.abs(np.diff(np.concatenate([audio[-2:], audio]).astype(np.float64), n=2))
    expected = max(flux[0] / np.percentile(flux[1:], 90), flat[:2].max() / np.percentile(flat[2:], 90))
    assert seam_score(audio, RATE) == pytest.approx(expected, rel=1e-6)
