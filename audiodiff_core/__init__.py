"""All that audiodiff knows of audio and diffusion, for one device: audio, mel images, networks, training, sampling, checkpoints.

The public names, each documented where it is defined; a name is imported when it is first used, so that reading audio needs no torch.

    from audiodiff_core import GenerateRequest, load_pipeline
    pipeline = load_pipeline("runs/demo/train/model")
    for loop in pipeline.generate([GenerateRequest(seed=seed) for seed in range(8)]):
        ...  # loop.audio: float32 (n,) at pipeline.mel.sample_rate, loop.image: uint8 (y_res, width)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audiodiff_core.audio import AudioDecodeError, decode, encode
    from audiodiff_core.checkpoint import CheckpointError, Model, load_model, load_pipeline, save_model
    from audiodiff_core.circular import circular_time
    from audiodiff_core.latents import decode_latents, encode_latents
    from audiodiff_core.mel import Mel, MelConfig
    from audiodiff_core.pipeline import Audio, AudioDiffusionPipeline, Loop, chain, slerp
    from audiodiff_core.sampling import ExecutionProfile, GenerateRequest, Item, Sampler, SamplingParameters
    from audiodiff_core.schedulers import METHODS, SCHEDULERS, SchedulerName, scheduler_for
    from audiodiff_core.vocoder import GriffinLim, Vocoder

_HOMES = {
    "audio": ("AudioDecodeError", "decode", "encode"),
    "checkpoint": ("CheckpointError", "Model", "load_model", "load_pipeline", "save_model"),
    "circular": ("circular_time",),
    "latents": ("decode_latents", "encode_latents"),
    "mel": ("Mel", "MelConfig"),
    "pipeline": ("Audio", "AudioDiffusionPipeline", "Loop", "chain", "slerp"),
    "sampling": ("ExecutionProfile", "GenerateRequest", "Item", "Sampler", "SamplingParameters"),
    "schedulers": ("METHODS", "SCHEDULERS", "SchedulerName", "scheduler_for"),
    "vocoder": ("GriffinLim", "Vocoder"),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "METHODS",
    "SCHEDULERS",
    "Audio",
    "AudioDecodeError",
    "AudioDiffusionPipeline",
    "CheckpointError",
    "ExecutionProfile",
    "GenerateRequest",
    "GriffinLim",
    "Item",
    "Loop",
    "Mel",
    "MelConfig",
    "Model",
    "Sampler",
    "SamplingParameters",
    "SchedulerName",
    "Vocoder",
    "chain",
    "circular_time",
    "decode",
    "decode_latents",
    "encode",
    "encode_latents",
    "load_model",
    "load_pipeline",
    "save_model",
    "scheduler_for",
    "slerp",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
