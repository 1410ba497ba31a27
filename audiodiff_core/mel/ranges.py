"""Conversion between the uint8 pixels of mel images and the values in [-1, 1] that networks use."""

from typing import Any

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
IMAGE_MAX = 255


def to_model(images: Any) -> Any:
    """Scale pixels in [0, 255] to float32 values in [-1, 1].

    Args:
        images: A uint8 NumPy array or tensor of any shape.

    Returns:
        An array or tensor of the same kind and shape.
    """
    return images / np.float32(IMAGE_MAX) * 2 - 1


def to_image(values: npt.NDArray[np.float32]) -> Images:
    """Scale values in [-1, 1] to uint8 pixels in [0, 255], rounded. Values out of range are clipped.

    Args:
        values: An array of any shape.

    Returns:
        An array of the same shape.
    """
    return ((values / 2 + np.float32(0.5)).clip(0, 1) * IMAGE_MAX).round().astype(np.uint8)
