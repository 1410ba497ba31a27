"""A model from any place and any of the known layouts, whole and checked: its parts fit each other, or it is refused."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL

from audiodiff_core.checkpoint import ldm
from audiodiff_core.checkpoint.layout import Layout
from audiodiff_core.checkpoint.networks import assemble, check_autoencoder, load_autoencoder, load_scheduler, load_unet
from audiodiff_core.checkpoint.record import MODEL_FORMAT_VERSION, ModelRecord
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
from audiodiff_core.pipeline import AudioDiffusionPipeline
from audiodiff_core.sampling import ExecutionProfile, image_sides


@dataclass(frozen=True)
class Model:
    """The parts of a checkpoint, on the CPU, and a digest of the files that decide what it generates.

    `vae` is there where the network works on latents, `record` where audiodiff made the model.
    """

    unet: Any
    scheduler: Any
    mel: MelConfig
    digest: str
    vae: Any = None
    record: ModelRecord | None = None

    def pipeline(self, profile: ExecutionProfile) -> AudioDiffusionPipeline:
        return AudioDiffusionPipeline(self.unet, self.scheduler, self.mel, profile, vae=self.vae)


def load_model(source: str | Path, changes: list[str] | None = None) -> Model:
    """A model from a local folder, any fsspec URI or a Hugging Face id (OWNER/NAME), in any layout of the original's or ours.

    Nothing is unpickled as code, and no class named in a file is imported. `changes` is given a line for each way in which the folder
    is not as `save_model` writes it. Raises CheckpointError, in one line that begins with `source`, for what cannot be loaded exactly.
    """
    with opened(source) as place:
        return read_model(place, [] if changes is None else changes)


def load_pipeline(source: str | Path, profile: ExecutionProfile | None = None) -> AudioDiffusionPipeline:
    """The model of `source` (see `load_model`) ready to generate, by `profile` or that of this process's device."""
    return load_model(source).pipeline(profile or ExecutionProfile.here())


def load_vae(source: str | Path, changes: list[str] | None = None) -> Any:
    """The AutoencoderKL of a model, of a folder of one alone, or of a CompVis LDM checkpoint file (`.ckpt`), as the original's train_vae
    writes them; see `load_model` for sources, `changes` and errors."""
    with opened(source) as place:
        return read_vae(place, [] if changes is None else changes)


@contextmanager
def opened(source: str | Path) -> Iterator[Path]:
    """The local folder or file of `source`, a copy that vanishes at the end where it lies elsewhere; what is wrong with it names `source`."""
    with tempfile.TemporaryDirectory(prefix="audiodiff-model-") as scratch:
        try:
            yield local_copy(str(source), Path(scratch))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{source}: {' '.join(str(error).split())}") from error


def is_autoencoder(place: Path) -> bool:
    """Whether a local file or folder is an autoencoder alone, rather than a model."""
    return place.is_file() or ((place / CONFIG).is_file() and not (place / MODEL_INDEX).exists())


def read_vae(place: Path, changes: list[str]) -> Any:
    if place.is_file():
        config, weights = ldm.to_diffusers(read_weights(place), changes)
        vae = assemble(AutoencoderKL, config, weights, changes, "autoencoder")
        check_autoencoder(vae)
        return vae
    if is_autoencoder(place):
        return load_autoencoder(place, changes)
    if (key := Layout.read(place, changes).autoencoder) is None:
        raise CheckpointError("is a model of images: it has no autoencoder")
    return load_autoencoder(place / key, changes)


def read_model(root: Path, changes: list[str]) -> Model:
    if not root.is_dir():
        raise CheckpointError("is a file: a model is a folder")
    layout = Layout.read(root, changes)
    record = _record(root)
    unet = load_unet(layout, changes)
    scheduler = load_scheduler(layout, changes)
    vae = load_autoencoder(root / layout.autoencoder, changes) if layout.autoencoder else None
    channels = 1 if vae is None else vae.config.latent_channels
    if unet.config.in_channels != channels:
        of = "mel images have" if vae is None else "the latents of its autoencoder have"
        raise CheckpointError(f"unet: works on {unet.config.in_channels} channels, {of} {channels}")
    return Model(unet, scheduler, _mel(layout, unet, vae, changes), _digest(layout), vae, record)


def _record(root: Path) -> ModelRecord | None:
    if not (root / RECORD).exists():
        return None
    content = read_json(root, RECORD)
    if (found := content.get("format_version")) != MODEL_FORMAT_VERSION:
        raise CheckpointError(f"format version {found}, this version of audiodiff reads {MODEL_FORMAT_VERSION}")
    try:
        return ModelRecord.model_validate(content)
    except ValueError as error:
        raise CheckpointError(f"{RECORD} is not a record of audiodiff's ({error})") from error


def _mel(layout: Layout, unet: Any, vae: Any, changes: list[str]) -> MelConfig:
    """The stored mel configuration; before there was one, every model had the defaults, at the size of its images."""
    factor = 1 if vae is None else latent_factor(vae)
    height, width = (side * factor for side in image_sides(unet))
    if not layout.has_mel:
        mel = MelConfig(x_res=width, y_res=height)
        changes.append(
            f"mel: added, the original's defaults at the network's size: {mel.x_res}x{mel.y_res}, {mel.sample_rate} Hz, hop length {mel.hop_length}"
        )
        return mel
    read_json(layout.root, MEL_CONFIG)
    try:
        mel = MelConfig.from_json((layout.root / MEL_CONFIG).read_text())
    except ValueError as error:
        raise CheckpointError(f"{MEL_CONFIG} is not a mel configuration ({error})") from error
    if (mel.x_res, mel.y_res) != (width, height):
        raise CheckpointError(
            f"the network makes images of {width}x{height}, {MEL_CONFIG} says {mel.x_res}x{mel.y_res}"
        )
    return mel


def _digest(layout: Layout) -> str:
    """The first 16 hex digits of the SHA-256 of all that decides the output: classes, weights and configurations."""
    root, networks = layout.root, {"unet": layout.root / "unet"}
    if layout.autoencoder:
        networks[AUTOENCODER_KEYS[0]] = root / layout.autoencoder
    files = {
        f"{part}/{file.name}": file
        for part, folder in networks.items()
        for file in (folder / CONFIG, *weight_files(folder))
    }
    files |= {name: root / name for name in (SCHEDULER_CONFIG, *([MEL_CONFIG] if layout.has_mel else []))}
    total = hashlib.sha256(f"{layout.unet_class} {layout.scheduler_class}".encode())
    for name, path in files.items():
        with path.open("rb") as file:
            total.update(f" {name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return total.hexdigest()[:16]
