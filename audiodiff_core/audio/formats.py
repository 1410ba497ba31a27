"""Audio file formats, the error for unusable files, and the bounds of what is read."""

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
"""Lower-case extensions of the files that libsndfile or FFmpeg decodes here; of a video, the first audio stream."""
MEDIA_TYPES: dict[AudioFormat, str] = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "mp3": "audio/mpeg",
}

MAX_CHANNELS = 1_024  # as in libsndfile
MAX_LEVEL = 1e10  # above 32-bit whole numbers stored as floats; from 1e16 on, a mel spectrogram overflows
SAMPLE_RATES_HZ = range(1_000, 768_001)

MACHINE_ERRORS = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EMFILE, errno.ENFILE})
"""Numbers of system errors that are no fault of a file: its storage cannot be reached, or too many files are open."""


class AudioDecodeError(ValueError):
    """A source that gives no usable audio: `source` names it, `reason` says why in a few words."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


class UnusableError(Exception):
    """A file that gives no usable audio, and why, in a few words."""


def check_header(channels: int, rate: int) -> None:
    if not 1 <= channels <= MAX_CHANNELS:
        raise UnusableError(f"claims {channels} channels, 1 to {MAX_CHANNELS} can be read")
    if rate not in SAMPLE_RATES_HZ:
        raise UnusableError(f"claims a rate of {rate} Hz, {SAMPLE_RATES_HZ[0]} to {SAMPLE_RATES_HZ[-1]} can be read")


def one_line(error: BaseException) -> str:
    """The reason alone: the messages of libsndfile and FFmpeg also name the file, for bytes by their address in memory."""
    match error:
        case soundfile.LibsndfileError():
            reason = error.error_string
        case av.error.FFmpegError():
            reason = error.strerror
        case _:
            reason = str(error)
    return " ".join(str(reason).split()).rstrip(".")
