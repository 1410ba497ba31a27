"""Networks and schedulers of diffusers, built from untrusted configurations of limited size."""

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
from audiodiff_core.files.weights import StateDict, load_weights, read_weight_files
from audiodiff_core.models import configured

UNETS: dict[str, Any] = {cls.__name__: cls for cls in (UNet2DModel, UNet2DConditionModel)}
SAVED_SCHEDULERS: dict[str, Any] = {
    cls.__name__: cls for cls in (DDPMScheduler, DDIMScheduler, FlowMatchEulerDiscreteScheduler)
}
"""Schedulers that a saved model can have. Sampling supports more schedulers."""

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
"""Prediction types of DDPM and DDIM. A flow-matching scheduler has a single type, which its configuration omits."""

# Limits for configurations, which are untrusted.
MAX_NUMBER = 65_536
MAX_LEVELS = 12
MAX_LAYERS = 16
MAX_PARAMETERS = 1 << 32

# Settings that must be None, because they add inputs to the network or shift the latents.
_UNSUPPORTED_UNET = (
    "num_class_embeds",
    "addition_embed_type",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
)
_UNSUPPORTED_AUTOENCODER = ("shift_factor", "latents_mean", "latents_std")


def load_unet(layout: Layout, changes: list[str], *, weights: bool = True) -> Any:
    """Load the denoising network on the CPU.

    Args:
        layout: Layout of the model folder.
        changes: List to which a line is appended for every difference from a network that audiodiff saves.
        weights: Whether to load the weights. Without weights, the network is on the meta device.

    Returns:
        A network over images or latents of shape (batch, channels, height, width). It is conditional if its
        configuration has a cross_attention_dim.

    Raises:
        CheckpointError: If the network is damaged or not supported.
    """
    if layout.unet_class not in UNETS:
        raise CheckpointError(
            f"{MODEL_INDEX}: unsupported unet {layout.unet_class}: must be {' or '.join(UNETS)} of diffusers"
        )
    unet = _load(UNETS[layout.unet_class], layout.root / "unet", changes, weights)
    config = unet.config
    _require_none(config, _UNSUPPORTED_UNET, "unet")
    match config.sample_size:
        case int(side) if side > 0:
            pass
        case [int(height), int(width)] if height > 0 and width > 0:
            pass
        case other:
            raise CheckpointError(f"unet: sample_size {other}: must be a positive number or (height, width)")
    if not isinstance(config.get("cross_attention_dim"), int | None):
        raise CheckpointError(f"unet: cross_attention_dim {config.cross_attention_dim}: must be one number")
    return unet


def load_autoencoder(folder: Path, changes: list[str], *, weights: bool = True) -> Any:
    """Load an autoencoder of images with one channel on the CPU.

    A configuration without scaling_factor gets diffusers' default of 0.18215.

    Args:
        folder: Folder of the autoencoder.
        changes: List to which a line is appended for every difference from an autoencoder that audiodiff saves.
        weights: Whether to load the weights. Without weights, the autoencoder is on the meta device.

    Raises:
        CheckpointError: If the autoencoder is damaged or not supported.
    """
    vae = _load(AutoencoderKL, folder, changes, weights)
    check_autoencoder(vae)
    return vae


def check_autoencoder(vae: Any) -> None:
    """Raise CheckpointError if the configuration of an AutoencoderKL is not supported."""
    config = vae.config
    _require_none(config, _UNSUPPORTED_AUTOENCODER, "autoencoder")
    if (config.in_channels, config.out_channels) != (1, 1):
        raise CheckpointError(
            f"autoencoder: in_channels {config.in_channels}, out_channels {config.out_channels}: "
            "must be 1 for mel images"
        )
    if not isinstance(config.scaling_factor, int | float) or not 0 < config.scaling_factor < math.inf:
        raise CheckpointError(f"autoencoder: scaling_factor {config.scaling_factor}: must be a positive number")


def load_scheduler(layout: Layout, changes: list[str]) -> Any:
    """Load the scheduler, which defines the noise schedule and the prediction type of the training.

    Args:
        layout: Layout of the model folder.
        changes: List to which a line is appended for every difference from a scheduler that audiodiff saves.

    Raises:
        CheckpointError: If the scheduler is damaged or not supported.
    """
    if layout.scheduler_class not in SAVED_SCHEDULERS:
        raise CheckpointError(
            f"{MODEL_INDEX}: unsupported scheduler {layout.scheduler_class}: "
            f"must be {', '.join(SAVED_SCHEDULERS)} of diffusers"
        )
    config = read_json(layout.root, SCHEDULER_CONFIG)
    _check_bounds(config, "scheduler")
    config_class = config.get("_class_name", layout.scheduler_class)
    if config_class != layout.scheduler_class:
        # DDPM and DDIM have the same noise schedule.
        if {config_class, layout.scheduler_class} != {"DDPMScheduler", "DDIMScheduler"}:
            raise CheckpointError(
                f"{SCHEDULER_CONFIG}: class {config_class}: must be {layout.scheduler_class}, as in {MODEL_INDEX}"
            )
        changes.append(f"scheduler: read the configuration of {config_class} as {layout.scheduler_class}")
    try:
        config = {key: value for key, value in config.items() if not key.startswith("_")}
        scheduler = _explicit_scheduler(SAVED_SCHEDULERS[layout.scheduler_class], config)
    except Exception as error:  # diffusers raises many kinds of errors for invalid configurations
        raise CheckpointError(f"scheduler: invalid configuration ({type(error).__name__}: {error})") from error
    noise_levels = scheduler.betas if hasattr(scheduler, "betas") else scheduler.sigmas
    if len(noise_levels) < 1 or not bool(torch.isfinite(noise_levels).all()):
        raise CheckpointError("scheduler: invalid configuration: noise levels must be finite")
    if (prediction := scheduler.config.get("prediction_type", PREDICTION_TYPES[0])) not in PREDICTION_TYPES:
        raise CheckpointError(f"scheduler: prediction_type {prediction}: must be {', '.join(PREDICTION_TYPES)}")
    _append_settings(scheduler.config, config, "scheduler", changes)
    return scheduler


