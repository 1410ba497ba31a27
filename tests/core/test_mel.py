"""Mel images against those of diffusers' Mel.

The configuration is saved and loaded unchanged. Conversions are lossless.
"""

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import Mel as OracleMel
from PIL import Image

from audiodiff_core.mel import IMAGE_MAX, Mel, MelConfig, band_edges_hz, filterbank, to_image, to_model
from audiodiff_core.mel.slices import mel_slices
from tests.rare import rare_but

GEOMETRIES = [
    MelConfig(x_res=64, y_res=64, hop_length=1_024),
    MelConfig(x_res=256, y_res=256, hop_length=512),
    MelConfig(x_res=216, y_res=96, hop_length=512),
]
SMALL = GEOMETRIES[0]

# mel/mel_config.json of teticio/audio-diffusion-256.
PUBLISHED = (
    '{"_class_name":"Mel","_diffusers_version":"0.8.0.dev0","hop_length":512,"n_fft":2048,"n_iter":32,'
    '"sample_rate":22050,"top_db":80,"x_res":256,"y_res":256}'
)


def oracle_of(config: MelConfig) -> Any:
    return OracleMel(**config.model_dump())


@cache
def librosa_audio(file: Path) -> npt.NDArray[np.float32]:
    samples: npt.NDArray[np.float32] = librosa.load(file, sr=22_050, mono=True)[0]
    return samples


def oracle_images(config: MelConfig, samples: npt.NDArray[np.floating]) -> list[npt.NDArray[np.uint8]]:
    oracle = oracle_of(config)
    oracle.load_audio(raw_audio=samples)
    return [np.asarray(oracle.audio_slice_to_image(index)) for index in range(oracle.get_number_of_slices())]


def assert_nearly_equal(images: npt.NDArray[np.uint8], expected: npt.NDArray[np.uint8]) -> None:
    """Assert that at least 99.9 % of the pixels are equal and that none differs by more than 1."""
    off = np.abs(images.astype(int) - expected.astype(int))
    assert off.max() <= 1
    assert (off == 0).mean() >= 0.999


@pytest.mark.parametrize(
    "config", rare_but(GEOMETRIES[1:], GEOMETRIES), ids=lambda config: f"{config.x_res}x{config.y_res}"
)
def test_every_shipped_loop_gives_the_images_of_the_oracle(loop_files: list[Path], config: MelConfig) -> None:
    for file in loop_files:
        expected = oracle_images(config, librosa_audio(file))
        made = list(mel_slices(file, Mel(config)))
        audible = [index for index, image in enumerate(expected) if (image != IMAGE_MAX).any()]
        assert [piece.index for piece in made] == audible, file.name
        assert_nearly_equal(np.stack([piece.image for piece in made]), np.stack([expected[index] for index in audible]))


def test_a_batch_is_its_items_one_by_one(hum: Callable[..., npt.NDArray[np.float32]]) -> None:
    mel = Mel(SMALL)
    slices = np.stack(
        [hum(SMALL.slice_size, frequency) * level for frequency, level in [(100, 1), (1_000, 0.01), (5_000, 0.3)]]
    )
    images, levels = mel.images(slices)
    assert (images.shape, str(images.dtype)) == ((3, 64, 64), "uint8")
    for index in range(3):
        image, level = mel.images(slices[index : index + 1])
        np.testing.assert_array_equal(image[0], images[index])
        assert level[0] == levels[index]


