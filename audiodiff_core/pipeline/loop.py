"""What a request became, and the file that it is written to."""

from dataclasses import dataclass

import numpy as np

from audiodiff_core.audio import AudioFormat, Samples, encode_audio
from audiodiff_core.loops import whole_beats
from audiodiff_core.mel import Images
from audiodiff_core.sampling import GenerateRequest

PEAK = 10 ** (-1 / 20)
"""Loops are given the peak level -1 dBFS: a mel image says nothing of the absolute level."""


@dataclass(frozen=True, eq=False)
class Loop:
    """What a request became: its mel image (y_res, width) and its audio (n,) with peak -1 dBFS, (width - 1) * hop_length samples long or,
    seamless, width * hop_length. `number` counts the items of a call in the order in which they were given; `request` has all defaults filled in."""

    request: GenerateRequest
    image: Images
    audio: Samples
    number: int

    def file(self, sample_rate: int, file_format: AudioFormat) -> bytes:
        """The loop as a file of audio at `sample_rate` Hz. A WAV file of a seamless one says that it repeats as a whole, and its tempo."""
        repeats = self.request.seamless and file_format == "wav"
        return encode_audio(
            self.audio, sample_rate, file_format, whole_beats(self.audio, sample_rate) if repeats else None
        )


def normalise(audio: Samples) -> Samples:
    """`audio` scaled to the peak level -1 dBFS; silence stays silence."""
    peak = float(np.abs(audio).max(initial=0))
    return audio if peak == 0 else (audio * np.float32(PEAK / peak)).astype(np.float32)
