"""Sizes of the measurements: complete, quick, and tiny for a CPU."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from audiodiff_core.mel import MelConfig
from audiodiff_core.models import PresetName, VaePresetName, build_network, build_vae
from audiodiff_core.sampling import Precision

HOP_LENGTHS = {32: 1_024, 64: 1_024}
"""Samples between the columns of images of a side, where it is not the default."""


@dataclass(frozen=True)
class Shape:
    """A network and the square images that it generates.

    Attributes:
        preset: The preset of the network.
        side: Side of the images in pixels.
        vae: The preset of the autoencoder of a latent network, or None.
    """

    preset: PresetName
    side: int
    vae: VaePresetName | None = None


@dataclass(frozen=True)
class Plan:
    """Sizes of the measurements.

    Attributes:
        shapes: Networks whose steps are timed.
        batch_sizes: Batch sizes.
        precisions: Precisions of sampling.
        compiled_batch_sizes: Batch sizes at which the compiled network is timed too.
        compiled_precisions: Precisions at which the compiled network is timed too.
        alternatives: Networks that are compared with diffusers' pipeline.
        alternative_batch_sizes: Batch sizes of that comparison.
        equality: The network whose bytes are compared.
        equality_batch_size: Batch size of that comparison, at least 4.
        latent: The network and the autoencoder that is timed.
        latent_batch_sizes: Images per call of the autoencoder.
        vocoder_sides: Sides of the images that become audio.
        vocoder_batch_sizes: Images per call of the vocoder.
        training: Networks that are trained, and their batch sizes.
        repeats: Timed calls per median, at most 20.
    """

    shapes: tuple[Shape, ...]
    batch_sizes: tuple[int, ...]
    precisions: tuple[Precision, ...]
    compiled_batch_sizes: tuple[int, ...]
    compiled_precisions: tuple[Precision, ...]
    alternatives: tuple[Shape, ...]
    alternative_batch_sizes: tuple[int, ...]
    equality: Shape
    equality_batch_size: int
    latent: Shape
    latent_batch_sizes: tuple[int, ...]
    vocoder_sides: tuple[int, ...]
    vocoder_batch_sizes: tuple[int, ...]
    training: tuple[tuple[Shape, int], ...]
    repeats: int


DDPM_64, DDPM_256, TINY = Shape("ddpm-64", 64), Shape("ddpm-256", 256), Shape("tiny", 64)
LATENT_256 = Shape("latent-256", 256, "vae-256")

COMPLETE = Plan(
    shapes=(DDPM_64, DDPM_256, TINY, LATENT_256),
    batch_sizes=(1, 4, 8, 16, 32, 64),
    precisions=("bf16", "tf32", "fp32"),
    compiled_batch_sizes=(1, 4, 8, 16, 32, 64),
    compiled_precisions=("bf16", "tf32", "fp32"),
    alternatives=(DDPM_64, DDPM_256),
    alternative_batch_sizes=(1, 8, 32),
    equality=DDPM_64,
    equality_batch_size=8,
    latent=LATENT_256,
    latent_batch_sizes=(1, 32),
    vocoder_sides=(64, 256),
    vocoder_batch_sizes=(8, 32),
    training=((DDPM_64, 16), (DDPM_64, 64), (DDPM_256, 8), (DDPM_256, 16)),
    repeats=20,
)
QUICK = Plan(
    shapes=(DDPM_64, DDPM_256, TINY),
    batch_sizes=(1, 8, 32),
    precisions=("bf16", "tf32", "fp32"),
    compiled_batch_sizes=(8,),
    compiled_precisions=("bf16",),
    alternatives=(DDPM_64,),
    alternative_batch_sizes=(1, 32),
    equality=DDPM_64,
    equality_batch_size=4,
    latent=LATENT_256,
    latent_batch_sizes=(1, 32),
    vocoder_sides=(256,),
    vocoder_batch_sizes=(8, 32),
    training=((DDPM_64, 32), (DDPM_256, 8)),
    repeats=7,
)
ON_CPU = Plan(
    shapes=(Shape("tiny", 32), Shape("tiny-latent", 32, "vae-tiny")),
    batch_sizes=(1, 4),
    precisions=("fp32", "bf16"),
    compiled_batch_sizes=(),
    compiled_precisions=(),
    alternatives=(Shape("tiny", 32),),
    alternative_batch_sizes=(4,),
    equality=Shape("tiny", 32),
    equality_batch_size=4,
    latent=Shape("tiny-latent", 32, "vae-tiny"),
    latent_batch_sizes=(1, 4),
    vocoder_sides=(32,),
    vocoder_batch_sizes=(4,),
    training=((Shape("tiny", 32), 4),),
    repeats=2,
)


def plan_for(device: str, quick: bool) -> Plan:
    """Return the plan of a device. A CPU has the tiny plan only."""
    if torch.device(device).type == "cpu":
        return ON_CPU
    return QUICK if quick else COMPLETE


def mel_of(side: int) -> MelConfig:
    """Return the mel configuration of square images."""
    options = {"hop_length": HOP_LENGTHS[side]} if side in HOP_LENGTHS else {}
    return MelConfig(x_res=side, y_res=side, **options)


@lru_cache(maxsize=4)
def built(shape: Shape) -> tuple[Any, Any]:
    """Return a network and its autoencoder or None, on the CPU, with seeded random weights."""
    torch.manual_seed(0)
    mel = mel_of(shape.side)
    vae = None if shape.vae is None else build_vae(shape.vae, mel)
    return build_network(shape.preset, mel, vae), vae
