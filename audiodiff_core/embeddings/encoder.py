"""Audio -> embeddings: what conditional models are told of a sound, and what sets of sounds are compared by.

`load_encoder` reads a folder or a Hugging Face id and tells by its config.json which of two it is:
- the original's AudioEncoder (teticio/audio-encoder), a small network over mel images, trained on which tracks share playlists;
- a CLAP (Wu et al., "Large-scale contrastive language-audio pretraining", 2023), which embeds text too, in the same space
  (transformers' ClapModel: the extra `clap`).

An item's embedding does not depend on its neighbours: batches have one fixed shape, texts are done one by one. Nothing is unpickled but tensors.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from audiodiff_core.audio import Samples
from audiodiff_core.embeddings.audio_encoder import AudioEncoder
from audiodiff_core.embeddings.clap import ClapEncoder
from audiodiff_core.embeddings.encoder_folder import encoder_repository, local_folder, read_config
from audiodiff_core.embeddings.inputs import Embeddings


class Encoder(Protocol):
    """Turns audio into vectors. Two encoders with the same digest give the same."""

    name: str
    """As `load_encoder` takes it: `audio-encoder:SOURCE` or `clap:SOURCE`."""

    @property
    def dim(self) -> int: ...

    @property
    def sample_rate(self) -> int:
        """In Hz, of the audio that `encode` takes."""
        ...

    @property
    def digest(self) -> str:
        """Names weights and settings: 16 hex digits."""
        ...

    def encode(self, audios: Sequence[Samples], sample_rate: int) -> Embeddings:
        """Audios (n_i,) of any lengths at `sample_rate` Hz -> (len(audios), dim).

        Raises ValueError for another rate than the encoder's, and for audio that is empty, not mono or not finite.
        """
        ...


def load_encoder(source: str | Path, device: torch.device | str = "cpu") -> Encoder:
    """The encoder at `source`: a local folder or a Hugging Face id, with or without the prefix that says which kind is expected.

    Raises ValueError where there is none, it is of another kind, cannot be read, or needs a package that is not installed.
    """
    expected, name = _parts(str(source))
    name = encoder_repository(name)
    folder = local_folder(name)
    config = read_config(folder, name)
    kind = "audio-encoder" if config.get("_class_name") == "AudioEncoder" else str(config.get("model_type"))
    if kind not in ("audio-encoder", "clap") or expected not in (None, kind):
        raise ValueError(
            f"encoder {source}: its config.json is of {kind}, {expected or 'audio-encoder or clap'} can be loaded"
        )
    if kind == "clap":
        return ClapEncoder(name, folder, device)
    return AudioEncoder.of(folder, f"audio-encoder:{name}").to(device)


def _parts(source: str) -> tuple[str | None, str]:
    """The kind that a prefix states, if one does, and the rest."""
    kind, colon, rest = source.partition(":")
    return (kind, rest) if colon and kind in ("audio-encoder", "clap") else (None, source)
