"""Configuration and weights -> diffusers' networks and schedulers, within bounds: a configuration from outside cannot make a giant."""

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)

from audiodiff_core.checkpoint.layout import Layout
from audiodiff_core.files.model_files import CONFIG, MODEL_INDEX, SCHEDULER_CONFIG, CheckpointError, read_json
from audiodiff_core.files.weight_files import weight_files
from audiodiff_core.files.weights import StateDict, fill, read_weight_files

UNETS: dict[str, Any] = {known.__name__: known for known in (UNet2DModel, UNet2DConditionModel)}
SAVED_SCHEDULERS: dict[str, Any] = {
    known.__name__: known for known in (DDPMScheduler, DDIMScheduler, FlowMatchEulerDiscreteScheduler)
}
"""The schedulers that a model is stored with; which ones can sample from it is another matter."""

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
"""What a network of DDPM or DDIM can predict; a flow-match scheduler has one way only, and states none."""

LARGEST_NUMBER = 65_536
MOST_LEVELS = 12
MOST_LAYERS = 16
MOST_PARAMETERS = 1 << 32

# Inputs beside image, timestep and encoding, and shifts of the latents, which no model of this kind has.
_UNUSED_UNET = (
    "class_embed_type",
    "num_class_embeds",
    "addition_embed_type",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
)
_UNUSED_AUTOENCODER = ("shift_factor", "latents_mean", "latents_std")


def load_unet(layout: Layout, changes: list[str]) -> Any:
    """The denoising network on the CPU: of images or latents (batch, channels, height, width), conditional iff it has a cross_attention_dim."""
    if layout.unet_class not in UNETS:
        raise CheckpointError(
            f"network {layout.unet_class} is not one that can be loaded: {' and '.join(UNETS)} of diffusers are"
        )
    unet = _load(UNETS[layout.unet_class], layout.root / "unet", changes)
    config = unet.config
    _refuse(config, _UNUSED_UNET, "unet")
    match config.sample_size:
        case int(side) if side > 0:
            pass
        case [int(height), int(width)] if height > 0 and width > 0:
            pass
        case other:
            raise CheckpointError(f"unet: sample_size {other} is neither a side nor (height, width)")
    if config.in_channels != config.out_channels:
        raise CheckpointError(f"unet: in_channels {config.in_channels} and out_channels {config.out_channels} differ")
    if not isinstance(config.get("cross_attention_dim"), int | None):
        raise CheckpointError(f"unet: cross_attention_dim {config.cross_attention_dim} is not one number")
    return unet


def load_autoencoder(folder: Path, changes: list[str]) -> Any:
    """The autoencoder of one-channel images in `folder`, on the CPU; one that states no scaling_factor has 0.18215, as they all had."""
    vae = _load(AutoencoderKL, folder, changes)
    check_autoencoder(vae)
    return vae


def check_autoencoder(vae: Any) -> None:
    config = vae.config
    _refuse(config, _UNUSED_AUTOENCODER, "autoencoder")
    if (config.in_channels, config.out_channels) != (1, 1):
        raise CheckpointError(
            f"autoencoder for images of {config.in_channels} channels in, {config.out_channels} out: mel images have 1"
        )
    if not isinstance(config.scaling_factor, int | float) or not 0 < config.scaling_factor < math.inf:
        raise CheckpointError(f"autoencoder: scaling_factor {config.scaling_factor} is not a positive number")


def load_scheduler(layout: Layout, changes: list[str]) -> Any:
    """The noise schedule that the model was trained with, and what the network predicts."""
    if layout.scheduler_class not in SAVED_SCHEDULERS:
        raise CheckpointError(
            f"scheduler {layout.scheduler_class} is not one that can be loaded: {', '.join(SAVED_SCHEDULERS)} of diffusers are"
        )
    config = read_json(layout.root, SCHEDULER_CONFIG)
    _check_bounds(config, "scheduler")
    stated = config.get("_class_name", layout.scheduler_class)
    if stated != layout.scheduler_class:
        if {stated, layout.scheduler_class} != {
            "DDPMScheduler",
            "DDIMScheduler",
        }:  # these two share their noise schedule
            raise CheckpointError(f"{SCHEDULER_CONFIG} is of a {stated}, {MODEL_INDEX} names {layout.scheduler_class}")
        changes.append(f"scheduler: configuration of a {stated} read as {layout.scheduler_class}")
    try:
        config = {key: value for key, value in config.items() if not key.startswith("_")}
        scheduler = _with_all_stated(SAVED_SCHEDULERS[layout.scheduler_class], config)
    except Exception as error:  # whatever diffusers raises for a configuration that is none
        raise CheckpointError(
            f"scheduler: its configuration cannot be used ({type(error).__name__}: {error})"
        ) from error
    levels = scheduler.betas if hasattr(scheduler, "betas") else scheduler.sigmas
    if len(levels) < 1 or not bool(torch.isfinite(levels).all()):
        raise CheckpointError("scheduler: its configuration gives levels of noise that are not finite")
    if (prediction := scheduler.config.get("prediction_type", PREDICTION_TYPES[0])) not in PREDICTION_TYPES:
        raise CheckpointError(
            f"scheduler: prediction_type {prediction} is not known: {', '.join(PREDICTION_TYPES)} are"
        )
    _note_settings(scheduler.config, config, "scheduler", changes)
    return scheduler


