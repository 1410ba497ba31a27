"""Small pictures of mel images: at most 256x64 pixels, low frequencies at the bottom, brighter where louder."""

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from audiodiff_core.mel.picture import mel_picture


def _luma(picture: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(picture), formats=["PNG"]) as image:
        return np.asarray(image.convert("L"))


@pytest.mark.parametrize(("shape", "size"), [((64, 32), (64, 32)), ((256, 256), (64, 256)), ((80, 5_000), (64, 256))])
def test_pictures_are_small(shape: tuple[int, int], size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    picture = mel_picture(image)
    assert _luma(picture).shape == size
    assert len(picture) < 9_000
    assert mel_picture(image) == picture


def test_the_lowest_band_is_at_the_bottom() -> None:
    image = np.zeros((128, 40), np.uint8)
    image[:2] = 255
    luma = _luma(mel_picture(image))
    assert (luma[-1] > 200).all()
    assert (luma[:-1] < 30).all()


def test_louder_is_brighter() -> None:
    ramp = np.arange(256, dtype=np.uint8)[np.newaxis]
    steps = np.diff(_luma(mel_picture(ramp))[0].astype(int))
    assert (steps >= 0).all()
    assert np.count_nonzero(steps) == 15
