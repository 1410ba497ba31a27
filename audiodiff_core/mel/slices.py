"""One audio file -> its mel slices, as a stream: the memory is that of a slice, however long the file."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pydantic

from audiodiff_core import audio
from audiodiff_core.mel.analysis import Mel
from audiodiff_core.mel.ranges import Images

SILENT_BELOW_DBFS = -84.0
"""A slice whose peak is lower is silent: two steps of 16-bit audio, so that dither makes no images."""
SILENT_BELOW = np.float32(10 ** (SILENT_BELOW_DBFS / 20))
CANCELLED_BY = 8.0
"""Channels cancel each other where the peak of a silent slice is lower than the mean of their magnitudes by this factor."""
CANCELLED_BEFORE_RESAMPLING_BY = 1.5
"""The same factor for the channel mean before resampling. It is 1 for sound above the new band in one channel or in phase."""
RINGING_SAMPLES = 256
"""Reach of the resampler: sound so close to a slice rings in it."""
SILENT = "silent throughout"
CANCELLED = f"{SILENT}: its channels cancel each other in the mono mix (as where left = -right); export it as mono or invert the phase of one channel"


class Slicing(pydantic.BaseModel):
    """Options of slicing. The defaults are the original's: no overlap, the tail dropped. Slices below SILENT_BELOW_DBFS are always left out."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    overlap: float = pydantic.Field(0.0, ge=0, lt=1, description="share of a slice that the next one repeats, 0 to 1")
    tail: Literal["drop", "pad"] = pydantic.Field(
        "drop", description="a file's last samples, where they do not fill a slice: drop, or pad with silence"
    )
    reference: Literal["slice", "track"] = pydantic.Field(
        "slice",
        description="what an image's brightest value stands for: its slice's maximum, or its track's (keeps loudness between slices; decodes twice)",
    )
    silence_threshold_db: float | None = pydantic.Field(
        None,
        ge=-120,
        le=0,
        description="slices of a lower level (RMS, dB of full scale) are left out; none: only those whose peak is below -84 dBFS",
    )


@dataclass(frozen=True)
class MelSlice:
    """A slice of a file: its place in the count of all slices (those left out leave gaps), the seconds of audio in it, its image
    (y_res, x_res), the level in dB of power that 255 stands for, and its samples before padding."""

    index: int
    start_s: float
    duration_s: float
    image: Images
    reference_db: float
    samples: audio.Samples


@dataclass(frozen=True, slots=True)
class Piece:
    """The samples (n,) of a slice before its image is made: n is the slice size, less for one that is to be padded."""

    index: int
    samples: audio.Samples
    is_silent: bool
    """The peak is below SILENT_BELOW_DBFS before or after resampling, which raises the peaks of dither."""
    is_cancelled: bool
    """The channels would be heard in their mean if they did not cancel each other."""

    @classmethod
    def of(cls, index: int, start: int, samples: audio.Samples, rate: int, meter: audio.PeakMeter) -> Self:
        """The piece of a stream at `rate` Hz that begins at sample `start`; calls for one meter must have ascending starts."""
        peak = float(np.abs(samples).max(initial=0))
        return cls(index, samples, *silence(start, start + len(samples), peak, rate, meter))


def silence(start: int, end: int, peak: float, rate: int, meter: audio.PeakMeter) -> tuple[bool, bool]:
    """Return `is_silent` and `is_cancelled` of Piece for samples `start` to `end` of a stream at `rate` Hz, whose peak is `peak`.

    Calls for one meter must have ascending starts.
    """
    mean, magnitude = meter.peaks((start - RINGING_SAMPLES) / rate, (end + RINGING_SAMPLES) / rate)
    peak = min(mean, peak)
    least_cancelled = max(float(SILENT_BELOW), CANCELLED_BY * peak, CANCELLED_BEFORE_RESAMPLING_BY * mean)
    return bool(peak < SILENT_BELOW), magnitude >= least_cancelled


def mel_slices(
    source: str | Path | bytes, mel: Mel, slicing: Slicing | None = None, watch: audio.Watch | None = None
) -> Iterator[MelSlice]:
    """The slices of a file in order, silent ones left out; audio shorter than a slice is padded to one. `slicing` None: the defaults.

    `watch` is told of the decoding: of two, one after the other, where the reference is the track.

    Raises AudioDecodeError, also after some slices, and if there are none because the channels cancel each other.
    """
    slicing = slicing or Slicing()
    step, rate = mel.slice_step(slicing.overlap), mel.config.sample_rate
    peaks_db: list[float] = []
    if slicing.reference == "track":
        peaks_db = [float(mel.peak_db(piece.samples[np.newaxis])[0]) for piece in pieces(source, mel, slicing, watch)]
    track_db = max(peaks_db, default=None)
    count, cancelled = 0, False
    for piece in pieces(source, mel, slicing, watch):
        quiet = slicing.silence_threshold_db is not None and _level_db(piece.samples) <= slicing.silence_threshold_db
        if quiet or piece.is_silent:
            cancelled |= piece.is_cancelled
            continue
        images, references_db = mel.images(piece.samples[np.newaxis], track_db)
        reference_db = float(references_db[0])
        if not mel.is_silent(peaks_db[piece.index] if peaks_db else reference_db):
            yield MelSlice(
                piece.index,
                piece.index * step / rate,
                len(piece.samples) / rate,
                images[0],
                reference_db,
                piece.samples,
            )
            count += 1
    if cancelled and not count:
        raise audio.AudioDecodeError("<bytes>" if isinstance(source, bytes) else str(source), CANCELLED)


def pieces(
    source: str | Path | bytes, mel: Mel, slicing: Slicing, watch: audio.Watch | None = None
) -> Generator[Piece, None, None]:
    """The samples of each slice of a file, silent ones too; all but a padded last one have mel.config.slice_size samples."""
    size, step, rate = mel.config.slice_size, mel.slice_step(slicing.overlap), mel.config.sample_rate
    meter = audio.PeakMeter()
    held = np.empty(0, np.float32)
    index = 0
    for block in audio.stream(source, rate, meter, watch):
        held = np.concatenate([held, block])
        while len(held) >= size:
            yield Piece.of(index, index * step, held[:size], rate, meter)
            held = held[step:]
            index += 1
    unseen = len(held) - (size - step)
    if index == 0 or (slicing.tail == "pad" and unseen > 0):
        yield Piece.of(index, index * step, held, rate, meter)


def _level_db(samples: audio.Samples) -> float:
    """Root mean square in dB of full scale; -inf for zeros."""
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(np.mean(np.square(samples, dtype=np.float64))))
