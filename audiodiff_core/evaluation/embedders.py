"""What stands for an item when sets of items are compared: an embedder, by name.

    logmel-stats   statistics of the mel image itself (`metrics.logmel_stats`): no weights, so the same numbers everywhere
    audio-encoder:SOURCE, clap:SOURCE, or a SOURCE alone: an encoder (`encoder.load_encoder`), which listens to the item's samples

An item is a slice of audio, cut and analysed by one mel configuration, whichever embedder is used, so that items are alike on both sides.
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
    """A slice: its image (y_res, x_res) and, where there is audio, its samples (n,) at the mel configuration's rate."""

    image: Images
    samples: Samples | None


class Embedder(Protocol):
    """Items -> features."""

    name: str
    digest: str  # names the weights
    listens: bool  # needs the items' samples

    def __call__(self, items: Sequence[EmbedderItem]) -> Features:
        """(n, d) for n items, at least one."""
        ...


class EncoderEmbedder:
    """An encoder as embedder; items are brought to its sample rate."""

    listens = True

    def __init__(self, encoder: Encoder, sample_rate: int) -> None:
        self._encoder, self._sample_rate = encoder, sample_rate
        self.name, self.digest = encoder.name, encoder.digest

    def __call__(self, items: Sequence[EmbedderItem]) -> Features:
        audios = []
        for item in items:
            assert item.samples is not None, "who listens is given audio"
            audios.append(
                soxr.resample(item.samples, self._sample_rate, self._encoder.sample_rate, quality="HQ").astype(
                    np.float32, copy=False
                )
            )
        return self._encoder.encode(audios, self._encoder.sample_rate).astype(np.float64)


class LogmelStats:
    """The embedder without weights."""

    name = digest = EMBEDDER
    listens = False

    def __call__(self, items: Sequence[EmbedderItem]) -> Features:
        return logmel_stats(np.stack([item.image for item in items]))


def items_of(source: str | Path | bytes, mel: Mel) -> Iterator[EmbedderItem]:
    """The slices of an audio file that prepare takes by default; raises AudioDecodeError as `mel_slices` does."""
    for piece in mel_slices(source, mel):
        yield EmbedderItem(piece.image, piece.samples)


def heard(samples: Samples, mel: Mel) -> tuple[EmbedderItem, float]:
    """An item of at most a slice's samples (n,), and the level in dB of power that its image is relative to."""
    images, references_db = mel.images(samples[np.newaxis])
    return EmbedderItem(images[0], samples), float(references_db[0])


def load_embedder(name: str, sample_rate: int, device: str = "cpu") -> Embedder:
    """The embedder of that name, for items at `sample_rate` Hz; raises ValueError where there is none, or where its weights cannot be had."""
    return LogmelStats() if name == EMBEDDER else EncoderEmbedder(load_encoder(name, device), sample_rate)
