"""What the training of a VAE minimises: errors of the mel image, of what one hears in it, and what a discriminator can tell.

Values are mel images in the range of networks, (batch, 1, y_res, x_res) in [-1, 1]; every loss is one number for each sample, so that
its mean over a batch is the same function of the samples whichever workers and micro-batches they are split into.
"""

from itertools import pairwise
from typing import Any

import pydantic
import torch
from torch import nn
from torch.nn.functional import l1_loss, leaky_relu, relu

WINDOWS = (8, 16, 32, 64)
MAGNITUDE_FLOOR = 0.05
"""In the spectra of values in [-1, 1]: a modulation by about six of the 255 levels, well below which logarithms should not tell differences."""


class VaeObjective(pydantic.BaseModel):
    """How the parts of the loss are weighed, all per pixel of the image."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    kl_weight: float = pydantic.Field(1e-6, ge=0, description="weight of the latents' divergence from N(0, 1)")
    spectral_weight: float = pydantic.Field(
        0.5, ge=0, description="weight of the spectral distance of image and reconstruction"
    )
    adversarial_weight: float = pydantic.Field(
        0.05, ge=0, description="weight of the discriminator's verdict; 0: no discriminator"
    )
    adversarial_start: int = pydantic.Field(
        10_000, ge=0, description="optimizer steps before the discriminator comes in"
    )

    def adversarial(self, step: int) -> bool:
        """Whether the discriminator takes part in the step counted `step` (from 0)."""
        return self.adversarial_weight > 0 and step >= self.adversarial_start


def reconstruction_losses(reconstruction: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of each sample (batch,)."""
    return _of_samples(l1_loss(reconstruction, images, reduction="none"))


def kl_losses(posterior: Any, pixels: int) -> torch.Tensor:
    """Divergence of each sample's posterior from N(0, 1), over the pixels of its image (batch,): the sum over latents that Rombach et al. 2022 weigh
    against a sum over pixels.
    """
    divergence: torch.Tensor = posterior.kl()
    return divergence / pixels


def spectral_losses(reconstruction: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """How differently two images sound, for each sample (batch,).

    Spectra over several lengths of window, of each band's course in time (modulation: rhythm, attack, tremolo) and of each frame's course
    over the bands (harmonics, formants): their magnitudes and the logarithms of these differ by so much on average. It is the
    multi-resolution STFT distance of Yamamoto et al. ("Parallel WaveGAN", 2020) on the mel image instead of the waveform. Blurring, which a mean
    absolute error forgives, takes the high modulations away and costs here. First differences along both axes are compared besides.
    """
    distance = torch.zeros(len(images), device=images.device)
    terms = 0
    for made, wanted in ((reconstruction[:, 0], images[:, 0]), (reconstruction[:, 0].mT, images[:, 0].mT)):
        for window in (window for window in WINDOWS if window <= wanted.shape[-1]):
            one, other = _magnitudes(made, window), _magnitudes(wanted, window)
            distance = (
                distance
                + _of_samples((one - other).abs())
                + _of_samples(((one + MAGNITUDE_FLOOR).log() - (other + MAGNITUDE_FLOOR).log()).abs())
            )
            terms += 2
        distance = distance + _of_samples((made.diff() - wanted.diff()).abs())
        terms += 1
    return distance / terms


def _magnitudes(values: torch.Tensor, window: int) -> torch.Tensor:
    """Spectra along the last axis, (batch, rows, length) -> (batch, rows, window // 2 + 1, frames); a constant 1 has magnitude 1 at frequency 0."""
    taper = torch.hann_window(window, device=values.device)
    spectra = torch.stft(values.flatten(0, 1), window, window // 4, window=taper, return_complex=True) / taper.sum()
    # abs() has no gradient at 0
    magnitudes: torch.Tensor = (
        (spectra.real.square() + spectra.imag.square() + 1e-12).sqrt().unflatten(0, values.shape[:2])
    )
    return magnitudes


class PatchDiscriminator(nn.Module):
    """Says of overlapping patches whether they are from an image or a reconstruction (Isola et al., "Image-to-Image Translation with Conditional
    Adversarial Networks", 2017): (batch, 1, height, width) -> verdicts (batch, 1, about height / 2^layers, about width / 2^layers).

    Sides are at least `smallest_side`. Groups are normalised instead of batches, so that a sample's verdict does not depend on its neighbours.
    """

    layers = 3
    smallest_side = 3 << layers

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        widths = [channels * min(2**level, 8) for level in range(self.layers + 1)]
        self.convs = nn.ModuleList([nn.Conv2d(1, widths[0], 4, stride=2, padding=1)])
        self.norms = nn.ModuleList([nn.Identity()])
        for level, (taken, given) in enumerate(pairwise(widths), start=1):
            self.convs.append(nn.Conv2d(taken, given, 4, stride=2 if level < self.layers else 1, padding=1, bias=False))
            self.norms.append(nn.GroupNorm(8, given))
        self.verdict = nn.Conv2d(widths[-1], 1, 4, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = images
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden = leaky_relu(norm(conv(hidden)), 0.2)
        verdicts: torch.Tensor = self.verdict(hidden)
        return verdicts


def deceiving_losses(verdicts: torch.Tensor) -> torch.Tensor:
    """The autoencoder's, of verdicts on its reconstructions (batch,)."""
    return _of_samples(-verdicts)


def discriminating_losses(of_images: torch.Tensor, of_reconstructions: torch.Tensor) -> torch.Tensor:
    """The discriminator's hinge loss (batch,): verdicts on images should be above 1, on reconstructions below -1."""
    return (_of_samples(relu(1 - of_images)) + _of_samples(relu(1 + of_reconstructions))) / 2


def _of_samples(values: torch.Tensor) -> torch.Tensor:
    return values.flatten(1).mean(dim=1)
