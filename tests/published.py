"""The seven models of the original, rebuilt with random weights in each published layout.

The configurations are those of the files on the Hub. Where the size of a file on the Hub is known, the rebuilt file has
the same size, which the tests check.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel

ENCODING_DIM = 100
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
WEIGHTS = "diffusion_pytorch_model.bin"

_DDPM_PIXEL = {"A-0.2.2": 180, "A-0.2.4": 180, "C": 244, "D": 238}


@dataclass(frozen=True)
class Published:
    """A model and its layouts.

    `layouts` maps each layout to the size of its model_index.json in bytes. `version` is the version of diffusers that
    wrote the later layouts.
    """

    name: str
    kind: Literal["pixel", "latent", "conditional"]
    side: int
    layouts: dict[str, int] = field(hash=False)
    scheduler: str = "DDPMScheduler"
    version: str = "0.8.0.dev0"

    @property
    def unet_class(self) -> Any:
        return UNet2DConditionModel if self.kind == "conditional" else UNet2DModel

    @property
    def mel(self) -> dict[str, int]:
        n_fft = 2_048 if self.side == 256 else 2_000
        return {
            "hop_length": 512,
            "n_fft": n_fft,
            "n_iter": 32,
            "sample_rate": 22_050,
            "top_db": 80,
            "x_res": self.side,
            "y_res": self.side,
        }

    def unet_config(self, divisor: int) -> dict[str, Any]:
        """Return the configuration of the network with widths divided by `divisor`.

        For divisors above 4, the group norms have fewer groups.
        """
        if self.kind == "conditional":
            return {
                **({} if divisor <= 4 else {"norm_num_groups": 128 // divisor}),
                "block_out_channels": [width // divisor for width in (128, 256, 512, 512)],
                "cross_attention_dim": ENCODING_DIM,
                "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
                "in_channels": 1,
                "layers_per_block": 2,
                "out_channels": 1,
                "sample_size": self.side // 8,
                "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
            }
        return {
            "act_fn": "silu",
            "attention_head_dim": 8,
            "block_out_channels": [width // divisor for width in (128, 128, 256, 256, 512, 512)],
            "center_input_sample": False,
            "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
            "downsample_padding": 1,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "in_channels": 1,
            "layers_per_block": 2,
            "mid_block_scale_factor": 1,
            "norm_eps": 1e-05,
            "norm_num_groups": min(32, 128 // divisor),
            "out_channels": 1,
            "sample_size": self.side if self.kind == "pixel" else self.side // 8,
            "time_embedding_type": "positional",
            "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
        }

    def vae_config(self, divisor: int) -> dict[str, Any]:
        """Return the configuration of 2022, before diffusers stored the scaling factor."""
        return {
            "act_fn": "silu",
            "block_out_channels": [width // divisor for width in (128, 256, 512, 512)],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "in_channels": 1,
            "latent_channels": 1,
            "layers_per_block": 2,
            "norm_num_groups": min(32, 128 // divisor),
            "out_channels": 1,
            "sample_size": self.side,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
        }

    @property
    def scheduler_config(self) -> dict[str, Any]:
        own = (
            {"variance_type": "fixed_small"}
            if self.scheduler == "DDPMScheduler"
            else {"set_alpha_to_one": True, "steps_offset": 0}
        )
        betas = {"beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001, "trained_betas": None}
        return {**betas, "clip_sample": True, "num_train_timesteps": 1_000, **own}

    def index(self, layout: str) -> dict[str, Any]:
        parts = {"scheduler": ["diffusers", self.scheduler], "unet": ["diffusers", self.unet_class.__name__]}
        if self.kind != "pixel":
            parts["vqvae"] = ["diffusers", "AutoencoderKL"]
        match layout:
            case "A-0.2.2" | "A-0.2.4":
                return {"_class_name": "DDPMPipeline", "_diffusers_version": layout[2:], **parts}
            case "B":
                return {"_class_name": "LatentAudioDiffusionPipeline", "_diffusers_version": "0.4.1", **parts}
            case _:
                mel = {"C": "audio_diffusion", "D": "diffusers", "F": "audiodiffusion.mel"}[layout]
                return {
                    "_class_name": "AudioDiffusionPipeline",
                    "_diffusers_version": self.version,
                    "mel": [mel, "Mel"],
                    **parts,
                }


MODELS = [
    Published("audio-diffusion-256", "pixel", 256, _DDPM_PIXEL),
    Published("audio-diffusion-breaks-256", "pixel", 256, {"C": 244, "D": 238}),
    Published("audio-diffusion-instrumental-hiphop-256", "pixel", 256, {"D": 238}),
    Published("audio-diffusion-ddim-256", "pixel", 256, {"C": 244, "D": 238}, scheduler="DDIMScheduler"),
    Published("latent-audio-diffusion-256", "latent", 256, {"B": 251, "C": 299, "D": 293}),
    Published("latent-audio-diffusion-512", "latent", 512, {"C": 295, "D": 289}, version="0.10.2"),
    Published("conditional-latent-audio-diffusion-512", "conditional", 512, {"C": 304, "D": 298}, version="0.10.2"),
]
BY_NAME = {model.name: model for model in MODELS}


@dataclass(frozen=True)
class Networks:
    """Networks of a published model with random weights, with widths divided by `divisor`."""

    divisor: int
    unet: Any
    vae: Any

    @classmethod
    def build(cls, model: Published, divisor: int = 16) -> "Networks":
        torch.manual_seed(0)
        unet = model.unet_class(**model.unet_config(divisor))
        return cls(divisor, unet, None if model.kind == "pixel" else AutoencoderKL(**model.vae_config(divisor)))


def write(folder: Path, model: Published, layout: str, networks: Networks) -> Path:
    """Write the model as on the Hub: pickled weights, and attention layers with their old names."""
    _json(folder / "model_index.json", model.index(layout))
    version = model.index(layout)["_diffusers_version"]
    _json(
        folder / "scheduler" / "scheduler_config.json",
        {"_class_name": model.scheduler, "_diffusers_version": version, **model.scheduler_config},
    )
    if "mel" in model.index(layout):
        _json(folder / "mel" / "mel_config.json", {"_class_name": "Mel", "_diffusers_version": version, **model.mel})
    _json(
        folder / "unet" / "config.json",
        {
            "_class_name": model.unet_class.__name__,
            "_diffusers_version": version,
            **model.unet_config(networks.divisor),
        },
    )
    torch.save(old_names(networks.unet), folder / "unet" / WEIGHTS)
    if networks.vae is not None:
        _json(
            folder / "vqvae" / "config.json",
            {"_class_name": "AutoencoderKL", "_diffusers_version": version, **model.vae_config(networks.divisor)},
        )
        torch.save(old_names(networks.vae), folder / "vqvae" / WEIGHTS)
    return folder


def old_names(network: Any) -> dict[str, torch.Tensor]:
    """Return the weights with the names of diffusers' AttentionBlock, which was replaced in 0.15.

    Attention within transformers never had the old names.
    """
    return dict(_renamed(network))


def _renamed(network: Any) -> Iterator[tuple[str, torch.Tensor]]:
    blocks = {name for name, module in network.named_modules() if getattr(module, "_from_deprecated_attn_block", False)}
    for name, weight in network.state_dict().items():
        parts = re.fullmatch(r"(.+)\.(to_q|to_k|to_v|to_out\.0)\.(weight|bias)", name)
        yield (f"{parts[1]}.{OLD_NAMES[parts[2]]}.{parts[3]}" if parts and parts[1] in blocks else name), weight


def _json(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
