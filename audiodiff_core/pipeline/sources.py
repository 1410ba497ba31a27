"""What a loop can start from: audio or mel images, and which part of them is to be made anew."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from audiodiff_core.audio import LONGEST_DECODED_S, Samples, decode_audio
from audiodiff_core.mel import Images, Mel, MelConfig
from audiodiff_core.mel.slices import Slicing, pieces
from audiodiff_core.pipeline.geometry import NARROWEST

Span = tuple[float, float]
Mask = npt.NDArray[np.bool_]

LONGEST_TRACK = 16_384
"""Columns of the longest track that is taken as a whole: 380 s at a hop of 512 samples and 22,050 Hz."""


@dataclass(frozen=True, eq=False)
class Audio:
    """Mono float32 samples at a rate in Hz, or a file (path or any fsspec URI, at any rate); and which of its slices is meant."""

    samples: Samples | str | Path
    sample_rate: int | None = None
    slice: int = 0


Source = Audio | Images
"""Audio, or a mel image uint8 (y_res, width)."""


def source_image(source: Source, mel: MelConfig, width: int) -> Images:
    """Compute the mel image (y_res, width) of a source's slice. Audio that is shorter than a slice is padded with silence.

    A file is decoded up to the end of the slice. Raises ValueError for an image of another shape, a slice that the audio does not have,
    a slice that ends beyond LONGEST_DECODED_S of a file, and samples that `samples_of` rejects.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.shape != (mel.y_res, width):
            raise ValueError(
                f"image of shape {source.shape} and type {source.dtype}: uint8 ({mel.y_res}, {width}) is taken"
            )
        return source
    size = width * mel.hop_length - 1
    if isinstance(source.samples, str | Path):
        return _image(
            _slice_of_file(str(source.samples), source.slice, Mel(mel.model_copy(update={"x_res": width}))), mel, width
        )
    samples = samples_of(source, mel)
    count = max(1, len(samples) // size)
    if not 0 <= source.slice < count:
        raise _no_such_slice(source.slice, count, size / mel.sample_rate)
    return _image(samples[source.slice * size : (source.slice + 1) * size], mel, width)


def _slice_of_file(file: str, index: int, mel: Mel) -> Samples:
    """Decode a file up to the end of slice `index` and return the samples of that slice."""
    duration_s = mel.config.slice_duration_s
    if index < 0:
        raise ValueError(f"slice {index}: slices are counted from 0")
    if (index + 1) * duration_s > LONGEST_DECODED_S:
        raise ValueError(
            f"slice {index}: ends at {(index + 1) * duration_s:.0f} s, at most {LONGEST_DECODED_S:.0f} s of a file are decoded: cut the file"
        )
    count = 0
    with closing(pieces(file, mel, Slicing())) as slices:
        for piece in slices:
            if piece.index == index:
                return piece.samples
            count = piece.index + 1
    raise _no_such_slice(index, count, duration_s)


def _no_such_slice(index: int, count: int, duration_s: float) -> ValueError:
    return ValueError(f"slice {index}: the audio has {count} of {duration_s:.2f} s, use 0 to {count - 1}")


def track_image(track: Audio, mel: MelConfig) -> Images:
    """Compute the mel image (y_res, columns) of a whole track, relative to the loudest moment of the track.

    Raises ValueError for a track too short to be made into audio again, for a track of more than LONGEST_TRACK columns
    (a file is not decoded further), and for samples that `samples_of` rejects.
    """
    longest_s = LONGEST_TRACK * mel.hop_length / mel.sample_rate
    samples = samples_of(track, mel, longest_s)
    columns = -(-len(samples) // mel.hop_length)
    if columns < NARROWEST:
        least = mel.hop_length + 1
        raise ValueError(f"audio of {len(samples)} samples: a track has at least {least}, more than one hop")
    if columns > LONGEST_TRACK:
        raise ValueError(f"audio of {len(samples) / mel.sample_rate:.0f} s: at most {longest_s:.0f} s are taken")
    return _image(samples, mel, max(8, columns + 1))[:, :columns]  # a slice is a sample short of its columns


def samples_of(source: Audio, mel: MelConfig, longest_s: float = LONGEST_DECODED_S) -> Samples:
    """Return the samples (n,) of a source at the rate of `mel`; a file may last `longest_s` seconds.

    Raises ValueError for samples that are not mono, finite and at that rate, and AudioDecodeError as `decode_audio` does.
    """
    if isinstance(source.samples, str | Path):
        return decode_audio(str(source.samples), mel.sample_rate, longest_s=longest_s)
    samples = np.asarray(source.samples)
    if source.sample_rate != mel.sample_rate:
        raise ValueError(
            f"sample_rate {source.sample_rate} of the audio: the model's is {mel.sample_rate} Hz, resample it"
        )
    if samples.ndim != 1 or not len(samples) or not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(
            f"audio of shape {samples.shape} and type {samples.dtype}: mono floating point samples (n,) are taken, at least one"
        )
    if not np.isfinite(samples).all():
        raise ValueError(
            f"audio holds NaN or infinity, first at sample {int(np.flatnonzero(~np.isfinite(samples))[0])}"
        )
    return samples.astype(np.float32)


def _image(samples: Samples, mel: MelConfig, width: int) -> Images:
    image: Images = Mel(mel.model_copy(update={"x_res": width})).images(samples[np.newaxis])[0][0]
    return image


def kept_pixels(regenerate: Sequence[Span] | Mask, mel: MelConfig, width: int) -> Mask:
    """Where an image (y_res, width) is kept, from what is to be made anew: spans of seconds, or True in a mask of the image's shape.

    A column is kept where it begins before a span by a whole column, or at the span's end or after it. Raises ValueError, with the
    value, for a span that is empty or reaches beyond the slice, a mask of another shape, and where nothing is to be made anew.
    """
    if isinstance(regenerate, np.ndarray):
        if regenerate.dtype != np.bool_ or regenerate.shape != (mel.y_res, width):
            raise ValueError(
                f"mask of shape {regenerate.shape} and type {regenerate.dtype}: bool ({mel.y_res}, {width}) is taken"
            )
        kept = ~regenerate
    else:
        kept = np.ones((mel.y_res, width), np.bool_)
        duration_s = width * mel.hop_length / mel.sample_rate
        for start_s, end_s in regenerate:
            if not 0 <= start_s < end_s <= duration_s + 1e-6:
                raise ValueError(f"mask from {start_s} s to {end_s} s: the slice is from 0 to {duration_s:.3f} s")
            first, last = (seconds * mel.sample_rate / mel.hop_length for seconds in (start_s, end_s))
            kept[:, int(first + 1e-6) : int(np.ceil(last - 1e-6))] = False
    if kept.all():
        raise ValueError("mask leaves nothing to be made anew")
    return kept


def kept_latents(kept: Mask, factor: int) -> Mask:
    """Where latents are kept: all pixels that a latent pixel stands for are."""
    height, width = kept.shape
    whole: Mask = np.logical_and.reduce(kept.reshape(height // factor, factor, width // factor, factor), axis=(1, 3))
    return whole
