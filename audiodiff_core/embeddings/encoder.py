"""Encoders of audio to embeddings, for conditioning models and for comparing sets of sounds.

`load_encoder` supports two kinds of encoders, which it distinguishes by their config.json:

- AudioEncoder of the original project (teticio/audio-encoder): a small network over mel images. It was trained on the
  co-occurrence of tracks in playlists.
- CLAP (Wu et al., "Large-scale contrastive language-audio pretraining", 2023): embeds audio and text in the same space.
  Needs transformers, which the extra `clap` installs.

The embedding of an item does not depend on the other items of a call: batches have a fixed shape, and texts are encoded
one by one. Pickled code in model files is never run.
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
    """A network that embeds audio. Encoders with equal digests compute equal embeddings."""

    name: str
    """Argument for `load_encoder`: `audio-encoder:SOURCE` or `clap:SOURCE`."""

    @property
    def dim(self) -> int:
        """Number of values in an embedding."""
        ...

    @property
    def sample_rate(self) -> int:
        """Sample rate in Hz that `encode` requires."""
        ...

    @property
    def digest(self) -> str:
        """Digest of weights and settings, as 16 hex digits."""
        ...

    def encode(self, audios: Sequence[Samples], sample_rate: int) -> Embeddings:
        """Embed audio.

        Args:
            audios: Mono samples of shape (n,). Lengths may differ.
            sample_rate: Sample rate of `audios`, in Hz.

        Returns:
            Embeddings of shape (len(audios), dim).

        Raises:
            ValueError: If `sample_rate` differs from the encoder's, or samples are empty, not mono, or not finite.
        """
        ...


def load_encoder(source: str | Path, device: torch.device | str = "cpu") -> Encoder:
    """Load an encoder.

    Args:
        source: A local folder or a Hugging Face id. The optional prefix `audio-encoder:` or `clap:` states the kind.
        device: Device for the network.

    Raises:
        ValueError: If the encoder does not exist, cannot be read, is not of the stated kind, or needs a package that is
            not installed.
    """
    required_kind, name = _split_kind(str(source))
    name = encoder_repository(name)
    folder = local_folder(name)
    config = read_config(folder, name)
    kind = "audio-encoder" if config.get("_class_name") == "AudioEncoder" else str(config.get("model_type"))
    if kind not in ("audio-encoder", "clap") or required_kind not in (None, kind):
        required = required_kind or "audio-encoder or clap"
        raise ValueError(f"encoder {source}: config.json is of kind {kind}: must be {required}")
    if kind == "clap":
        return ClapEncoder(name, folder, device)
    return AudioEncoder.of(folder, f"audio-encoder:{name}").to(device)


def _split_kind(source: str) -> tuple[str | None, str]:
    """Split a source into its kind, or None without a prefix, and the rest."""
    kind, colon, rest = source.partition(":")
    return (kind, rest) if colon and kind in ("audio-encoder", "clap") else (None, source)
