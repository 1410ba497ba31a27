"""One audio file -> its mel slices, as a stream: the memory is that of a slice, however long the file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audiodiff_core import audio
from audiodiff_core.mel import Images, Mel


@dataclass(frozen=True)
class MelSlice:
    """A slice of a file: its place in the count of all slices (silent ones leave gaps), and its image (y_res, x_res)."""

    index: int
    start_s: float
    image: Images
    reference_db: float


def mel_slices(source: str | Path | bytes, mel: Mel, overlap: float = 0.0) -> Iterator[MelSlice]:
    """The slices of a file in order, completely silent ones left out, the tail dropped; audio shorter than a slice is padded to one.

    `overlap` in [0, 1): the share of a slice that the next one repeats. Raises AudioDecodeError, also after some slices.
    """
    size = mel.config.slice_size
    step = mel.slice_step(overlap)
    held = np.empty(0, np.float32)
    index = 0
    for block in audio.stream(source, mel.config.sample_rate):
        held = np.concatenate([held, block])
        while len(held) >= size:
            yield from _unless_silent(index, step, held[:size], mel)
            held = held[step:]
            index += 1
    if index == 0:
        yield from _unless_silent(0, step, held, mel)


def _unless_silent(index: int, step: int, samples: audio.Samples, mel: Mel) -> Iterator[MelSlice]:
    images, reference_db = mel.images(samples[np.newaxis])
    if not mel.is_silent(float(reference_db[0])):
        yield MelSlice(index, index * step / mel.config.sample_rate, images[0], float(reference_db[0]))
