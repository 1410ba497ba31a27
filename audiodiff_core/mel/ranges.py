"""Conversion between the uint8 pixels of mel images and the values in [-1, 1] that networks see."""

from typing import Any

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
IMAGE_MAX = 255


def to_model(images: Any) -> Any:
    """uint8 images in [0, 255], a numpy array or a tensor -> float32 in [-1, 1], the same shape and kind."""
    return images / np.float32(IMAGE_MAX) * 2 - 1


def to_image(values: npt.NDArray[np.float32]) -> Images:
    """float32 in [-1, 1] (beyond is clipped) -> uint8 in [0, 255], rounded, the same shape."""
    return ((values / 2 + np.float32(0.5)).clip(0, 1) * IMAGE_MAX).round().astype(np.uint8)
