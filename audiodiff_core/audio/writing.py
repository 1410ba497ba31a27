"""Encoding of samples to the bytes of an audio file."""

import io

import numpy as np
import soundfile

from audiodiff_core.audio import blocks
from audiodiff_core.audio.file_tags import NO_TAGS, Tags, with_tags
from audiodiff_core.audio.formats import AudioFormat, Samples, one_line
from audiodiff_core.audio.wav_chunks import LoopInfo, with_loop

MAX_VORBIS_RATE_HZ = 200_000
"""Maximum sample rate for the Vorbis encoder of libsndfile. The encoder ends the process at higher rates."""


def encode_audio(
    audio: Samples,
    sample_rate: int,
    file_format: AudioFormat = "wav",
    loop: LoopInfo | None = None,
    tags: Tags = NO_TAGS,
) -> bytes:
    """Encode mono samples as the bytes of an audio file.

    wav and flac store 16-bit PCM. With one version of the libraries, the same arguments always give the same bytes.

    Args:
        audio: Samples (n,) in [-1, 1].
        sample_rate: Sample rate in Hz.
        file_format: Format of the file.
        loop: Beats and pitch of audio that loops from its first to its last sample. wav states them as loop points and
            tempo; flac and ogg state the loop points; mp3 supports neither.
        tags: Tags of the file.

    Returns:
        The bytes of the file.

    Raises:
        ValueError: Samples are not finite, the format does not support loop points, or it does not support the sample
            rate (mp3 supports nine rates, up to 48 kHz).
    """
    if loop is not None and file_format == "mp3":
        raise ValueError("format mp3 with loop points: use wav, flac or ogg, which support loop points")
    if not np.isfinite(audio).all():
        raise ValueError("audio has NaN or infinite samples: all samples must be finite")
    buffer = io.BytesIO()
    subtype = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}[file_format]
    if file_format == "ogg" and sample_rate > MAX_VORBIS_RATE_HZ:
        raise ValueError(f"format ogg at {sample_rate} Hz: must be at most {MAX_VORBIS_RATE_HZ} Hz, or use wav")
    try:
        sound = soundfile.SoundFile(buffer, "w", sample_rate, channels=1, format=file_format.upper(), subtype=subtype)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"format {file_format} at {sample_rate} Hz: {one_line(error)}: use wav") from error
    with sound:
        for start in range(0, len(audio), blocks.BLOCK_FRAMES):  # libvorbis copies each write to its stack
            sound.write(audio[start : start + blocks.BLOCK_FRAMES])
    content = buffer.getvalue()
    if loop is not None and file_format == "wav":
        content = with_loop(content, len(audio), sample_rate, loop)
    return with_tags(content, file_format, tags, None if loop is None else len(audio))
