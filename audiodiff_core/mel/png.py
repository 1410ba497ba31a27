"""PNG files of mel images, with 8 bits of gray per pixel.

The encoder uses zlib alone. It stores each row as the difference from the row before it (filter Up), compressed with
run lengths and Huffman codes (Z_RLE). For mel images this is five times as fast as Pillow at compression level 6. The
files are a tenth larger, and are read a third faster.
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
MAX_SHAPE = (1_024, 16_384)
"""Height and width in pixels of the largest image that a MelConfig allows."""


def encode_png(image: Images) -> bytes:
    """Encode an image of shape (height, width) as a PNG.

    Equal images give equal bytes for the same version of zlib.
    """
    height, width = image.shape
    rows = np.empty((height, 1 + width), np.uint8)
    rows[:, 0] = FILTER_UP
    rows[0, 1:] = image[0]
    np.subtract(image[1:], image[:-1], out=rows[1:, 1:])
    deflate = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    # 8 bits, gray, default compression and filter methods, not interlaced (PNG specification, IHDR)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        SIGNATURE
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", deflate.compress(rows.data) + deflate.flush())
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def png_shape(content: bytes) -> tuple[int, int]:
    """Read (height, width) in pixels from the header of a PNG.

    Raises:
        ValueError: If `content` does not begin with the header of a PNG.
    """
    if len(content) < HEADER_BYTES or content[:16] != SIGNATURE + struct.pack(">I", 13) + b"IHDR":
        raise ValueError(f"{len(content)} bytes that are not a valid PNG")
    width, height = struct.unpack_from(">II", content, 16)
    return height, width


def decode_png(content: bytes, shape: tuple[int, int] | None = None) -> Images:
    """Decode a PNG with 8 bits of gray per pixel.

    The size in the header is checked before pixels are decompressed.

    Args:
        content: The bytes of the PNG.
        shape: Required (height, width). None accepts any size up to MAX_SHAPE.

    Returns:
        The image, of shape (height, width).

    Raises:
        ValueError: If the PNG is damaged, or has the wrong size or mode.
    """
    height, width = png_shape(content)
    if shape is not None and (height, width) != shape:
        raise ValueError(f"PNG of {width}x{height} pixels: must be {shape[1]}x{shape[0]}")
    if height > MAX_SHAPE[0] or width > MAX_SHAPE[1]:
        raise ValueError(f"PNG of {width}x{height} pixels: must be at most {MAX_SHAPE[1]}x{MAX_SHAPE[0]}")
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            mode, size = picture.mode, picture.size
            if mode == "L" and size == (width, height):  # a second header may state another size
                return np.asarray(picture)
    # Pillow raises OSError, SyntaxError, ValueError, struct.error, zlib.error and others for damaged files.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{len(content)} bytes that are not a valid PNG ({reason})") from error
    if mode != "L":
        raise ValueError(f"PNG of mode {mode}: must be of mode L (8-bit gray)")
    raise ValueError(f"PNG with two headers: {width}x{height} and {size[0]}x{size[1]} pixels")
