"""Tasks: what a request needs from the sampler, and what becomes of the samples.

A task is a generator. It yields an item, receives the sample of the item, and returns a `Result`. Most tasks need one
sample. A long loop needs one per window, each of which continues the window before it. An interpolation between
sources needs one inversion per source first. The tasks of all requests share the slots of one batch.
"""

from collections.abc import Callable, Generator, Sequence
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


Loader = Callable[[], SourceSlice]
"""Function that decodes the slice of a source. A task calls it when it starts."""

Task = Generator[Item, torch.Tensor, Result]


@dataclass(frozen=True)
class Tasks:
    """Tasks of one model.

    Attributes:
        geometry: The geometry of the model.
        codec: The codec of the model.
    """

    geometry: Geometry
    codec: Codec

    def generate(self, item: Item) -> Task:
        """Sample from noise."""
        noise = None if item.noise is None else item.noise.numpy()
        return Result(item, [(yield item)], noise=noise)

    def vary(self, item: Item, source: Loader, start_step: int) -> Task:
        """Sample from a source with noise added."""
        clean = self.codec.encode(source().image, item.request.seamless)
        return Result(item, [(yield replace(item, clean=clean, start_step=start_step))])

    def inpaint(self, item: Item, source: Loader, kept: Mask, start_step: int) -> Task:
        """Sample the part of a source that is not kept."""
        keep = torch.from_numpy(kept_latents(kept, self.geometry.factor))
        kept_slice = source()
        clean = self.codec.encode(kept_slice.image, item.request.seamless)
        sample = yield replace(item, clean=clean, keep=keep, start_step=start_step)
        return Result(item, [sample], source=kept_slice, kept=kept)

    def invert(self, item: Item, source: Loader, refinements: int) -> Task:
        """Invert a source to noise, and sample from that noise."""
        noise = yield self._inversion(item, source(), refinements)
        sample = yield replace(item, noise=noise)
        return Result(item, [sample], noise=noise.numpy())

    def interpolate(
        self, item: Item, keys: Sequence[int] | Sequence[Loader], position: float, refinements: int = 0
    ) -> Task:
        """Sample from a noise between the noises of seeds, or between the noises to which sources are inverted."""
        shape = (self.geometry.channels, self.geometry.height, item.width)
        noises = []
        for key in keys:
            if isinstance(key, int):
                noises.append(initial_noise(key, shape).numpy())
            else:
                noises.append((yield self._inversion(item, key(), refinements)).numpy())
        place = position * (len(noises) - 1)
        first = min(int(place), len(noises) - 2)
        noise = slerp(noises[first][None], noises[first + 1][None], place - first)[0]
        return Result(item, [(yield replace(item, noise=torch.from_numpy(noise)))], noise=noise)

    def extend(self, item: Item, source: Loader | None, columns: int, overlap: float) -> Task:
        """Sample window by window.

        Each window is outpainted from the content that it shares with the window before it, and draws its own noise.
        """
        windows = self._windows(item, columns, overlap)
        beginning = None if source is None else source()
        samples = [] if beginning is None else [self.codec.encode(beginning.image)]
        keep = windows.keep_mask(self.geometry.height)
        for window in range(len(samples), windows.count):
            if window == 0:
                samples.append((yield item))
                continue
            clean = torch.zeros_like(samples[-1])
            clean[..., : windows.shared] = samples[-1][..., windows.step :]
            samples.append((yield replace(item, clean=clean, keep=keep, window=window)))
        kept = None if beginning is None else np.ones_like(beginning.image, np.bool_)
        return Result(item, samples, windows, columns, beginning, kept)

    def remix(self, item: Item, track: Callable[[], Images], start_step: int, overlap: float) -> Task:
        """Sample windows of a track with noise added. Each window continues the result of the window before it.

        All windows share the noise of the seed, which gives the track one style.
        """
        image = track()
        columns, factor = image.shape[1], self.geometry.factor
        windows = self._windows(item, columns, overlap)
        padded = np.zeros((len(image), windows.columns * factor), np.uint8)
        padded[:, :columns] = image
        keep = windows.keep_mask(self.geometry.height)
        samples: list[torch.Tensor] = []
        for window in range(windows.count):
            clean = self.codec.encode(padded[:, windows.pixels(window, factor)]).clone()
            if window:
                clean[..., : windows.shared] = samples[-1][..., windows.step :]
            samples.append((yield replace(item, clean=clean, keep=keep if window else None, start_step=start_step)))
        return Result(item, samples, windows, columns)

    def _windows(self, item: Item, columns: int, overlap: float) -> Windows:
        return Windows.over(columns, self.geometry.width(item.request), overlap, self.geometry.factor)

    def _inversion(self, item: Item, source: SourceSlice, refinements: int) -> Item:
        clean = self.codec.encode(source.image, item.request.seamless)
        return replace(item, clean=clean, noise=None, inverted=True, refinements=refinements)