@pytest.mark.filterwarnings("ignore:Empty filters")
@pytest.mark.parametrize("sample_rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("n_fft", [512, 2_000, 2_001, 2_048, 4_096])
def test_filterbank_is_exactly_librosas(sample_rate: int, n_fft: int) -> None:
    from librosa.filters import mel as librosa_filterbank

    for bands in (8, 64, 96, 128, 256, 448, 512):
        ours = filterbank(MelConfig(y_res=bands, n_fft=n_fft, sample_rate=sample_rate))
        theirs = librosa_filterbank(sr=sample_rate, n_fft=n_fft, n_mels=bands)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_filterbank_is_shared_by_configurations_of_the_same_triangles() -> None:
    config = MelConfig(y_res=64)
    same = MelConfig(y_res=64, x_res=64, hop_length=1_024, top_db=60, n_iter=5)
    assert filterbank(same) is filterbank(config)
    assert band_edges_hz(same) is band_edges_hz(config)
    for change in ({"y_res": 65}, {"n_fft": 1_024}, {"sample_rate": 44_100}):
        assert filterbank(config.model_copy(update=change)) is not filterbank(config)
    assert band_edges_hz(MelConfig(y_res=64, sample_rate=44_100))[-1] == pytest.approx(22_050)
    for shared in (filterbank(config), band_edges_hz(config)):
        with pytest.raises(ValueError, match="read-only"):
            shared[:] = 0


@pytest.mark.filterwarnings("ignore:Empty filters")
def test_bands_without_a_bin_are_as_in_the_oracle(hum: Callable[..., npt.NDArray[np.float32]]) -> None:
    config = MelConfig(x_res=16, y_res=256, n_fft=64, hop_length=32)
    assert (~filterbank(config).any(axis=1)).sum() > 100
    samples = hum(config.slice_size)
    assert_nearly_equal(Mel(config).images(samples[np.newaxis])[0][0], oracle_images(config, samples)[0])


ANALYSIS = """
import sys
import numpy as np
import audiodiff_core.mel.slices
from audiodiff_core.mel.analysis import Mel, MelConfig
Mel(MelConfig()).images(np.ones((1, 9), np.float32))
print(*sys.modules)
"""


def test_analysis_loads_nothing_slow() -> None:
    completed = subprocess.run(
        [sys.executable, "-c", ANALYSIS], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert "scipy.fft" in completed.stdout.split()
    assert (
        set(completed.stdout.split()) & {"torch", "librosa", "numba", "sklearn", "scipy.signal", "pandas", "diffusers"}
        == set()
    )


def test_reference_level_is_that_of_the_maximum(hum: Callable[..., npt.NDArray[np.float32]]) -> None:
    samples = hum(SMALL.slice_size)
    _, levels = Mel(SMALL).images(np.stack([samples, samples * 0.1]))
    power = librosa.feature.melspectrogram(y=samples, sr=22_050, n_fft=2_048, hop_length=1_024, n_mels=64)
    assert levels[0] == pytest.approx(10 * np.log10(power.max()), abs=1e-3)
    assert levels[0] - levels[1] == pytest.approx(20, abs=1e-3)


def test_row_0_is_the_lowest_band() -> None:
    time = np.arange(SMALL.slice_size) / SMALL.sample_rate
    low, high = (
        Mel(SMALL).images(np.sin(2 * np.pi * hertz * time).astype(np.float32)[np.newaxis])[0][0]
        for hertz in (100, 8_000)
    )
    assert low.mean(axis=1).argmax() < 5
    assert high.mean(axis=1).argmax() > 50


def test_silence_is_all_maximum_as_in_the_oracle() -> None:
    silence = np.zeros(SMALL.slice_size, np.float32)
    images, levels = Mel(SMALL).images(silence[np.newaxis])
    assert (images == IMAGE_MAX).all()
    assert levels[0] == pytest.approx(-100, abs=1e-3)
    np.testing.assert_array_equal(oracle_images(SMALL, silence)[0], images[0])


@pytest.mark.parametrize("top_db", [40, 80])
@pytest.mark.parametrize("half_levels", [-20, 0, 0.5, 0.9, 1.1, 2, 90])
def test_a_slice_is_silent_where_the_oracles_image_is_all_maximum(
    hum: Callable[..., npt.NDArray[np.float32]], top_db: int, half_levels: float
) -> None:
    config = SMALL.model_copy(update={"top_db": top_db})
    mel, samples = Mel(config), hum(SMALL.slice_size)
    target_db = -100 + half_levels * top_db / 255 / 2
    samples *= 10 ** ((target_db - mel.peak_db(samples[np.newaxis])[0]) / 20)
    silent = bool((oracle_images(config, samples)[0] == IMAGE_MAX).all())
    assert silent == (half_levels < 1)
    assert mel.is_silent(mel.peak_db(samples[np.newaxis])[0]) == silent


def test_peak_is_the_reference_of_the_image(hum: Callable[..., npt.NDArray[np.float32]]) -> None:
    mel = Mel(SMALL)
    slices = np.stack([hum(SMALL.slice_size) * level for level in (1, 0.1, 0)])
    peaks = mel.peak_db(slices)
    assert (peaks.shape, str(peaks.dtype)) == ((3,), "float32")
    np.testing.assert_array_equal(peaks, mel.images(slices)[1])


def test_relative_to_a_given_reference_images_keep_their_loudness(hum: Callable[..., npt.NDArray[np.float32]]) -> None:
    mel = Mel(SMALL)
    slices = np.stack([hum(SMALL.slice_size) * level for level in (1, 0.1, 0)])
    own, peaks = mel.images(slices)
    images, references = mel.images(slices, reference_db=float(peaks[0]))
    np.testing.assert_array_equal(references, peaks[[0, 0, 0]])
    np.testing.assert_array_equal(images[0], own[0])
    quieter = (own[1] - 20 * IMAGE_MAX / 80).clip(0)
    assert np.abs(images[1] - quieter).max() <= 1
    assert (images[2] == 0).all()


def test_what_is_louder_than_the_given_reference_is_255(hum: Callable[..., npt.NDArray[np.float32]]) -> None:
    samples = hum(SMALL.slice_size)[np.newaxis]
    own, peaks = Mel(SMALL).images(samples)
    images, _ = Mel(SMALL).images(samples, reference_db=float(peaks[0]) - 16)
    assert np.abs(images - (own + 16 * IMAGE_MAX / 80).clip(0, 255)).max() <= 1
    assert (images == IMAGE_MAX).sum() > 100


@pytest.mark.parametrize("count", [1, 3_000, SMALL.slice_size - 1, SMALL.slice_size])
def test_short_audio_is_padded_as_in_the_oracle(hum: Callable[..., npt.NDArray[np.float32]], count: int) -> None:
    samples = hum(count)
    images, _ = Mel(SMALL).images(samples[np.newaxis])
    expected = oracle_images(SMALL, samples)
    assert len(expected) == 1
    assert_nearly_equal(images[0], expected[0])


@pytest.mark.parametrize("shape", [(1, SMALL.slice_size + 1), (1, 2, 100)])
def test_a_slice_of_a_wrong_shape_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="slice of shape") as raised:
        Mel(SMALL).images(np.zeros(shape, np.float32))
    assert str(shape[1:]) in str(raised.value)
    assert str(SMALL.slice_size) in str(raised.value)


def test_power_is_that_of_the_oracle() -> None:
    every_byte = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    expected = librosa.db_to_power(every_byte.astype(float) * 80 / 255 - 80)
    np.testing.assert_allclose(Mel(SMALL).power(every_byte), expected, rtol=1e-6)


@pytest.mark.parametrize("top_db", [10, 37, 80, 200])
def test_power_of_each_level_is_the_formula_bit_by_bit(top_db: int) -> None:
    levels = np.arange(256, dtype=np.uint8)
    mel = Mel(SMALL.model_copy(update={"top_db": top_db}))
    expected = np.power(10, (levels.astype(np.float64) / IMAGE_MAX - 1) * top_db / 10).astype(np.float32)
    np.testing.assert_array_equal(mel.power_table, expected)
    images = np.random.default_rng(0).permutation(np.repeat(levels, 3)).reshape(3, 16, 16)
    power = mel.power(images)
    assert power.dtype == np.float32
    np.testing.assert_array_equal(power, expected[images])
    with pytest.raises(ValueError, match="read-only"):
        mel.power_table[0] = 0


def test_slice_step() -> None:
    mel = Mel(SMALL)
    assert mel.slice_step(0) == SMALL.slice_size == 65_535
    assert mel.slice_step(0.5) == 32_768
    assert mel.slice_step(0.999_999_9) == 1
    for overlap in (-0.1, 1.0):
        with pytest.raises(ValueError, match=str(overlap)):
            mel.slice_step(overlap)


def test_derived_sizes() -> None:
    config = MelConfig()
    assert config.slice_size == 131_071
    assert config.audio_size == 130_560
    assert config.slice_duration_s == pytest.approx(5.944, abs=1e-3)


@pytest.mark.parametrize(
    "config",
    [
        MelConfig(),
        MelConfig(x_res=216, y_res=96, sample_rate=44_100, n_fft=4_096, hop_length=1_024, top_db=60, n_iter=5),
    ],
)
def test_configuration_file_goes_round_through_diffusers(tmp_path: Path, config: MelConfig) -> None:
    (tmp_path / "mel_config.json").write_text(config.to_json())
    oracle = OracleMel.from_pretrained(tmp_path)
    assert {key: oracle.config[key] for key in config.model_dump()} == config.model_dump()
    assert (oracle.x_res, oracle.slice_size, oracle.sr) == (config.x_res, config.slice_size, config.sample_rate)
    oracle.save_pretrained(tmp_path / "again")
    assert MelConfig.from_json((tmp_path / "again" / "mel_config.json").read_text()) == config
    assert MelConfig.from_json(config.to_json()) == config


def test_published_configuration_is_the_default() -> None:
    assert MelConfig.from_json(PUBLISHED) == MelConfig()


def test_configuration_file_with_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValueError, match="hop_lenght"):
        MelConfig.from_json('{"hop_lenght": 512}')


