"""Encoding and decoding of images with an AutoencoderKL.

A latent model denoises z = scaling_factor * latent, where the encoder computes `latent` from an image in [-1, 1]. The
decoder takes z / scaling_factor. The autoencoder runs in float32 or bfloat16. In float16 it overflows.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch


def latent_factor(vae: Any) -> int:
    """Return the ratio of a side of an image to the same side of its latent."""
    factor: int = 1 << (len(vae.config.block_out_channels) - 1)
    return factor


def latent_shape(vae: Any, height: int, width: int) -> tuple[int, int, int]:
    """Return the shape of the latent of an image.

    Args:
        vae: The AutoencoderKL.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Returns:
        (channels, height, width) of the latent.

    Raises:
        ValueError: If the autoencoder does not take images of one channel, or if its factor does not divide both sides.
    """
    factor = latent_factor(vae)
    if vae.config.in_channels != 1 or height % factor or width % factor:
        raise ValueError(
            f"images of {width}x{height} and 1 channel: "
            f"the autoencoder takes {vae.config.in_channels} channels and sides that are multiples of {factor}"
        )
    return vae.config.latent_channels, height // factor, width // factor


@torch.inference_mode()
def encode_latents(
    vae: Any, images: torch.Tensor, generators: Sequence[torch.Generator] | None = None, batch_size: int = 1
) -> torch.Tensor:
    """Encode images as latents.

    Args:
        vae: The AutoencoderKL.
        images: Images (n, 1, height, width) in [-1, 1].
        generators: One generator per image, which draws the latent from the posterior. None selects the mode.
        batch_size: Images per call of the autoencoder. The last batch is padded to this size, so that the result for an
            image does not depend on the other images.

    Returns:
        Scaled latents (n, channels, height / factor, width / factor), on the CPU.
    """
    assert generators is None or len(generators) == len(images)

    def encode(batch: torch.Tensor) -> torch.Tensor:
        posterior = vae.encode(batch).latent_dist
        return torch.cat([posterior.mean, posterior.std], dim=1)

    latents, deviation = torch.cat(list(_in_batches(encode, vae, images, batch_size))).chunk(2, dim=1)
    if generators is not None:
        latents = latents + deviation * torch.cat(
            [torch.randn((1, *latents.shape[1:]), generator=generator) for generator in generators]
        )
    scaling_factor: float = vae.config.scaling_factor
    return latents * scaling_factor


@torch.inference_mode()
def decode_latents(vae: Any, latents: torch.Tensor, batch_size: int = 1) -> torch.Tensor:
    """Decode latents to images.

    Args:
        vae: The AutoencoderKL.
        latents: Scaled latents (n, channels, height, width).
        batch_size: Latents per call of the autoencoder, with padding as in `encode_latents`.

    Returns:
        Images (n, 1, height * factor, width * factor), nominally in [-1, 1], on the CPU.
    """
    return torch.cat(
        list(_in_batches(lambda batch: vae.decode(batch).sample, vae, latents / vae.config.scaling_factor, batch_size))
    )


def _in_batches(
    function: Callable[[torch.Tensor], torch.Tensor], vae: Any, inputs: torch.Tensor, batch_size: int
) -> Iterator[torch.Tensor]:
    """Yield the outputs of `function` for `inputs`, in batches padded with zeros to `batch_size`."""
    for batch in inputs.split(batch_size):
        padded = torch.zeros((batch_size, *batch.shape[1:]), device=vae.device, dtype=vae.dtype)
        padded[: len(batch)] = batch
        yield function(padded.contiguous(memory_format=torch.channels_last))[: len(batch)].float().cpu()
