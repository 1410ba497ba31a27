"""One audio file -> its mel slices, as a stream: the memory is that of a slice, however long the file."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic

from audiodiff_core import audio
from audiodiff_core.mel import Images, Mel


class Slicing(pydantic.BaseModel):
    """How a file is cut. As it stands, exactly as the original cuts: no overlap, the tail dropped, only complete silence left out."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    overlap: float = pydantic.Field(0.0, ge=0, lt=1, description="share of a slice that the next one repeats, 0 to 1")
    tail: Literal["drop", "pad"] = pydantic.Field("drop", description="a file's last samples, where they do not fill a slice: drop, or pad with silence")
    reference: Literal["slice", "track"] = pydantic.Field(
        "slice", description="what an image's brightest value stands for: its slice's maximum, or its track's (keeps loudness between slices; decodes twice)"
    )
    silence_threshold_db: float | None = pydantic.Field(
        None, ge=-120, le=0, description="slices of a lower level (RMS, dB of full scale) are left out; none: only those of complete silence"
    )


@dataclass(frozen=True)
class MelSlice:
    """A slice of a file: its place in the count of all slices (those left out leave gaps), how much audio it holds, its image
    (y_res, x_res) and the level in dB of power that 255 stands for."""

    index: int
    start_s: float
    duration_s: float
    image: Images
    reference_db: float


def mel_slices(source: str | Path | bytes, mel: Mel, slicing: Slicing | None = None) -> Iterator[MelSlice]:
    """The slices of a file in order, silent ones left out; audio shorter than a slice is padded to one. `slicing` none: the original's.

    Raises AudioDecodeError, also after some slices.
    """
    slicing = slicing or Slicing()
    step, rate = mel.slice_step(slicing.overlap), mel.config.sample_rate
    peaks_db: list[float] = []
    if slicing.reference == "track":
        peaks_db = [float(mel.peak_db(samples[np.newaxis])[0]) for _, samples in pieces(source, mel, slicing)]
    track_db = max(peaks_db, default=None)
    for index, samples in pieces(source, mel, slicing):
        if slicing.silence_threshold_db is not None and _level_db(samples) <= slicing.silence_threshold_db:
            continue
        images, references_db = mel.images(samples[np.newaxis], track_db)
        reference_db = float(references_db[0])
        if not mel.is_silent(peaks_db[index] if peaks_db else reference_db):
            yield MelSlice(index, index * step / rate, len(samples) / rate, images[0], reference_db)


def pieces(source: str | Path | bytes, mel: Mel, slicing: Slicing) -> Generator[tuple[int, audio.Samples], None, None]:
    """The samples of each slice of a file with its index, silent ones too; all but a padded last one have mel.config.slice_size samples."""
    size, step = mel.config.slice_size, mel.slice_step(slicing.overlap)
    held = np.empty(0, np.float32)
    index = 0
    for block in audio.stream(source, mel.config.sample_rate):
        held = np.concatenate([held, block])
        while len(held) >= size:
            yield index, held[:size]
            held = held[step:]
            index += 1
    unseen = len(held) - (size - step)
    if index == 0 or (slicing.tail == "pad" and unseen > 0):
        yield index, held


def _level_db(samples: audio.Samples) -> float:
    """Root mean square in dB of full scale; -inf for zeros."""
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(np.mean(np.square(samples, dtype=np.float64))))
