"""Folding of pixels: a network that works on blocks of pixels, with the pixels of a block as channels.

This is the space-to-depth rearrangement. For square blocks, torch calls it pixel unshuffle.

A folded network has smaller sides and more channels inside. A small network then has fewer levels for the same view,
and takes less time per step. Blocks of many bands and one column keep the resolution in time, and make a note a pattern
of channels, which the network cannot bend. Folding only reorders the values of a sample. Noise, schedules and losses
are the same for both orders, and diffusers can run the network on folded samples.

The sides of a block are an additional setting `fold` in the configuration of the network: one number for a square, or
[bands, columns]. `in_channels` and `sample_size` in the configuration describe the folded samples.
"""

from typing import Any

import torch

FOLD = "fold"
"""Name of the setting in the configuration of a network."""

Fold = tuple[int, int]
"""Sides of a block of pixels: bands and columns."""

UNFOLDED: Fold = (1, 1)


def fold_of(network: Any) -> Fold:
    """Return the sides of the blocks of pixels that a network works on."""
    setting = getattr(network.config, FOLD, 1)
    bands, columns = (setting, setting) if isinstance(setting, int) else setting
    return bands, columns


def folded(samples: torch.Tensor, fold: Fold) -> torch.Tensor:
    """Fold samples.

    Args:
        samples: Samples of shape (batch, channels, height, width).
        fold: Sides of a block. They divide the sides of the samples.

    Returns:
        Samples of shape (batch, channels * bands * columns, height / bands, width / columns).
    """
    if fold == UNFOLDED:
        return samples
    bands, columns = fold
    blocks: torch.Tensor = samples.unflatten(3, (-1, columns)).unflatten(2, (-1, bands))
    return blocks.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def unfolded(samples: torch.Tensor, fold: Fold) -> torch.Tensor:
    """Reverse `folded`."""
    if fold == UNFOLDED:
        return samples
    blocks: torch.Tensor = samples.unflatten(1, (-1, *fold))
    return blocks.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)
