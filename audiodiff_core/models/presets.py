"""Named presets of networks and autoencoders."""

from typing import Any, Literal, get_args

import pydantic

from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.models.folding import UNFOLDED, Fold

PresetName = Literal[
    "tiny",
    "tiny-conditional",
    "tiny-folded",
    "tiny-latent",
    "tiny-conditional-bands",
    "tiny-conditional-folded",
    "tiny-conditional-latent",
    "small",
    "small-conditional",
    "ddpm-64",
    "ddpm-256",
    "latent-256",
    "conditional-latent-512",
]
VaePresetName = Literal["vae-tiny", "vae-256"]


class Preset(pydantic.BaseModel):
    """Shape of a denoising network, and its default training objective."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    block_out_channels: tuple[int, ...]
    attention_levels: tuple[int, ...] = pydantic.Field(description="levels with attention, 0 is full resolution")
    layers_per_block: int
    norm_num_groups: int = 32
    attention_head_dim: int = pydantic.Field(
        8,
        description="size of an attention head; in a conditional network, the number of heads (as diffusers names it)",
    )
    fold: Fold = pydantic.Field(UNFOLDED, description="bands and columns of the blocks that the network works on")
    latent: bool = pydantic.Field(
        False, description="whether the network works on the latents of a VAE instead of images"
    )
    conditional: bool = pydantic.Field(
        False, description="whether the network is conditioned on an encoding, by cross-attention"
    )
    beats: bool = pydantic.Field(
        False, description="whether a conditional network also takes its encoding as in `models.conditioned`"
    )
    objective: Objective

    @property
    def side_multiples(self) -> tuple[int, int]:
        """Numbers that must divide the height and the width of a sample.

        Every level of the network but the last halves the sides, which folding divides before.
        """
        bands, columns = self.fold
        halvings = len(self.block_out_channels) - 1
        return bands << halvings, columns << halvings


# Of the objectives that diffusers' own pipeline can sample, v_prediction with zero terminal SNR learns fastest.
# Latents have no fixed range to clip to.
_IMAGE_OBJECTIVE = Objective(prediction_type="v_prediction", zero_terminal_snr=True)
_LATENT_OBJECTIVE = _IMAGE_OBJECTIVE.model_copy(update={"clip_sample": False})
_GUIDANCE_DROPOUT: dict[str, Any] = {"conditioning_dropout": 0.1}
_CONDITIONAL: dict[str, Any] = {
    "conditional": True,
    "objective": _IMAGE_OBJECTIVE.model_copy(update=_GUIDANCE_DROPOUT),
}

_TINY = Preset(
    block_out_channels=(16, 32, 64, 64),
    attention_levels=(3,),
    layers_per_block=1,
    norm_num_groups=8,
    objective=_IMAGE_OBJECTIVE,
)
# One level less for the same receptive field takes less time, so that a short training has more steps.
_TINY_FOLDED = _TINY.model_copy(update={"block_out_channels": (32, 64, 64), "attention_levels": (2,), "fold": (2, 2)})
_TINY_LATENT = Preset(
    block_out_channels=(32, 64, 64),
    attention_levels=(2,),
    layers_per_block=1,
    norm_num_groups=8,
    latent=True,
    objective=_LATENT_OBJECTIVE,
)

_SMALL = Preset(
    block_out_channels=(64, 128, 192, 256),
    attention_levels=(2, 3),
    layers_per_block=2,
    attention_head_dim=32,
    objective=_IMAGE_OBJECTIVE,
)

# teticio/audio-diffusion uses this network of 113.7 M parameters at every resolution, and for latents.
_ORIGINAL = Preset(
    block_out_channels=(128, 128, 256, 256, 512, 512),
    attention_levels=(4,),
    layers_per_block=2,
    objective=_IMAGE_OBJECTIVE,
)

PRESETS: dict[PresetName, Preset] = {
    "tiny": _TINY,
    "tiny-conditional": _TINY.model_copy(update=_CONDITIONAL),
    "tiny-folded": _TINY_FOLDED,
    "tiny-latent": _TINY_LATENT,
    "tiny-conditional-bands": Preset(
        block_out_channels=(64, 96, 128),
        attention_levels=(2,),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        fold=(16, 1),  # a note is a pattern of channels, whose pitch cannot drift
        beats=True,
        conditional=True,
        objective=_IMAGE_OBJECTIVE.model_copy(update=_GUIDANCE_DROPOUT),
    ),
    "tiny-conditional-folded": _TINY_FOLDED.model_copy(update=_CONDITIONAL),
    "tiny-conditional-latent": _TINY_LATENT.model_copy(
        update={"conditional": True, "objective": _LATENT_OBJECTIVE.model_copy(update=_GUIDANCE_DROPOUT)}
    ),
    "small": _SMALL,
    "small-conditional": _SMALL.model_copy(update={**_CONDITIONAL, "attention_head_dim": 8}),
    "ddpm-64": _ORIGINAL,
    "ddpm-256": _ORIGINAL,
    "latent-256": _ORIGINAL.model_copy(update={"latent": True, "objective": _LATENT_OBJECTIVE}),
    "conditional-latent-512": Preset(
        block_out_channels=(128, 256, 512, 512),
        attention_levels=(0, 1, 2),
        layers_per_block=2,
        latent=True,
        conditional=True,
        objective=_LATENT_OBJECTIVE.model_copy(update=_GUIDANCE_DROPOUT),
    ),
}
assert tuple(PRESETS) == get_args(PresetName)


class VaePreset(pydantic.BaseModel):
    """Shape of an autoencoder, in which every level but the last halves the sides of the image."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    norm_num_groups: int = 32

    @property
    def factor(self) -> int:
        """Ratio of a side of an image to the same side of its latent."""
        return 1 << (len(self.block_out_channels) - 1)


VAE_PRESETS: dict[VaePresetName, VaePreset] = {
    "vae-tiny": VaePreset(block_out_channels=(16, 32, 32), layers_per_block=1, latent_channels=4, norm_num_groups=8),
    # The VAE of teticio/latent-audio-diffusion-256: 83.7 M parameters.
    "vae-256": VaePreset(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=1),
}
assert tuple(VAE_PRESETS) == get_args(VaePresetName)


def objective_for(
    preset: PresetName, trained: Objective | None = None, latent: bool = False, **overrides: Any
) -> Objective:
    """Return the training objective of a network.

    A different `prediction_type` resets `zero_terminal_snr`, `clip_sample` and `timestep_sampling` to the defaults of
    the new type. A value False of `clip_sample` is kept, unless the old type is `flow`, which never clips. Latents are
    never clipped.

    Args:
        preset: The preset of the network.
        trained: The objective of the model from which training starts. None starts from the objective of the preset.
        latent: Whether a trained model works on latents.
        **overrides: Fields of Objective to replace, by name. None keeps the present value.

    Raises:
        ValueError: If the fields contradict each other, or do not fit the preset.
    """
    changes = {name: value for name, value in overrides.items() if value is not None}
    if trained is None and changes.get("conditioning_dropout") and not PRESETS[preset].conditional:
        raise ValueError(
            f"conditioning_dropout {changes['conditioning_dropout']}: preset {preset} takes no encodings, omit it"
        )
    start = trained or PRESETS[preset].objective
    fields = start.model_dump()
    if changes.get("prediction_type", fields["prediction_type"]) != fields["prediction_type"]:
        del fields["zero_terminal_snr"], fields["clip_sample"], fields["timestep_sampling"]
        if latent or (not start.clip_sample and start.prediction_type != "flow"):
            fields["clip_sample"] = False
    return Objective.model_validate({**fields, **changes})
