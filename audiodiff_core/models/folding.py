"""Folding of pixels: a network that works on blocks of fold x fold pixels, with the pixels of a block as channels.

This is the space-to-depth rearrangement, which torch calls pixel unshuffle.

A folded network has `fold` times smaller sides and `fold`^2 times more channels inside. A small network then has fewer
levels for the same view, and takes less time per step. Folding only reorders the values of a sample. Noise, schedules
and losses are the same for both orders, and diffusers can run the network on folded samples.

The number `fold` is an additional setting in the configuration of the network. `in_channels` and `sample_size` in the
configuration describe the folded samples.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional as F

FOLD = "fold"
"""Name of the setting in the configuration of a network."""


def fold_of(network: Any) -> int:
    """Return the sides of the blocks of pixels that a network works on. 1 is a network without folding."""
    fold: int = getattr(network.config, FOLD, 1)
    return fold


def with_fold(build: Callable[[dict[str, Any]], Any], config: Mapping[str, Any]) -> Any:
    """Build a network from a configuration with or without the setting `fold`.

    Args:
        build: Function that builds a network of diffusers, which does not know the setting, from a configuration.
        config: The configuration.
    """
    network = build({key: value for key, value in config.items() if key != FOLD})
    if FOLD in config:
        network.register_to_config(**{FOLD: config[FOLD]})
    return network


def folded(samples: torch.Tensor, fold: int) -> torch.Tensor:
    """Fold samples.

    Args:
        samples: Samples of shape (batch, channels, height, width).
        fold: Sides of a block in pixels. It divides both sides of the samples.

    Returns:
        Samples of shape (batch, channels * fold^2, height / fold, width / fold).
    """
    return samples if fold == 1 else F.pixel_unshuffle(samples, fold)


def unfolded(samples: torch.Tensor, fold: int) -> torch.Tensor:
    """Reverse `folded`."""
    return samples if fold == 1 else F.pixel_shuffle(samples, fold)
