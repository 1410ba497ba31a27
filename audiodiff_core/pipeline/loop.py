"""Loops, the results of requests, and their files."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from audiodiff_core.audio import AudioFormat, Samples
from audiodiff_core.loops.loudness import TargetLevel
from audiodiff_core.mel import Images
from audiodiff_core.pipeline.loop_file import LoopFile, Origin
from audiodiff_core.sampling import ExecutionProfile
from audiodiff_core.sampling.requests import SeededRequest

PEAK = 10 ** (-1 / 20)
"""Peak amplitude of every loop: -1 dBFS. A mel image has no absolute level."""


@dataclass(frozen=True, eq=False)
class Loop:
    """The result of a request.

    Attributes:
        request: The request, with all defaults filled in.
        image: The mel image (y_res, width).
        audio: The audio (n,). n is (width - 1) * hop_length, width * hop_length if seamless, or the length of the bars
            of the request. The peak is -1 dBFS, or the level is that of the source if the loop keeps samples of it.
        number: Index of the request in the call.
        profile: The execution profile, with the batch size that was used.
        origin: Digests of the model and of the encoding.
        noise: The noise (channels, height, width) from which the loop was generated, if an inversion, an interpolation
            or the caller gave it.
    """

    request: SeededRequest
    image: Images
    audio: Samples
    number: int
    profile: ExecutionProfile
    origin: Origin
    noise: npt.NDArray[np.float32] | None = None

    def file(self, sample_rate: int, file_format: AudioFormat) -> bytes:
        """Encode the loop as an audio file.

        Tags state the tempo, the key, the request and the digest of the model. The file of a seamless loop, or of a
        loop of bars, states loop points too, except in mp3.

        Args:
            sample_rate: Sample rate in Hz.
            file_format: The file format.

        Returns:
            The bytes of the file.
        """
        return self.measured(sample_rate).content(file_format)

    def measured(self, sample_rate: int, level: TargetLevel | None = None) -> LoopFile:
        """Return the audio as a file holds it, with its measurements.

        Args:
            sample_rate: Sample rate in Hz.
            level: Level of the file, or None for the level of the loop.
        """
        return LoopFile.of(self.audio, sample_rate, self.request, self.origin, level)


@dataclass(frozen=True, eq=False)
class Failure:
    """A request without a result.

    Attributes:
        request: The request.
        number: Index of the request in the call.
        error: FloatingPointError if a network returned NaN or infinity, ValueError if the request does not fit or its
            source cannot be decoded, or OSError if its source cannot be read.
    """

    request: SeededRequest
    number: int
    error: FloatingPointError | ValueError | OSError


def normalize(audio: Samples) -> Samples:
    """Scale audio to the peak level -1 dBFS. Silence stays silence."""
    peak = float(np.abs(audio).max(initial=0))
    return audio if peak == 0 else (audio * np.float32(PEAK / peak)).astype(np.float32)
