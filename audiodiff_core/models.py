"""The networks by name. diffusers builds them; a preset says which, and the data say at what size."""

from typing import Any, Literal, get_args

import pydantic
from diffusers import UNet2DModel

from audiodiff_core.mel import MelConfig
from audiodiff_core.objectives import Objective

PresetName = Literal["tiny", "ddpm-64", "ddpm-256"]


class Preset(pydantic.BaseModel):
    """A network's shape and the objective that it is trained for unless told otherwise."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    block_out_channels: tuple[int, ...]
    attention_levels: tuple[int, ...] = pydantic.Field(description="levels with self-attention, 0 = full resolution")
    layers_per_block: int
    norm_num_groups: int = 32
    attention_head_dim: int = 8
    objective: Objective

    @property
    def side_multiple(self) -> int:
        """Image sides must divide by this: every level but the last halves them."""
        return 1 << (len(self.block_out_channels) - 1)


# The network of teticio/audio-diffusion, the same for each of its resolutions: 113.7 M parameters, epsilon prediction.
_ORIGINAL = Preset(
    block_out_channels=(128, 128, 256, 256, 512, 512),
    attention_levels=(4,),
    layers_per_block=2,
    objective=Objective(prediction_type="epsilon", zero_terminal_snr=False),
)

PRESETS: dict[PresetName, Preset] = {
    "tiny": Preset(
        block_out_channels=(16, 32, 64, 64),
        attention_levels=(3,),
        layers_per_block=1,
        norm_num_groups=8,
        objective=Objective(prediction_type="v_prediction", zero_terminal_snr=True),
    ),
    "ddpm-64": _ORIGINAL,
    "ddpm-256": _ORIGINAL,
}
assert tuple(PRESETS) == get_args(PresetName)


def check_resolution(preset: PresetName, mel: MelConfig) -> None:
    """Raises ValueError where the network cannot halve an image of this mel as often as it needs to."""
    multiple = PRESETS[preset].side_multiple
    if mel.x_res % multiple or mel.y_res % multiple:
        raise ValueError(f"resolution {mel.x_res},{mel.y_res} does not suit preset {preset}: both sides must divide by {multiple}")


def build_unet(preset: PresetName, mel: MelConfig) -> UNet2DModel:
    """A freshly initialised network for images of `mel`: (batch, 1, y_res, x_res) and timesteps (batch,) -> the same shape."""
    check_resolution(preset, mel)
    shape = PRESETS[preset]
    levels = range(len(shape.block_out_channels))
    return UNet2DModel(
        sample_size=(mel.y_res, mel.x_res),
        in_channels=1,
        out_channels=1,
        layers_per_block=shape.layers_per_block,
        block_out_channels=shape.block_out_channels,
        down_block_types=tuple(_block("Down", level in shape.attention_levels) for level in levels),
        up_block_types=tuple(_block("Up", level in shape.attention_levels) for level in reversed(levels)),
        norm_num_groups=shape.norm_num_groups,
        attention_head_dim=shape.attention_head_dim,
    )


def _block(direction: Literal["Down", "Up"], attention: bool) -> str:
    return f"{'Attn' if attention else ''}{direction}Block2D"


def parameter_count(network: Any) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
