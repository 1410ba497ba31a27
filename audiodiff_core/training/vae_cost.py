"""Memory of the training of a VAE and its discriminator, estimated like that of `cost`."""

import json
from functools import lru_cache
from typing import Any, Literal

import torch

from audiodiff_core.latents import latent_factor
from audiodiff_core.models import image_sides, parameter_count
from audiodiff_core.training.cost import FLOAT_BYTES, OPTIMIZER_BYTES, LiveBytes, under_autocast
from audiodiff_core.training.vae_losses import (
    PatchDiscriminator,
    VaeObjective,
    generator_losses,
    reconstruction_losses,
    spectral_losses,
)
from audiodiff_core.training.vae_state import Autoencoder


def vae_memory_bytes(
    vae: Any,
    samples: int,
    objective: VaeObjective,
    *,
    gradient_checkpointing: bool = False,
    precision: Literal["no", "bf16", "fp16"] = "no",
) -> int:
    """Estimate the bytes of the state and the activations of one worker, at the peak of a step.

    The peak is in the step of the VAE, whose loss reaches back through the discriminator.

    Args:
        vae: A diffusers `AutoencoderKL` on any device, including meta.
        samples: Samples of one micro-batch.
        objective: Weights of the losses.
        gradient_checkpointing: Whether the backward pass recomputes activations.
        precision: Mixed precision.
    """
    with torch.device("meta"):
        discriminator = PatchDiscriminator()
    judged = objective.adversarial_weight > 0
    parameters, judging = parameter_count(vae), parameter_count(discriminator)
    moments = OPTIMIZER_BYTES["adamw"]
    # Weights, gradients and moments of both networks, and the average of the VAE.
    state_bytes = parameters * (3 * FLOAT_BYTES + moments) + judging * (2 * FLOAT_BYTES + moments)
    vae_class: Any = type(vae)
    peak_bytes = _peak_bytes(vae_class, vae.to_json_string(), samples, judged, gradient_checkpointing)
    return state_bytes + under_autocast(peak_bytes, parameters + judging * judged, precision)


@lru_cache(maxsize=8)
def _peak_bytes(vae_class: Any, config: str, samples: int, judged: bool, gradient_checkpointing: bool) -> int:
    """Peak float32 bytes of the activations of a micro-batch."""
    with torch.device("meta"):
        vae = vae_class.from_config(json.loads(config))
        discriminator = PatchDiscriminator().requires_grad_(False)
        height, width = image_sides(vae)
        images = torch.zeros(samples, 1, height, width)
        factor = latent_factor(vae)
        noise = torch.zeros(samples, vae.config.latent_channels, height // factor, width // factor)
    if gradient_checkpointing:
        vae.enable_gradient_checkpointing()
    autoencoder = Autoencoder(vae).train()
    for parameter in vae.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state = [tensor for parameter in vae.parameters() for tensor in (parameter, parameter.grad)]
    with LiveBytes(ignored=[*state, *discriminator.parameters()]) as live:
        made, _ = autoencoder(images, noise)
        loss = reconstruction_losses(made, images) + spectral_losses(made, images)
        if judged:
            loss = loss + generator_losses(discriminator(made))
        loss.mean().backward()
    peak: int = live.peak
    return peak
