"""Decoded audio as a stream of blocks (channels, n): block size, channel mean, peaks, level check, and how decoders open a file."""

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

BLOCK_FRAMES = 65_536  # of one or two channels; of more channels, a block holds as many samples in fewer frames
PEAK_WINDOW_FRAMES = 512

AudioFile = str | io.BytesIO | io.BufferedReader
"""A path, the bytes of a file, or `FileParts`."""


def opened(file: AudioFile) -> AbstractContextManager[BinaryIO]:
    return open(file, "rb") if isinstance(file, str) else nullcontext(file)


def independent(file: AudioFile) -> AudioFile:
    """Return `file` with a position of its own, while another decoder reads it."""
    match file:
        case io.BytesIO():
            return io.BytesIO(file.getvalue())
        case io.BufferedReader(raw=FileParts() as parts):
            return io.BufferedReader(FileParts(parts.content, parts.parts))
        case _:
            return file


def block_frames(channels: int) -> int:
    return max(1, 2 * BLOCK_FRAMES // max(2, channels))


def mono(samples: Samples) -> Samples:
    """The mean of `samples` (channels, n), (n,): librosa's numbers."""
    mean: Samples
    with np.errstate(over="ignore", invalid="ignore"):  # `stream` looks for what is not finite
        match len(samples):
            case 1:
                mean = samples[0]
            case 2:
                mean = (samples[0] + samples[1]) * np.float32(0.5)  # in a tenth of np.mean's time
            case _:
                mean = np.mean(samples, axis=0)
    return mean


def check_level(samples: Samples) -> None:
    peak = max(float(samples.max()), -float(samples.min()))
    if not math.isfinite(peak):
        raise UnusableError("NaN or infinite samples")
    if peak > MAX_LEVEL:
        raise UnusableError(f"samples of up to {peak:.0e}, more than {MAX_LEVEL:.0e}")


class Watch(Protocol):
    """An observer of the decoding of a file. Both methods may raise UnusableError, which ends the decoding."""

    def opened(self, stated_s: float | None) -> None:
        """The header was read: it states so many seconds, or None where it states no length of the whole file."""

    def decoded(self, block: Samples) -> None:
        """The next block (channels, n) at the file's own rate."""


def watched(blocks: Iterator[Samples], watch: Watch) -> Iterator[Samples]:
    """Yield `blocks`, after `watch` is told of each."""
    for block in blocks:
        watch.decoded(block)
        yield block


class PeakMeter:
    """Peaks of a stream at the file's own rate, in windows of PEAK_WINDOW_FRAMES: of the channel mean, and of the mean of the channels' magnitudes."""

    def __init__(self) -> None:
        self._rate = 1
        self._windows: deque[tuple[int, int, Samples]] = deque()

    def averaged(self, rate: int, blocks: Iterator[Samples]) -> Iterator[Samples]:
        """The channel mean (n,) of blocks (channels, n), whose peaks are kept."""
        self._rate = rate
        end = 0
        for block in blocks:
            mean = mono(block)
            with np.errstate(over="ignore", invalid="ignore"):
                peaks = _window_peaks(mean)
                match len(block):
                    case 1:
                        magnitudes = peaks
                    case 2:  # (|a| + |b|) / 2 is the larger of |a + b| / 2 and |a - b| / 2
                        magnitudes = np.maximum(peaks, _window_peaks((block[0] - block[1]) * np.float32(0.5)))
                    case channels:
                        magnitudes = _window_peaks(reduce(np.add, map(np.abs, block)) / np.float32(channels))
            self._windows.append((end, end := end + len(mean), np.stack([peaks, magnitudes])))
            yield mean

    def peaks(self, start_s: float, end_s: float) -> tuple[float, float]:
        """The peaks of the channel mean and of the mean magnitude between two times of the stream, up to a window beyond.

        Forgets the blocks before `start_s`: calls must have ascending starts.
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
    """The largest magnitude in each window of PEAK_WINDOW_FRAMES, the last of which may be shorter."""
    whole = len(samples) - len(samples) % PEAK_WINDOW_FRAMES
    windows = samples[:whole].reshape(-1, PEAK_WINDOW_FRAMES)
    peaks = np.maximum(windows.max(axis=1), -windows.min(axis=1))
    rest = samples[whole:]
    return np.append(peaks, max(rest.max(), -rest.min())) if len(rest) else peaks
