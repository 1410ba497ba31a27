"""Saving of models as diffusers pipeline folders, with a record of their origin.

FOLDER/
    model_index.json                            class of each part; mel is diffusers' Mel, so that diffusers can load it
    unet/config.json                            configuration of the denoising network
    unet/diffusion_pytorch_model.safetensors    averaged weights of the denoising network
    vqvae/                                      the same two files of the autoencoder, in latent models only
    scheduler/scheduler_config.json             noise schedule and prediction type
    mel/mel_config.json                         parameters of the mel images
    audiodiff.json                              record: format version, recipe, data digest, metrics
    README.md                                   model card
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
from audiodiff_core.checkpoint.layout import FOLDED_PIPELINE_CLASS, PIPELINE_CLASS
from audiodiff_core.checkpoint.networks import SAVED_SCHEDULERS
from audiodiff_core.checkpoint.record import ModelRecord
from audiodiff_core.files.filesystems import filesystem_of
from audiodiff_core.files.model_files import AUTOENCODER_KEYS, CONFIG, MEL_CONFIG, MODEL_INDEX, RECORD
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import UNFOLDED, diffusers_class, fold_of


def save_model(
    folder: str | Path, unet: Any, scheduler: Any, mel: MelConfig, record: ModelRecord, *, vae: Any = None
) -> None:
    """Save a model to a local folder. An existing folder is replaced, but kept if an error occurs.

    Args:
        folder: The folder to write.
        unet: The denoising network.
        scheduler: The scheduler that the model was trained with.
        mel: Parameters of the mel images.
        record: The record of the model's origin.
        vae: The AutoencoderKL of a latent model, or None.

    Raises:
        ValueError: The scheduler is not one of SAVED_SCHEDULERS, so the saved model could not be loaded.
    """
    if (kind := type(scheduler).__name__) not in SAVED_SCHEDULERS:
        raise ValueError(
            f"scheduler {kind}: cannot be loaded again, must be {', '.join(SAVED_SCHEDULERS)}: "
            "save the model with the scheduler of its training, and set another one after loading"
        )
    with _replacement_folder(Path(folder)) as root:
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
    """Save an AutoencoderKL without a model to a local folder.

    An existing folder is replaced, but kept if an error occurs. `AutoencoderKL.from_pretrained` and `load_vae` can load
    the folder.
    """
    with _replacement_folder(Path(folder)) as root:
        vae.save_pretrained(root, safe_serialization=True)


def upload_model(folder: str | Path, destination: str) -> None:
    """Upload a saved model or autoencoder to an fsspec URI.

    The order of the files ensures that an interrupted upload is never read as complete. The record marks a model as
    complete: it is removed from the destination first, and uploaded last. The file that readers open first is
    `model_index.json`, or `config.json` of an autoencoder. It is uploaded after all other files except the record.

    Args:
        folder: A local folder that `save_model` or `save_vae` wrote.
        destination: The URI of the folder to write.
    """
    filesystem, path = filesystem_of(destination, use_listings_cache=False)
    path = path.rstrip("/")
    if filesystem.exists(f"{path}/{RECORD}"):
        filesystem.rm_file(f"{path}/{RECORD}")
    last = ("", MODEL_INDEX, CONFIG, RECORD)
    names = [file.relative_to(folder).as_posix() for file in Path(folder).rglob("*") if file.is_file()]
    for name in sorted(names, key=lambda name: (last.index(name) if name in last else 0, name)):
        target = f"{path}/{name}"
        if isinstance(filesystem, LocalFileSystem):  # object stores have no folders
            filesystem.makedirs(filesystem._parent(target), exist_ok=True)
        filesystem.put_file(str(Path(folder) / name), target)


@contextmanager
def _replacement_folder(target: Path) -> Iterator[Path]:
    """Provide a new folder that replaces `target` on exit, or is deleted if an error occurs."""
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
        "_class_name": PIPELINE_CLASS if fold_of(unet) == UNFOLDED else FOLDED_PIPELINE_CLASS,
        "_diffusers_version": version("diffusers"),
        "mel": ["diffusers", "Mel"],
        "scheduler": ["diffusers", type(scheduler).__name__],
        "unet": ["diffusers", diffusers_class(unet)],
        AUTOENCODER_KEYS[0]: [None, None] if vae is None else ["diffusers", type(vae).__name__],
    }
