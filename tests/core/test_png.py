"""PNGs give their pixels back, to Pillow too; what is no grey PNG is refused."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from audiodiff_core.mel import Mel, MelConfig
from audiodiff_core.png import decode_png, encode_png
from audiodiff_core.slices import mel_slices

NOISE = np.random.default_rng(0).integers(0, 256, (24, 40), dtype=np.uint8)


def saved(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "image",
    [NOISE, NOISE[:1], NOISE[:, :1], NOISE[::-1, ::2], np.zeros((300, 7), np.uint8), np.full((8, 8), 255, np.uint8)],
    ids=["noise", "row", "column", "strided", "black", "white"],
)
def test_pixels_come_back(image: npt.NDArray[np.uint8]) -> None:
    content = encode_png(image)
    assert content == encode_png(image.copy())
    with Image.open(io.BytesIO(content)) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (image.shape[1], image.shape[0]))
        picture.verify()
    decoded = decode_png(content)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, image)


@pytest.mark.parametrize("config", [MelConfig(), MelConfig(x_res=64, y_res=64, hop_length=1_024)], ids=["256", "64"])
def test_mel_images_come_back_from_files_little_larger_than_pillows(loop_files: list[Path], config: MelConfig) -> None:
    mel = Mel(config)
    images = [piece.image for file in loop_files for piece in mel_slices(file, mel)]
    contents = [encode_png(image) for image in images]
    for content, image in zip(contents, images, strict=True):
        np.testing.assert_array_equal(decode_png(content), image)
    assert sum(map(len, contents)) <= 1.15 * sum(len(saved(Image.fromarray(image), "PNG")) for image in images)


def test_pillows_png_is_read() -> None:
    np.testing.assert_array_equal(decode_png(saved(Image.fromarray(NOISE), "PNG")), NOISE)


@pytest.mark.parametrize("mode", ["RGB", "I;16", "P", "1"])
def test_png_of_another_mode_is_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=f"mode {mode}"):
        decode_png(saved(Image.new(mode, (8, 8)), "PNG"))


@pytest.mark.parametrize("damage", ["empty", "bmp", "cut", "header", "checksum", "length"])
def test_what_is_no_whole_png_is_refused(damage: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    whole = encode_png(image)
    contents = {
        "empty": b"",
        "bmp": saved(Image.fromarray(image), "BMP"),
        "cut": whole[:1_000],
        "header": whole[:20],
        "checksum": whole[:30] + bytes([whole[30] ^ 1]) + whole[31:],
        "length": whole[:35] + bytes([0]) + whole[36:],
    }
    with pytest.raises(ValueError, match="PNG"):
        decode_png(contents[damage])
