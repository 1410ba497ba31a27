"""The networks by name. diffusers builds them; a preset says which, and the data say at what size."""

import hashlib
import json
from typing import Any, Literal, get_args

import pydantic
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel

from audiodiff_core.latents import latent_factor
from audiodiff_core.mel import MelConfig
from audiodiff_core.objectives import Objective

PresetName = Literal[
    "tiny", "tiny-conditional", "tiny-latent", "tiny-conditional-latent", "ddpm-64", "ddpm-256", "latent-256", "conditional-latent-512"
]
VaePresetName = Literal["vae-tiny", "vae-256"]


class Preset(pydantic.BaseModel):
    """A network's shape and the objective that it is trained for unless told otherwise."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    block_out_channels: tuple[int, ...]
    attention_levels: tuple[int, ...] = pydantic.Field(description="levels with attention, 0 = full resolution")
    layers_per_block: int
    norm_num_groups: int = 32
    attention_head_dim: int = pydantic.Field(8, description="size of an attention head; in a conditional network the number of heads (diffusers' naming)")
    latent: bool = pydantic.Field(False, description="whether it works on a VAE's latents rather than on images")
    conditional: bool = pydantic.Field(False, description="whether an encoding says what is wanted, through cross-attention")
    objective: Objective

    @property
    def side_multiple(self) -> int:
        """Sides of what the network sees must divide by this: every level but the last halves them."""
        return 1 << (len(self.block_out_channels) - 1)


# Predicting v down to pure noise learns fastest of what diffusers' own pipeline can sample. Latents have no range to clip to.
_IMAGES = Objective(prediction_type="v_prediction", zero_terminal_snr=True)
_LATENTS = _IMAGES.model_copy(update={"clip_sample": False})
_GUIDED: dict[str, Any] = {"conditioning_dropout": 0.1}

_TINY = Preset(block_out_channels=(16, 32, 64, 64), attention_levels=(3,), layers_per_block=1, norm_num_groups=8, objective=_IMAGES)
_TINY_LATENT = Preset(block_out_channels=(32, 64, 64), attention_levels=(2,), layers_per_block=1, norm_num_groups=8, latent=True, objective=_LATENTS)

# The network of teticio/audio-diffusion, the same for each of its resolutions and for latents: 113.7 M parameters.
_ORIGINAL = Preset(block_out_channels=(128, 128, 256, 256, 512, 512), attention_levels=(4,), layers_per_block=2, objective=_IMAGES)

PRESETS: dict[PresetName, Preset] = {
    "tiny": _TINY,
    "tiny-conditional": _TINY.model_copy(update={"conditional": True, "objective": _IMAGES.model_copy(update=_GUIDED)}),
    "tiny-latent": _TINY_LATENT,
    "tiny-conditional-latent": _TINY_LATENT.model_copy(update={"conditional": True, "objective": _LATENTS.model_copy(update=_GUIDED)}),
    "ddpm-64": _ORIGINAL,
    "ddpm-256": _ORIGINAL,
    "latent-256": _ORIGINAL.model_copy(update={"latent": True, "objective": _LATENTS}),
    "conditional-latent-512": Preset(
        block_out_channels=(128, 256, 512, 512),
        attention_levels=(0, 1, 2),
        layers_per_block=2,
        latent=True,
        conditional=True,
        objective=_LATENTS.model_copy(update=_GUIDED),
    ),
}
assert tuple(PRESETS) == get_args(PresetName)


class VaePreset(pydantic.BaseModel):
    """The shape of an autoencoder: every level but the last halves the image's sides."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    norm_num_groups: int = 32

    @property
    def factor(self) -> int:
        """Sides of an image over sides of its latent."""
        return 1 << (len(self.block_out_channels) - 1)


VAE_PRESETS: dict[VaePresetName, VaePreset] = {
    "vae-tiny": VaePreset(block_out_channels=(16, 32, 32), layers_per_block=1, latent_channels=4, norm_num_groups=8),
    # The VAE of teticio/latent-audio-diffusion-256: 83.7 M parameters.
    "vae-256": VaePreset(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=1),
}
assert tuple(VAE_PRESETS) == get_args(VaePresetName)


def objective_for(preset: PresetName, learned: Objective | None = None, **asked: Any) -> Objective:
    """The preset's objective, or the one that a model was `learned` with, with what is asked for in its place: fields of Objective by name,
    None for those as they are.

    Another prediction type brings its own zero_terminal_snr and clip_sample. Raises ValueError where the parts do not go together.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    if learned is None and given.get("conditioning_dropout") and not PRESETS[preset].conditional:
        raise ValueError(f"conditioning_dropout {given['conditioning_dropout']}: preset {preset} takes no encodings, leave it out")
    start = learned or PRESETS[preset].objective
    base = start.model_dump()
    if given.get("prediction_type", base["prediction_type"]) != base["prediction_type"]:
        del base["zero_terminal_snr"], base["clip_sample"]
        if not start.clip_sample and start.prediction_type != "flow":
            base["clip_sample"] = False
    return Objective.model_validate({**base, **given})


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
        raise ValueError(f"resolution {mel.x_res},{mel.y_res} does not suit preset {preset}{through}: both sides must divide by {multiple}")


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
        down_block_types=tuple(f"{attention if level in shape.attention_levels else ''}DownBlock2D" for level in levels),
        up_block_types=tuple(f"{attention if level in shape.attention_levels else ''}UpBlock2D" for level in reversed(levels)),
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
        raise ValueError(f"resolution {mel.x_res},{mel.y_res} does not suit preset {preset}: both sides must divide by {shape.factor}")
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


def network_digest(network: Any) -> str:
    """Names a network: 16 hex digits of the SHA-256 of its configuration and weights, whichever files they came from."""
    total = hashlib.sha256(json.dumps({key: value for key, value in network.config.items() if not key.startswith("_")}, sort_keys=True, default=str).encode())
    for name, weights in sorted(network.state_dict().items()):
        total.update(f"{name} {tuple(weights.shape)}".encode())
        total.update(weights.detach().cpu().float().contiguous().numpy())
    return total.hexdigest()[:16]
