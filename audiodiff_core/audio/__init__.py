"""Audio in and out: any file becomes mono float32 at one rate, as a stream of blocks; samples become a file's bytes."""

from audiodiff_core.audio.blocks import PeakMeter, Watch
from audiodiff_core.audio.formats import (
    AUDIO_EXTENSIONS,
    MACHINE_ERRORS,
    MAX_CHANNELS,
    MEDIA_TYPES,
    SAMPLE_RATES_HZ,
    AudioDecodeError,
    AudioFormat,
    Samples,
    UnusableError,
)
from audiodiff_core.audio.reading import LONGEST_DECODED_S, decode_audio, open_local, stream, too_long
from audiodiff_core.audio.wav_chunks import LoopInfo
from audiodiff_core.audio.writing import encode_audio

__all__ = [
    "AUDIO_EXTENSIONS",
    "LONGEST_DECODED_S",
    "MACHINE_ERRORS",
    "MAX_CHANNELS",
    "MEDIA_TYPES",
    "SAMPLE_RATES_HZ",
    "AudioDecodeError",
    "AudioFormat",
    "LoopInfo",
    "PeakMeter",
    "Samples",
    "UnusableError",
    "Watch",
    "decode_audio",
    "encode_audio",
    "open_local",
    "stream",
    "too_long",
]
