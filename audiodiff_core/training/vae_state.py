"""Training state of a VAE: autoencoder, discriminator, averaged weights, optimizers and progress."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from audiodiff_core.files.weights import StateDict
from audiodiff_core.models import image_sides
from audiodiff_core.training.optimizer import load_moments, make_optimizer, moments_of
from audiodiff_core.training.state import memory_format
from audiodiff_core.training.vae_losses import PatchDiscriminator, VaeObjective
from audiodiff_core.training.weight_average import EMA_DECAY, WeightAverage


class Autoencoder(nn.Module):
    """AutoencoderKL that draws its latents with the noise of the caller."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Encode and decode images.

        Args:
            images: Images of shape (batch, 1, y_res, x_res) in [-1, 1].
            noise: Noise ~ N(0, 1) of the shape of the latents.

        Returns:
            The reconstructions, of the shape of `images`, and the posterior of the latents.
        """
        posterior = self.vae.encode(images).latent_dist
        return self.vae.decode(posterior.mean + posterior.std * noise).sample, posterior


class VaeTrainState:
    """State of the training of a VAE and its discriminator, on one or many devices.

    Args:
        accelerator: Prepares the networks and the optimizers.
        vae: The diffusers `AutoencoderKL` to train.
        objective: Weights of the losses.
        learning_rate: The initial learning rate.
        seed: Seed of the noise of the latents.
        ema_decay: Decay of the weight average after its warmup, in [0, 1].
        discriminator_channels: Channels of the first layer of the discriminator, a multiple of 4.
        gradient_checkpointing: Whether to recompute activations in the backward pass, which saves memory.

    Attributes:
        autoencoder: The VAE as prepared by accelerate, possibly wrapped.
        discriminator: The discriminator as prepared by accelerate, possibly wrapped.
        bare: The diffusers model inside `autoencoder`.
        step: Number of completed optimizer steps.
        samples: Number of samples trained on.
        seconds: Training time in seconds.
        skipped: Number of steps that changed nothing because a gradient was not finite, int64 of shape () on the
            device.
        ema: The average of the weights of the VAE.

    Raises:
        ValueError: For fp16, for FSDP, and for images that are too small for the discriminator.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        vae: Any,
        objective: VaeObjective,
        learning_rate: float,
        seed: int,
        *,
        ema_decay: float = EMA_DECAY,
        discriminator_channels: int = 64,
        gradient_checkpointing: bool = False,
    ) -> None:
        if accelerator.mixed_precision == "fp16":
            raise ValueError("mixed_precision fp16 is too narrow for a VAE: use bf16 or no")
        if accelerator.distributed_type == DistributedType.FSDP:
            raise ValueError("FSDP is not supported for a VAE, which fits on one GPU: use DDP")
        check_sides(objective, vae)
        self.bare = vae.to(memory_format=memory_format(accelerator))
        self.objective = objective
        self.seed = seed
        self.step = 0
        self.samples = 0
        self.seconds = 0.0
        self.skipped = torch.zeros((), dtype=torch.int64, device=accelerator.device)
        if gradient_checkpointing:
            vae.enable_gradient_checkpointing()
        self.bare_discriminator = PatchDiscriminator(discriminator_channels)
        device = accelerator.device.type
        self.autoencoder, self.optimizer = accelerator.prepare(
            Autoencoder(vae), make_optimizer("adamw", vae, learning_rate, device)
        )
        self.discriminator, self.discriminator_optimizer = accelerator.prepare(
            self.bare_discriminator, make_optimizer("adamw", self.bare_discriminator, learning_rate, device)
        )
        self.ema = WeightAverage(list(vae.parameters()), ema_decay)

    def progress(self) -> dict[str, Any]:
        """Return the progress of the training as JSON values for `load_progress`."""
        return {
            "step": self.step,
            "samples": self.samples,
            "seconds": self.seconds,
            "skipped": int(self.skipped),
            "ema_step": self.ema.steps,
        }

    def load_progress(self, progress: dict[str, Any]) -> None:
        """Load the result of `progress`."""
        self.step, self.samples, self.seconds = progress["step"], progress["samples"], progress["seconds"]
        self.skipped.fill_(progress["skipped"])
        self.ema.steps = progress["ema_step"]

    def state_dict(self) -> StateDict:
        """Return the live weights under names with the prefix `vae.` or `discriminator.`."""
        parts = (("vae", self.bare), ("discriminator", self.bare_discriminator))
        return {f"{part}.{name}": tensor for part, module in parts for name, tensor in module.state_dict().items()}

    def load_state_dict(self, weights: StateDict) -> None:
        """Load the result of `state_dict`."""
        for prefix, module in (("vae.", self.bare), ("discriminator.", self.bare_discriminator)):
            module.load_state_dict(
                {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
            )

    def ema_state_dict(self) -> StateDict:
        """Return the averaged weights of the VAE under the names of the diffusers model."""
        averaged = {
            name: average for (name, _), average in zip(self.bare.named_parameters(), self.ema.weights, strict=True)
        }
        return {**self.bare.state_dict(), **averaged}

    def load_ema_state_dict(self, weights: StateDict) -> None:
        """Load the result of `ema_state_dict`."""
        for (name, _), average in zip(self.bare.named_parameters(), self.ema.weights, strict=True):
            average.copy_(weights[name])

    def optimizer_state_dict(self) -> dict[str, Any]:
        """Return the moments of both optimizers by parameter name, as tensors and plain values only."""
        return {name: moments_of(optimizer, module) for name, module, optimizer in self._optimizers()}

    def load_optimizer_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `optimizer_state_dict`."""
        for name, module, optimizer in self._optimizers():
            load_moments(optimizer, module, state[name])

    def _optimizers(self) -> list[tuple[str, Any, torch.optim.Optimizer]]:
        return [
            ("vae", self.bare, self.optimizer.optimizer),
            ("discriminator", self.bare_discriminator, self.discriminator_optimizer.optimizer),
        ]


def check_sides(objective: VaeObjective, vae: Any) -> None:
    """Check that the images of an autoencoder are large enough for the discriminator.

    Raises:
        ValueError: If the images are too small and `objective` has an adversarial loss.
    """
    height, width = image_sides(vae)
    smallest = PatchDiscriminator.smallest_side
    if objective.adversarial_weight and min(height, width) < smallest:
        raise ValueError(
            f"images of {width}x{height} are too small for the discriminator, which needs {smallest}: "
            "set adversarial_weight 0"
        )
