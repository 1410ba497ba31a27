"""Lossless gray PNG files, also for Pillow, and refusal of other files."""

import io
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from audiodiff_core.mel import Mel, MelConfig
from audiodiff_core.mel.png import MAX_SHAPE, SIGNATURE, decode_png, encode_png, png_shape
from audiodiff_core.mel.slices import mel_slices

NOISE = np.random.default_rng(0).integers(0, 256, (24, 40), dtype=np.uint8)
BOMB = zlib.compress(bytes(1 << 26))


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


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def stating(width: int, height: int, *chunks: bytes) -> bytes:
    """Return a gray PNG with a stated size."""
    return (
        SIGNATURE
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + b"".join(chunks)
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("width", "height"),
    [(13_000, 13_000), (30_000, 30_000), (16_385, 8), (8, 1_025), (2**31 - 1, 2**31 - 1), (2**32 - 1, 1)],
)
def test_the_stated_size_is_bounded_before_pixels_are_read(width: int, height: int) -> None:
    content = stating(width, height, chunk(b"IDAT", b"no pixels are looked at"))
    assert png_shape(content) == (height, width)
    with pytest.raises(ValueError, match=f"PNG of {width}x{height} pixels: must be at most 16384x1024"):
        decode_png(content)
    with pytest.raises(ValueError, match=f"PNG of {width}x{height} pixels: must be 40x24"):
        decode_png(content, NOISE.shape)


def test_another_shape_than_the_expected_one_is_refused_before_pixels_are_read() -> None:
    np.testing.assert_array_equal(decode_png(encode_png(NOISE), NOISE.shape), NOISE)
    with pytest.raises(ValueError, match="PNG of 41x24 pixels: must be 40x24"):
        decode_png(stating(41, 24, chunk(b"IDAT", b"no pixels are looked at")), NOISE.shape)


def test_the_largest_mel_image_comes_back() -> None:
    config = MelConfig(x_res=16_384, y_res=1_024)
    image = np.zeros((config.y_res, config.x_res), np.uint8)
    assert decode_png(encode_png(image)).shape == MAX_SHAPE == image.shape


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(b"IDAT", b"no deflate stream")],
        [chunk(b"IDAT", zlib.compress(bytes(10)))],
        [
            chunk(b"IHDR", struct.pack(">IIBBBBB", 13_000, 13_000, 8, 0, 0, 0, 0)),
            chunk(b"IDAT", zlib.compress(bytes(25 * 40))),
        ],
        [
            chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)),
            chunk(b"IDAT", zlib.compress(bytes(25 * 40))),
        ],
        [chunk(b"pHYs", b"\0"), chunk(b"IDAT", zlib.compress(bytes(25 * 40)))],
        [chunk(b"gAMA", b""), chunk(b"IDAT", zlib.compress(bytes(25 * 40)))],
        [chunk(b"iCCP", b"name\0\0" + BOMB), chunk(b"IDAT", b"")],
        [chunk(b"zTXt", b"name\0\0" + BOMB), chunk(b"IDAT", b"")],
        [chunk(b"acTL", b"\0\0\0\1"), chunk(b"IDAT", zlib.compress(bytes(25 * 40)))],
        [chunk(b"tRNS", b""), chunk(b"IDAT", zlib.compress(bytes(25 * 40)))],
        [chunk(b"tRNS", b""), chunk(b"IDAT", zlib.compress(bytes(25 * 40))), chunk(b"IDAT", b"")],
        [],
    ],
)
def test_whatever_pillow_makes_of_a_damaged_file_is_a_value_error(chunks: list[bytes]) -> None:
    with pytest.raises(ValueError, match="PNG") as raised:
        decode_png(stating(40, 24, *chunks))
    assert "\n" not in str(raised.value)
    assert type(raised.value) is ValueError


@pytest.mark.parametrize("seed", range(4))
def test_changed_bytes_give_pixels_or_a_value_error(seed: int) -> None:
    draw = np.random.default_rng(seed)
    whole = encode_png(NOISE)
    for _ in range(500):
        content = bytearray(whole)
        for at in draw.integers(0, len(whole), 4):
            content[at] = draw.integers(0, 256)
        with suppress(ValueError):
            assert decode_png(bytes(content), NOISE.shape).shape == NOISE.shape
