"""Image sizes that a network works on, read from its configuration."""

from typing import Any


def image_sides(unet: Any) -> tuple[int, int]:
    """(height, width) that a network works on; diffusers' `sample_size` is one side of a square or (height, width)."""
    size: int | list[int] | tuple[int, int] = unet.config.sample_size
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def side_multiple(unet: Any) -> int:
    """The sides of what a network works on must divide by this: every level but the last halves them."""
    multiple: int = 1 << (len(unet.config.block_out_channels) - 1)
    return multiple
