"""Overlapping windows over a long image.

Each window continues the content that it shares with the window before it.
"""

from dataclasses import dataclass

import numpy as np
import torch

from audiodiff_core.mel import Images


@dataclass(frozen=True)
class Windows:
    """Layout of windows over a long image.

    Sizes are in sample columns. A sample column corresponds to `factor` pixel columns.

    Attributes:
        width: Width of a window.
        step: Distance between the starts of neighboring windows.
        count: Number of windows.
    """

    width: int
    step: int
    count: int

    @classmethod
    def over(cls, columns: int, width: int, overlap: float, factor: int) -> "Windows":
        """Lay out windows that cover an image. The last window may reach beyond the image.

        Args:
            columns: Width of the image in pixels.
            width: Width of a window in pixels.
            overlap: Approximate fraction of its width that a window shares with the next window, in (0, 1).
            factor: Pixels per sample column.

        Raises:
            ValueError: If the overlap is out of range, or if the windows are too narrow to overlap.
        """
        if not 0 < overlap < 1:
            raise ValueError(f"overlap {overlap} is not between 0 and 1")
        width, columns = width // factor, -(-columns // factor)
        if width < 2:
            raise ValueError(f"width {width * factor}: windows this narrow cannot overlap, use {2 * factor} or more")
        step = min(max(1, round(width * (1 - overlap))), width - 1)
        return cls(width, step, 1 + max(0, -(-(columns - width) // step)))

    @property
    def columns(self) -> int:
        """Total width of all windows."""
        return (self.count - 1) * self.step + self.width

    @property
    def shared(self) -> int:
        """Columns that neighboring windows share."""
        return self.width - self.step

    def pixels(self, window: int, factor: int) -> slice:
        """Return the range of pixel columns that a window covers."""
        return slice(window * self.step * factor, (window * self.step + self.width) * factor)

    def keep_mask(self, height: int) -> torch.Tensor:
        """Return a mask (height, width) that is True where a window keeps content of the previous window."""
        keep = torch.zeros((height, self.width), dtype=torch.bool)
        keep[:, : self.shared] = True
        return keep

    def join(self, images: Images, factor: int) -> Images:
        """Join the images of all windows, with the seams in the middle of the shared columns.

        Args:
            images: Images (count, y_res, width * factor).
            factor: Pixels per sample column.

        Returns:
            The image (y_res, columns * factor).
        """
        joined = np.empty((images.shape[1], self.columns * factor), np.uint8)
        for window, image in enumerate(images):
            skipped = self.shared // 2 * factor if window else 0
            joined[:, self.pixels(window, factor)][:, skipped:] = image[:, skipped:]
        return joined
