"""Networks built by diffusers from a preset, at the size that the mel configuration states."""

from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel

from audiodiff_core.latents import latent_factor
from audiodiff_core.mel import MelConfig
from audiodiff_core.models.presets import PRESETS, VAE_PRESETS, PresetName, VaePresetName


def check_resolution(preset: PresetName, mel: MelConfig, vae: Any = None) -> None:
    """Raises ValueError where the network, on images of this mel or on their latents, cannot halve them as often as it needs to."""
    shape = PRESETS[preset]
    if shape.latent and vae is None:
        raise ValueError(f"preset {preset} works on latents: give the VAE that makes them (vae)")
    if vae is not None and not shape.latent:
        latent = ", ".join(name for name, other in PRESETS.items() if other.latent)
        raise ValueError(f"preset {preset} works on images, not on latents: leave vae out, or use one of {latent}")
    multiple = shape.side_multiple * (1 if vae is None else latent_factor(vae))
    if mel.x_res % multiple or mel.y_res % multiple:
        through = "" if vae is None else f" with a VAE that divides sides by {latent_factor(vae)}"
        raise ValueError(
            f"resolution {mel.x_res},{mel.y_res} does not suit preset {preset}{through}: both sides must divide by {multiple}"
        )


def check_encoding(preset: PresetName, encoding_dim: int | None) -> None:
    """Raises ValueError where a conditional network is given no encodings, or one that takes none is given some."""
    if PRESETS[preset].conditional and encoding_dim is None:
        raise ValueError(f"preset {preset} is conditional: give it encodings")
    if encoding_dim is not None and not PRESETS[preset].conditional:
        conditional = ", ".join(name for name, other in PRESETS.items() if other.conditional)
        raise ValueError(f"preset {preset} takes no encodings: leave them out, or use one of {conditional}")


def build_network(preset: PresetName, mel: MelConfig, vae: Any = None, encoding_dim: int | None = None) -> Any:
    """A freshly initialised network for images of `mel`, or for their latents by `vae`.

    UNet2DModel: (batch, channels, height, width) and timesteps (batch,) -> the same shape; a conditional preset is a
    UNet2DConditionModel, which takes encodings (batch, 1, encoding_dim) besides. Raises ValueError where the parts do not go together.
    """
    check_resolution(preset, mel, vae)
    check_encoding(preset, encoding_dim)
    shape = PRESETS[preset]
    levels = range(len(shape.block_out_channels))
    factor, channels = (1, 1) if vae is None else (latent_factor(vae), vae.config.latent_channels)
    attention = "CrossAttn" if shape.conditional else "Attn"
    condition = {"cross_attention_dim": encoding_dim} if shape.conditional else {}
    return (UNet2DConditionModel if shape.conditional else UNet2DModel)(
        sample_size=(mel.y_res // factor, mel.x_res // factor),
        in_channels=channels,
        out_channels=channels,
        layers_per_block=shape.layers_per_block,
        block_out_channels=shape.block_out_channels,
        down_block_types=tuple(
            f"{attention if level in shape.attention_levels else ''}DownBlock2D" for level in levels
        ),
        up_block_types=tuple(
            f"{attention if level in shape.attention_levels else ''}UpBlock2D" for level in reversed(levels)
        ),
        norm_num_groups=shape.norm_num_groups,
        attention_head_dim=shape.attention_head_dim,
        **condition,
    )


def build_vae(preset: VaePresetName, mel: MelConfig) -> Any:
    """A freshly initialised AutoencoderKL for images of `mel`: (batch, 1, y_res, x_res) <-> latents (batch, latent_channels, y_res, x_res / factor).

    Its scaling factor is diffusers' default until it is measured (`posteriors.measure_scaling_factor`).
    """
    shape = VAE_PRESETS[preset]
    if mel.x_res % shape.factor or mel.y_res % shape.factor:
        raise ValueError(
            f"resolution {mel.x_res},{mel.y_res} does not suit preset {preset}: both sides must divide by {shape.factor}"
        )
    levels = len(shape.block_out_channels)
    return AutoencoderKL(
        sample_size=(mel.y_res, mel.x_res),
        in_channels=1,
        out_channels=1,
        latent_channels=shape.latent_channels,
        layers_per_block=shape.layers_per_block,
        block_out_channels=shape.block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=shape.norm_num_groups,
    )


def parameter_count(network: Any) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
