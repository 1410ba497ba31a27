"""Limits of the decoding of an audio file: memory, time and size of the decoded audio.

Usable audio files stay below all limits, even on slow machines under load. Among the usual formats, Opus at 6 kbit/s
has the highest ratio of decoded size to file size: 128. Digital silence in FLAC may reach a ratio of 1,000 and exceed
the limit, but silent files are unusable anyway.
"""

from dataclasses import dataclass
from typing import Self

from audiodiff_core.audio import SAMPLE_RATES_HZ
from audiodiff_core.mel import Mel, MelConfig
from audiodiff_core.mel.slices import Slicing

MEMORY_BYTES_PER_SAMPLE = 64
"""Memory for each sample of a slice: its spectra, power and image, and later the spectra of its measurement."""
FILTERBANK_BYTES_PER_VALUE = 24
"""Memory for each value of the mel filterbank while it is computed."""
MAX_TABLE_BYTES = 768 << 20
"""Maximum size of the sample table of an MP4 file: 70 hours of AAC."""
DECODED_SAMPLE_BYTES = 2
"""Size of a decoded sample, which counts as a 16-bit number in any format."""

# The stated duration of a file is clamped to a range that depends on the size of the file. The lower bound is the
# duration at the rate of a CD: a header may state only the duration of the first part of a file. The upper bound is the
# duration at MIN_BYTES_PER_SECOND, a rate that is lower than the rate of any codec.
CD_BYTES_PER_SECOND = 176_400
MIN_BYTES_PER_SECOND = 500
UNSTATED_BYTES_PER_SECOND = 8_000
"""Assumed rate of a file whose header states no duration."""

CPU_SECONDS_PER_SECOND = 2
"""Processor time for each second of the time limit.

The time limit is normally reached first. The limit on processor time also stops a process whose worker is suspended.
"""

SECONDS_PER_STATED_SECOND = 2.0
"""Time for each second of audio, for each pass over the file."""
SECONDS_PER_VALUE = 1e-6
"""Time for each value of the windows and bands of a spectrogram: 100 times the usual time."""
MAX_PNG_HEADER_BYTES = 1_024


@dataclass(frozen=True)
class Limits:
    """Limits of each file that a process decodes.

    Args:
        memory_bytes: The memory limit of the process in bytes, for a file of size zero.
        base_s: The time limit in seconds for a file of size zero. The limit grows with the duration of the audio.
        audio_bytes: The maximum size in bytes of the decoded audio for a file of size zero, as 16-bit samples of all
            channels at the sample rate of the file.
        audio_bytes_per_byte: The increase of this maximum for each byte of the file.
    """

    memory_bytes: int = 384 << 20
    base_s: float = 60.0
    audio_bytes: int = 64 << 20
    audio_bytes_per_byte: int = 500

    @classmethod
    def of(cls, mel: MelConfig) -> Self:
        """Return the limits of a process that computes images with the configuration `mel`."""
        filterbank = FILTERBANK_BYTES_PER_VALUE * mel.y_res * (mel.n_fft // 2 + 1)
        return cls(memory_bytes=cls.memory_bytes + MEMORY_BYTES_PER_SAMPLE * mel.slice_size + filterbank)

    def memory_of(self, size: int) -> int:
        """Return the memory limit in bytes for a file of `size` bytes."""
        return self.memory_bytes + min(size // 2, MAX_TABLE_BYTES)  # FFmpeg keeps the sample table of an MP4 file

    def largest_audio(self, size: int) -> int:
        """Return the maximum size of the decoded audio in bytes for a file of `size` bytes."""
        return self.audio_bytes + self.audio_bytes_per_byte * size

    def time(self, size: int, mel: MelConfig | None = None, slicing: Slicing | None = None) -> "TimeLimit":
        """Return the time limit for a file.

        Args:
            size: The size of the file in bytes.
            mel: The configuration of the images that are computed, or None if only samples are decoded.
            slicing: The options of slicing; default: `Slicing()`.
        """
        if mel is None:
            return TimeLimit(size, self.base_s, SECONDS_PER_STATED_SECOND)
        slicing = slicing or Slicing()
        passes = 2 if slicing.reference == "track" else 1  # the first pass finds the level of the track
        slice_s = passes * SECONDS_PER_VALUE * mel.x_res * (mel.n_fft + mel.y_res)
        slices_per_s = mel.sample_rate / slice_step(mel, slicing)
        return TimeLimit(size, self.base_s + slice_s, passes * SECONDS_PER_STATED_SECOND + slice_s * slices_per_s)


@dataclass(frozen=True)
class TimeLimit:
    """The wall-clock time that a file may take.

    Args:
        size: The size of the file in bytes.
        base_s: The time for a file of size zero, in seconds.
        per_second: The time for each second of audio, in seconds.
    """

    size: int
    base_s: float
    per_second: float

    @property
    def before_header(self) -> float:
        """The limit in seconds before the header of the file has been read."""
        return self.base_s + self.per_second * self.size / CD_BYTES_PER_SECOND

    def seconds(self, stated_s: float | None) -> float:
        """Return the limit in seconds.

        Args:
            stated_s: The stated duration of the audio in seconds, or None if the file states no duration.
        """
        return self.base_s + self.per_second * self._audio_s(stated_s)

    def basis(self, stated_s: float | None) -> str:
        """Return the basis of the limit as text: the stated duration or the size of the file."""
        return (
            f"its stated duration of {stated_s:.0f} s" if stated_s == self._audio_s(stated_s) else "a file of its size"
        )

    def _audio_s(self, stated_s: float | None) -> float:
        """Return the duration of the audio on which the limit is based, in seconds."""
        if stated_s is None:
            return self.size / UNSTATED_BYTES_PER_SECOND
        return min(max(stated_s, self.size / CD_BYTES_PER_SECOND), self.size / MIN_BYTES_PER_SECOND)


def slice_step(mel: MelConfig, slicing: Slicing) -> int:
    """Return the number of samples between the starts of adjacent slices."""
    return Mel(mel).slice_step(slicing.overlap)


def spool_of_slices(audio_bytes: int, mel: MelConfig, slicing: Slicing) -> int:
    """Return the maximum size in bytes of the PNGs of `audio_bytes` of decoded audio."""
    rows = mel.y_res * (mel.x_res + 1)  # each row of a PNG begins with a filter byte
    expansion = rows // 100  # zlib expands data that it cannot compress
    return _max_slices(audio_bytes, mel, slicing) * (rows + expansion + MAX_PNG_HEADER_BYTES)


def spool_of_items(audio_bytes: int, mel: MelConfig) -> int:
    """Return the maximum size in bytes of the images and samples of `audio_bytes` of decoded audio."""
    return _max_slices(audio_bytes, mel, Slicing()) * (mel.y_res * mel.x_res + 4 * mel.slice_size)


def _max_slices(audio_bytes: int, mel: MelConfig, slicing: Slicing) -> int:
    longest_s = audio_bytes / DECODED_SAMPLE_BYTES / SAMPLE_RATES_HZ[0]
    return 2 + int(longest_s * mel.sample_rate / slice_step(mel, slicing))
