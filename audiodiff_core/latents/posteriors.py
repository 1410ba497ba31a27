"""Posteriors of a VAE, from which training draws its latents.

moments  float32 (batch, 2, channels, height, width)   mean and standard deviation of each latent value, not scaled;
                                                       `encode --latents` stores them
latents  float32 (batch, channels, height, width)      drawn from the moments and scaled to unit variance;
                                                       input of a latent network
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from audiodiff_core.mel import Images, to_model

Moments = npt.NDArray[np.float32]


@torch.no_grad()
def posterior_moments(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Compute the posterior of each latent value.

    Args:
        vae: The AutoencoderKL.
        images: uint8 images (batch, y_res, x_res).

    Returns:
        Moments (batch, 2, channels, height, width), on the device of the VAE.
    """
    values = to_model(images.to(vae.device).unsqueeze(1))
    posterior = vae.encode(values).latent_dist
    return torch.stack([posterior.mean, posterior.std], dim=1).float()


def moments_in_batches(vae: Any, images: Images, batch_size: int) -> Moments:
    """Compute moments in batches of one size.

    Args:
        vae: The AutoencoderKL.
        images: uint8 images (n, y_res, x_res).
        batch_size: Images per call of the VAE. The last batch is padded to this size, so that the result for an image
            does not depend on the other images.

    Returns:
        Moments (n, 2, channels, height, width).
    """
    moments = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        padded = np.zeros((batch_size, *images.shape[1:]), np.uint8)
        padded[: len(batch)] = batch
        moments.append(posterior_moments(vae, torch.from_numpy(padded))[: len(batch)].cpu().numpy())
    return np.concatenate(moments)


def drawn_latents(moments: torch.Tensor, noise: torch.Tensor, scaling_factor: float) -> torch.Tensor:
    """Draw latents from moments.

    Args:
        moments: Moments (batch, 2, channels, height, width).
        noise: Standard normal noise (batch, channels, height, width).
        scaling_factor: The `scaling_factor` of the VAE's configuration.

    Returns:
        Scaled latents (batch, channels, height, width).
    """
    mean, deviation = moments.unbind(dim=1)
    return (mean + deviation * noise) * scaling_factor


def measure_scaling_factor(moments: Iterable[torch.Tensor]) -> float:
    """Compute the factor that scales latents to unit variance.

    The variance is the expected value over all draws from the posteriors. No latents are drawn.

    Args:
        moments: Batches (batch, 2, channels, height, width) of any size, from many different images.

    Returns:
        The reciprocal of the standard deviation of the latents, over all channels together.

    Raises:
        ValueError: If there are no moments, or if the variance is zero or not finite.
    """
    count, total, squares = 0, 0.0, 0.0
    for batch in moments:
        mean, deviation = batch.double().unbind(dim=1)
        count += mean.numel()
        total += float(mean.sum())
        squares += float((mean.square() + deviation.square()).sum())
    if count == 0:
        raise ValueError("no latents to measure the scaling factor on: pass at least one image")
    # Variance of the means plus mean of the variances. The reciprocal root is the factor of Rombach et al.,
    # "High-Resolution Image Synthesis with Latent Diffusion Models", 2022, section G.
    variance = squares / count - (total / count) ** 2
    if not 0 < variance < float("inf"):
        raise ValueError(f"the latents' variance is {variance}: the VAE is not trained, or has collapsed")
    return float(variance**-0.5)


def set_scaling_factor(vae: Any, batches: Iterable[Images]) -> float:
    """Measure the scaling factor and write it to `vae.config`, which is saved with the VAE.

    Args:
        vae: The AutoencoderKL.
        batches: uint8 images (batch, y_res, x_res) of many different tracks.

    Returns:
        The scaling factor.

    Raises:
        ValueError: As `measure_scaling_factor`.
    """
    factor = measure_scaling_factor(posterior_moments(vae, torch.from_numpy(images)) for images in batches)
    vae.register_to_config(scaling_factor=factor)
    return factor
