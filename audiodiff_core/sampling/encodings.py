"""Encodings as a network takes them: followed by the placements of the beats, for a network that takes beats."""

import torch

from audiodiff_core.models import Beats
from audiodiff_core.sampling.item import Item


def placed_encoding(item: Item, beats: Beats | None) -> torch.Tensor:
    """Return the encoding (dim,) of an item, or (dim + PLACEMENT,) for a network that takes beats.

    The placement is that of the content to start from or to keep. The noise of an inversion is sampled without the
    content, with a beat on the first column.
    """
    assert item.encoding is not None
    if beats is None:
        return item.encoding
    seamless = item.request.seamless
    if item.clean is None or item.inverted:
        return torch.cat([item.encoding, torch.tensor([0.0, seamless])])
    kept = None if item.keep is None else item.keep.unsqueeze(0)
    placements = beats.placements(item.clean.unsqueeze(0), item.encoding.unsqueeze(0), kept, seamless)
    return torch.cat([item.encoding, placements[0]])
