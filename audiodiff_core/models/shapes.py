"""Sample sizes of a network, read from its configuration."""

import math
from typing import Any

from audiodiff_core.models.folding import fold_of


def image_sides(unet: Any) -> tuple[int, int]:
    """Return the (height, width) of the samples that a network was built for.

    diffusers' `sample_size` is either one side of a square or (height, width), after folding.
    """
    size: int | list[int] | tuple[int, int] = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    bands, columns = fold_of(unet)
    return height * bands, width * columns


def sample_channels(unet: Any) -> int:
    """Return the channels of the samples of a network: 1 for images."""
    channels: int = unet.config.out_channels // math.prod(fold_of(unet))
    return channels


def width_multiple(unet: Any) -> int:
    """Return the number that must divide the width of a sample.

    Every level of the network but the last halves the sides, which folding divides before.
    """
    levels: int = len(unet.config.block_out_channels)
    return fold_of(unet)[1] << (levels - 1)
