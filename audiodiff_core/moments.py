"""Mel images -> what an autoencoder's encoder makes of them, for latents that are computed once and trained on often."""

import hashlib
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from audiodiff_core.latents import latent_factor
from audiodiff_core.mel import Images, to_model

Moments = npt.NDArray[np.float32]


def latent_shape(vae: Any, height: int, width: int) -> tuple[int, int, int]:
    """Channels, height and width of the latent of an image; raises ValueError where the autoencoder does not take it."""
    factor = latent_factor(vae)
    if vae.config.in_channels != 1 or height % factor or width % factor:
        raise ValueError(f"images of {width}x{height} and 1 channel: the autoencoder takes sides divisible by {factor} and {vae.config.in_channels} channels")
    return vae.config.latent_channels, height // factor, width // factor


@torch.inference_mode()
def latent_moments(vae: Any, images: Images, batch_size: int) -> Moments:
    """Mean and log variance of the posterior for uint8 images (n, y_res, x_res): (n, 2, channels, height, width), scaling_factor not applied.

    Always `batch_size` at once, padded to that, so that an image's bits do not depend on how many others there are.
    """
    device = next(vae.parameters()).device
    found = []
    for start in range(0, len(images), batch_size):
        some = images[start : start + batch_size]
        batch = torch.zeros((batch_size, 1, *images.shape[1:]), device=device)
        batch[: len(some), 0] = torch.from_numpy(to_model(some)).to(device)
        posterior = vae.encode(batch).latent_dist
        found.append(torch.stack([posterior.mean, posterior.logvar], dim=1)[: len(some)].float().cpu().numpy())
    return np.concatenate(found)


def network_digest(network: Any) -> str:
    """Names a network: 16 hex digits of the SHA-256 of its configuration and weights, whichever files they came from."""
    total = hashlib.sha256(json.dumps({key: value for key, value in network.config.items() if not key.startswith("_")}, sort_keys=True, default=str).encode())
    for name, weights in sorted(network.state_dict().items()):
        total.update(f"{name} {tuple(weights.shape)}".encode())
        total.update(weights.detach().cpu().float().contiguous().numpy())
    return total.hexdigest()[:16]
