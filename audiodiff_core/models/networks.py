"""Construction of diffusers networks from a preset and a mel configuration."""

from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel

from audiodiff_core.latents import latent_factor
from audiodiff_core.mel import MelConfig
from audiodiff_core.models.beats import Beats
from audiodiff_core.models.conditioned import EMBEDDING, extra_channels
from audiodiff_core.models.configured import BEATS, configured
from audiodiff_core.models.folding import FOLD, UNFOLDED
from audiodiff_core.models.presets import PRESETS, VAE_PRESETS, PresetName, VaePresetName


def check_resolution(preset: PresetName, mel: MelConfig, vae: Any = None) -> None:
    """Check that a preset can process mel images of this size, or their latents.

    Args:
        preset: The preset of the network.
        mel: The mel configuration, whose `x_res` and `y_res` are the sides of the images in pixels.
        vae: The AutoencoderKL of a latent preset. None for a preset that works on images.

    Raises:
        ValueError: If a latent preset has no VAE, if a preset that works on images has a VAE, or if a side cannot be
            halved at every level of the network.
    """
    shape = PRESETS[preset]
    if shape.latent and vae is None:
        raise ValueError(f"preset {preset} works on latents: pass the VAE that encodes them (vae)")
    if vae is not None and not shape.latent:
        latent_presets = ", ".join(name for name, other in PRESETS.items() if other.latent)
        raise ValueError(f"preset {preset} works on images, not on latents: omit vae, or use one of {latent_presets}")
    rows, columns = (multiple * (1 if vae is None else latent_factor(vae)) for multiple in shape.side_multiples)
    if mel.x_res % columns or mel.y_res % rows:
        with_vae = "" if vae is None else f" with a VAE that divides sides by {latent_factor(vae)}"
        multiples = (
            f"both sides must be multiples of {rows}"
            if rows == columns
            else f"the first must be a multiple of {columns}, the second of {rows}"
        )
        raise ValueError(f"resolution {mel.x_res},{mel.y_res} does not fit preset {preset}{with_vae}: {multiples}")


def check_encoding(preset: PresetName, encoding_dim: int | None) -> None:
    """Check that a preset fits the size of the encodings.

    Args:
        preset: The preset of the network.
        encoding_dim: Values per encoding, or None without encodings.

    Raises:
        ValueError: If a conditional preset has no encodings, or an unconditional preset has encodings.
    """
    if PRESETS[preset].conditional and encoding_dim is None:
        raise ValueError(f"preset {preset} is conditional: pass encodings or a condition")
    if encoding_dim is not None and not PRESETS[preset].conditional:
        conditional_presets = ", ".join(name for name, other in PRESETS.items() if other.conditional)
        raise ValueError(
            f"preset {preset} takes no encodings and no condition: omit them, or use one of {conditional_presets}"
        )


def build_network(
    preset: PresetName, mel: MelConfig, vae: Any = None, encoding_dim: int | None = None, beats: Beats | None = None
) -> Any:
    """Build a denoising network with random weights.

    Args:
        preset: The preset of the network.
        mel: The mel configuration of the images.
        vae: The AutoencoderKL of a latent preset. None for a preset that works on images.
        encoding_dim: Values per encoding of a conditional preset. None for an unconditional preset.
        beats: Place of the tempo in the encodings, for a preset with `beats`. None if encodings state no tempo.

    Returns:
        A UNet2DModel, called with samples (batch, channels, height, width) and timesteps (batch,). For a conditional
        preset, a UNet2DConditionModel, called with encodings (batch, 1, encoding_dim) as well. The prediction has the
        shape of the samples. A preset with a `fold` takes folded samples, see `models.folding`.

    Raises:
        ValueError: If the preset, the mel configuration, the VAE and the encodings do not fit each other.
    """
    check_resolution(preset, mel, vae)
    check_encoding(preset, encoding_dim)
    shape = PRESETS[preset]
    levels = range(len(shape.block_out_channels))
    factor, channels = (1, 1) if vae is None else (latent_factor(vae), vae.config.latent_channels)
    bands, columns = shape.fold
    attention = "CrossAttn" if shape.conditional else "Attn"
    assert shape.beats or beats is None, "only a preset with beats takes them"
    condition: dict[str, Any] = {"cross_attention_dim": encoding_dim} if shape.conditional else {}
    if shape.beats:
        condition |= {"class_embed_type": EMBEDDING, "projection_class_embeddings_input_dim": encoding_dim}
    if beats is not None:
        condition[BEATS] = beats.model_dump()
    network_class: Any = UNet2DConditionModel if shape.conditional else UNet2DModel
    config = dict[str, Any](
        sample_size=(mel.y_res // factor // bands, mel.x_res // factor // columns),
        in_channels=channels * bands * columns + extra_channels(beats, columns),
        out_channels=channels * bands * columns,
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
    if shape.fold != UNFOLDED:
        config[FOLD] = bands if bands == columns else [bands, columns]
    return configured(network_class, config)


def build_vae(preset: VaePresetName, mel: MelConfig) -> Any:
    """Build an autoencoder with random weights.

    The scaling factor is diffusers' default until `latents.posteriors.set_scaling_factor` measures it.

    Args:
        preset: The preset of the autoencoder.
        mel: The mel configuration of the images.

    Returns:
        An AutoencoderKL for images (batch, 1, y_res, x_res). The latents have the shape
        (batch, latent_channels, y_res / factor, x_res / factor), where `factor` is a property of the preset.

    Raises:
        ValueError: If a side of the images is not a multiple of `factor`.
    """
    shape = VAE_PRESETS[preset]
    if mel.x_res % shape.factor or mel.y_res % shape.factor:
        raise ValueError(
            f"resolution {mel.x_res},{mel.y_res} does not fit preset {preset}: "
            f"both sides must be multiples of {shape.factor}"
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
    """Return the number of parameters of a torch module."""
    return sum(parameter.numel() for parameter in network.parameters())
