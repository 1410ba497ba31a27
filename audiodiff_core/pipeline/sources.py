"""Sources of loops: audio or mel images, and masks of the part to keep."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from audiodiff_core.audio import LONGEST_DECODED_S, Samples, decode_audio
from audiodiff_core.mel import Images, Mel, MelConfig
from audiodiff_core.mel.slices import no_such_slice, slice_of_file
from audiodiff_core.pipeline.geometry import MIN_WIDTH

Span = tuple[float, float]
Mask = npt.NDArray[np.bool_]

MAX_TRACK_COLUMNS = 16_384
"""Maximum width of a whole track in image columns: 380 s at a hop of 512 samples and 22,050 Hz."""


@dataclass(frozen=True, eq=False)
class Audio:
    """A slice of audio.

    Attributes:
        samples: Mono float32 samples (n,), or a file: a path or any fsspec URI.
        sample_rate: Sample rate of the samples in Hz. A file states its own rate.
        slice: Index of the slice. Slices have the width of the requested image.
    """

    samples: Samples | str | Path
    sample_rate: int | None = None
    slice: int = 0


Source = Audio | Images
"""Audio, or a mel image uint8 (y_res, width)."""


@dataclass(frozen=True, eq=False)
class SourceSlice:
    """A slice of a source.

    Attributes:
        image: The mel image (y_res, width).
        samples: float32 samples (n,) of audio, padded with silence to the slice. None for an image.
        amplitude: Amplitude of the samples at which the image has mel power 1 at level 255.
    """

    image: Images
    samples: Samples | None = None
    amplitude: float = 1.0


class AudioFiles(Protocol):
    """Decoding of the files that requests name."""

    def slice(self, file: str, index: int, mel: MelConfig) -> Samples:
        """Return the samples of slice `index` of a file. Slices have the width of `mel`. See `slice_of_file`."""

    def track(self, file: str, sample_rate: int, longest_s: float) -> Samples:
        """Return all samples of a file of at most `longest_s` seconds. See `decode_audio`."""


class FilesHere:
    """Decoding of files in this process. A file that crashes its decoder ends the process."""

    def slice(self, file: str, index: int, mel: MelConfig) -> Samples:
        """See `AudioFiles.slice`."""
        return slice_of_file(file, index, Mel(mel))

    def track(self, file: str, sample_rate: int, longest_s: float) -> Samples:
        """See `AudioFiles.track`."""
        return decode_audio(file, sample_rate, longest_s=longest_s)


HERE: AudioFiles = FilesHere()


def source_slice(source: Source, mel: MelConfig, width: int, files: AudioFiles = HERE) -> SourceSlice:
    """Compute the mel image of a slice of a source.

    Audio that is shorter than a slice is padded with silence. A file is decoded up to the end of the slice.

    Args:
        source: The source.
        mel: The mel configuration.
        width: Width of the image in columns.
        files: Decoding of files.

    Raises:
        ValueError: If an image has another shape, if the slice does not exist, if the slice of a file ends after
            LONGEST_DECODED_S, or if `samples_of` rejects the samples.
        AudioDecodeError: If a file cannot be decoded.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.shape != (mel.y_res, width):
            raise ValueError(
                f"image of shape {source.shape} and type {source.dtype}: pass uint8 ({mel.y_res}, {width})"
            )
        return SourceSlice(source)
    size = width * mel.hop_length - 1
    if isinstance(source.samples, str | Path):
        samples = files.slice(str(source.samples), source.slice, mel.model_copy(update={"x_res": width}))
        return _slice(samples, mel, width)
    samples = samples_of(source, mel)
    count = max(1, len(samples) // size)
    if not 0 <= source.slice < count:
        raise no_such_slice(source.slice, count, size / mel.sample_rate)
    return _slice(samples[source.slice * size : (source.slice + 1) * size], mel, width)


def track_image(track: Source, mel: MelConfig, files: AudioFiles = HERE) -> Images:
    """Compute the mel image of a whole track, relative to the loudest moment of the track.

    Args:
        track: The track, whose `slice` is ignored, or its image (y_res, columns).
        mel: The mel configuration.
        files: Decoding of files.

    Returns:
        The image (y_res, columns).

    Raises:
        ValueError: If an image has another height or type, if the track is not longer than one hop, if the track has
            more than MAX_TRACK_COLUMNS columns, or if `samples_of` rejects the samples.
        AudioDecodeError: If a file cannot be decoded, or lasts longer than MAX_TRACK_COLUMNS columns.
    """
    if isinstance(track, np.ndarray):
        if track.dtype != np.uint8 or track.ndim != 2 or len(track) != mel.y_res:
            raise ValueError(f"image of shape {track.shape} and type {track.dtype}: pass uint8 ({mel.y_res}, columns)")
        if not MIN_WIDTH <= track.shape[1] <= MAX_TRACK_COLUMNS:
            raise ValueError(f"image of {track.shape[1]} columns: use {MIN_WIDTH} to {MAX_TRACK_COLUMNS}")
        return track
    longest_s = MAX_TRACK_COLUMNS * mel.hop_length / mel.sample_rate
    samples = samples_of(track, mel, longest_s, files)
    columns = -(-len(samples) // mel.hop_length)
    if columns < MIN_WIDTH:
        raise ValueError(
            f"audio of {len(samples)} samples: a track needs at least {mel.hop_length + 1}, more than one hop"
        )
    if columns > MAX_TRACK_COLUMNS:
        raise ValueError(f"audio of {len(samples) / mel.sample_rate:.0f} s: use at most {longest_s:.0f} s")
    # A slice of `columns` columns would be one sample too short for a track of `columns` whole hops.
    return _slice(samples, mel, max(8, columns + 1)).image[:, :columns]


def samples_of(
    source: Audio, mel: MelConfig, longest_s: float = LONGEST_DECODED_S, files: AudioFiles = HERE
) -> Samples:
    """Return all samples of a source.

    Args:
        source: The source. Its `slice` is ignored.
        mel: The mel configuration. Files are resampled to its sample rate.
        longest_s: Maximum duration of a file in seconds.
        files: Decoding of files.

    Returns:
        float32 samples (n,).

    Raises:
        ValueError: If samples are not mono, not finite or empty, or have another sample rate.
        AudioDecodeError: If a file cannot be decoded, or is too long.
    """
    if isinstance(source.samples, str | Path):
        return files.track(str(source.samples), mel.sample_rate, longest_s)
    samples = np.asarray(source.samples)
    if source.sample_rate != mel.sample_rate:
        raise ValueError(
            f"sample_rate {source.sample_rate} of the audio: the model's is {mel.sample_rate} Hz, resample the audio"
        )
    if samples.ndim != 1 or not len(samples) or not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(
            f"audio of shape {samples.shape} and type {samples.dtype}: "
            "pass mono floating-point samples (n,), at least one"
        )
    if not np.isfinite(samples).all():
        raise ValueError(
            f"audio holds NaN or infinity, first at sample {int(np.flatnonzero(~np.isfinite(samples))[0])}"
        )
    return samples.astype(np.float32)


def _slice(samples: Samples, mel: MelConfig, width: int) -> SourceSlice:
    images, references_db = Mel(mel.model_copy(update={"x_res": width})).images(samples[np.newaxis])
    padded = np.zeros(width * mel.hop_length, np.float32)
    padded[: len(samples)] = samples
    return SourceSlice(images[0], padded, 10 ** (float(references_db[0]) / 20))


def kept_pixels(regenerate: Sequence[Span] | Mask, mel: MelConfig, width: int) -> Mask:
    """Return the mask of the pixels to keep.

    A column is regenerated if any part of it lies in a span.

    Args:
        regenerate: Spans (start, end) in seconds, or a boolean mask (y_res, width), True where the image is
            regenerated.
        mel: The mel configuration.
        width: Width of the image in columns.

    Returns:
        A mask (y_res, width), True where the image is kept.

    Raises:
        ValueError: If a span is empty or reaches beyond the image, if the mask has another shape, or if nothing is
            regenerated.
    """
    if isinstance(regenerate, np.ndarray):
        if regenerate.dtype != np.bool_ or regenerate.shape != (mel.y_res, width):
            raise ValueError(
                f"mask of shape {regenerate.shape} and type {regenerate.dtype}: pass bool ({mel.y_res}, {width})"
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
        raise ValueError("mask leaves nothing to regenerate: pass a span or set pixels of the mask")
    return kept


def kept_latents(kept: Mask, factor: int) -> Mask:
    """Return the mask of the latents to keep.

    Args:
        kept: Mask of the pixels to keep (height, width).
        factor: Pixels per side of a latent pixel.

    Returns:
        A mask (height / factor, width / factor), True where all pixels of a latent pixel are kept.
    """
    height, width = kept.shape
    kept_latent: Mask = np.logical_and.reduce(
        kept.reshape(height // factor, factor, width // factor, factor), axis=(1, 3)
    )
    return kept_latent
