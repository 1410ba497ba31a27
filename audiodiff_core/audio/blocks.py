"""Blocks of decoded audio (channels, n): size, channel mean, peaks, level check and observers."""

import io
import math
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import BinaryIO, Protocol

import numpy as np

from audiodiff_core.audio.file_parts import FileParts
from audiodiff_core.audio.formats import MAX_LEVEL, Samples, UnusableError

BLOCK_FRAMES = 65_536
"""Frames in a block of one or two channels. With more channels, a block has fewer frames."""
PEAK_WINDOW_FRAMES = 512

AudioFile = str | io.BytesIO | io.BufferedReader
"""Path, bytes in memory, or buffered `FileParts`."""


def opened(file: AudioFile) -> AbstractContextManager[BinaryIO]:
    """Open a path for reading. A file that is already open is returned as is and stays open on exit."""
    return open(file, "rb") if isinstance(file, str) else nullcontext(file)


def independent_handle(file: AudioFile) -> AudioFile:
    """Return `file` with a read position of its own, for use while another decoder reads `file`."""
    match file:
        case io.BytesIO():
            return io.BytesIO(file.getvalue())
        case io.BufferedReader(raw=FileParts() as parts):
            return io.BufferedReader(FileParts(parts.content, parts.parts))
        case _:
            return file


def block_frames(channels: int) -> int:
    """Return the number of frames in a block with this number of channels."""
    return max(1, 2 * BLOCK_FRAMES // max(2, channels))


def mono(samples: Samples) -> Samples:
    """Return the channel mean (n,) of `samples` (channels, n), equal to the result of librosa."""
    mean: Samples
    with np.errstate(over="ignore", invalid="ignore"):  # `check_level` rejects non-finite samples later
        match len(samples):
            case 1:
                mean = samples[0]
            case 2:
                mean = (samples[0] + samples[1]) * np.float32(0.5)  # ten times as fast as np.mean
            case _:
                mean = np.mean(samples, axis=0)
    return mean


def check_level(samples: Samples) -> None:
    """Raise UnusableError if samples are NaN, infinite or larger in magnitude than MAX_LEVEL."""
    peak = max(float(samples.max()), -float(samples.min()))
    if not math.isfinite(peak):
        raise UnusableError("NaN or infinite samples")
    if peak > MAX_LEVEL:
        raise UnusableError(f"samples of up to {peak:.0e}: must be at most {MAX_LEVEL:.0e}")


class Watch(Protocol):
    """Observer of the decoding of a file. Both methods may raise UnusableError, which ends the decoding."""

    def opened(self, stated_s: float | None) -> None:
        """Handle the start of decoding, after the header has been read.

        Args:
            stated_s: Length of the file in seconds, as its header states it. None if the header states no length, or
                only the length of a part of the file.
        """

    def decoded(self, block: Samples) -> None:
        """Handle the next block of samples (channels, n), at the sample rate of the file."""


def watched(blocks: Iterator[Samples], watch: Watch) -> Iterator[Samples]:
    """Yield `blocks`, each after a call of `watch.decoded`."""
    for block in blocks:
        watch.decoded(block)
        yield block


class PeakMeter:
    """Meter for the peaks of a file before resampling, in windows of PEAK_WINDOW_FRAMES.

    A window has two peaks: the peak of the channel mean, and the peak of the channels' mean magnitude. They differ
    where channels cancel each other in the channel mean.
    """

    def __init__(self) -> None:
        self._rate = 1
        self._windows: deque[tuple[int, int, Samples]] = deque()

    def downmixed(self, rate: int, blocks: Iterator[Samples]) -> Iterator[Samples]:
        """Yield the channel mean of each block and keep the block's peaks.

        Args:
            rate: Sample rate of the file in Hz.
            blocks: Blocks (channels, n).

        Yields:
            Channel means (n,).
        """
        self._rate = rate
        end = 0
        for block in blocks:
            mean = mono(block)
            with np.errstate(over="ignore", invalid="ignore"):
                peaks = _window_peaks(mean)
                match len(block):
                    case 1:
                        magnitudes = peaks
                    case 2:  # (|a| + |b|) / 2 = max(|a + b|, |a - b|) / 2
                        magnitudes = np.maximum(peaks, _window_peaks((block[0] - block[1]) * np.float32(0.5)))
                    case channels:
                        magnitudes = _window_peaks(reduce(np.add, map(np.abs, block)) / np.float32(channels))
            self._windows.append((end, end := end + len(mean), np.stack([peaks, magnitudes])))
            yield mean

    def peaks(self, start_s: float, end_s: float) -> tuple[float, float]:
        """Return the peaks of a range of the file, and forget the blocks before the range.

        `start_s` must not decrease between calls. A window that overlaps the range counts as a whole.

        Args:
            start_s: Start of the range in seconds.
            end_s: End of the range in seconds.

        Returns:
            The peak of the channel mean, and the peak of the channels' mean magnitude.
        """
        start, end = int(start_s * self._rate), math.ceil(end_s * self._rate)
        while self._windows and self._windows[0][1] <= start:
            self._windows.popleft()
        covered = [
            peaks[:, max(0, start - first) // PEAK_WINDOW_FRAMES : -(-(end - first) // PEAK_WINDOW_FRAMES)]
            for first, _, peaks in self._windows
            if first < end
        ]
        mean, magnitude = np.concatenate(covered, axis=1).max(axis=1, initial=0) if covered else (0, 0)
        return float(mean), float(magnitude)


def _window_peaks(samples: Samples) -> Samples:
    """Return the largest magnitude in each window of PEAK_WINDOW_FRAMES. The last window may be shorter."""
    rest_start = len(samples) - len(samples) % PEAK_WINDOW_FRAMES
    windows = samples[:rest_start].reshape(-1, PEAK_WINDOW_FRAMES)
    peaks = np.maximum(windows.max(axis=1), -windows.min(axis=1))
    rest = samples[rest_start:]
    return np.append(peaks, max(rest.max(), -rest.min())) if len(rest) else peaks
