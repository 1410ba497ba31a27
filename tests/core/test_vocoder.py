"""Vocoder: bytes determined by (image, seed), closed loops, and an error below librosa's."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import Mel as OracleMel
from PIL import Image

from audiodiff_core.loops import seam_score
from audiodiff_core.mel import Mel, MelConfig, filterbank
from audiodiff_core.mel.slices import mel_slices
from audiodiff_core.vocoder import QUALITIES, GriffinLim, require_mel
from audiodiff_core.vocoder.bands import Bands
from audiodiff_core.vocoder.batches import MelPower, fixed_size
from audiodiff_core.vocoder.frames import Frames

Bytes = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def images() -> Bytes:
    """Return three smooth pictures of 16 bands and 24 frames."""
    band, frame = np.mgrid[0:16, 0:24]
    return np.stack(
        [(127 + 128 * np.cos(band / width) * np.sin(frame / width)).clip(0, 255) for width in (2, 3, 5)]
    ).astype(np.uint8)


@pytest.fixture(scope="module")
def vocoder(tiny_mel: MelConfig) -> GriffinLim:
    return GriffinLim(tiny_mel)


def test_shape_follows_the_image(vocoder: GriffinLim, images: Bytes) -> None:
    audio = vocoder(images, [1, 2, 3])
    assert (audio.shape, str(audio.dtype)) == ((3, 23 * 256), "float32")
    assert np.isfinite(audio).all()
    assert vocoder(images[:1, :, :16], [1]).shape == (1, vocoder.config.audio_size)


def test_same_seed_same_bytes_alone_or_in_company(vocoder: GriffinLim, images: Bytes) -> None:
    audio = vocoder(images, [7, 8, 9])
    np.testing.assert_array_equal(vocoder(images, [7, 8, 9]), audio)
    np.testing.assert_array_equal(GriffinLim(vocoder.config)(images[1:2], [8])[0], audio[1])
    np.testing.assert_array_equal(vocoder(images[[2, 0, 1, 1]], [9, 5, 4, 8])[[0, 3]], audio[[2, 1]])


def test_another_seed_is_another_phase_of_the_same_picture(vocoder: GriffinLim, images: Bytes) -> None:
    one, other = vocoder(images[[0, 0]], [1, 2])
    assert not np.array_equal(one, other)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.9
    assert np.sqrt(np.mean(one**2)) == pytest.approx(np.sqrt(np.mean(other**2)), rel=0.3)


def test_each_image_needs_a_seed(vocoder: GriffinLim, images: Bytes) -> None:
    with pytest.raises(ValueError, match="3 images with 2 seeds"):
        vocoder(images, [1, 2])


def test_an_image_of_another_height_is_refused(vocoder: GriffinLim) -> None:
    with pytest.raises(ValueError, match=r"images of shape \(1, 24, 16\): \(batch, 16, "):
        vocoder(np.zeros((1, 24, 16), np.uint8), [0])


def test_images_that_are_not_bytes_are_refused(vocoder: GriffinLim) -> None:
    with pytest.raises(ValueError, match="images of type float64: uint8 needed"):
        vocoder(np.zeros((1, 16, 16)), [0])  # type: ignore[arg-type]


def test_any_memory_layout_gives_the_same_bytes(vocoder: GriffinLim, images: Bytes) -> None:
    audio = vocoder(images[::-1, :, ::-1], [1, 2, 3])
    fixed = np.ascontiguousarray(images[::-1, :, ::-1])
    fixed.flags.writeable = False
    np.testing.assert_array_equal(vocoder(fixed, [1, 2, 3]), audio)


def test_mel_power_is_that_of_the_image_and_level_0_is_silence(vocoder: GriffinLim, images: Bytes) -> None:
    levels = images.copy()
    levels[0, 0, :2] = 0, 1
    power = MelPower(vocoder.config, vocoder.device)(torch.from_numpy(levels))
    expected = Mel(vocoder.config).power(levels)
    expected[levels == 0] = 0
    np.testing.assert_array_equal(power.mT.numpy(), expected)
    assert power[0, 0, 0] == 0 < power[0, 1, 0]


def test_other_devices_process_batches_of_the_given_size(
    tiny_mel: MelConfig, images: Bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check the batches with tensors on torch's meta device, which have no content."""
    batches = []

    def reconstruct(
        vocoder: GriffinLim, power: torch.Tensor, noise: torch.Tensor, frames: Frames, kept: None
    ) -> torch.Tensor:
        batches.append((power.device.type, tuple(power.shape), tuple(noise.shape)))
        return torch.arange(len(noise))[:, None].expand(noise.shape)

    monkeypatch.setattr(GriffinLim, "reconstruct", reconstruct)
    vocoder = GriffinLim(tiny_mel, "meta", batch_size=2)
    assert (vocoder.batch_size, GriffinLim(tiny_mel).batch_size) == (2, 8)
    audio = vocoder(images, [1, 2, 3])
    assert batches == [("meta", (2, 24, 16), (2, 23 * 256))] * 2
    assert audio[:, 0].tolist() == [0, 1, 0]