def _explicit_scheduler(cls: Any, config: dict[str, Any]) -> Any:
    """Create a scheduler whose configuration states all defaults.

    When diffusers creates a scheduler of another class from a configuration, settings that the configuration omits get
    the defaults of the other class.
    """
    scheduler = cls(**cls.extract_init_dict(config)[0])
    return cls(**{key: value for key, value in scheduler.config.items() if not key.startswith("_")})


def _load(cls: Any, folder: Path, changes: list[str], weights: bool) -> Any:
    config = read_json(folder.parent, f"{folder.name}/{CONFIG}")
    if config.get("_class_name", cls.__name__) != cls.__name__:
        raise CheckpointError(f"{folder.name}/{CONFIG}: class {config['_class_name']}: must be {cls.__name__}")
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    if not weights:
        return _outline(cls, config, folder.name).eval()
    files = weight_files(folder)
    network = build_network(cls, config, read_weight_files(files), changes, folder.name)
    if any(file.suffix != ".safetensors" for file in files):
        changes.append(f"{folder.name}: converted a pickle to safetensors")
    if len(files) > 1:
        changes.append(f"{folder.name}: merged {len(files)} shards into one file")
    if cls is AutoencoderKL and "scaling_factor" not in config:
        changes.append(f"{folder.name}: added the default scaling_factor {network.config.scaling_factor}")
    _append_settings(network.config, config, folder.name, changes)
    return network


def _append_settings(config: Any, stated: dict[str, Any], part: str, changes: list[str]) -> None:
    """Append to `changes` the unknown settings that diffusers dropped, and the defaults that it added."""
    if unknown := sorted(stated.keys() - config.keys()):
        changes.append(f"{part}: dropped unknown settings: {', '.join(unknown)}")
    if defaults := sorted(key for key in config if not key.startswith("_") and key not in stated):
        values = ", ".join(f"{key} {config[key]}" for key in defaults if config[key])
        changes.append(f"{part}: added {len(defaults)} of diffusers' default settings: {values or 'all unset'}")


def build_network(cls: Any, config: dict[str, Any], weights: StateDict, changes: list[str], part: str) -> Any:
    """Build a network from a configuration and weights, on the CPU in evaluation mode.

    The network is first built on the meta device, so that memory is allocated only after all checks.

    Args:
        cls: Class of the network in diffusers.
        config: Settings of the network.
        weights: Weights of the network.
        changes: List to which a line is appended for every change of the weights.
        part: Name of the network in messages.

    Raises:
        CheckpointError: If the configuration is invalid or too large, or the weights do not match it.
    """
    network = _outline(cls, config, part)
    load_weights(network, weights, changes, part)
    assert not any(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()])
    return network.eval()


def _outline(cls: Any, config: dict[str, Any], part: str) -> Any:
    """Build a network of limited size on the meta device."""
    _check_bounds(config, part)

    try:
        with torch.device("meta"):
            network = configured(cls, config) if cls in UNETS.values() else cls(**cls.extract_init_dict(config)[0])
    except Exception as error:  # diffusers raises many kinds of errors for invalid configurations
        raise CheckpointError(f"{part}: invalid configuration ({type(error).__name__}: {error})") from error
    if (count := sum(parameter.numel() for parameter in network.parameters())) > MAX_PARAMETERS:
        raise CheckpointError(f"{part}: the configuration has {count:,} parameters: must be at most {MAX_PARAMETERS:,}")
    return network


def _check_bounds(config: dict[str, Any], part: str) -> None:
    """Raise CheckpointError for numbers, lists or layer counts that are too large."""
    for key, value in config.items():
        limit = MAX_LAYERS if "layers" in key else MAX_NUMBER
        values = value if isinstance(value, list) else [value]
        if len(values) > MAX_LEVELS and key != "trained_betas":
            raise CheckpointError(f"{part}: {key} has {len(values)} entries: must be at most {MAX_LEVELS}")
        for number in values:
            if isinstance(number, int | float) and not abs(number) <= limit:
                raise CheckpointError(f"{part}: {key} {number}: must be from -{limit} to {limit}")


def _require_none(config: Any, keys: tuple[str, ...], part: str) -> None:
    for key in keys:
        if config.get(key) is not None:
            raise CheckpointError(f"{part}: {key} {config[key]} is not supported: must be null")
