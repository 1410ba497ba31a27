"""Sample sizes of a network, read from its configuration."""

from typing import Any


def image_sides(unet: Any) -> tuple[int, int]:
    """Return the (height, width) of the samples that a network was built for.

    diffusers' `sample_size` is either one side of a square or (height, width).
    """
    size: int | list[int] | tuple[int, int] = unet.config.sample_size
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def side_multiple(unet: Any) -> int:
    """Return the number that must divide both sides of a sample.

    Every level of the network but the last halves the sides.
    """
    multiple: int = 1 << (len(unet.config.block_out_channels) - 1)
    return multiple
