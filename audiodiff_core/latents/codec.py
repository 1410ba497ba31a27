"""Images <-> latents of an AutoencoderKL: the one place that converts.

A latent model denoises z = scaling_factor * (what the encoder makes of the image in [-1, 1]); images are decoded from z / scaling_factor.
The autoencoder always works in float32: half precision overflows in it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch


def latent_factor(vae: Any) -> int:
    """Pixels on a side of what one latent pixel stands for."""
    factor: int = 1 << (len(vae.config.block_out_channels) - 1)
    return factor


def latent_shape(vae: Any, height: int, width: int) -> tuple[int, int, int]:
    """Channels, height and width of the latent of an image; raises ValueError where the autoencoder does not take it."""
    factor = latent_factor(vae)
    if vae.config.in_channels != 1 or height % factor or width % factor:
        raise ValueError(
            f"images of {width}x{height} and 1 channel: the autoencoder takes sides divisible by {factor} and {vae.config.in_channels} channels"
        )
    return vae.config.latent_channels, height // factor, width // factor


@torch.inference_mode()
def encode_latents(
    vae: Any, images: torch.Tensor, generators: Sequence[torch.Generator] | None = None, batch_size: int = 1
) -> torch.Tensor:
    """Images (n, 1, height, width) in [-1, 1] -> latents (n, channels, height / factor, width / factor), on the CPU.

    Drawn from the encoder's distribution by a generator for each image or, without generators, its mode. They are encoded `batch_size`
    at a time, padded to that shape, so that none depends on its neighbours.
    """
    assert generators is None or len(generators) == len(images)

    def encode(batch: torch.Tensor) -> torch.Tensor:
        distribution = vae.encode(batch).latent_dist
        return torch.cat([distribution.mean, distribution.std], dim=1)

    mean, deviation = torch.cat(list(_batches(encode, vae, images, batch_size))).chunk(2, dim=1)
    if generators is not None:
        mean = mean + deviation * torch.cat(
            [torch.randn((1, *mean.shape[1:]), generator=generator) for generator in generators]
        )
    scaling_factor: float = vae.config.scaling_factor
    return mean * scaling_factor


@torch.inference_mode()
def decode_latents(vae: Any, latents: torch.Tensor, batch_size: int = 1) -> torch.Tensor:
    """Latents (n, channels, h, w) -> images (n, 1, height, width) around [-1, 1], on the CPU; in batches as `encode_latents`."""
    return torch.cat(
        list(_batches(lambda batch: vae.decode(batch).sample, vae, latents / vae.config.scaling_factor, batch_size))
    )


def _batches(
    work: Callable[[torch.Tensor], torch.Tensor], vae: Any, values: torch.Tensor, batch_size: int
) -> Iterator[torch.Tensor]:
    for batch in values.split(batch_size):
        padded = torch.zeros((batch_size, *batch.shape[1:]), device=vae.device)
        padded[: len(batch)] = batch
        yield work(padded)[: len(batch)].cpu()
