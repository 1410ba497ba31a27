"""Conversion of CompVis latent-diffusion autoencoders to diffusers' AutoencoderKL.

The original project's train_vae trains such autoencoders. Their weights have the following names:

LDM                                          AutoencoderKL
encoder.down.I.block.J                       encoder.down_blocks.I.resnets.J
encoder.down.I.downsample.conv               encoder.down_blocks.I.downsamplers.0.conv
decoder.up.I.block.J                         decoder.up_blocks.(levels - 1 - I).resnets.J (1)
decoder.up.I.upsample.conv                   decoder.up_blocks.(levels - 1 - I).upsamplers.0.conv (1)
.mid.block_1 .mid.block_2                    .mid_block.resnets.0 .mid_block.resnets.1
.mid.attn_1 norm q k v proj_out              .mid_block.attentions.0 group_norm to_q to_k to_v to_out.0 (2)
nin_shortcut  norm_out                       conv_shortcut  conv_norm_out
conv_in conv_out quant_conv post_quant_conv  the same
loss.*                                       dropped: discriminator and perceptual network

(1) In the decoder, LDM numbers levels from the finest, and diffusers from the coarsest.
(2) 1x1 convolutions become linear layers.
"""

import re
from typing import Any

from audiodiff_core.files.model_files import CheckpointError
from audiodiff_core.files.weights import StateDict

LDM_NORM_GROUPS = 32
"""Number of groups of LDM's group norms. It cannot be inferred from the weights."""

TRAIN_VAE_SAMPLE_SIZE = 256
"""Resolution of the original project's training recipe, in pixels. It cannot be inferred from the weights."""

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
    """Convert LDM's weights to those of AutoencoderKL, and infer the configuration from their shapes.

    Weights of the training loss are dropped. Unknown weights keep their names, so that loading reports them.

    Args:
        weights: Weights of an LDM checkpoint.
        changes: List to which a line is appended for every change.

    Returns:
        The configuration and the weights of an AutoencoderKL.

    Raises:
        CheckpointError: If the shapes are not those of an LDM autoencoder.
    """
    network_weights = {name: weight for name, weight in weights.items() if not name.startswith("loss.")}
    config = _config(network_weights)
    levels = len(config["block_out_channels"])
    renamed = {}
    for name, weight in network_weights.items():
        if attention := _MID_ATTENTION.fullmatch(name):
            coder, layer, kind = attention.groups()
            linear = weight[..., 0, 0] if weight.ndim == 4 and weight.shape[2:] == (1, 1) else weight
            renamed[f"{coder}.mid_block.attentions.0.{_ATTENTION[layer]}.{kind}"] = linear
        else:
            renamed[_renamed(name, levels)] = weight
    changes.append(
        f"autoencoder: renamed {len(renamed.keys() - weights.keys())} weights from LDM's names to those of diffusers"
    )
    if dropped := len(weights) - len(network_weights):
        changes.append(f"autoencoder: dropped {dropped} weights of the training loss")
    shape = f"channels {config['block_out_channels']}, {config['layers_per_block']} layers per block"
    changes.append(f"autoencoder: inferred the configuration from the shapes of the weights: {shape}")
    changes.append(
        f"autoencoder: assumed sample_size {TRAIN_VAE_SAMPLE_SIZE} and diffusers' default scaling_factor, "
        "which LDM's checkpoints do not contain"
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
        if match := _LEVEL.fullmatch(name):
            blocks.setdefault(int(match[1]), []).append(weight.shape[0])
    try:
        conv_in, conv_out, quant_conv = (
            weights[f"{name}.weight"] for name in ("encoder.conv_in", "decoder.conv_out", "post_quant_conv")
        )
        if (
            not blocks
            or sorted(blocks) != list(range(len(blocks)))
            or len({len(level) for level in blocks.values()}) != 1
        ):
            raise CheckpointError(
                f"not an LDM autoencoder: it has levels {sorted(blocks)} with "
                f"{[len(blocks[level]) for level in sorted(blocks)]} blocks"
            )
        z_channels, embed_dim = quant_conv.shape[:2]
        in_channels, out_channels = conv_in.shape[1], conv_out.shape[0]
    except (KeyError, IndexError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"not an LDM autoencoder: a weight is missing or has the wrong shape ({error})"
        ) from error
    if z_channels != embed_dim:
        raise CheckpointError(
            f"LDM autoencoder with embed_dim {embed_dim} and z_channels {z_channels}: "
            "AutoencoderKL requires them to be equal"
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
