"""Models on disk: diffusers' pipeline folders, safetensors only, with a record of how they came to be.

    FOLDER/model_index.json                    which classes; `mel: ["diffusers", "Mel"]`, so that diffusers' own pipeline loads it
    FOLDER/unet/        config.json, diffusion_pytorch_model.safetensors     (the averaged weights)
    FOLDER/scheduler/   scheduler_config.json  the noise schedule and prediction type
    FOLDER/mel/         mel_config.json        the seven numbers that turn audio into images
    FOLDER/audiodiff.json                      format version, recipe, data digest, metrics
    FOLDER/README.md                           model card
"""

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fsspec
import pydantic
from diffusers import UNet2DModel
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from audiodiff_core.mel import MelConfig
from audiodiff_core.pipeline import AudioDiffusionPipeline
from audiodiff_core.sampling import ExecutionProfile
from audiodiff_core.schedulers import SCHEDULERS

FORMAT_VERSION = 1
MODEL_INDEX = "model_index.json"
RECORD = "audiodiff.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
LOADED_FILES = [MODEL_INDEX, RECORD, "README.md", "*/*.json", "*/*.safetensors"]


class CheckpointError(ValueError):
    """A folder that is not a model of ours or of the original's, with what is wrong in one line."""


class ModelRecord(pydantic.BaseModel):
    """`audiodiff.json`: where a model comes from. Models of the original have none."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    audiodiff_version: str = pydantic.Field(default_factory=lambda: version("audiodiff"))
    recipe: dict[str, Any] = pydantic.Field(description="the options that it was trained with")
    data_digest: str = pydantic.Field(description="names the dataset and its mel configuration")
    metrics: dict[str, float] = pydantic.Field(description="steps, samples, seconds and the last loss")


@dataclass(frozen=True)
class Model:
    """The parts of a checkpoint, on the CPU, and a digest of the files that decide what it generates."""

    unet: Any
    scheduler: Any
    mel: MelConfig
    digest: str
    vae: Any = None

    def pipeline(self, profile: ExecutionProfile) -> AudioDiffusionPipeline:
        return AudioDiffusionPipeline(self.unet, self.scheduler, self.mel, profile, vae=self.vae)


def save_model(folder: str | Path, unet: Any, scheduler: Any, mel: MelConfig, record: ModelRecord) -> None:
    """Writes a whole checkpoint to the local `folder` or, on any failure, nothing; replaces one that is there."""
    target = Path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        root = Path(scratch) / "model"
        unet.save_pretrained(root / "unet", safe_serialization=True)
        scheduler.save_pretrained(root / "scheduler")
        (root / "mel").mkdir()
        (root / "mel" / "mel_config.json").write_text(mel.to_json())
        (root / MODEL_INDEX).write_text(json.dumps(_index(unet, scheduler), indent=2, sort_keys=True) + "\n")
        (root / RECORD).write_text(record.model_dump_json(indent=2) + "\n")
        (root / "README.md").write_text(_card(unet, scheduler, mel, record))
        replaced = Path(scratch) / "replaced"
        if target.exists():
            target.rename(replaced)
        try:
            os.rename(root, target)
        except OSError:
            if replaced.exists():
                replaced.rename(target)
            raise


def load_model(source: str | Path) -> Model:
    """A model from a local folder, any fsspec URI or a Hugging Face id. Nothing is unpickled.

    Raises CheckpointError where `source` is not a model that this version can load.
    """
    with tempfile.TemporaryDirectory(prefix="audiodiff-model-") as scratch:
        root = _local_copy(str(source), Path(scratch))
        index = _read_json(root / MODEL_INDEX, source)
        _check_record(root / RECORD, source)
        if index.get("unet") != ["diffusers", "UNet2DModel"]:
            raise CheckpointError(f"{source}: network {index.get('unet')} is not one that can be loaded: diffusers UNet2DModel is")
        known = {scheduler.__name__: scheduler for scheduler in SCHEDULERS.values()}
        match index.get("scheduler"):
            case ["diffusers", str(scheduler_class)] if scheduler_class in known:
                pass
            case other:
                raise CheckpointError(f"{source}: scheduler {other} is not one that can be loaded: {', '.join(known)} of diffusers are")
        if not (root / "unet" / WEIGHTS).is_file():
            raise CheckpointError(f"{source}: holds no unet/{WEIGHTS}")
        try:
            mel = MelConfig.from_json((root / "mel" / "mel_config.json").read_text())
            unet = _load_unet(root / "unet")
            scheduler = known[scheduler_class].from_pretrained(root / "scheduler")
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(f"{source}: cannot be loaded ({' '.join(str(error).split())})") from error
        return Model(unet, scheduler, mel, _digest(root))


def load_pipeline(source: str | Path, profile: ExecutionProfile | None = None) -> AudioDiffusionPipeline:
    """A model from where `load_model` reads it, ready to generate by `profile`; None: the one for this process's device."""
    return load_model(source).pipeline(profile or ExecutionProfile.here())


