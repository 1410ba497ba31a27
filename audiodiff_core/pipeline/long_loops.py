"""Loops of any length, sampled window by window."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from audiodiff_core.mel import Images
from audiodiff_core.pipeline.geometry import Geometry
from audiodiff_core.pipeline.loop import Loop, normalize
from audiodiff_core.pipeline.rendering import Renderer
from audiodiff_core.pipeline.windows import Windows
from audiodiff_core.sampling import Item


class LongLoopRenderer:
    """Renderer of long loops.

    Each window is outpainted from the content that it shares with the window before it.

    Args:
        renderer: The renderer of single windows.
        geometry: The geometry of the model.
    """

    def __init__(self, renderer: Renderer, geometry: Geometry) -> None:
        self._renderer = renderer
        self._geometry = geometry

    def extend(
        self, items: Sequence[Item], sources: Sequence[Images] | None, columns: int, overlap: float
    ) -> list[Loop]:
        """Render loops of any length.

        Args:
            items: The items, of one width.
            sources: One image (y_res, width) per item, with which the loop begins. None generates the first window.
            columns: Width of the loops in columns.
            overlap: Fraction of a window that the next window shares, in (0, 1).

        Returns:
            The loops, in the order of the items.

        Raises:
            ValueError: If the items have different widths or are seamless, or if the overlap is out of range.
        """
        windows = self._windows(items, columns, overlap)
        first = [[] for _ in items] if sources is None else [[self._renderer.encode(image)] for image in sources]
        loops = []
        for number, (item, samples) in enumerate(zip(items, self._sample(items, windows, first), strict=True)):
            image = self._image(windows, samples)
            if sources is not None:
                image[:, : sources[number].shape[1]] = sources[number]
            loops.append(self._loop(number, item, image[:, :columns]))
        return loops

    def remix(self, number: int, item: Item, track: Images, overlap: float) -> Loop:
        """Render a variation of a whole track.

        Every window starts from its part of the track with the noise of the seed added.

        Args:
            number: Index of the item in the call.
            item: The item, with `start_step`.
            track: The image (y_res, columns) of the track.
            overlap: Fraction of a window that the next window shares, in (0, 1).

        Raises:
            ValueError: If the item is seamless, or if the overlap is out of range.
        """
        columns, factor = track.shape[1], self._geometry.factor
        windows = self._windows([item], columns, overlap)
        padded = np.zeros((len(track), windows.columns * factor), np.uint8)
        padded[:, :columns] = track
        contents = [self._renderer.encode(padded[:, windows.pixels(window, factor)]) for window in range(windows.count)]
        (samples,) = self._sample([item], windows, [[]], [contents])
        return self._loop(number, item, self._image(windows, samples)[:, :columns])

    def _windows(self, items: Sequence[Item], columns: int, overlap: float) -> Windows:
        """Lay out windows of the items' width over an image of `columns` pixel columns."""
        widths = {self._geometry.width(item.request) for item in items}
        if len(widths) > 1:
            raise ValueError(f"requests of widths {sorted(widths)}: use one width, that of the windows")
        if any(item.request.seamless for item in items):
            raise ValueError("seamless requests have no end to continue from: use seamless False")
        width = widths.pop() if widths else self._geometry.mel.x_res
        return Windows.over(columns, width, overlap, self._geometry.factor)

    def _sample(
        self,
        items: Sequence[Item],
        windows: Windows,
        first: Sequence[Sequence[torch.Tensor]],
        contents: Sequence[Sequence[torch.Tensor]] | None = None,
    ) -> list[list[torch.Tensor]]:
        """Sample the windows of all items. A batch holds the same window of several items.

        `first` holds the samples of the first windows of each item, the same number for each item. `contents` holds the
        content of each window of each item, which the window varies from `start_step` on. With contents, all windows of
        an item share the noise of the seed, which gives the track one style. Without contents, each window draws its
        own noise.
        """
        samples = [list(item_samples) for item_samples in first]
        sampler = self._renderer.sampler
        keep = windows.keep_mask(sampler.sides[0])
        for window in range(len(samples[0]) if samples else 0, windows.count):
            window_items = []
            for number, item in enumerate(items):
                if contents is None:
                    clean = torch.zeros(sampler.shape(windows.width))
                else:
                    clean = contents[number][window].clone()
                if window:
                    clean[..., : windows.shared] = samples[number][-1][..., windows.step :]
                window_items.append(
                    replace(
                        item,
                        clean=clean if window or contents is not None else None,
                        keep=keep if window else None,
                        window=window if contents is None else item.window,
                    )
                )
            sampled = dict(sampler.sample(window_items))
            for number, window_item in enumerate(window_items):
                samples[number].append(sampled[window_item])
        return samples

    def _image(self, windows: Windows, samples: Sequence[torch.Tensor]) -> Images:
        """Decode the samples of all windows and join them to one image."""
        images = np.concatenate([self._renderer.decode(sample[None]) for sample in samples])
        return windows.join(images, self._geometry.factor)

    def _loop(self, number: int, item: Item, image: Images) -> Loop:
        (audio,) = self._renderer.vocoder(image[np.newaxis], [item.request.seed])
        return Loop(item.request, image, normalize(audio), number)