def _with_all_stated(kind: Any, config: dict[str, Any]) -> Any:
    """A scheduler whose defaults count as stated: diffusers would replace them by another scheduler's own when one is made from it."""
    by_default = kind(**kind.extract_init_dict(config)[0])
    return kind(**{key: value for key, value in by_default.config.items() if not key.startswith("_")})


def _load(kind: Any, folder: Path, changes: list[str]) -> Any:
    config = read_json(folder.parent, f"{folder.name}/{CONFIG}")
    if config.get("_class_name", kind.__name__) != kind.__name__:
        raise CheckpointError(f"{folder.name}/{CONFIG} is of a {config['_class_name']}, {kind.__name__} is expected")
    files = weight_files(folder)
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    network = assemble(kind, config, read_weight_files(files), changes, folder.name)
    if any(file.suffix != ".safetensors" for file in files):
        changes.append(f"{folder.name}: pickle -> safetensors")
    if len(files) > 1:
        changes.append(f"{folder.name}: {len(files)} shards -> one file")
    if kind is AutoencoderKL and "scaling_factor" not in config:
        changes.append(f"{folder.name}: scaling_factor {network.config.scaling_factor} by default")
    _note_settings(network.config, config, folder.name, changes)
    return network


def _note_settings(config: Any, stated: dict[str, Any], part: str, changes: list[str]) -> None:
    """Notes what diffusers made of the `stated` settings: unknown ones are not kept, and defaults are stored from now on."""
    if unknown := sorted(stated.keys() - config.keys()):
        changes.append(f"{part}: unknown settings dropped: {', '.join(unknown)}")
    if defaults := sorted(key for key in config if not key.startswith("_") and key not in stated):
        decided = ", ".join(f"{key} {config[key]}" for key in defaults if config[key])
        changes.append(
            f"{part}: {len(defaults)} settings stated that were diffusers' defaults: {decided or 'none of them in use'}"
        )


def assemble(kind: Any, config: dict[str, Any], weights: StateDict, changes: list[str], part: str) -> Any:
    """The network of a configuration with these weights. It is built without memory first, so that nothing is allotted for what does not fit."""
    _check_bounds(config, part)
    try:
        with torch.device("meta"):
            network = kind(**kind.extract_init_dict(config)[0])
    except Exception as error:  # whatever diffusers raises for a configuration that is none
        raise CheckpointError(f"{part}: its configuration cannot be used ({type(error).__name__}: {error})") from error
    if (count := sum(parameter.numel() for parameter in network.parameters())) > MOST_PARAMETERS:
        raise CheckpointError(f"{part}: its configuration makes {count:,} parameters, {MOST_PARAMETERS:,} are loaded")
    fill(network, weights, changes, part)
    assert not any(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()])
    return network.eval()


def _check_bounds(config: dict[str, Any], part: str) -> None:
    """Raises CheckpointError for numbers, or numbers of levels and layers, that no network of this kind has."""
    for key, value in config.items():
        largest = MOST_LAYERS if "layers" in key else LARGEST_NUMBER
        values = value if isinstance(value, list) else [value]
        if len(values) > MOST_LEVELS and key != "trained_betas":
            raise CheckpointError(f"{part}: {key} has {len(values)} entries, {MOST_LEVELS} are the most")
        for number in values:
            if isinstance(number, int | float) and not abs(number) <= largest:
                raise CheckpointError(f"{part}: {key} {number} is beyond {largest}")


def _refuse(config: Any, keys: tuple[str, ...], part: str) -> None:
    for key in keys:
        if config.get(key) is not None:
            raise CheckpointError(f"{part}: {key} {config[key]} is not supported")