def test_a_batch_size_below_1_is_refused(tiny_mel: MelConfig) -> None:
    with pytest.raises(ValueError, match="batch_size 0: must be at least 1"):
        GriffinLim(tiny_mel, batch_size=0)


def test_batches_are_padded_with_zeros() -> None:
    assert fixed_size(torch.ones(1, 2), 3).tolist() == [[1, 1], [0, 0], [0, 0]]
    assert fixed_size(torch.ones(3, 2), 3).tolist() == [[1, 1]] * 3


def test_an_unknown_quality_is_refused(tiny_mel: MelConfig) -> None:
    with pytest.raises(ValueError, match="quality 'good': use one of fast, standard, best"):
        GriffinLim(tiny_mel, quality="good")  # type: ignore[arg-type]


def test_another_mel_is_refused(vocoder: GriffinLim, tiny_mel: MelConfig) -> None:
    require_mel(vocoder, tiny_mel)
    with pytest.raises(ValueError, match="hop_length 256 against 128"):
        require_mel(vocoder, tiny_mel.model_copy(update={"hop_length": 128}))


@pytest.mark.parametrize("circular", [False, True])
def test_silence_is_silent_and_any_level_is_finite(vocoder: GriffinLim, circular: bool) -> None:
    assert not vocoder(np.zeros((1, 16, 16), np.uint8), [0], circular).any()
    pixel = np.zeros((16, 16), np.uint8)
    pixel[8, 8] = 255
    levels = np.stack([pixel, *(np.full((16, 16), level, np.uint8) for level in (1, 128, 255))])
    audio = vocoder(levels, range(4), circular)
    assert np.isfinite(audio).all()
    assert (np.abs(audio).max(axis=1) > 0).all()


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        MelConfig(x_res=33, y_res=64, n_fft=1_000, hop_length=300),
        MelConfig(x_res=33, y_res=64, n_fft=1_024, hop_length=700),
        MelConfig(x_res=33, y_res=64, n_fft=512, hop_length=511),
        MelConfig(x_res=33, y_res=32, n_fft=501, hop_length=100),
        MelConfig(x_res=9, y_res=512, n_fft=4_096, hop_length=256),
        MelConfig(x_res=16, y_res=64, n_fft=2_048, hop_length=16, top_db=200),
        MelConfig(x_res=32, y_res=64, sample_rate=48_000, hop_length=512, top_db=10),
    ],
    ids=lambda config: f"{config.x_res}x{config.y_res}-{config.n_fft}-{config.hop_length}",
)
def test_any_configuration(config: MelConfig, circular: bool) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, config.y_res, config.x_res), dtype=np.uint8)
    audio = GriffinLim(config)(image, [0], circular)
    assert audio.shape == (1, config.x_res * config.hop_length if circular else config.audio_size)
    assert np.isfinite(audio).all()
    assert 0 < np.abs(audio).max() < 1_000


def test_more_iterations_are_nearer_to_the_image(loops: Path) -> None:
    config = MelConfig(x_res=64, y_res=64, hop_length=1_024)
    mel = Mel(config)
    image = next(mel_slices(loops / "loop_tabla.flac", mel)).image
    vocoders = [GriffinLim(config, quality=quality) for quality in QUALITIES]
    errors = [np.abs(mel.images(vocoder(image[np.newaxis], [0]))[0].astype(int) - image).mean() for vocoder in vocoders]
    assert [vocoder.iterations for vocoder in vocoders] == [16, 32, 96]
    assert errors[0] > 1.2 * errors[1] > 1.2**2 * errors[2]


