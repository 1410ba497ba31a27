"""What a diffusion training starts from: the network, its objective, and what it is trained on, each checked against the others.

The job looks at it before any work on the cluster, with the network on the meta device; each worker then makes it anew.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from audiodiff_core.checkpoint import load_model, load_vae
from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.latents import latent_factor
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import build_network, check_resolution, network_digest
from audiodiff_platform.cluster import is_hub_id
from audiodiff_platform.mel_data.encodings import ENCODINGS_VERSION, Encodings, read_encodings
from audiodiff_platform.mel_data.latents import LatentsDataset
from audiodiff_platform.mel_data.mel_dataset import (
    DATASET_VERSION,
    MEL_CONFIG,
    VALIDATION_SPLIT,
    MelDataset,
    TrainingImages,
)
from audiodiff_platform.mel_data.original_datasets import open_dataset
from audiodiff_platform.mel_data.sample_order import DataOrder
from audiodiff_platform.storage import Folder
from audiodiff_platform.train.options import TrainOptions


@dataclass(frozen=True)
class TrainingInputs:
    """`vae` where the network works on latents, `latents` where they were made before, `encodings` where it is conditional."""

    network: Any
    objective: Objective
    dataset: TrainingImages
    vae: Any
    latents: LatentsDataset | None
    encodings: Encodings | None
    pretrained_digest: str | None

    @property
    def mel(self) -> MelConfig:
        return self.dataset.mel

    @cached_property
    def digests(self) -> dict[str, str | None]:
        """What decides the weights beside the options."""
        return {
            "data_digest": self.dataset.digest,
            "pretrained_digest": self.pretrained_digest,
            "vae_digest": None if self.vae is None else network_digest(self.vae),
            "latents_digest": None if self.latents is None else self.latents.digest,
            "encodings_digest": None if self.encodings is None else self.encodings.content_digest,
        }

    @property
    def versions(self) -> dict[str, bytes | None]:
        """The files by which the run folder keeps the versions of the data, by name."""
        return {
            DATASET_VERSION: self.dataset.version,
            ENCODINGS_VERSION: None if self.encodings is None else self.encodings.version,
        }

    def order(self, seed: int) -> DataOrder:
        return DataOrder(self.dataset, seed, latents=self.latents, encodings=self.encodings)


def load_training_inputs(options: TrainOptions, device: str = "cpu") -> TrainingInputs:
    """Opens and builds it all; a network that starts from nothing is initialised on `device` by the seed.

    Raises ValueError where parts do not go together: mel parameters, sizes, latents of other data.
    """
    run = Folder(options.output_dir)
    dataset = open_dataset(options.dataset_name, options.mel_config, run)
    encodings = None if options.encodings is None else read_encodings(options.encodings, run)
    latents = None if options.latents is None else _latents(options.latents, dataset)
    if options.from_pretrained is not None:
        return _pretrained(options, dataset, latents, encodings)
    vae = None if options.vae is None else _vae(options.vae, dataset.mel)
    _require_shape(options, latents, vae, dataset.mel)
    torch.manual_seed(options.seed)
    with torch.device(device):
        network = build_network(
            options.network_preset(), dataset.mel, vae, None if encodings is None else encodings.dim
        )
    return TrainingInputs(network, options.objective(), dataset, vae, latents, encodings, None)


def require_encodings(options: TrainOptions, start: TrainingInputs) -> None:
    """Raises ValueError that names files of the dataset that have no encoding; reads the names of all."""
    if start.encodings is None:
        return
    names = start.dataset.audio_files() | (
        split.audio_files() if (split := held_out(start.dataset)) is not None else set()
    )
    try:
        start.encodings.vectors_for(sorted(names))
    except ValueError as error:
        raise ValueError(f"encodings {options.encodings}: {error}") from error


def held_out(dataset: TrainingImages) -> MelDataset | None:
    """The split validation of a dataset made by prepare, where it has rows."""
    if not isinstance(dataset, MelDataset):
        return None
    split = MelDataset(dataset.folder.uri, VALIDATION_SPLIT, dataset.run)
    return split if split.rows else None


def _pretrained(
    options: TrainOptions, dataset: TrainingImages, latents: LatentsDataset | None, encodings: Encodings | None
) -> TrainingInputs:
    """The network of a model, with its VAE and, where no other is asked for, its objective."""
    origin = f"from_pretrained {options.from_pretrained}"
    model = load_model(str(options.from_pretrained))
    _require_same_mel(origin, model.mel, dataset.mel)
    if options.vae is not None:
        raise ValueError(
            f"vae {options.vae} with {origin}: a model brings its own VAE, or works on images: leave vae out"
        )
    dim = model.unet.config.get("cross_attention_dim")
    if (dim is None) != (encodings is None) or (encodings is not None and encodings.dim != dim):
        wants = "takes no encodings" if dim is None else f"takes encodings of {dim} values"
        gets = "none are given" if encodings is None else f"{options.encodings} holds some of {encodings.dim}"
        raise ValueError(f"{origin}: the model {wants}, {gets}")
    _require_shape(options, latents, model.vae, dataset.mel)
    learned = Objective.of(model.scheduler)
    if dim is not None:
        learned = learned.model_copy(update={"conditioning_dropout": 0.1})
    objective = options.objective(learned)
    if dim is None and objective.conditioning_dropout:
        raise ValueError(
            f"conditioning_dropout {objective.conditioning_dropout} with {origin}: the model takes no encodings, leave it out"
        )
    return TrainingInputs(model.unet, objective, dataset, model.vae, latents, encodings, model.digest)


def _vae(source: str, mel: MelConfig) -> Any:
    vae = load_vae(source)
    if not is_hub_id(source) and (folder := Folder(source)).exists(MEL_CONFIG):
        _require_same_mel(f"vae {source}", MelConfig.from_json(folder.read(MEL_CONFIG).decode()), mel)
    return vae


def _latents(uri: str, dataset: TrainingImages) -> LatentsDataset:
    latents = LatentsDataset(uri)
    if latents.dataset_digest != dataset.digest or latents.groups != dataset.groups:
        raise ValueError(
            f"latents {uri}: made of a dataset of digest {latents.dataset_digest}, this one's is {dataset.digest}: encode it anew"
        )
    return latents


def _require_shape(options: TrainOptions, latents: LatentsDataset | None, vae: Any, mel: MelConfig) -> None:
    """Latents made before are those that the VAE makes."""
    if options.preset is not None:
        check_resolution(options.preset, mel, vae)
    if latents is None:
        return
    if vae is None:
        raise ValueError(f"latents {options.latents}: the network works on images, leave latents out")
    factor = latent_factor(vae)
    made = (vae.config.latent_channels, mel.y_res // factor, mel.x_res // factor)
    if latents.shape != made:
        raise ValueError(
            f"latents {options.latents}: are {latents.shape}, the vae makes {made}: encode the dataset with this vae"
        )
    if latents.vae_digest != (ours := network_digest(vae)):
        raise ValueError(
            f"latents {options.latents}: made by a vae of digest {latents.vae_digest}, this one's is {ours}: encode the dataset with this vae"
        )


def _require_same_mel(origin: str, theirs: MelConfig, ours: MelConfig) -> None:
    """Raises ValueError with both values of each mel parameter that differs."""
    one, other = theirs.model_dump(), ours.model_dump()
    differences = ", ".join(
        f"{name} {one[name]} there, {other[name]} in the dataset"
        for name in one
        if one[name] != other[name] and name != "n_iter"
    )
    if differences:
        raise ValueError(
            f"{origin}: was trained with other mel parameters ({differences}): prepare the dataset with its own"
        )
