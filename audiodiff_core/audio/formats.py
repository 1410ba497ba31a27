"""Audio file formats, limits of decoding, and errors for unusable files."""

import errno
from typing import Literal

import av.error
import numpy as np
import numpy.typing as npt
import soundfile

Samples = npt.NDArray[np.float32]
AudioFormat = Literal["wav", "flac", "ogg", "mp3"]

AUDIO_EXTENSIONS = frozenset(
    {
        *(".wav", ".wave", ".bwf", ".rf64", ".w64", ".aif", ".aiff", ".aifc", ".caf", ".au", ".snd"),
        *(".flac", ".mp3", ".mp2", ".mpga", ".aac", ".adts", ".ogg", ".oga", ".ogx", ".ogv", ".opus"),
        *(".m4a", ".m4b", ".m4r", ".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mka", ".mkv", ".weba", ".webm"),
    }
)
"""Extensions of supported files, in lower case. Only the first audio stream of a video file is decoded."""
MEDIA_TYPES: dict[AudioFormat, str] = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "mp3": "audio/mpeg",
}
BYTES_PER_SAMPLE: dict[AudioFormat, float] = {"wav": 2.0, "flac": 2.0, "ogg": 0.5, "mp3": 0.5}
"""Estimated size of a file in bytes for each mono sample, rounded up.

wav and flac store 16-bit PCM, which flac does not shorten for noise. The sizes of ogg and mp3 are those of noise of 3 s
or more, at 11,025 Hz or more.
"""

MAX_CHANNELS = 1_024
"""Maximum number of channels. libsndfile has the same limit."""
MAX_LEVEL = 1e10
"""Maximum magnitude of a sample.

The limit admits 32-bit integers that are stored as floats without scaling. The power in a mel spectrogram overflows at
magnitudes from about 1e16.
"""
SAMPLE_RATES_HZ = range(1_000, 768_001)
"""Supported sample rates in Hz."""

MACHINE_ERRORS = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EMFILE, errno.ENFILE})
"""Values of errno that indicate unreachable storage or too many open files, not a damaged file."""


class AudioDecodeError(ValueError):
    """Error for a source without usable audio.

    Args:
        source: Path or URI of the source, or "<bytes>".
        reason: Reason in a few words.
    """

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


class UnusableError(Exception):
    """Error for a file without usable audio. The message is the reason in a few words."""


def check_header(channels: int, rate: int) -> None:
    """Raise UnusableError if the number of channels or the sample rate in Hz is out of range."""
    if not 1 <= channels <= MAX_CHANNELS:
        raise UnusableError(f"header states {channels} channels: must be 1 to {MAX_CHANNELS}")
    if rate not in SAMPLE_RATES_HZ:
        raise UnusableError(
            f"header states a sample rate of {rate} Hz: must be {SAMPLE_RATES_HZ[0]} to {SAMPLE_RATES_HZ[-1]} Hz"
        )


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line, without the file name.

    The full messages of libsndfile and FFmpeg include the file name, or the memory address of a file object.
    """
    match error:
        case soundfile.LibsndfileError():
            reason = error.error_string
        case av.error.FFmpegError():
            reason = error.strerror
        case _:
            reason = str(error)
    return " ".join(str(reason).split()).rstrip(".")
