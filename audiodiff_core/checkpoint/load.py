"""Loading of models from any source and layout. The parts of a model are checked against each other."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL

from audiodiff_core.checkpoint import ldm
from audiodiff_core.checkpoint.layout import Layout
from audiodiff_core.checkpoint.networks import (
    build_network,
    check_autoencoder,
    load_autoencoder,
    load_scheduler,
    load_unet,
)
from audiodiff_core.checkpoint.record import MODEL_FORMAT_VERSION, ModelRecord
from audiodiff_core.embeddings.tempo_place import beats_for
from audiodiff_core.files.model_files import (
    AUTOENCODER_KEYS,
    CONFIG,
    MEL_CONFIG,
    MODEL_INDEX,
    RECORD,
    SCHEDULER_CONFIG,
    CheckpointError,
    read_json,
)
from audiodiff_core.files.source import local_copy
from audiodiff_core.files.weight_files import weight_files
from audiodiff_core.files.weights import read_weights
from audiodiff_core.latents import latent_factor
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import beats_of, fold_of, image_sides, sample_channels


@dataclass(frozen=True)
class Model:
    """Parts of a model, on the CPU.

    Attributes:
        unet: The denoising network.
        scheduler: The scheduler that the model was trained with.
        mel: Parameters of the mel images.
        digest: Digest of the files that determine what the model generates, as 16 hex digits.
        vae: The autoencoder of a latent model, or None.
        record: The record of the model's origin, or None if audiodiff did not save the model.
    """

    unet: Any
    scheduler: Any
    mel: MelConfig
    digest: str
    vae: Any = None
    record: ModelRecord | None = None


@dataclass(frozen=True)
class ModelOutline:
    """Parts of a model as its configuration files describe them, with networks on the meta device.

    Attributes:
        unet: The denoising network, without weights.
        scheduler: The scheduler that the model was trained with.
        mel: Parameters of the mel images.
        vae: The autoencoder of a latent model, without weights, or None.
        record: The record of the model's origin, or None if audiodiff did not save the model.
    """

    unet: Any
    scheduler: Any
    mel: MelConfig
    vae: Any = None
    record: ModelRecord | None = None


def load_outline(source: str | Path) -> ModelOutline:
    """Read the configuration of a model. No weights are downloaded or read.

    Args:
        source: As in `load_model`.

    Raises:
        CheckpointError: As `load_model`.
    """
    with local_files(source, weights=False) as path:
        layout = _layout(path, [])
        record = _record(path)
        return ModelOutline(*_parts(layout, [], record, weights=False), record=record)


def load_model(source: str | Path, changes: list[str] | None = None) -> Model:
    """Load a model of the original project, of diffusers or of audiodiff.

    Pickled code is never run, and no class named in a file is imported.

    Args:
        source: A local folder, an fsspec URI, a Hugging Face id (OWNER/NAME), or `builtin:loops`, the model that is
            installed with this package.
        changes: List to which a line is appended for every difference from a folder that `save_model` writes.

    Raises:
        CheckpointError: If the model does not exist, is damaged, or is not supported. The message is one line that
            begins with `source`.
    """
    with local_files(source) as path:
        return read_model(path, [] if changes is None else changes)


def load_vae(source: str | Path, changes: list[str] | None = None) -> Any:
    """Load the AutoencoderKL of a latent model, or an autoencoder without a model.

    Args:
        source: A model as in `load_model`, a folder of an AutoencoderKL, or a CompVis LDM checkpoint (`.ckpt`), as the
            original project's train_vae writes it.
        changes: See `load_model`.

    Raises:
        CheckpointError: If the autoencoder does not exist, is damaged, or is not supported.
    """
    with local_files(source) as path:
        return read_vae(path, [] if changes is None else changes)


@contextmanager
def local_files(source: str | Path, *, weights: bool = True) -> Iterator[Path]:
    """Provide a local folder or file of a model. A temporary copy is deleted on exit.

    Without `weights`, only the other files of a remote model are copied. The context manager converts an OSError or
    ValueError to a CheckpointError whose message begins with `source`. It also converts errors from the body of the
    `with` statement.
    """
    with tempfile.TemporaryDirectory(prefix="audiodiff-model-") as scratch:
        try:
            yield local_copy(str(source), Path(scratch), weights=weights)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{source}: {' '.join(str(error).split())}") from error


def is_autoencoder(path: Path) -> bool:
    """Return True if a local file or folder is an autoencoder without a model."""
    return path.is_file() or ((path / CONFIG).is_file() and not (path / MODEL_INDEX).exists())


def read_vae(path: Path, changes: list[str]) -> Any:
    """Load the autoencoder in a local file or folder. See `load_vae`."""
    if path.is_file():
        config, weights = ldm.to_diffusers(read_weights(path), changes)
        vae = build_network(AutoencoderKL, config, weights, changes, "autoencoder")
        check_autoencoder(vae)
        return vae
    if is_autoencoder(path):
        return load_autoencoder(path, changes)
    if (key := Layout.read(path, changes).autoencoder) is None:
        raise CheckpointError("no autoencoder: the model is not latent, it generates mel images")
    return load_autoencoder(path / key, changes)


def read_model(root: Path, changes: list[str]) -> Model:
    """Load the model in a local folder. See `load_model`."""
    layout = _layout(root, changes)
    record = _record(root)
    unet, scheduler, mel, vae = _parts(layout, changes, record, weights=True)
    return Model(unet, scheduler, mel, _digest(layout, record), vae, record)


def _layout(root: Path, changes: list[str]) -> Layout:
    if not root.is_dir():
        raise CheckpointError("not a model folder: it is a file")
    return Layout.read(root, changes)


def _parts(
    layout: Layout, changes: list[str], record: ModelRecord | None, *, weights: bool
) -> tuple[Any, Any, MelConfig, Any]:
    """Load network, scheduler, mel configuration and autoencoder, and check them against each other and the record."""
    unet = load_unet(layout, changes, weights=weights)
    scheduler = load_scheduler(layout, changes)
    vae = load_autoencoder(layout.root / layout.autoencoder, changes, weights=weights) if layout.autoencoder else None
    channels = 1 if vae is None else vae.config.latent_channels
    if sample_channels(unet) != channels:
        inputs = "mel images" if vae is None else "latents of the autoencoder"
        expected = channels * prod(fold_of(unet))
        raise CheckpointError(f"unet: out_channels {unet.config.out_channels}: must be {expected} for {inputs}")
    mel, beats = _mel(layout, unet, vae, changes), beats_of(unet)
    expected_beats = None if record is None else beats_for(record.conditions, mel)
    if beats is not None and beats != expected_beats:
        raise CheckpointError(
            f"unet: beats ({beats}): must be ({expected_beats}), as the mel images and {RECORD} state"
        )
    return unet, scheduler, mel, vae


def _record(root: Path) -> ModelRecord | None:
    if not (root / RECORD).exists():
        return None
    content = read_json(root, RECORD)
    if (format_version := content.get("format_version")) != MODEL_FORMAT_VERSION:
        raise CheckpointError(
            f"format version {format_version}: this version of audiodiff reads {MODEL_FORMAT_VERSION}"
        )
    try:
        return ModelRecord.model_validate(content)
    except ValueError as error:
        raise CheckpointError(f"{RECORD} is not a valid record ({error})") from error


def _mel(layout: Layout, unet: Any, vae: Any, changes: list[str]) -> MelConfig:
    """Read the mel configuration.

    Models of early layouts have no mel configuration. They get the default parameters at the size of their images.
    """
    factor = 1 if vae is None else latent_factor(vae)
    height, width = (side * factor for side in image_sides(unet))
    if not layout.has_mel:
        mel = MelConfig(x_res=width, y_res=height)
        changes.append(
            f"mel: added the original project's defaults at the network's size: {mel.x_res}x{mel.y_res}, "
            f"{mel.sample_rate} Hz, hop length {mel.hop_length}"
        )
        return mel
    read_json(layout.root, MEL_CONFIG)
    try:
        mel = MelConfig.from_json((layout.root / MEL_CONFIG).read_text())
    except ValueError as error:
        raise CheckpointError(f"{MEL_CONFIG} is not a valid mel configuration ({error})") from error
    if (mel.x_res, mel.y_res) != (width, height):
        raise CheckpointError(
            f"{MEL_CONFIG}: resolution {mel.x_res}x{mel.y_res}: must be {width}x{height}, as the network generates"
        )
    return mel


def _digest(layout: Layout, record: ModelRecord | None) -> str:
    """Return the first 16 hex digits of the SHA-256 of classes, weights, configurations and measured conditions."""
    root, networks = layout.root, {"unet": layout.root / "unet"}
    if layout.autoencoder:
        networks[AUTOENCODER_KEYS[0]] = root / layout.autoencoder
    files = {
        f"{part}/{file.name}": file
        for part, folder in networks.items()
        for file in (folder / CONFIG, *weight_files(folder))
    }
    files |= {name: root / name for name in (SCHEDULER_CONFIG, *([MEL_CONFIG] if layout.has_mel else []))}
    sha256 = hashlib.sha256(f"{layout.unet_class} {layout.scheduler_class}".encode())
    for name, path in files.items():
        with path.open("rb") as file:
            sha256.update(f" {name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    if record is not None and record.conditions is not None:
        sha256.update(f" conditions {record.conditions.model_dump_json()}".encode())
    return sha256.hexdigest()[:16]
