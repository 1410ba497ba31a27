"""What a VAE makes of images, for training: the mean and the standard deviation of each latent value, from which latents are drawn.

moments  float32 (batch, 2, channels, height, width)   mean and standard deviation, in the VAE's own units: what `encode --latents` stores
latents  float32 (batch, channels, height, width)      drawn from them and scaled to unit variance: what a latent network sees
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from audiodiff_core.mel import Images, to_model

Moments = npt.NDArray[np.float32]


@torch.no_grad()
def posterior_moments(vae: Any, images: Images) -> torch.Tensor:
    """uint8 images (batch, y_res, x_res) -> moments, on the VAE's device."""
    values = to_model(torch.from_numpy(images).to(vae.device).unsqueeze(1))
    posterior = vae.encode(values).latent_dist
    return torch.stack([posterior.mean, posterior.std], dim=1).float()


def moments_in_batches(vae: Any, images: Images, batch_size: int) -> Moments:
    """Moments of images (n, y_res, x_res), `batch_size` at once and padded to that, so that an image's bits do not depend on its neighbours."""
    found = []
    for start in range(0, len(images), batch_size):
        some = images[start : start + batch_size]
        batch = np.zeros((batch_size, *images.shape[1:]), np.uint8)
        batch[: len(some)] = some
        found.append(posterior_moments(vae, batch)[: len(some)].cpu().numpy())
    return np.concatenate(found)


def drawn_latents(moments: torch.Tensor, noise: torch.Tensor, scaling_factor: float) -> torch.Tensor:
    """Latents of moments by noise ~ N(0, 1) of the latents' shape."""
    mean, deviation = moments.unbind(dim=1)
    return (mean + deviation * noise) * scaling_factor


def measure_scaling_factor(moments: Iterable[torch.Tensor]) -> float:
    """One over the standard deviation of latents drawn from these moments, exactly: batches of any size, from many different images.

    The variance of a draw is that of the means (over samples and places, all channels together, as diffusers' one number scales them)
    plus the mean of the posteriors' own (Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022, section G).
    """
    count, total, squares = 0, 0.0, 0.0
    for batch in moments:
        mean, deviation = batch.double().unbind(dim=1)
        count += mean.numel()
        total += float(mean.sum())
        squares += float((mean.square() + deviation.square()).sum())
    if count == 0:
        raise ValueError("no latents to measure the scaling factor of: give at least one image")
    variance = squares / count - (total / count) ** 2
    if not 0 < variance < float("inf"):
        raise ValueError(f"the latents' variance is {variance}: the VAE is not trained, or has collapsed")
    return float(variance**-0.5)


def set_scaling_factor(vae: Any, batches: Iterable[Images]) -> float:
    """Measures the scaling factor on images (batch, y_res, x_res) and writes it into `vae.config`, with which it is saved."""
    factor = measure_scaling_factor(posterior_moments(vae, images) for images in batches)
    vae.register_to_config(scaling_factor=factor)
    return factor
