"""Audio decoding to mono float32 samples, in blocks or at once, and encoding to file formats."""

from audiodiff_core.audio.blocks import PeakMeter, Watch
from audiodiff_core.audio.file_tags import Tags
from audiodiff_core.audio.formats import (
    AUDIO_EXTENSIONS,
    BYTES_PER_SAMPLE,
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
    "BYTES_PER_SAMPLE",
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
    "Tags",
    "UnusableError",
    "Watch",
    "decode_audio",
    "encode_audio",
    "open_local",
    "stream",
    "too_long",
]