def test_a_rolled_loop_is_the_same_loop(vocoder: GriffinLim, images: Bytes) -> None:
    config = vocoder.config
    power = MelPower(config, vocoder.device)(torch.from_numpy(images))
    frames = Frames.of(config, images.shape[2], vocoder.device, circular=True)
    noise = torch.randn((3, frames.length), generator=torch.Generator().manual_seed(0))
    audio = vocoder.reconstruct(power, noise, frames)
    rolled = vocoder.reconstruct(power.roll(5, 1), noise.roll(5 * config.hop_length, 1), frames)
    torch.testing.assert_close(
        rolled, audio.roll(5 * config.hop_length, 1), rtol=0, atol=1e-3 * float(audio.abs().max())
    )


def test_spectra_across_the_wrap_are_those_of_the_image(vocoder: GriffinLim) -> None:
    """Check a loop whose sound is all around the wrap."""
    band, frame = np.mgrid[0:16, 0:24]
    image = (255 * np.exp(-(((frame + 12) % 24 - 12) ** 2) / 30 - (band - 6) ** 2 / 20)).astype(np.uint8)
    hop = vocoder.config.hop_length
    audio = vocoder(image[np.newaxis], [0], circular=True)[0]
    mel = Mel(vocoder.config.model_copy(update={"x_res": 73}))

    def errors(period: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return the mean difference in levels of the last and the first frame.

        Both frames are analyzed between their neighbors in the repeated audio.
        """
        assert period.shape == (24 * hop,)
        heard, _ = mel.images(np.tile(period, 3)[np.newaxis])
        return np.asarray(np.abs(heard[0, :, [47, 48]].astype(int) - image.T[[23, 0]]).mean(axis=1))

    assert errors(audio).max() < 2
    assert errors(np.pad(vocoder(image[np.newaxis], [0])[0], (0, hop))).max() > 5


def test_loops_close(loop_files: list[Path]) -> None:
    config = MelConfig(x_res=64, y_res=64, hop_length=1_024)
    vocoder = GriffinLim(config, quality="fast")
    pictures = [next(mel_slices(file, Mel(config))).image for file in loop_files]

    def seam(circular: bool, roll: int) -> float:
        audios = [vocoder(np.roll(picture, roll, axis=1)[np.newaxis], [0], circular)[0] for picture in pictures]
        return float(np.median([seam_score(audio, config.sample_rate) for audio in audios]))

    assert seam(circular=True, roll=0) <= 1.1 < seam(circular=False, roll=0)
    assert seam(circular=True, roll=32) <= 1.1


def test_mel_inverse_has_nearly_the_mel_power_that_it_was_given(loops: Path) -> None:
    config = MelConfig(x_res=64, y_res=64, hop_length=1_024)
    image = next(mel_slices(loops / "guit_em9.flac", Mel(config))).image
    mel_power = torch.from_numpy(Mel(config).power(image[np.newaxis]))
    linear = Bands(config, torch.device("cpu")).invert(mel_power.mT)
    assert linear.shape == (1, 64, 1_025)
    assert linear.min() >= 0
    residual = torch.tensor(filterbank(config)) @ linear.mT - mel_power
    assert float(residual.norm() / mel_power.norm()) < 0.08  # the clipped pseudo-inverse gives 0.13


def test_error_is_much_less_than_librosas(loops: Path) -> None:
    config = MelConfig(x_res=64, y_res=64, hop_length=1_024)
    mel = Mel(config)
    source = next(mel_slices(loops / "loop_mika.flac", mel)).image

    def error(audio: npt.NDArray[np.float32]) -> float:
        """Return the mean absolute difference in levels between the source and the picture of `audio`."""
        assert audio.shape == (config.audio_size,)
        image, _ = mel.images(audio.astype(np.float32)[np.newaxis])
        return float(np.abs(image[0].astype(int) - source).mean())

    np.random.seed(0)  # librosa draws its first phases from the global generator
    theirs = error(OracleMel(**config.model_dump()).image_to_audio(Image.fromarray(source)))
    assert error(GriffinLim(config)(source[np.newaxis], [0])[0]) <= 0.7 * theirs
    assert error(GriffinLim(config, quality="fast")(source[np.newaxis], [0])[0]) <= theirs