def test_digest_is_stable_and_depends_on_every_field() -> None:
    assert MelConfig().digest == "45886218c71348ac"
    changed = [MelConfig(**{key: value + 1}).digest for key, value in MelConfig().model_dump().items()]
    assert len({MelConfig().digest, *changed}) == 8


def test_difference_shows_both_values() -> None:
    assert (
        MelConfig().difference(MelConfig(hop_length=1_024, y_res=64))
        == "y_res 256 against 64, hop_length 512 against 1024"
    )
    assert MelConfig().difference(MelConfig()) == ""


def test_model_values_and_bytes_go_round() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    values = to_model(images)
    assert values.dtype == np.float32
    assert (values.min(), values.max()) == (-1, 1)
    np.testing.assert_array_equal(to_image(values), images)
    tensor = to_model(torch.from_numpy(images))
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.numpy(), values)
    np.testing.assert_array_equal(to_image(tensor.numpy()), images)


def test_model_values_beyond_the_range_are_clipped() -> None:
    assert to_image(np.array([-7, -1, 0, 1, 7], np.float32)).tolist() == [0, 0, 128, 255, 255]


def test_images_are_what_pillow_reads_as_grey() -> None:
    images, _ = Mel(SMALL).images(np.ones((1, 100), np.float32))
    assert Image.fromarray(images[0]).mode == "L"
