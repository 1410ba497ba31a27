"""What a model folder holds, whichever of the known layouts it is: its index read, its parts found.

    class in model_index.json              written by                      mel                  autoencoder
    DDPMPipeline, DDIMPipeline             diffusers 0.2                   none                 none
    LatentAudioDiffusionPipeline           the original, 2022              none                 vqvae
    AudioDiffusionPipeline                 the original, diffusers, ours   the class's library  vqvae, [null, null] or no such key
                                                                           has had three names

Classes are known by their names: no name from a file is ever imported.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiodiff_core.files.model_files import AUTOENCODER_KEYS, MODEL_INDEX, CheckpointError, read_json

PIPELINE_CLASS = "AudioDiffusionPipeline"
PIPELINE_CLASSES = (PIPELINE_CLASS, "LatentAudioDiffusionPipeline", "DDPMPipeline", "DDIMPipeline")


@dataclass(frozen=True)
class Layout:
    """Where the parts of a model lie below `root`, and of which diffusers class each is; None for a part that it does not have."""

    root: Path
    unet_class: str
    scheduler_class: str
    autoencoder: str | None
    has_mel: bool

    @classmethod
    def read(cls, root: Path, changes: list[str]) -> "Layout":
        """The layout of the folder `root`; adds to `changes` a line for all in which it is not the one that is written here."""
        index = read_json(root, MODEL_INDEX)
        known = index.get("_class_name", PIPELINE_CLASS)
        if known not in PIPELINE_CLASSES:
            raise CheckpointError(f"{MODEL_INDEX} names the class {known}: {', '.join(PIPELINE_CLASSES)} can be loaded")
        if known != PIPELINE_CLASS:
            changes.append(f"{MODEL_INDEX}: class {known} -> {PIPELINE_CLASS}")
        present = {key: _component(index, key) for key in ("unet", "scheduler", "mel", *AUTOENCODER_KEYS)}
        for key in ("unet", "scheduler"):
            if present[key] is None or present[key][0] != "diffusers":
                raise CheckpointError(
                    f"{'network' if key == 'unet' else key} {index.get(key)} is not one that can be loaded"
                )
        autoencoders = [key for key in AUTOENCODER_KEYS if present[key] is not None]
        for key in autoencoders[:1]:
            if present[key] != ["diffusers", "AutoencoderKL"]:
                raise CheckpointError(
                    f"autoencoder {index[key]} is not one that can be loaded: AutoencoderKL of diffusers is"
                )
            if key != AUTOENCODER_KEYS[0]:
                changes.append(f"{MODEL_INDEX}: component {key} -> {AUTOENCODER_KEYS[0]}")
        mel = present["mel"]
        if mel is not None and mel[1] != "Mel":
            raise CheckpointError(f"mel {mel} is not one that can be loaded: Mel is")
        if mel is not None and mel[0] != "diffusers":
            changes.append(f"{MODEL_INDEX}: mel of {mel[0]} -> of diffusers")
        return cls(
            root,
            present["unet"][1],
            present["scheduler"][1],
            autoencoders[0] if autoencoders else None,
            mel is not None,
        )


def _component(index: dict[str, Any], key: str) -> Any:
    """[library, class] of a component; None where the index has none, in whichever way it says so."""
    match index.get(key):
        case None | [None, None]:
            return None
        case [str(), str()] as named:
            return named
        case other:
            raise CheckpointError(f"{MODEL_INDEX} names the {key} {other}: [library, class] is expected")
