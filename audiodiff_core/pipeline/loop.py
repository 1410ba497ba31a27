"""Loops, the results of requests, and their files."""

from dataclasses import dataclass

import numpy as np

from audiodiff_core.audio import AudioFormat, Samples, encode_audio
from audiodiff_core.loops import whole_beats
from audiodiff_core.mel import Images
from audiodiff_core.sampling import GenerateRequest

PEAK = 10 ** (-1 / 20)
"""Peak amplitude of every loop: -1 dBFS. A mel image has no absolute level."""


@dataclass(frozen=True, eq=False)
class Loop:
    """The result of a request.

    Attributes:
        request: The request, with all defaults filled in.
        image: The mel image (y_res, width).
        audio: The audio (n,), with peak -1 dBFS. n is (width - 1) * hop_length, or width * hop_length if seamless.
        number: Index of the request in the call.
    """

    request: GenerateRequest
    image: Images
    audio: Samples
    number: int

    def file(self, sample_rate: int, file_format: AudioFormat) -> bytes:
        """Encode the loop as an audio file. The WAV file of a seamless loop states loop points and the tempo.

        Args:
            sample_rate: Sample rate in Hz.
            file_format: The file format.

        Returns:
            The bytes of the file.
        """
        repeats = self.request.seamless and file_format == "wav"
        return encode_audio(
            self.audio, sample_rate, file_format, whole_beats(self.audio, sample_rate) if repeats else None
        )


def normalize(audio: Samples) -> Samples:
    """Scale audio to the peak level -1 dBFS. Silence stays silence."""
    peak = float(np.abs(audio).max(initial=0))
    return audio if peak == 0 else (audio * np.float32(PEAK / peak)).astype(np.float32)
