"""Findings with the problem and a setting that solves it, and estimates against measurements."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiodiff_core.audio import decode_audio
from audiodiff_core.mel import Mel, MelConfig, filterbank
from audiodiff_core.mel.checks import (
    SIDE_MULTIPLES,
    Finding,
    check_mel,
    expected_bytes,
    expected_round_trip,
    expected_slices,
    filterbank_rank,
)
from audiodiff_core.mel.png import encode_png
from audiodiff_core.mel.slices import Slicing, pieces
from audiodiff_core.models import PRESETS
from audiodiff_core.vocoder import GriffinLim
from tests.rare import rare


def flaws(config: MelConfig) -> list[Finding]:
    return [finding for finding in check_mel(config) if finding.severity != "info"]


@pytest.mark.parametrize(
    "config",
    [
        MelConfig(),
        MelConfig(x_res=64, y_res=64, hop_length=1_024),
        MelConfig(x_res=512, y_res=512, n_fft=4_096),
        MelConfig(sample_rate=44_100, n_fft=4_096),
        MelConfig(x_res=32, y_res=32, hop_length=1_024),
    ],
    ids=lambda config: f"{config.x_res}x{config.y_res}",
)
def test_good_configurations_have_no_flaw(config: MelConfig) -> None:
    assert flaws(config) == []


def test_what_to_expect_is_told() -> None:
    duration, round_trip, size = (finding.message for finding in check_mel(MelConfig(), slices=1_000))
    assert "5.94 s" in duration
    assert f"{expected_round_trip(MelConfig()):.1f} of 255" in round_trip
    assert "1,000 slices" in size
    assert f"{expected_bytes(MelConfig(), 1_000) / 1e6:.1f} MB" in size
    assert len(check_mel(MelConfig())) == 2


def test_errors_come_first() -> None:
    severities = [finding.severity for finding in check_mel(MelConfig(x_res=100, hop_length=1_025))]
    assert severities == ["error", "warning", "info", "info"]


# Reference: the rank of the same filterbanks by numpy, from singular values.
@pytest.mark.parametrize(
    ("bands", "n_fft", "rate", "rank"),
    [
        *((bands, 2_048, 22_050, bands) for bands in (64, 96, 128, 256)),
        (512, 2_048, 22_050, 437),
        (512, 2_000, 22_050, 433),
        (512, 4_096, 22_050, 512),
        (256, 2_048, 44_100, 236),
        (256, 2_000, 44_100, 235),
        (256, 4_096, 44_100, 256),
        (512, 8_192, 44_100, 512),
        (256, 2_048, 48_000, 233),
        (448, 4_096, 48_000, 421),
    ],
)
def test_rank(bands: int, n_fft: int, rate: int, rank: int) -> None:
    assert filterbank_rank(MelConfig(y_res=bands, n_fft=n_fft, sample_rate=rate)) == rank


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
@pytest.mark.parametrize("n_fft", [64, 500, 512, 1_023])
def test_rank_is_that_of_the_filterbank(rate: int, n_fft: int) -> None:
    for bands in (8, 33, 64, 100, 180):
        config = MelConfig(y_res=bands, n_fft=n_fft, sample_rate=rate)
        assert filterbank_rank(config) == np.linalg.matrix_rank(filterbank(config).astype(np.float64))


@pytest.mark.parametrize(
    ("bands", "n_fft", "rate"), [(512, 2_048, 22_050), (256, 2_048, 44_100), (512, 2_048, 44_100), (32, 64, 22_050)]
)
def test_deficient_rank_is_found_and_either_mend_mends_it(bands: int, n_fft: int, rate: int) -> None:
    config = MelConfig(y_res=bands, n_fft=n_fft, sample_rate=rate, hop_length=n_fft // 4)
    (finding,) = (finding for finding in flaws(config) if "rank" in finding.message)
    assert finding.severity == "warning"
    assert all(
        part in finding.message
        for part in (f"{bands} bands", f"rank {filterbank_rank(config)} ", f"n_fft {n_fft} ", f"{rate} Hz")
    )
    mend = re.search(r"use n_fft (\d+) or (\d+) bands", finding.message)
    assert mend
    for change in ({"n_fft": int(mend[1])}, {"y_res": int(mend[2])}):
        assert not any("rank" in finding.message for finding in check_mel(config.model_copy(update=change)))
    assert filterbank_rank(config.model_copy(update={"n_fft": int(mend[1]) // 2})) < bands


def test_more_bands_than_frequencies_are_an_error_with_a_mend() -> None:
    config = MelConfig(y_res=512, n_fft=512, hop_length=128)
    (finding,) = flaws(config)
    assert finding.severity == "error"
    assert "512 bands exceed the 257 frequency bins of n_fft 512" in finding.message
    mend = re.search(r"use n_fft (\d+) or (\d+) bands", finding.message)
    assert mend
    assert flaws(config.model_copy(update={"n_fft": int(mend[1])})) == []


def test_side_multiples_are_those_of_the_presets() -> None:
    of_images = {
        name: max(preset.side_multiples)
        for name, preset in PRESETS.items()
        if not (preset.latent or preset.conditional)
    }
    assert of_images == SIDE_MULTIPLES


@pytest.mark.parametrize(
    ("sides", "severity", "mends"),
    [
        ((100, 64), "error", ["96,64", "128,64"]),
        ((64, 250), "error", ["64,224", "64,256"]),
        ((216, 96), "warning", ["192,96", "224,96"]),
        ((16, 16), "warning", ["32,32"]),
        ((1_000, 1_000), "warning", ["992,992", "1024,1024"]),
    ],
)
def test_sides_that_networks_do_not_take(sides: tuple[int, int], severity: str, mends: list[str]) -> None:
    config = MelConfig(x_res=sides[0], y_res=sides[1], n_fft=8_192)
    (finding,) = (finding for finding in flaws(config) if "network" in finding.message or "preset" in finding.message)
    assert finding.severity == severity
    assert f"resolution {sides[0]},{sides[1]}: " in finding.message
    assert ("only by preset tiny" in finding.message) == (severity == "warning")
    assert f"use {' or '.join(mends)}" in finding.message


@pytest.mark.parametrize(
    ("hop", "severity"), [(1_025, "warning"), (2_047, "warning"), (2_048, "error"), (4_000, "error")]
)
def test_a_hop_that_loses_sound(hop: int, severity: str) -> None:
    (finding,) = flaws(MelConfig(hop_length=hop))
    assert finding.severity == severity
    assert f"hop_length {hop} " in finding.message
    assert "n_fft 2048" in finding.message
    assert "use hop_length 1024" in finding.message
    assert flaws(MelConfig(hop_length=1_024)) == []


def test_the_hop_of_an_error_cannot_become_audio() -> None:
    config = MelConfig(x_res=32, y_res=32, n_fft=512, hop_length=512)
    with pytest.raises(ValueError, match="hop_length 512 is not below n_fft 512"):
        GriffinLim(config)(np.zeros((1, 32, 32), np.uint8), [0])


@pytest.mark.parametrize(
    ("config", "words"),
    [(MelConfig(x_res=32, hop_length=128), "0.186 s is too short"), (MelConfig(x_res=4_096), "95.1 s")],
)
def test_slices_too_short_and_too_long(config: MelConfig, words: str) -> None:
    (finding,) = (finding for finding in flaws(config) if " s" in finding.message and "slice of" in finding.message)
    assert finding.severity == "warning"
    assert words in finding.message


@pytest.mark.parametrize(
    ("config", "mend"),
    [
        (MelConfig(x_res=64, y_res=16), "use 32 or more"),
        (MelConfig(x_res=32, y_res=32, hop_length=256), "use a smaller n_fft"),
    ],
)
def test_images_that_tell_little_of_their_sound(config: MelConfig, mend: str) -> None:
    (finding,) = (finding for finding in flaws(config) if mend in finding.message)
    assert finding.severity == "warning"


@pytest.mark.parametrize("change", [{"top_db": 40}, {"n_iter": 4}, {"hop_length": 2_048}])
def test_no_expectation_without_a_measurement(change: dict[str, int]) -> None:
    config = MelConfig(**change)
    assert expected_round_trip(config) is None
    assert not any("round-trip" in finding.message for finding in check_mel(config))


@pytest.mark.parametrize(
    "config",
    [
        MelConfig(x_res=64, y_res=64, hop_length=1_024),
        rare(MelConfig(x_res=64, y_res=256)),
        rare(MelConfig(x_res=64, y_res=128, n_fft=1_024, hop_length=256)),
        rare(MelConfig(x_res=32, y_res=32)),
        MelConfig(x_res=32, y_res=64, sample_rate=44_100),
    ],
    ids=lambda config: f"{config.x_res}x{config.y_res}-{config.n_fft}-{config.hop_length}-{config.sample_rate}",
)
def test_round_trip_error_is_as_expected(loop_files: list[Path], config: MelConfig) -> None:
    mel, vocoder = Mel(config), GriffinLim(config)
    slices = np.stack([np.resize(decode_audio(file, config.sample_rate), config.slice_size) for file in loop_files])
    images, _ = mel.images(slices)
    again, _ = mel.images(vocoder(images, range(len(images))))
    assert expected_round_trip(config) == pytest.approx(np.abs(again.astype(int) - images).mean(), rel=0.35)


@pytest.mark.parametrize(
    "config",
    [MelConfig(), MelConfig(x_res=64, y_res=64, hop_length=1_024), MelConfig(x_res=64, y_res=32, hop_length=256)],
)
def test_size_on_disk_is_as_expected(loop_files: list[Path], config: MelConfig) -> None:
    mel = Mel(config)
    slices = np.stack([np.resize(decode_audio(file, config.sample_rate), config.slice_size) for file in loop_files])
    images, _ = mel.images(slices)
    assert expected_bytes(config, len(images)) == pytest.approx(
        sum(len(encode_png(image)) for image in images), rel=0.25
    )


@pytest.mark.parametrize("overlap", [0.0, rare(0.5), 0.9])
@pytest.mark.parametrize("width", [32, 64, 1_024], ids=["short", "long", "padded"])
def test_count_of_slices_is_as_expected(loop_files: list[Path], width: int, overlap: float) -> None:
    config = MelConfig(x_res=width, y_res=32)
    seconds = sum(soundfile.info(file).duration for file in loop_files)
    slicing = Slicing(overlap=overlap)
    made = sum(not piece.is_silent for file in loop_files for piece in pieces(file, Mel(config), slicing))
    assert expected_slices(config, seconds, len(loop_files), overlap) == pytest.approx(made, rel=0.15)


def test_lint_loads_nothing_slow() -> None:
    imports = "import sys; from audiodiff_core.mel.checks import check_mel; from audiodiff_core.mel import MelConfig"
    program = f"{imports}; check_mel(MelConfig(), 9); print(*sys.modules)"
    completed = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert set(completed.stdout.split()) & {"torch", "librosa", "numba", "scipy", "pandas", "diffusers"} == set()
