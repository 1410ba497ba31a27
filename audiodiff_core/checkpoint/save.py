"""A model -> a diffusers pipeline folder, whole or not at all, with a record of how it came to be.

FOLDER/model_index.json                    which classes; `mel: ["diffusers", "Mel"]`, so that diffusers' own pipeline loads it
FOLDER/unet/        config.json, diffusion_pytorch_model.safetensors     (the averaged weights)
FOLDER/vqvae/       the same of the autoencoder, where the network works on latents
FOLDER/scheduler/   scheduler_config.json  the noise schedule and prediction type
FOLDER/mel/         mel_config.json        the seven numbers that turn audio into images
FOLDER/audiodiff.json                      format version, recipe, data digest, metrics
FOLDER/README.md                           model card
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from audiodiff_core.checkpoint import card
from audiodiff_core.checkpoint.layout import PIPELINE_CLASS
from audiodiff_core.checkpoint.record import ModelRecord
from audiodiff_core.files.filesystems import filesystem_of
from audiodiff_core.files.model_files import AUTOENCODER_KEYS, CONFIG, MEL_CONFIG, MODEL_INDEX, RECORD
from audiodiff_core.mel import MelConfig


def save_model(
    folder: str | Path, unet: Any, scheduler: Any, mel: MelConfig, record: ModelRecord, *, vae: Any = None
) -> None:
    """Writes a whole checkpoint to the local `folder` or, on any failure, nothing; replaces one that is there.

    `vae` is the AutoencoderKL of a network that works on latents.
    """
    with _whole_or_nothing(Path(folder)) as root:
        unet.save_pretrained(root / "unet", safe_serialization=True)
        if vae is not None:
            vae.save_pretrained(root / AUTOENCODER_KEYS[0], safe_serialization=True)
        scheduler.save_pretrained(root / "scheduler")
        (root / "mel").mkdir()
        (root / MEL_CONFIG).write_text(mel.to_json())
        (root / MODEL_INDEX).write_text(json.dumps(_index(unet, scheduler, vae), indent=2, sort_keys=True) + "\n")
        (root / RECORD).write_text(record.model_dump_json(indent=2) + "\n")
        (root / "README.md").write_text(card.text(unet, scheduler, mel, vae, record))


def save_vae(folder: str | Path, vae: Any) -> None:
    """Writes an autoencoder alone, as `AutoencoderKL.from_pretrained` and `load_vae` read it, whole or not at all; replaces one that is there."""
    with _whole_or_nothing(Path(folder)) as root:
        vae.save_pretrained(root, safe_serialization=True)


def upload_model(folder: str | Path, destination: str) -> None:
    """Copies a local checkpoint folder to an fsspec URI, so that what breaks off is never taken for a finished model.

    Readers start from `model_index.json`, or `config.json` of an autoencoder alone, which comes after the rest; the record, which says that a
    model is finished, is removed first and comes last.
    """
    filesystem, path = filesystem_of(destination, use_listings_cache=False)
    path = path.rstrip("/")
    if filesystem.exists(f"{path}/{RECORD}"):
        filesystem.rm_file(f"{path}/{RECORD}")
    last = ("", MODEL_INDEX, CONFIG, RECORD)
    names = [file.relative_to(folder).as_posix() for file in Path(folder).rglob("*") if file.is_file()]
    for name in sorted(names, key=lambda name: (last.index(name) if name in last else 0, name)):
        target = f"{path}/{name}"
        if isinstance(filesystem, LocalFileSystem):  # object stores have no folders to be made
            filesystem.makedirs(filesystem._parent(target), exist_ok=True)
        filesystem.put_file(str(Path(folder) / name), target)


@contextmanager
def _whole_or_nothing(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its place at the end, and vanishes on any failure."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        root = Path(scratch) / "model"
        root.mkdir()
        yield root
        replaced = Path(scratch) / "replaced"
        if target.exists():
            target.rename(replaced)
        try:
            os.rename(root, target)
        except OSError:
            if replaced.exists():
                replaced.rename(target)
            raise


def _index(unet: Any, scheduler: Any, vae: Any) -> dict[str, Any]:
    return {
        "_class_name": PIPELINE_CLASS,
        "_diffusers_version": version("diffusers"),
        "mel": ["diffusers", "Mel"],
        "scheduler": ["diffusers", type(scheduler).__name__],
        "unet": ["diffusers", type(unet).__name__],
        AUTOENCODER_KEYS[0]: [None, None] if vae is None else ["diffusers", type(vae).__name__],
    }
