"""Samples to the bytes of an audio file."""

import io

import numpy as np
import soundfile

from audiodiff_core.audio import blocks
from audiodiff_core.audio.formats import AudioFormat, Samples, one_line
from audiodiff_core.audio.wav_chunks import LoopInfo, with_loop

VORBIS_RATE_AT_MOST = 200_000  # in Hz; above, libsndfile's encoder ends the process


def encode_audio(
    audio: Samples, sample_rate: int, file_format: AudioFormat = "wav", loop: LoopInfo | None = None
) -> bytes:
    """A file's bytes for mono `audio` (n,) in [-1, 1]; wav and flac hold 16-bit PCM. The same samples give the same bytes in wav and flac.

    Of audio that is a loop as a whole, `loop` tells a wav file's readers the loop points and the tempo; the other formats cannot hold them.
    Raises ValueError for such a one, for samples that are not finite, and for a rate that the format does not know (mp3: nine, up to 48 kHz).
    """
    if loop is not None and file_format != "wav":
        raise ValueError(f"format {file_format} with loop points: only wav holds them")
    if not np.isfinite(audio).all():
        raise ValueError("audio holds NaN or infinite samples: it cannot be written")
    buffer = io.BytesIO()
    subtype = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}[file_format]
    if file_format == "ogg" and sample_rate > VORBIS_RATE_AT_MOST:
        raise ValueError(f"format ogg at {sample_rate} Hz: it knows rates up to {VORBIS_RATE_AT_MOST}, use wav")
    try:
        sound = soundfile.SoundFile(buffer, "w", sample_rate, channels=1, format=file_format.upper(), subtype=subtype)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"format {file_format} at {sample_rate} Hz: {one_line(error)}: use wav") from error
    with sound:
        for start in range(0, len(audio), blocks.BLOCK_FRAMES):  # libvorbis takes a whole write on its stack
            sound.write(audio[start : start + blocks.BLOCK_FRAMES])
    content = buffer.getvalue()
    return content if loop is None else with_loop(content, len(audio), sample_rate, loop)
