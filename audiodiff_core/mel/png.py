"""Mel images <-> 8-bit grey PNG files.

Written with zlib alone: every row as its difference from the row below it in pitch (filter Up), then runs and Huffman codes (Z_RLE). On mel
images that is five times as fast as Pillow's compression at level 6, and a third faster to read, for files a tenth larger.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from audiodiff_core.mel.ranges import Images

SIGNATURE = b"\x89PNG\r\n\x1a\n"
FILTER_UP = 2
HEADER_BYTES = 33
LARGEST_SHAPE = (1_024, 16_384)
"""Height and width of the largest image that a mel configuration can state."""


def encode_png(image: Images) -> bytes:
    """An image (height, width) as an 8-bit grey PNG; the same image gives the same bytes (of one zlib)."""
    height, width = image.shape
    rows = np.empty((height, 1 + width), np.uint8)
    rows[:, 0] = FILTER_UP
    rows[0, 1:] = image[0]
    np.subtract(image[1:], image[:-1], out=rows[1:, 1:])
    deflate = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    header = struct.pack(
        ">IIBBBBB", width, height, 8, 0, 0, 0, 0
    )  # 8 bits, grey, the only compression and filters, not interlaced
    return (
        SIGNATURE
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", deflate.compress(rows.data) + deflate.flush())
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def png_shape(content: bytes) -> tuple[int, int]:
    """Read the (height, width) that the header of a PNG states. Raises ValueError for bytes that do not begin with such a header."""
    if len(content) < HEADER_BYTES or content[:16] != SIGNATURE + struct.pack(">I", 13) + b"IHDR":
        raise ValueError(f"{len(content)} bytes that are no whole PNG")
    width, height = struct.unpack_from(">II", content, 16)
    return height, width


def decode_png(content: bytes, shape: tuple[int, int] | None = None) -> Images:
    """Decode an 8-bit grey PNG to an image (height, width).

    The stated size is compared with `shape`, or else with LARGEST_SHAPE, before pixels are decompressed.
    Raises ValueError for an image of another or a larger size, of another mode, and for bytes that are not a whole PNG.
    """
    height, width = png_shape(content)
    if shape is not None and (height, width) != shape:
        raise ValueError(f"PNG of {width}x{height} pixels, {shape[1]}x{shape[0]} are expected")
    if height > LARGEST_SHAPE[0] or width > LARGEST_SHAPE[1]:
        raise ValueError(f"PNG of {width}x{height} pixels, at most {LARGEST_SHAPE[1]}x{LARGEST_SHAPE[0]} are read")
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            mode, stated = picture.mode, picture.size
            if mode == "L" and stated == (width, height):  # a second header may state another size
                return np.asarray(picture)
    except (
        Exception
    ) as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, zlib.error and others for damaged files
        raise ValueError(
            f"{len(content)} bytes that are no whole PNG ({' '.join(str(error).split())[:200]})"
        ) from error
    if mode != "L":
        raise ValueError(f"PNG of mode {mode}: a mel image is of mode L")
    raise ValueError(f"PNG of two sizes: {width}x{height} and {stated[0]}x{stated[1]} pixels")
