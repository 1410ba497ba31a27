"""Mel slices of an audio file, as a stream that holds one slice in memory at a time."""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pydantic

from audiodiff_core import audio
from audiodiff_core.mel.analysis import Mel
from audiodiff_core.mel.ranges import Images

SILENT_BELOW_DBFS = -84.0
"""Peak level below which a slice is silent: two steps of 16-bit audio, so that slices of dither are skipped."""

SILENT_BELOW = np.float32(10 ** (SILENT_BELOW_DBFS / 20))
"""SILENT_BELOW_DBFS as an amplitude."""

CANCELLATION_RATIO = 8.0
"""Channels count as cancelled if their mean magnitude is at least this multiple of the peak of the mono mix."""

CANCELLATION_RATIO_BEFORE_RESAMPLING = 1.5
"""Second threshold, like CANCELLATION_RATIO, for the peak of the mono mix before resampling.

The resampler removes sound above the new Nyquist frequency. Sound that is in phase or in one channel has a ratio of 1,
so that its removal is not mistaken for cancellation.
"""

RINGING_SAMPLES = 256
"""Reach of the resampler's filter. Sound within this distance of a slice is audible in the slice as ringing."""

SILENT = "silent throughout"
CANCELLED = (
    f"{SILENT}: its channels cancel each other in the mono mix (for example, left = -right); "
    "export it as mono or invert the phase of one channel"
)


class Slicing(pydantic.BaseModel):
    """Options for slicing. The defaults are those of the original project.

    Slices with a peak below SILENT_BELOW_DBFS are always skipped.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    overlap: float = pydantic.Field(
        0.0, ge=0, lt=1, description="fraction of a slice that the next slice repeats, from 0 to less than 1"
    )
    tail: Literal["drop", "pad"] = pydantic.Field(
        "drop",
        description="treatment of the last samples of a file if they do not fill a slice: drop, or pad with silence",
    )
    reference: Literal["slice", "track"] = pydantic.Field(
        "slice",
        description=(
            "level of pixel value 255: the maximum of the slice, or the maximum of the track, which keeps "
            "the relative loudness of slices but decodes each file twice"
        ),
    )
    silence_threshold_db: float | None = pydantic.Field(
        None,
        ge=-120,
        le=0,
        description=(
            "skip slices with an RMS level up to this value, in dB of full scale; "
            "none: skip only slices with a peak below -84 dBFS"
        ),
    )


@dataclass(frozen=True)
class MelSlice:
    """A slice of an audio file and its mel image.

    Attributes:
        index: Position among all slices of the file. Skipped slices are counted and leave gaps.
        start_s: Start in the file, in seconds.
        duration_s: Duration before padding, in seconds.
        image: Mel image of shape (y_res, x_res).
        reference_db: Power in dB at which pixels have the value 255.
        samples: Samples of shape (n,) before padding.
    """

    index: int
    start_s: float
    duration_s: float
    image: Images
    reference_db: float
    samples: audio.Samples


@dataclass(frozen=True, slots=True)
class Piece:
    """The samples of a slice, before it is converted to an image.

    Attributes:
        index: Position among all slices of the file.
        samples: Samples of shape (n,). n is the slice size, or less for a last slice that will be padded.
        is_silent: Whether the peak is below SILENT_BELOW_DBFS before or after resampling. Both are checked because
            resampling can raise the peaks of dither.
        is_cancelled: Whether the channels have sound that cancels out in the mono mix.
    """

    index: int
    samples: audio.Samples
    is_silent: bool
    is_cancelled: bool

    @classmethod
    def of(cls, index: int, start: int, samples: audio.Samples, rate: int, meter: audio.PeakMeter) -> Self:
        """Create the piece of a stream that begins at sample `start`. See `silence` for the other arguments."""
        peak = float(np.abs(samples).max(initial=0))
        return cls(index, samples, *silence(start, start + len(samples), peak, rate, meter))


def silence(start: int, end: int, peak: float, rate: int, meter: audio.PeakMeter) -> tuple[bool, bool]:
    """Compute `Piece.is_silent` and `Piece.is_cancelled` for a range of a stream.

    Args:
        start: First sample of the range. Must not decrease between calls with the same `meter`.
        end: End of the range, in samples (exclusive).
        peak: Largest magnitude in the range.
        rate: Sample rate of the stream, in Hz.
        meter: Peaks of the same stream before resampling.
    """
    mean, magnitude = meter.peaks((start - RINGING_SAMPLES) / rate, (end + RINGING_SAMPLES) / rate)
    peak = min(mean, peak)
    min_magnitude = max(float(SILENT_BELOW), CANCELLATION_RATIO * peak, CANCELLATION_RATIO_BEFORE_RESAMPLING * mean)
    return bool(peak < SILENT_BELOW), magnitude >= min_magnitude


def mel_slices(
    source: str | Path | bytes, mel: Mel, slicing: Slicing | None = None, watch: audio.Watch | None = None
) -> Iterator[MelSlice]:
    """Decode an audio file and yield its slices in order, without silent slices.

    Audio shorter than a slice is padded to one slice.

    Args:
        source: Path, URI or content of an audio file.
        mel: Converter of slices to images.
        slicing: Options. None uses the defaults.
        watch: Observer of the decoding. A track reference decodes the file twice, and the observer sees both passes.

    Raises:
        AudioDecodeError: If the file cannot be decoded, possibly after some slices were yielded, or if all slices are
            silent because the channels cancel each other.
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
    """Decode an audio file and yield the samples of each slice, including silent slices.

    Args:
        source: Path, URI or content of an audio file.
        mel: Converter that defines the slice size and the sample rate.
        slicing: Options. Only `overlap` and `tail` are used.
        watch: Observer of the decoding.

    Yields:
        Pieces of slice_size samples. The last piece may be shorter.

    Raises:
        AudioDecodeError: If the file cannot be decoded, possibly after some pieces were yielded.
    """
    size, step, rate = mel.config.slice_size, mel.slice_step(slicing.overlap), mel.config.sample_rate
    meter = audio.PeakMeter()
    buffer = np.empty(0, np.float32)
    index = 0
    for block in audio.stream(source, rate, meter, watch):
        buffer = np.concatenate([buffer, block])
        while len(buffer) >= size:
            yield Piece.of(index, index * step, buffer[:size], rate, meter)
            buffer = buffer[step:]
            index += 1
    unseen_samples = len(buffer) - (size - step)
    if index == 0 or (slicing.tail == "pad" and unseen_samples > 0):
        yield Piece.of(index, index * step, buffer, rate, meter)


