"""The vocoder's bytes belong to (image, seed); its error is no greater than librosa's."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import Mel as OracleMel
from PIL import Image

from audiodiff_core.mel import Mel, MelConfig, filterbank
from audiodiff_core.slices import mel_slices
from audiodiff_core.vocoder import GriffinLim
from audiodiff_core.vocoder.bands import Bands

Bytes = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def images() -> Bytes:
    """Three smooth pictures of 16 bands, 24 frames."""
    band, frame = np.mgrid[0:16, 0:24]
    return np.stack([(127 + 128 * np.cos(band / width) * np.sin(frame / width)).clip(0, 255) for width in (2, 3, 5)]).astype(np.uint8)


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


def test_a_constant_picture_is_finite(vocoder: GriffinLim) -> None:
    for level in (0, 128, 255):
        assert np.isfinite(vocoder(np.full((1, 16, 16), level, np.uint8), [0])).all()


def test_mel_inverse_has_nearly_the_mel_power_that_it_was_given(loops: Path) -> None:
    config = MelConfig(x_res=64, y_res=64, hop_length=1_024)
    image = next(mel_slices(loops / "guit_em9.flac", Mel(config))).image
    mel_power = torch.from_numpy(Mel(config).power(image[np.newaxis]))
    linear = Bands(config, torch.device("cpu")).invert(mel_power.mT)
    assert linear.shape == (1, 64, 1_025)
    assert linear.min() >= 0
    residual = torch.from_numpy(filterbank(config)) @ linear.mT - mel_power
    assert float(residual.norm() / mel_power.norm()) < 0.08  # 0.13 for the clipped pseudo-inverse


def test_error_is_no_greater_than_librosas(loops: Path) -> None:
    config = MelConfig(x_res=64, y_res=64, hop_length=1_024)
    mel = Mel(config)
    source = next(mel_slices(loops / "loop_mika.flac", mel)).image

    def error(audio: npt.NDArray[np.float32]) -> float:
        """Mean absolute difference in levels between the source and the picture of `audio`, of equal length."""
        assert audio.shape == (config.audio_size,)
        image, _ = mel.images(audio.astype(np.float32)[np.newaxis])
        return float(np.abs(image[0].astype(int) - source).mean())

    np.random.seed(0)  # librosa draws its first phases from the global generator
    theirs = error(OracleMel(**config.model_dump()).image_to_audio(Image.fromarray(source)))
    assert error(GriffinLim(config)(source[np.newaxis], [0])[0]) <= theirs