def upload_model(folder: str | Path, destination: str) -> None:
    """Copies a local checkpoint folder to an fsspec URI, `model_index.json` last, since readers start from it."""
    filesystem, path = fsspec.url_to_fs(destination)
    files = sorted((file for file in Path(folder).rglob("*") if file.is_file()), key=lambda file: file.name == MODEL_INDEX)
    for file in files:
        filesystem.put_file(str(file), f"{path}/{file.relative_to(folder).as_posix()}")


def _index(unet: Any, scheduler: Any) -> dict[str, Any]:
    return {
        "_class_name": "AudioDiffusionPipeline",
        "_diffusers_version": version("diffusers"),
        "mel": ["diffusers", "Mel"],
        "scheduler": ["diffusers", type(scheduler).__name__],
        "unet": ["diffusers", type(unet).__name__],
        "vqvae": [None, None],
    }


def _local_copy(source: str, scratch: Path) -> Path:
    """The folder itself, or a copy of the files that loading reads."""
    if Path(source).is_dir():
        return Path(source)
    if "://" in source:
        filesystem, path = fsspec.url_to_fs(source)
        if not filesystem.isdir(path):
            raise CheckpointError(f"{source}: no such folder")
        filesystem.get(path.rstrip("/") + "/", str(scratch / "model") + "/", recursive=True)
        return scratch / "model"
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise CheckpointError(f"{source}: no such folder, and not a Hugging Face id (OWNER/NAME)")
    try:
        return Path(snapshot_download(source, allow_patterns=LOADED_FILES))
    except (RepositoryNotFoundError, HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{source}: no such folder, and no such model on the Hugging Face Hub could be fetched") from error


def _load_unet(folder: Path) -> Any:
    """The network with exactly the weights of its file: where some are missing, diffusers alone would fill in random ones."""
    unet, found = UNet2DModel.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True)
    if found["missing_keys"] or found["unexpected_keys"]:
        raise ValueError(f"unet/{WEIGHTS} lacks {found['missing_keys'][:3]} and holds unknown {found['unexpected_keys'][:3]}")
    return unet


def _read_json(file: Path, source: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{source}: is not a model folder: it holds no {file.name}") from None
    except ValueError as error:
        raise CheckpointError(f"{source}: {file.name} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{source}: {file.name} is not a JSON object")
    return content


def _check_record(file: Path, source: str | Path) -> None:
    if file.exists() and (found := _read_json(file, source).get("format_version")) != FORMAT_VERSION:
        raise CheckpointError(f"{source}: format version {found}, this version of audiodiff reads {FORMAT_VERSION}")


def _digest(root: Path) -> str:
    """The first 16 hex digits of the SHA-256 of weights and configurations."""
    total = hashlib.sha256()
    for name in ("unet/config.json", f"unet/{WEIGHTS}", "scheduler/scheduler_config.json", "mel/mel_config.json"):
        with (root / name).open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


def _card(unet: Any, scheduler: Any, mel: MelConfig, record: ModelRecord) -> str:
    metrics = "\n".join(f"| {name} | {value:g} |" for name, value in record.metrics.items())
    recipe = json.dumps(record.recipe, indent=2, sort_keys=True)
    return f"""---
tags: [audio, diffusers, audio-generation, unconditional-audio-generation]
library_name: diffusers
---
# Mel-spectrogram diffusion model

Generates loops of {mel.slice_duration_s:.2f} s at {mel.sample_rate} Hz from {mel.x_res}x{mel.y_res} mel images
({sum(p.numel() for p in unet.parameters()):,} parameters, {scheduler.config.prediction_type} prediction). Trained by audiodiff {record.audiodiff_version}.

```python
from diffusers import AudioDiffusionPipeline
pipe = AudioDiffusionPipeline.from_pretrained(FOLDER)
```

| | |
|---|---|
{metrics}

Data digest `{record.data_digest}`. Options:
```json
{recipe}
```
"""

