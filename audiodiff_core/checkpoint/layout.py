"""Layouts of model folders, as their model_index.json describes them.

    class in model_index.json      written by                               mel        autoencoder
    DDPMPipeline, DDIMPipeline     diffusers 0.2                            none       none
    LatentAudioDiffusionPipeline   original project, 2022                   none       vqvae
    AudioDiffusionPipeline         original project, diffusers, audiodiff   Mel (1)    vqvae, [null, null] or none
    DDIMPipeline                   audiodiff, folded networks (2)           Mel        vqvae or [null, null]

(1) Published models give three different names for the library of the class Mel.
(2) diffusers' AudioDiffusionPipeline takes the samples of a network for images, which folded samples are not.

Classes are compared by name. No name in a file is ever imported.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiodiff_core.files.model_files import AUTOENCODER_KEYS, MODEL_INDEX, CheckpointError, read_json

PIPELINE_CLASS = "AudioDiffusionPipeline"
FOLDED_PIPELINE_CLASS = "DDIMPipeline"
PIPELINE_CLASSES = (PIPELINE_CLASS, "LatentAudioDiffusionPipeline", "DDPMPipeline", FOLDED_PIPELINE_CLASS)


@dataclass(frozen=True)
class Layout:
    """Parts of a model folder.

    Attributes:
        root: The model folder.
        unet_class: Name of the diffusers class of the denoising network.
        scheduler_class: Name of the diffusers class of the scheduler.
        autoencoder: Folder of the autoencoder relative to `root`, or None without an autoencoder.
        has_mel: Whether the folder contains a mel configuration.
    """

    root: Path
    unet_class: str
    scheduler_class: str
    autoencoder: str | None
    has_mel: bool

    @classmethod
    def read(cls, root: Path, changes: list[str]) -> "Layout":
        """Read the layout of a model folder.

        Args:
            root: The model folder.
            changes: List to which a line is appended for every difference from the layout that audiodiff saves.

        Raises:
            CheckpointError: If the index is damaged, or names a class that is not supported.
        """
        index = read_json(root, MODEL_INDEX)
        pipeline_class = index.get("_class_name", PIPELINE_CLASS)
        if pipeline_class not in PIPELINE_CLASSES:
            raise CheckpointError(
                f"{MODEL_INDEX}: unsupported class {pipeline_class}: must be {', '.join(PIPELINE_CLASSES)}"
            )
        if pipeline_class != PIPELINE_CLASS and not (pipeline_class == FOLDED_PIPELINE_CLASS and "mel" in index):
            changes.append(f"{MODEL_INDEX}: changed class {pipeline_class} to {PIPELINE_CLASS}")
        components = {key: _component(index, key) for key in ("unet", "scheduler", "mel", *AUTOENCODER_KEYS)}
        for key in ("unet", "scheduler"):
            if components[key] is None or components[key][0] != "diffusers":
                raise CheckpointError(f"{MODEL_INDEX}: unsupported {key} {index.get(key)}: must be of diffusers")
        autoencoders = [key for key in AUTOENCODER_KEYS if components[key] is not None]
        for key in autoencoders[:1]:
            if components[key] != ["diffusers", "AutoencoderKL"]:
                raise CheckpointError(
                    f"{MODEL_INDEX}: unsupported {key} {index[key]}: must be AutoencoderKL of diffusers"
                )
            if key != AUTOENCODER_KEYS[0]:
                changes.append(f"{MODEL_INDEX}: renamed component {key} to {AUTOENCODER_KEYS[0]}")
        mel = components["mel"]
        if mel is not None and mel[1] != "Mel":
            raise CheckpointError(f"{MODEL_INDEX}: unsupported mel {mel}: must be Mel")
        if mel is not None and mel[0] != "diffusers":
            changes.append(f"{MODEL_INDEX}: changed the library of mel from {mel[0]} to diffusers")
        return cls(
            root,
            components["unet"][1],
            components["scheduler"][1],
            autoencoders[0] if autoencoders else None,
            mel is not None,
        )


def _component(index: dict[str, Any], key: str) -> Any:
    """Return the [library, class] of a component, or None for a missing key, null or [null, null]."""
    match index.get(key):
        case None | [None, None]:
            return None
        case [str(), str()] as library_and_class:
            return library_and_class
        case other:
            raise CheckpointError(f"{MODEL_INDEX}: unsupported {key} {other}: must be [library, class]")
