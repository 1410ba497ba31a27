"""Images longer than the network is asked for at once: windows that overlap, each continuing what the one before it left."""

from dataclasses import dataclass

import numpy as np
import torch

from audiodiff_core.mel import Images


@dataclass(frozen=True)
class Windows:
    """Windows over an image, in columns of what the network sees: each `width` wide, starting `step` after the one before it."""

    width: int
    step: int
    count: int

    @classmethod
    def over(cls, columns: int, width: int, overlap: float, factor: int) -> "Windows":
        """As many as cover `columns` pixels by windows of `width` pixels that share about `overlap` in (0, 1) of their width; they may reach beyond."""
        if not 0 < overlap < 1:
            raise ValueError(f"overlap {overlap} is not between 0 and 1")
        width, columns = width // factor, -(-columns // factor)
        if width < 2:
            raise ValueError(f"width {width * factor}: windows so narrow cannot overlap, use {2 * factor} or more")
        step = min(max(1, round(width * (1 - overlap))), width - 1)
        return cls(width, step, 1 + max(0, -(-(columns - width) // step)))

    @property
    def columns(self) -> int:
        return (self.count - 1) * self.step + self.width

    @property
    def shared(self) -> int:
        return self.width - self.step

    def pixels(self, window: int, factor: int) -> slice:
        """The columns of the image that a window is over."""
        return slice(window * self.step * factor, (window * self.step + self.width) * factor)

    def continuing(self, height: int) -> torch.Tensor:
        """Mask (height, width) of what a window keeps of the one before it."""
        keep = torch.zeros((height, self.width), dtype=torch.bool)
        keep[:, : self.shared] = True
        return keep

    def joined(self, images: Images, factor: int) -> Images:
        """The windows' images (count, y_res, width * factor) as one (y_res, columns * factor), joined in the middle of what neighbours share."""
        whole = np.empty((images.shape[1], self.columns * factor), np.uint8)
        for window, image in enumerate(images):
            skipped = self.shared // 2 * factor if window else 0
            whole[:, self.pixels(window, factor)][:, skipped:] = image[:, skipped:]
        return whole
