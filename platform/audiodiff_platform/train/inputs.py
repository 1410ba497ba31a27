"""Inputs of diffusion training: network, objective and data, checked against each other.

The job loads the inputs before any work on the cluster, with the network on the meta device. Each worker then loads the
inputs again, with a network in memory.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from audiodiff_core.checkpoint import EncoderRecord, load_model, load_vae
from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.embeddings.measured import MeasuredConditions
from audiodiff_core.embeddings.tempo_place import beats_for
from audiodiff_core.latents import latent_factor
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import PRESETS, build_network, check_resolution, network_digest
from audiodiff_platform.cluster import is_hub_id, public_encoder
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.mel_data.encodings import ENCODINGS_VERSION, Encodings, SliceEncodings, read_encodings
from audiodiff_platform.mel_data.latents import LatentsDataset
from audiodiff_platform.mel_data.measured import MeasuredEncodings, require_features
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
    """Inputs of diffusion training.

    Args:
        network: diffusers network.
        objective: Training objective.
        dataset: Dataset of mel images.
        vae: Autoencoder of a latent network, else None.
        latents: Precomputed latents of the dataset, or None.
        encodings: Encodings of the slices for a conditional network, else None.
        pretrained_digest: Digest of the model that training starts from, or None.
    """

    network: Any
    objective: Objective
    dataset: TrainingImages
    vae: Any
    latents: LatentsDataset | None
    encodings: SliceEncodings | None
    pretrained_digest: str | None

    @property
    def of_files(self) -> Encodings | None:
        """The encodings, if they are encodings of audio files."""
        return self.encodings if isinstance(self.encodings, Encodings) else None

    @property
    def conditions(self) -> MeasuredConditions | None:
        """The conditions on measured features, or None."""
        return self.encodings.conditions if isinstance(self.encodings, MeasuredEncodings) else None

    @property
    def mel(self) -> MelConfig:
        """The mel parameters of the dataset."""
        return self.dataset.mel

    @cached_property
    def digests(self) -> dict[str, str | None]:
        """Digests of the inputs, which determine the weights together with the options."""
        return {
            "data_digest": self.dataset.digest,
            "pretrained_digest": self.pretrained_digest,
            "vae_digest": None if self.vae is None else network_digest(self.vae),
            "latents_digest": None if self.latents is None else self.latents.digest,
            "encodings_digest": None if self.of_files is None else self.of_files.content_digest,
        }

    @property
    def encoder(self) -> EncoderRecord | None:
        """Record of the encoder of the encodings, or None if it is unknown."""
        encodings = self.of_files
        if encodings is None or encodings.name is None or encodings.digest is None:
            return None
        return EncoderRecord(name=public_encoder(encodings.name), digest=encodings.digest)

    @property
    def versions(self) -> dict[str, bytes | None]:
        """Contents of the files that record the versions of the data in the run folder, by name."""
        return {
            DATASET_VERSION: self.dataset.version,
            ENCODINGS_VERSION: None if self.of_files is None else self.of_files.version,
        }

    def order(self, seed: int) -> DataOrder:
        """Return the order in which training reads the samples."""
        return DataOrder(self.dataset, seed, latents=self.latents, encodings=self.encodings)


def load_training_inputs(options: TrainOptions, device: str = "cpu") -> TrainingInputs:
    """Open the data, and build or load the networks.

    Args:
        options: Options of the run.
        device: Device of a new network, which is initialized from the seed. A pretrained network is on the CPU.

    Raises:
        ValueError: Inputs do not match: mel parameters, resolutions, latents of other data, or missing encodings.
    """
    dataset, latents, encodings = _open_data(options)
    if options.from_pretrained is not None:
        return _pretrained(options, dataset, latents, encodings)
    vae = None if options.vae is None else _vae(options.vae, dataset.mel)
    _require_shape(options, latents, vae, dataset.mel)
    torch.manual_seed(options.seed)
    with torch.device(device):
        network = build_network(
            options.network_preset(),
            dataset.mel,
            vae,
            None if encodings is None else encodings.dim,
            beats_for(options.conditions, dataset.mel) if PRESETS[options.network_preset()].beats else None,
        )
    return TrainingInputs(network, options.objective(), dataset, vae, latents, encodings, None)


def open_order(options: TrainOptions) -> DataOrder:
    """Open the data in the order in which training reads the samples. Data workers call this function."""
    dataset, latents, encodings = _open_data(options)
    return DataOrder(dataset, options.seed, latents=latents, encodings=encodings)


def _open_data(options: TrainOptions) -> tuple[TrainingImages, LatentsDataset | None, SliceEncodings | None]:
    run = Folder(options.output_dir)
    dataset = open_dataset(options.dataset_name, options.mel_config, run)
    encodings: SliceEncodings | None = None
    if options.encodings is not None:
        encodings = read_encodings(options.encodings, run)
    elif options.conditions is not None:
        encodings = MeasuredEncodings(options.conditions)
    return dataset, None if options.latents is None else _latents(options.latents, dataset), encodings


def require_encodings(options: TrainOptions, inputs: TrainingInputs) -> None:
    """Check that all slices of the dataset have encodings. The names of all files, or their features, are read.

    Raises:
        ValueError: Files have no encoding, or no slice has a feature of the conditions. The message names them.
    """
    if inputs.conditions is not None:
        say(f"conditions: {require_features(options.dataset_name, inputs.dataset, inputs.conditions)}")
    if inputs.of_files is None:
        return
    split = validation_split(inputs.dataset)
    names = inputs.dataset.audio_files() | (set() if split is None else split.audio_files())
    try:
        inputs.of_files.vectors_for(sorted(names))
    except ValueError as error:
        raise ValueError(f"encodings {options.encodings}: {error}") from error


def validation_split(dataset: TrainingImages) -> MelDataset | None:
    """Return the validation split of a dataset written by prepare, or None if the split has no rows."""
    if not isinstance(dataset, MelDataset):
        return None
    split = MelDataset(dataset.folder.uri, VALIDATION_SPLIT, dataset.run)
    return split if split.rows else None


def _pretrained(
    options: TrainOptions, dataset: TrainingImages, latents: LatentsDataset | None, encodings: SliceEncodings | None
) -> TrainingInputs:
    """Load the network, the VAE and the objective of a pretrained model; options override its objective."""
    origin = f"from_pretrained {options.from_pretrained}"
    model = load_model(str(options.from_pretrained))
    _require_same_mel(origin, model.mel, dataset.mel)
    if options.vae is not None:
        raise ValueError(f"vae {options.vae} with {origin}: the model determines the autoencoder, leave vae out")
    dim = model.unet.config.get("cross_attention_dim")
    _require_same_conditions(options, origin, None if model.record is None else model.record.conditions)
    _require_encoding_dim(options, origin, dim, encodings)
    _require_shape(options, latents, model.vae, dataset.mel)
    pretrained = Objective.of(model.scheduler)
    if dim is not None:
        pretrained = pretrained.model_copy(update={"conditioning_dropout": 0.1})
    objective = options.objective(pretrained)
    if dim is None and objective.conditioning_dropout:
        raise ValueError(
            f"conditioning_dropout {objective.conditioning_dropout} with {origin}: "
            "the model takes no encodings, leave conditioning_dropout out"
        )
    return TrainingInputs(model.unet, objective, dataset, model.vae, latents, encodings, model.digest)


def _require_same_conditions(options: TrainOptions, origin: str, trained: MeasuredConditions | None) -> None:
    """Check that the conditions on measured features, and their encoding, are those of the model."""
    if options.conditions == trained:
        return
    if trained is None:
        reason = "no measured conditions: omit condition, or train a conditional preset from scratch"
    elif options.condition == trained.names:
        reason = "the same conditions in other ranges: train a conditional preset from scratch"
    else:
        reason = f"condition {','.join(trained.names)}: set the same"
    stated = ",".join(options.condition) or "none"
    raise ValueError(f"condition {stated} with {origin}: the model was trained with {reason}")


def _require_encoding_dim(
    options: TrainOptions, origin: str, dim: int | None, encodings: SliceEncodings | None
) -> None:
    """Check that encodings are set for a conditional model only, and have the dimension of the model."""
    if dim is None and encodings is not None:
        raise ValueError(
            f"encodings {options.encodings} with {origin}: the model takes no encodings, leave encodings out"
        )
    if dim is not None and encodings is None:
        raise ValueError(f"{origin}: the model takes encodings of {dim} values, set encodings")
    if encodings is not None and encodings.dim != dim:
        raise ValueError(
            f"encodings {options.encodings} with {origin}: the encodings have {encodings.dim} values, "
            f"the model takes {dim}: use encodings of the encoder that the model was trained with"
        )


def _vae(source: str, mel: MelConfig) -> Any:
    """Load an autoencoder, and check its mel parameters if they are stored with it."""
    vae = load_vae(source)
    if not is_hub_id(source) and (folder := Folder(source)).exists(MEL_CONFIG):
        _require_same_mel(f"vae {source}", MelConfig.from_json(folder.read(MEL_CONFIG).decode()), mel)
    return vae


def _latents(uri: str, dataset: TrainingImages) -> LatentsDataset:
    """Open latents, and check that they were encoded from this dataset."""
    latents = LatentsDataset(uri)
    if latents.dataset_digest != dataset.digest or latents.groups != dataset.groups:
        raise ValueError(
            f"latents {uri}: encoded from a dataset with digest {latents.dataset_digest}, "
            f"but this dataset has digest {dataset.digest}: encode this dataset again"
        )
    return latents


def _require_shape(options: TrainOptions, latents: LatentsDataset | None, vae: Any, mel: MelConfig) -> None:
    """Check the resolution of the dataset, and that the latents match the autoencoder."""
    if options.preset is not None:
        check_resolution(options.preset, mel, vae)
    if latents is None:
        return
    if vae is None:
        raise ValueError(f"latents {options.latents}: the network works on images, leave latents out")
    factor = latent_factor(vae)
    vae_shape = (vae.config.latent_channels, mel.y_res // factor, mel.x_res // factor)
    if latents.shape != vae_shape:
        raise ValueError(
            f"latents {options.latents}: have shape {latents.shape}, but the latents of the vae have {vae_shape}: "
            "encode the dataset with this vae"
        )
    if latents.vae_digest != (digest := network_digest(vae)):
        raise ValueError(
            f"latents {options.latents}: encoded by a vae with digest {latents.vae_digest}, "
            f"but this vae has digest {digest}: encode the dataset with this vae"
        )


def _require_same_mel(origin: str, trained: MelConfig, dataset: MelConfig) -> None:
    """Check that all mel parameters agree except n_iter, which affects the reconstruction of audio only."""
    trained_values, dataset_values = trained.model_dump(), dataset.model_dump()
    differences = ", ".join(
        f"{name} {value}, dataset: {dataset_values[name]}"
        for name, value in trained_values.items()
        if value != dataset_values[name] and name != "n_iter"
    )
    if differences:
        raise ValueError(
            f"{origin}: trained with other mel parameters than those of the dataset ({differences}): "
            "prepare the dataset with the same mel parameters"
        )
