"""Presets of networks: shapes and training objectives by name."""

from typing import Any, Literal, get_args

import pydantic

from audiodiff_core.diffusion.objectives import Objective

PresetName = Literal[
    "tiny",
    "tiny-conditional",
    "tiny-latent",
    "tiny-conditional-latent",
    "ddpm-64",
    "ddpm-256",
    "latent-256",
    "conditional-latent-512",
]
VaePresetName = Literal["vae-tiny", "vae-256"]


class Preset(pydantic.BaseModel):
    """A network's shape and the objective that it is trained for unless told otherwise."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    block_out_channels: tuple[int, ...]
    attention_levels: tuple[int, ...] = pydantic.Field(description="levels with attention, 0 = full resolution")
    layers_per_block: int
    norm_num_groups: int = 32
    attention_head_dim: int = pydantic.Field(
        8, description="size of an attention head; in a conditional network the number of heads (diffusers' naming)"
    )
    latent: bool = pydantic.Field(False, description="whether it works on a VAE's latents rather than on images")
    conditional: bool = pydantic.Field(
        False, description="whether an encoding says what is wanted, through cross-attention"
    )
    objective: Objective

    @property
    def side_multiple(self) -> int:
        """Sides of what the network sees must divide by this: every level but the last halves them."""
        return 1 << (len(self.block_out_channels) - 1)


# Predicting v down to pure noise learns fastest of what diffusers' own pipeline can sample. Latents have no range to clip to.
_IMAGES = Objective(prediction_type="v_prediction", zero_terminal_snr=True)
_LATENTS = _IMAGES.model_copy(update={"clip_sample": False})
_GUIDED: dict[str, Any] = {"conditioning_dropout": 0.1}

_TINY = Preset(
    block_out_channels=(16, 32, 64, 64), attention_levels=(3,), layers_per_block=1, norm_num_groups=8, objective=_IMAGES
)
_TINY_LATENT = Preset(
    block_out_channels=(32, 64, 64),
    attention_levels=(2,),
    layers_per_block=1,
    norm_num_groups=8,
    latent=True,
    objective=_LATENTS,
)

# The network of teticio/audio-diffusion, the same for each of its resolutions and for latents: 113.7 M parameters.
_ORIGINAL = Preset(
    block_out_channels=(128, 128, 256, 256, 512, 512), attention_levels=(4,), layers_per_block=2, objective=_IMAGES
)

PRESETS: dict[PresetName, Preset] = {
    "tiny": _TINY,
    "tiny-conditional": _TINY.model_copy(update={"conditional": True, "objective": _IMAGES.model_copy(update=_GUIDED)}),
    "tiny-latent": _TINY_LATENT,
    "tiny-conditional-latent": _TINY_LATENT.model_copy(
        update={"conditional": True, "objective": _LATENTS.model_copy(update=_GUIDED)}
    ),
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
        raise ValueError(
            f"conditioning_dropout {given['conditioning_dropout']}: preset {preset} takes no encodings, leave it out"
        )
    start = learned or PRESETS[preset].objective
    base = start.model_dump()
    if given.get("prediction_type", base["prediction_type"]) != base["prediction_type"]:
        del base["zero_terminal_snr"], base["clip_sample"]
        if not start.clip_sample and start.prediction_type != "flow":
            base["clip_sample"] = False
    return Objective.model_validate({**base, **given})