def slice_of_file(file: str, index: int, mel: Mel, watch: audio.Watch | None = None) -> audio.Samples:
    """Decode a file up to the end of slice `index`, and return the samples of that slice.

    Args:
        file: Path or URI of an audio file.
        index: Index of the slice.
        mel: Converter that defines the slice size and the sample rate.
        watch: Observer of the decoding.

    Returns:
        Samples (n,). A file that is shorter than a slice has one slice, which is shorter.

    Raises:
        AudioDecodeError: If the file cannot be decoded.
        ValueError: If the slice does not exist, or ends after LONGEST_DECODED_S.
    """
    duration_s = mel.config.slice_duration_s
    if index < 0:
        raise ValueError(f"slice {index}: slices are counted from 0")
    if (index + 1) * duration_s > audio.LONGEST_DECODED_S:
        raise ValueError(
            f"slice {index}: ends at {(index + 1) * duration_s:.0f} s, "
            f"at most {audio.LONGEST_DECODED_S:.0f} s of a file are decoded: cut the file"
        )
    count = 0
    with closing(pieces(file, mel, Slicing(), watch)) as slices:
        for piece in slices:
            if piece.index == index:
                return piece.samples
            count = piece.index + 1
    raise no_such_slice(index, count, duration_s)


def no_such_slice(index: int, count: int, duration_s: float) -> ValueError:
    """Return the error for a slice beyond the `count` slices of some audio."""
    return ValueError(f"slice {index}: the audio has {count} of {duration_s:.2f} s, use 0 to {count - 1}")


def _level_db(samples: audio.Samples) -> float:
    """Return the RMS level in dB of full scale, -inf for zeros."""
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(np.mean(np.square(samples, dtype=np.float64))))
