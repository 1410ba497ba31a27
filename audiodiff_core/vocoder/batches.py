"""Batches of mel images of one fixed size, and their mel power on the device of a vocoder."""

from collections.abc import Sequence

import numpy as np
import torch

from audiodiff_core.mel import Images, Mel, MelConfig

BATCH_SIZE = 8
"""Default number of items per batch on devices other than CPUs."""


class MelPower:
    """Conversion of images to mel power on a device. Only the uint8 pixels travel to the device.

    Args:
        config: The mel configuration.
        device: Device of the mel power.
    """

    def __init__(self, config: MelConfig, device: torch.device) -> None:
        self._table = torch.from_numpy(Mel(config).power_table.copy())
        self._table[0] = 0
        self._table = self._table.to(device)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Convert images to mel power.

        Args:
            images: uint8 images (batch, y_res, width) on any device.

        Returns:
            float32 mel power (batch, width, y_res) relative to the reference level of the image. Level 0 becomes power
            0.
        """
        levels = images.to(self._table.device).mT.int()
        return self._table.index_select(0, levels.flatten()).view(levels.shape)


def checked_images(images: Images, seeds: Sequence[int], config: MelConfig) -> torch.Tensor:
    """Check the images and seeds of a call.

    Args:
        images: uint8 images (batch, y_res, width).
        seeds: One seed per image.
        config: The mel configuration of the images.

    Returns:
        A copy of the images on the CPU.

    Raises:
        ValueError: If the images have another shape or type, or if the number of seeds differs.
    """
    if images.ndim != 3 or images.shape[1] != config.y_res or images.shape[2] < 2:
        raise ValueError(f"images of shape {images.shape}: (batch, {config.y_res}, width) with width 2 or more needed")
    if images.dtype != np.uint8:
        raise ValueError(f"images of type {images.dtype}: uint8 needed")
    if len(images) != len(seeds):
        raise ValueError(f"{len(images)} images with {len(seeds)} seeds: pass one seed per image")
    return torch.from_numpy(np.array(images, order="C"))


def fixed_size(batch: torch.Tensor, size: int) -> torch.Tensor:
    """Pad a batch (n, ...) with zeros to (size, ...)."""
    return torch.cat([batch, batch.new_zeros(size - len(batch), *batch.shape[1:])])
