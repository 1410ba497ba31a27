"""Losses of the training of a VAE: reconstruction, KL divergence, spectral and adversarial losses.

Images are mel images of shape (batch, 1, y_res, x_res) in [-1, 1]. Every loss has one value per sample, so that the
mean loss does not depend on the distribution of samples over workers and micro-batches.
"""

from itertools import pairwise
from typing import Any

import pydantic
import torch
from torch import nn
from torch.nn.functional import l1_loss, leaky_relu, relu

WINDOWS = (8, 16, 32, 64)
"""Window lengths of the spectral loss, in frames or mel bands."""
MAGNITUDE_FLOOR = 0.05
"""Value added to magnitudes before the logarithm, equal to a modulation by about 6 of the 255 levels of an image.

The loss therefore ignores differences between much weaker modulations.
"""


class VaeObjective(pydantic.BaseModel):
    """Weights of the losses, all per pixel of the image."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    kl_weight: float = pydantic.Field(1e-6, ge=0, description="weight of the KL divergence of the latents from N(0, 1)")
    spectral_weight: float = pydantic.Field(
        0.5, ge=0, description="weight of the spectral distance between image and reconstruction"
    )
    adversarial_weight: float = pydantic.Field(
        0.05, ge=0, description="weight of the adversarial loss; 0: no discriminator"
    )
    adversarial_start: int = pydantic.Field(
        10_000, ge=0, description="number of optimizer steps before the adversarial loss is used"
    )

    def adversarial(self, step: int) -> bool:
        """Return True if the adversarial loss is used in optimizer step `step`, counted from 0."""
        return self.adversarial_weight > 0 and step >= self.adversarial_start


def reconstruction_losses(reconstruction: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Compute the mean absolute error of each sample, of shape (batch,)."""
    return _sample_means(l1_loss(reconstruction, images, reduction="none"))


def kl_losses(posterior: Any, pixels: int) -> torch.Tensor:
    """Compute the KL divergence of the posterior of each sample from N(0, 1), per pixel of the image.

    Rombach et al. 2022 weight the sum over the latents against a sum over the pixels. Here, both sums are divided by
    the number of pixels.

    Args:
        posterior: diffusers' `DiagonalGaussianDistribution` of the latents.
        pixels: Number of pixels of an image.

    Returns:
        Losses of shape (batch,).
    """
    divergence: torch.Tensor = posterior.kl()
    return divergence / pixels


def spectral_losses(reconstruction: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Compute the spectral distance between reconstructions and images of each sample.

    This is the multi-resolution STFT loss of Yamamoto et al. ("Parallel WaveGAN", 2020) on mel images instead of
    waveforms. Spectra are computed with several window lengths along two axes: along the time of each band (modulation:
    rhythm, attack, tremolo), and along the bands of each frame (harmonics, formants). The distance is the mean absolute
    difference of the magnitudes, of the log magnitudes, and of the first differences of the image along both axes.

    The mean absolute error of pixels barely penalizes blur. Blur attenuates fast modulations, and the spectral distance
    penalizes the attenuation.

    Args:
        reconstruction: Reconstructions of shape (batch, 1, y_res, x_res) in [-1, 1].
        images: Images of the same shape and range.

    Returns:
        Losses of shape (batch,).
    """
    distance = torch.zeros(len(images), device=images.device)
    terms = 0
    for made, target in ((reconstruction[:, 0], images[:, 0]), (reconstruction[:, 0].mT, images[:, 0].mT)):
        for window in (window for window in WINDOWS if window <= target.shape[-1]):
            made_magnitudes, target_magnitudes = _magnitudes(made, window), _magnitudes(target, window)
            log_ratio = (made_magnitudes + MAGNITUDE_FLOOR).log() - (target_magnitudes + MAGNITUDE_FLOOR).log()
            distance = (
                distance + _sample_means((made_magnitudes - target_magnitudes).abs()) + _sample_means(log_ratio.abs())
            )
            terms += 2
        distance = distance + _sample_means((made.diff() - target.diff()).abs())
        terms += 1
    return distance / terms


def _magnitudes(values: torch.Tensor, window: int) -> torch.Tensor:
    """Magnitudes (batch, rows, window // 2 + 1, frames) of the STFT of `values` (batch, rows, length).

    The magnitude of a constant 1 is 1 at frequency 0.
    """
    taper = torch.hann_window(window, device=values.device)
    spectra = torch.stft(values.flatten(0, 1), window, window // 4, window=taper, return_complex=True) / taper.sum()
    # The gradient of abs() is undefined at 0.
    magnitudes: torch.Tensor = (
        (spectra.real.square() + spectra.imag.square() + 1e-12).sqrt().unflatten(0, values.shape[:2])
    )
    return magnitudes


class PatchDiscriminator(nn.Module):
    """PatchGAN discriminator, which classifies overlapping patches as real or reconstructed.

    See Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", 2017. Group normalization
    replaces batch normalization, so that the logits of a sample do not depend on the other samples of its batch.

    Args:
        channels: Channels of the first layer, a multiple of 4.

    Attributes:
        smallest_side: Smallest height and width of an image.
    """

    layers = 3
    smallest_side = 3 << layers

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        widths = [channels * min(2**level, 8) for level in range(self.layers + 1)]
        self.convs = nn.ModuleList([nn.Conv2d(1, widths[0], 4, stride=2, padding=1)])
        self.norms = nn.ModuleList([nn.Identity()])
        for level, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            stride = 2 if level < self.layers else 1
            self.convs.append(nn.Conv2d(inputs, outputs, 4, stride=stride, padding=1, bias=False))
            self.norms.append(nn.GroupNorm(8, outputs))
        self.verdict = nn.Conv2d(widths[-1], 1, 4, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the logits of the patches of `images`.

        Args:
            images: Images of shape (batch, 1, height, width) in [-1, 1].

        Returns:
            Logits of shape (batch, 1, about height / 2^layers, about width / 2^layers), high for patches
            that look real.
        """
        hidden = images
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden = leaky_relu(norm(conv(hidden)), 0.2)
        logits: torch.Tensor = self.verdict(hidden)
        return logits


def generator_losses(reconstruction_logits: torch.Tensor) -> torch.Tensor:
    """Compute the adversarial loss of the autoencoder, of shape (batch,), from discriminator logits."""
    return _sample_means(-reconstruction_logits)


def discriminator_losses(image_logits: torch.Tensor, reconstruction_logits: torch.Tensor) -> torch.Tensor:
    """Compute the hinge loss of the discriminator, of shape (batch,).

    The loss is 0 if all logits of images are above 1 and all logits of reconstructions are below -1.
    """
    return (_sample_means(relu(1 - image_logits)) + _sample_means(relu(1 + reconstruction_logits))) / 2


def _sample_means(values: torch.Tensor) -> torch.Tensor:
    return values.flatten(1).mean(dim=1)
