"""Decoded audio as a stream of blocks: block size, channel mean, level check, and how decoders open a file."""

import io
import math
from contextlib import AbstractContextManager, nullcontext
from typing import BinaryIO

import numpy as np

from audiodiff_core.audio.formats import MAX_LEVEL, Samples, UnusableError

BLOCK_FRAMES = 65_536  # of one or two channels; of more channels, a block holds as many samples in fewer frames


def opened(file: str | io.BytesIO) -> AbstractContextManager[BinaryIO]:
    return open(file, "rb") if isinstance(file, str) else nullcontext(file)


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
