"""Small pictures of mel images for pages: PNG files of 16 colors, with the low frequencies at the bottom."""

import io

import numpy as np
from PIL import Image

from audiodiff_core.mel.ranges import Images

MAX_WIDTH, MAX_HEIGHT = 256, 64
COLORS = 16
_STOPS = ((11, 10, 38), (58, 22, 98), (126, 36, 118), (196, 62, 92), (242, 122, 58), (252, 190, 86), (255, 246, 206))
"""Colors from the lowest level to the highest level, at equal distances. Their lightness increases evenly."""


def mel_picture(image: Images) -> bytes:
    """Encode a mel image as a small PNG for display.

    Args:
        image: Mel image of shape (y_res, width). Row 0 is the lowest band.

    Returns:
        A PNG with a palette of 16 colors, at most 256 pixels wide and 64 pixels high. A larger image is reduced to the
        averages of its areas. Equal images give equal bytes for the same versions of Pillow and zlib.
    """
    height, width = image.shape
    size = (min(width, MAX_WIDTH), min(height, MAX_HEIGHT))
    reduced = Image.fromarray(np.ascontiguousarray(image[::-1])).resize(size, Image.Resampling.BOX)
    picture = Image.fromarray(np.asarray(reduced) // (256 // COLORS)).convert("P")
    picture.putpalette(_palette())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", bits=4, compress_level=9)
    return buffer.getvalue()


def _palette() -> list[int]:
    """Return the red, green and blue value of each color."""
    places = np.linspace(0, len(_STOPS) - 1, COLORS)
    channels = [np.interp(places, range(len(_STOPS)), channel) for channel in zip(*_STOPS, strict=True)]
    return [int(value) for color in np.round(channels).T for value in color]
