"""Tasks: what a request needs from the sampler, and what becomes of the samples.

A task is a generator. It yields an item, receives the sample of the item, and returns a `Result`. Most tasks need one
sample. A long loop needs one per window, each of which continues the window before it. An interpolation between
sources needs one inversion per source first. The tasks of all requests share the slots of one batch.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from audiodiff_core.mel import Images
from audiodiff_core.pipeline.codec import Codec
from audiodiff_core.pipeline.geometry import Geometry
from audiodiff_core.pipeline.interpolation import Noise, slerp
from audiodiff_core.pipeline.sources import Mask, SourceSlice, kept_latents
from audiodiff_core.pipeline.windows import Windows
from audiodiff_core.sampling import Item, initial_noise


@dataclass(frozen=True, eq=False)
class Result:
    """Samples of a finished task, and how they become a loop.

    Attributes:
        item: The item of the first sample.
        samples: Samples (channels, height, width) of the windows, or of the only window.
        windows: Layout of the windows. None if there is one.
        columns: Width of the image of the loop in columns. None for the width of the windows.
        source: The source whose pixels and samples are kept, or None.
        kept: Mask (y_res, columns of the source), True where the loop keeps the pixels of the source.
        noise: Noise (channels, height, width) from which the sample was generated, if it was computed.
    """

    item: Item
    samples: Sequence[torch.Tensor]
    windows: Windows | None = None
    columns: int | None = None
    source: SourceSlice | None = None
    kept: Mask | None = None
    noise: Noise | None = None


Task = Generator[Item, torch.Tensor, Result]


def generate(item: Item) -> Task:
    """Sample from noise, or from what the item holds."""
    noise = None if item.noise is None else item.noise.numpy()
    return Result(item, [(yield item)], noise=noise)


def vary(item: Item, source: SourceSlice, start_step: int, codec: Codec) -> Task:
    """Sample from a source with noise added."""
    clean = codec.encode(source.image, item.request.seamless)
    return Result(item, [(yield replace(item, clean=clean, start_step=start_step))])


def inpaint(item: Item, source: SourceSlice, kept: Mask, start_step: int, codec: Codec, factor: int) -> Task:
    """Sample the part of a source that is not kept."""
    keep = torch.from_numpy(kept_latents(kept, factor))
    clean = codec.encode(source.image, item.request.seamless)
    sample = yield replace(item, clean=clean, keep=keep, start_step=start_step)
    return Result(item, [sample], source=source, kept=kept)


def invert(item: Item, source: SourceSlice, refinements: int, codec: Codec) -> Task:
    """Invert a source to noise, and sample from that noise."""
    noise = yield _inversion(item, source, refinements, codec)
    sample = yield replace(item, noise=noise)
    return Result(item, [sample], noise=noise.numpy())


def interpolate(
    item: Item, keys: Sequence[int] | Sequence[SourceSlice], position: float, refinements: int, codec: Codec, shape: tuple[int, ...]
) -> Task:
    """Sample from a noise between the noises of seeds, or between the noises to which sources are inverted."""
    noises = []
    for key in keys:
        if isinstance(key, SourceSlice):
            noises.append((yield _inversion(item, key, refinements, codec)).numpy())
        else:
            noises.append(initial_noise(key, shape).numpy())
    place = position * (len(noises) - 1)
    first = min(int(place), len(noises) - 2)
    noise = slerp(noises[first][None], noises[first + 1][None], place - first)[0]
    return Result(item, [(yield replace(item, noise=torch.from_numpy(noise)))], noise=noise)


def extend(
    item: Item, source: SourceSlice | None, columns: int, overlap: float, codec: Codec, geometry: Geometry
) -> Task:
    """Sample window by window. Each window is outpainted from the content that it shares with the window before it."""
    windows = Windows.over(columns, geometry.width(item.request), overlap, geometry.factor)
    samples = [] if source is None else [codec.encode(source.image)]
    keep = windows.keep_mask(geometry.height)
    for window in range(len(samples), windows.count):
        if window == 0:
            samples.append((yield item))
            continue
        clean = torch.zeros_like(samples[-1])
        clean[..., : windows.shared] = samples[-1][..., windows.step :]
        samples.append((yield replace(item, clean=clean, keep=keep, window=window)))
    kept = None if source is None else np.ones_like(source.image, np.bool_)
    return Result(item, samples, windows, columns, source, kept)


def remix(item: Item, track: Images, start_step: int, overlap: float, codec: Codec, geometry: Geometry) -> Task:
    """Sample windows of a track with noise added. Each window continues the result of the window before it.

    All windows share the noise of the seed, which gives the track one style.
    """
    columns, factor = track.shape[1], geometry.factor
    windows = Windows.over(columns, geometry.width(item.request), overlap, factor)
    padded = np.zeros((len(track), windows.columns * factor), np.uint8)
    padded[:, :columns] = track
    keep = windows.keep_mask(geometry.height)
    samples: list[torch.Tensor] = []
    for window in range(windows.count):
        clean = codec.encode(padded[:, windows.pixels(window, factor)]).clone()
        if window:
            clean[..., : windows.shared] = samples[-1][..., windows.step :]
        samples.append((yield replace(item, clean=clean, keep=keep if window else None, start_step=start_step)))
    return Result(item, samples, windows, columns)


def _inversion(item: Item, source: SourceSlice, refinements: int, codec: Codec) -> Item:
    clean = codec.encode(source.image, item.request.seamless)
    return replace(item, clean=clean, noise=None, inverted=True, refinements=refinements)

