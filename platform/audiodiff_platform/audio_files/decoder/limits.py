"""Limits of the decoding of an audio file: memory, time, and the audio that the file expands to.

No limit is met by an audio file of use, on a slow and loaded machine either. Of the usual formats, Opus at 6 kbit/s expands most, 128 times;
digital silence in FLAC may expand a thousand times, and is of no use.
"""

from dataclasses import dataclass
from typing import Self

from audiodiff_core.audio import SAMPLE_RATES_HZ
from audiodiff_core.mel import Mel, MelConfig
from audiodiff_core.mel.slices import Slicing

MEMORY_BYTES_PER_SAMPLE = 64  # of a slice: spectra, power and image of large slices
FILTERBANK_BYTES_PER_VALUE = 24  # while it is made
TABLE_BYTES_AT_MOST = 768 << 20  # 70 hours of AAC
DECODED_SAMPLE_BYTES = 2
"""Decoded audio is counted as 16-bit samples."""

# A file's seconds of audio by its size. Stated seconds count from the rate of a CD on, since a header may state the first part of a file
# alone, and up to less than any codec needs.
CD_BYTES_PER_SECOND = 176_400
UNSTATED_BYTES_PER_SECOND = 8_000
LEAST_BYTES_PER_SECOND = 500

CPU_SECONDS_PER_SECOND = 2
"""Processor time for each second of the time limit. The clock ends a file first, the processor's time a file whose worker does not look at the clock."""

SECONDS_PER_STATED_SECOND = 2.0
SECONDS_PER_VALUE = 1e-6
"""Seconds for each value of the windows and bands of a spectrogram: a hundred times what a value takes."""
PNG_BYTES_AT_MOST = 1_024
"""Beyond those of the pixels, of which a hundredth is added: zlib may lengthen what it cannot compress."""


@dataclass(frozen=True)
class Limits:
    """Limits of each file that a process decodes."""

    memory_bytes: int = 384 << 20
    """Memory of the process."""
    least_s: float = 60.0
    """Seconds for a file of no length. The stated length adds to them."""
    audio_bytes: int = 64 << 20
    """Decoded audio, as 16-bit samples of all channels at the file's rate. The size of the file adds to it."""
    audio_bytes_per_byte: int = 500

    @classmethod
    def of(cls, mel: MelConfig) -> Self:
        """Return the limits of a process that makes slices by `mel`."""
        filterbank = FILTERBANK_BYTES_PER_VALUE * mel.y_res * (mel.n_fft // 2 + 1)
        return cls(memory_bytes=cls.memory_bytes + MEMORY_BYTES_PER_SAMPLE * mel.slice_size + filterbank)

    def memory_of(self, size: int) -> int:
        """Return the bytes of memory that the process may take for a file of `size` bytes: FFmpeg holds the sample table of an MP4 file."""
        return self.memory_bytes + min(size // 2, TABLE_BYTES_AT_MOST)

    def largest_audio(self, size: int) -> int:
        """Return the bytes of decoded audio that a file of `size` bytes may expand to."""
        return self.audio_bytes + self.audio_bytes_per_byte * size

    def time(self, size: int, mel: MelConfig | None = None, slicing: Slicing | None = None) -> "TimeLimit":
        """Return the time limit of a file of `size` bytes, of which images are made if there is a `mel`."""
        if mel is None:
            return TimeLimit(size, self.least_s, SECONDS_PER_STATED_SECOND)
        slicing = slicing or Slicing()
        times = 2 if slicing.reference == "track" else 1  # the file is decoded for its level first
        slice_s = times * SECONDS_PER_VALUE * mel.x_res * (mel.n_fft + mel.y_res)
        slices_per_s = mel.sample_rate / slice_step(mel, slicing)
        return TimeLimit(size, self.least_s + slice_s, times * SECONDS_PER_STATED_SECOND + slice_s * slices_per_s)


@dataclass(frozen=True)
class TimeLimit:
    """The seconds by the clock that a file of `size` bytes may take."""

    size: int
    least_s: float
    per_second: float
    """For each second of audio."""

    @property
    def before_header(self) -> float:
        """Seconds while the length that the file states is not known."""
        return self.least_s + self.per_second * self.size / CD_BYTES_PER_SECOND

    def seconds(self, stated_s: float | None) -> float:
        """Return the limit for a file that states a length of so many seconds, or none."""
        return self.least_s + self.per_second * self._audio_s(stated_s)

    def described(self, stated_s: float | None) -> str:
        """Return what the limit follows from, in a few words."""
        return f"its stated {stated_s:.0f} s" if stated_s == self._audio_s(stated_s) else "a file of its size"

    def _audio_s(self, stated_s: float | None) -> float:
        if stated_s is None:
            return self.size / UNSTATED_BYTES_PER_SECOND
        return min(max(stated_s, self.size / CD_BYTES_PER_SECOND), self.size / LEAST_BYTES_PER_SECOND)


def slice_step(mel: MelConfig, slicing: Slicing) -> int:
    """Return the samples between the starts of neighbouring slices."""
    return Mel(mel).slice_step(slicing.overlap)


def spool_of_slices(audio_bytes: int, mel: MelConfig, slicing: Slicing) -> int:
    """Return the most bytes that the PNG images of so much decoded audio may take."""
    rows = mel.y_res * (mel.x_res + 1)
    return _slices_at_most(audio_bytes, mel, slicing) * (rows + rows // 100 + PNG_BYTES_AT_MOST)


def spool_of_items(audio_bytes: int, mel: MelConfig) -> int:
    """Return the most bytes that the images and samples of so much decoded audio may take."""
    return _slices_at_most(audio_bytes, mel, Slicing()) * (mel.y_res * mel.x_res + 4 * mel.slice_size)


def _slices_at_most(audio_bytes: int, mel: MelConfig, slicing: Slicing) -> int:
    longest_s = audio_bytes / DECODED_SAMPLE_BYTES / SAMPLE_RATES_HZ[0]
    return 2 + int(longest_s * mel.sample_rate / slice_step(mel, slicing))
