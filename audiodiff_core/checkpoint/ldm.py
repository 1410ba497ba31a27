"""CompVis latent-diffusion's autoencoder, which the original's train_vae trained, as diffusers' AutoencoderKL.

LDM                                          AutoencoderKL
encoder.down.I.block.J                       encoder.down_blocks.I.resnets.J
encoder.down.I.downsample.conv               encoder.down_blocks.I.downsamplers.0.conv
decoder.up.I.block.J                         decoder.up_blocks.(levels - 1 - I).resnets.J      LDM counts levels from the finest
decoder.up.I.upsample.conv                   decoder.up_blocks.(levels - 1 - I).upsamplers.0.conv
.mid.block_1 .mid.block_2                    .mid_block.resnets.0 .mid_block.resnets.1
.mid.attn_1 norm q k v proj_out              .mid_block.attentions.0 group_norm to_q to_k to_v to_out.0     1x1 convolutions -> linear
nin_shortcut  norm_out                       conv_shortcut  conv_norm_out
conv_in conv_out quant_conv post_quant_conv  the same
loss.*                                       dropped: discriminator and perceptual network
"""

import re
from typing import Any

from audiodiff_core.files.model_files import CheckpointError
from audiodiff_core.files.weights import StateDict

LDM_NORM_GROUPS = 32
"""LDM's group norms, whose number of groups shows in no weight."""

TRAIN_VAE_SAMPLE_SIZE = 256
"""The resolution of the original's autoencoder recipe; convolutions take any, so that no weight shows it."""

_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_RULES = [
    (re.compile(r"encoder\.down\.(\d+)\.block\.(\d+)\.(.+)"), r"encoder.down_blocks.\1.resnets.\2.\3"),
    (re.compile(r"encoder\.down\.(\d+)\.downsample\.conv\.(.+)"), r"encoder.down_blocks.\1.downsamplers.0.conv.\2"),
    (re.compile(r"decoder\.up\.(\d+)\.block\.(\d+)\.(.+)"), r"decoder.up_blocks.\1.resnets.\2.\3"),
    (re.compile(r"decoder\.up\.(\d+)\.upsample\.conv\.(.+)"), r"decoder.up_blocks.\1.upsamplers.0.conv.\2"),
    (re.compile(r"(encoder|decoder)\.mid\.block_1\.(.+)"), r"\1.mid_block.resnets.0.\2"),
    (re.compile(r"(encoder|decoder)\.mid\.block_2\.(.+)"), r"\1.mid_block.resnets.1.\2"),
    (re.compile(r"(encoder|decoder)\.norm_out\.(.+)"), r"\1.conv_norm_out.\2"),
]
_MID_ATTENTION = re.compile(rf"(encoder|decoder)\.mid\.attn_1\.({'|'.join(_ATTENTION)})\.(weight|bias)")
_UP_BLOCK = re.compile(r"decoder\.up_blocks\.(\d+)\.")
_LEVEL = re.compile(r"encoder\.down\.(\d+)\.block\.(\d+)\.conv1\.weight")


def to_diffusers(weights: StateDict, changes: list[str]) -> tuple[dict[str, Any], StateDict]:
    """The configuration that the shapes of LDM's weights imply, and the weights by AutoencoderKL's names.

    A Lightning checkpoint's weights of the loss are dropped. Raises CheckpointError where the shapes are of no such network;
    weights that the network does not have keep their names, so that loading reports them.
    """
    own = {name: weight for name, weight in weights.items() if not name.startswith("loss.")}
    config = _config(own)
    levels = len(config["block_out_channels"])
    renamed = {}
    for name, weight in own.items():
        if attention := _MID_ATTENTION.fullmatch(name):
            coder, layer, kind = attention.groups()
            linear = weight[..., 0, 0] if weight.ndim == 4 and weight.shape[2:] == (1, 1) else weight
            renamed[f"{coder}.mid_block.attentions.0.{_ATTENTION[layer]}.{kind}"] = linear
        else:
            renamed[_renamed(name, levels)] = weight
    changes.append(
        f"autoencoder: {len(renamed.keys() - weights.keys())} weights renamed from LDM's names to diffusers'"
    )
    if dropped := len(weights) - len(own):
        changes.append(f"autoencoder: {dropped} weights of the training loss dropped")
    shape = f"channels {config['block_out_channels']}, {config['layers_per_block']} layers per block"
    changes.append(f"autoencoder: configuration from the weights' shapes: {shape}")
    changes.append(
        f"autoencoder: sample_size {TRAIN_VAE_SAMPLE_SIZE} and diffusers' default scaling_factor assumed, which LDM's checkpoints do not state"
    )
    return config, renamed


def _renamed(name: str, levels: int) -> str:
    name = name.replace(".nin_shortcut.", ".conv_shortcut.")
    for pattern, replacement in _RULES:
        if pattern.fullmatch(name):
            name = pattern.sub(replacement, name)
            return _UP_BLOCK.sub(lambda level: f"decoder.up_blocks.{levels - 1 - int(level[1])}.", name)
    return name


def _config(weights: StateDict) -> dict[str, Any]:
    blocks: dict[int, list[int]] = {}  # output channels of each block of each level
    for name, weight in weights.items():
        if found := _LEVEL.fullmatch(name):
            blocks.setdefault(int(found[1]), []).append(weight.shape[0])
    try:
        first, last, quant = (
            weights[f"{name}.weight"] for name in ("encoder.conv_in", "decoder.conv_out", "post_quant_conv")
        )
        if (
            not blocks
            or sorted(blocks) != list(range(len(blocks)))
            or len({len(level) for level in blocks.values()}) != 1
        ):
            raise CheckpointError(
                f"levels {sorted(blocks)} with {[len(blocks[level]) for level in sorted(blocks)]} blocks are of no LDM autoencoder"
            )
        z_channels, embed_dim = quant.shape[:2]
        in_channels, out_channels = first.shape[1], last.shape[0]
    except (KeyError, IndexError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"is not an LDM autoencoder: it lacks {error}, or its shape is another") from error
    if z_channels != embed_dim:
        raise CheckpointError(
            f"LDM autoencoder with embed_dim {embed_dim} and z_channels {z_channels}: AutoencoderKL has one number for both"
        )
    levels = [blocks[level][0] for level in sorted(blocks)]
    return {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "latent_channels": z_channels,
        "block_out_channels": levels,
        "layers_per_block": len(blocks[0]),
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "norm_num_groups": LDM_NORM_GROUPS,
        "sample_size": TRAIN_VAE_SAMPLE_SIZE,
        "act_fn": "silu",
    }
