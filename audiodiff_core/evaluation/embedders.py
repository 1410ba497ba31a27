"""Embedders, which map items to feature vectors for the comparison of sets of items.

An item is a slice of audio. All embedders, on both sides of a comparison, receive slices that are cut and analyzed with
one mel configuration. Embedders have names:

- `logmel-stats`: statistics of the mel image (`features.logmel_stats`). It has no weights, so its features are
  reproducible.
- `audio-encoder:SOURCE`, `clap:SOURCE` or `SOURCE`: an encoder of the audio samples (`embeddings.load_encoder`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import soxr

from audiodiff_core.audio import Samples
from audiodiff_core.embeddings import Encoder, load_encoder
from audiodiff_core.evaluation.features import EMBEDDER, Features, logmel_stats
from audiodiff_core.mel import Images, Mel
from audiodiff_core.mel.slices import mel_slices


@dataclass(frozen=True)
class EmbedderItem:
    """Slice of audio.

    Args:
        image: uint8 mel image of shape (y_res, x_res).
        samples: Audio samples of shape (n,) at the sample rate of the mel configuration. None if only the image is
            available.
    """

    image: Images
    samples: Samples | None


class Embedder(Protocol):
    """Function from items to feature vectors.

    Attributes:
        name: Name of the embedder.
        digest: Identifier of the weights.
        needs_audio: Whether the embedder reads `EmbedderItem.samples`.
    """

    name: str
    digest: str
    needs_audio: bool

    def __call__(self, items: Sequence[EmbedderItem]) -> Features:
        """Compute the features of n > 0 items, of shape (n, d)."""
        ...


class EncoderEmbedder:
    """Embedder that encodes the audio of items, resampled to the sample rate of its encoder.

    Args:
        encoder: The encoder.
        sample_rate: Sample rate of the items in Hz.
    """

    needs_audio = True

    def __init__(self, encoder: Encoder, sample_rate: int) -> None:
        self._encoder, self._sample_rate = encoder, sample_rate
        self.name, self.digest = encoder.name, encoder.digest

    def __call__(self, items: Sequence[EmbedderItem]) -> Features:
        audios = []
        for item in items:
            assert item.samples is not None, "an encoder needs the samples of items"
            resampled = soxr.resample(item.samples, self._sample_rate, self._encoder.sample_rate, quality="HQ")
            audios.append(resampled.astype(np.float32, copy=False))
        return self._encoder.encode(audios, self._encoder.sample_rate).astype(np.float64)


class LogmelStats:
    """Embedder that computes `logmel_stats` of the images of items."""

    name = digest = EMBEDDER
    needs_audio = False

    def __call__(self, items: Sequence[EmbedderItem]) -> Features:
        return logmel_stats(np.stack([item.image for item in items]))


def items_of(source: str | Path | bytes, mel: Mel) -> Iterator[EmbedderItem]:
    """Cut an audio file into the slices that `prepare` uses by default.

    Args:
        source: Path or content of the file.
        mel: Mel configuration of the slices.

    Raises:
        AudioDecodeError: If the file cannot be decoded.
    """
    for mel_slice in mel_slices(source, mel):
        yield EmbedderItem(mel_slice.image, mel_slice.samples)


def item_from_samples(samples: Samples, mel: Mel) -> tuple[EmbedderItem, float]:
    """Analyze audio of at most one slice.

    Args:
        samples: Samples of shape (n,) at the sample rate of `mel`.
        mel: Mel configuration of the image.

    Returns:
        The item, and the reference level of its image in dB of power.
    """
    images, references_db = mel.images(samples[np.newaxis])
    return EmbedderItem(images[0], samples), float(references_db[0])


def load_embedder(name: str, sample_rate: int, device: str = "cpu") -> Embedder:
    """Load the embedder `name`.

    Args:
        name: Name of the embedder, as listed at the beginning of this module.
        sample_rate: Sample rate of the items in Hz.
        device: Device of an encoder.

    Raises:
        ValueError: If the name is unknown or the weights cannot be loaded.
    """
    return LogmelStats() if name == EMBEDDER else EncoderEmbedder(load_encoder(name, device), sample_rate)
