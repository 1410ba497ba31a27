"""Chunks of WAV files that follow the samples: `smpl`, `acid` and `LIST`.

A `smpl` chunk states loop points and pitch for samplers. An `acid` chunk states beats and tempo for sequencers. A
`LIST` chunk of the kind INFO states texts. The chunks are written after the samples, so readers that do not support
them find the samples first.

Layouts: Microsoft and IBM, "Multimedia Programming Interface and Data Specifications", 1991 (`LIST`) and 1994 (`smpl`);
wav.c of libsndfile (`acid`, which has no published specification).
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

DEFAULT_NOTE = 60
"""MIDI note of middle C. By default, samplers play a sample without transposition at this note."""
ACID_ROOT_NOTE, ACID_STRETCH = 2, 4
"""Flags of the `acid` chunk."""
QUARTER_NOTE = 4
"""Denominator of the time signature in the `acid` chunk: a beat is a quarter note."""
MAX_BEATS = 100_000
MAX_BEATS_PER_BAR = 64
BEATS_PER_BAR = 4
"""Default number of beats in a bar."""
LOOP_TEMPO_RANGE_BPM = (20.0, 400.0)
"""Tempos that a loop can be made at, in beats per minute."""


@dataclass(frozen=True)
class LoopInfo:
    """Beats and pitch of audio that loops from its first to its last sample.

    The tempo follows from the number of beats and the length of the audio (see `bpm`).

    Args:
        beats: Number of beats, 1 to 100,000. None for a loop without a tempo.
        beats_per_bar: Number of beats in a bar, 1 to 64.
        root_note: MIDI note of the pitch, 0 to 127. None for a loop without a pitch.
    """

    beats: int | None
    beats_per_bar: int = BEATS_PER_BAR
    root_note: int | None = None

    def __post_init__(self) -> None:
        if self.beats is not None and not 1 <= self.beats <= MAX_BEATS:
            raise ValueError(f"beats {self.beats}: must be 1 to {MAX_BEATS}")
        if not 1 <= self.beats_per_bar <= MAX_BEATS_PER_BAR:
            raise ValueError(f"beats_per_bar {self.beats_per_bar}: must be 1 to {MAX_BEATS_PER_BAR}")
        if self.root_note is not None and not 0 <= self.root_note <= 127:
            raise ValueError(f"root_note {self.root_note}: must be a MIDI note, 0 to 127")

    def bpm(self, length: int, sample_rate: int) -> float:
        """Return the tempo of a loop in beats per minute.

        Args:
            length: Length of the loop in samples.
            sample_rate: Sample rate in Hz.

        Raises:
            ValueError: The loop has no tempo.
        """
        if self.beats is None:
            raise ValueError("beats None: the loop has no tempo")
        return self.beats * 60 * sample_rate / length


def with_loop(content: bytes, length: int, sample_rate: int, loop: LoopInfo) -> bytes:
    """Append loop chunks to a WAV file: `smpl`, and `acid` if the loop has a tempo.

    Args:
        content: The bytes of the WAV file.
        length: Length of the audio in samples.
        sample_rate: Sample rate in Hz.
        loop: Beats and pitch of the loop.

    Returns:
        The bytes of the WAV file with the chunks.

    Raises:
        ValueError: The audio is empty.
    """
    if not length:
        raise ValueError("audio of 0 samples: a loop needs at least 1")
    chunks = _sampler_chunk(length, sample_rate, loop)
    if loop.beats is not None:
        chunks += _acid_chunk(length, sample_rate, loop)
    return _with_chunks(content, chunks)


def with_info(content: bytes, texts: Sequence[tuple[str, str]]) -> bytes:
    """Append a `LIST` chunk of the kind INFO to a WAV file.

    Args:
        content: The bytes of the WAV file.
        texts: Identifiers of four characters, such as ICMT, with their ASCII texts.

    Returns:
        The bytes of the WAV file with the chunk, which is left out without texts.
    """
    if not texts:
        return content
    entries = b"".join(_chunk(name.encode(), _terminated(text.encode("ascii"))) for name, text in texts)
    return _with_chunks(content, _chunk(b"LIST", b"INFO" + entries))


def _with_chunks(content: bytes, chunks: bytes) -> bytes:
    """Append chunks to a WAV file, and correct its stated size."""
    assert content[:4] == b"RIFF"
    assert len(content) % 2 == 0
    return content[:4] + struct.pack("<I", len(content) + len(chunks) - 8) + content[8:] + chunks


def _terminated(text: bytes) -> bytes:
    """Return a text with one or two zeros after it, so that its size is even."""
    return text + bytes(2 - len(text) % 2)


def _sampler_chunk(length: int, sample_rate: int, loop: LoopInfo) -> bytes:
    """Return a `smpl` chunk with one endless forward loop over all samples."""
    note = DEFAULT_NOTE if loop.root_note is None else loop.root_note
    period_ns = round(1e9 / sample_rate)
    manufacturer = product = pitch_fraction = smpte_format = smpte_offset = extra_bytes = 0
    identifier = forward = first = position_fraction = endless = 0
    last, loops = length - 1, 1
    return _chunk(
        b"smpl",
        struct.pack(
            "<9I6I",
            *(manufacturer, product, period_ns, note, pitch_fraction, smpte_format, smpte_offset, loops, extra_bytes),
            *(identifier, forward, first, last, position_fraction, endless),
        ),
    )


def _acid_chunk(length: int, sample_rate: int, loop: LoopInfo) -> bytes:
    flags = ACID_STRETCH | (0 if loop.root_note is None else ACID_ROOT_NOTE)
    note = DEFAULT_NOTE if loop.root_note is None else loop.root_note
    bpm = loop.bpm(length, sample_rate)
    return _chunk(
        b"acid", struct.pack("<IHHfIHHf", flags, note, 0x8000, 0.0, loop.beats, QUARTER_NOTE, loop.beats_per_bar, bpm)
    )


def _chunk(name: bytes, content: bytes) -> bytes:
    assert len(content) % 2 == 0  # a chunk of odd size would need a padding byte
    return name + struct.pack("<I", len(content)) + content
