"""Conversion between mel images and samples of the network."""

import threading
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from audiodiff_core.latents import decode_latents, encode_latents
from audiodiff_core.mel import Images, to_image, to_model
from audiodiff_core.models.circular import circular_time
from audiodiff_core.models.placement import placed
from audiodiff_core.sampling import ExecutionProfile


class Codec:
    """Converter between mel images and samples, which are the images or their latents.

    Args:
        vae: The AutoencoderKL of a latent model on the device of the profile, or None.
        profile: The execution profile.
    """

    def __init__(self, vae: Any, profile: ExecutionProfile) -> None:
        self._vae, self._profile = vae, profile
        self._lock = threading.Lock()

    def encode(self, image: Images, circular: bool = False) -> torch.Tensor:
        """Convert a mel image to a sample.

        Args:
            image: The image (y_res, width).
            circular: Whether the image is one period of a loop.

        Returns:
            The sample (channels, height, width), float32 on the CPU: the image in [-1, 1], or its latent.
        """
        pixels = torch.from_numpy(to_model(image))[None, None]
        if self._vae is None:
            return pixels[0]
        with self._lock, self._profile.applied(), circular_time(self._vae) if circular else nullcontext():
            return encode_latents(self._vae, pixels)[0]

    def decode(
        self, samples: torch.Tensor, circular: bool = False, batch_size: int = 1
    ) -> tuple[Images, npt.NDArray[np.bool_]]:
        """Convert samples to mel images.

        Args:
            samples: Samples (n, channels, height, width).
            circular: Whether the samples are periods of loops.
            batch_size: Latents per call of the autoencoder on a GPU. A CPU gains nothing from batches of large images,
                and an item that finishes alone would pay for a whole batch.

        Returns:
            Images (n, y_res, width), and whether each image is finite (n,). The autoencoder can return NaN or infinity.
        """
        if self._vae is not None:
            batch_size = 1 if self._profile.kind == "cpu" else batch_size
            with self._lock, self._profile.applied(), circular_time(self._vae) if circular else nullcontext():
                samples = decode_latents(self._vae, samples, batch_size)
        finite = torch.isfinite(samples).flatten(1).all(dim=1).numpy()
        return to_image(samples[:, 0].nan_to_num().numpy()), finite


def placed_vae(vae: Any, profile: ExecutionProfile) -> Any:
    """Copy an AutoencoderKL to the device of a profile, in bfloat16 if that is the precision, else in float32."""
    return placed(vae, profile.device, torch.bfloat16 if profile.precision == "bf16" else torch.float32)
