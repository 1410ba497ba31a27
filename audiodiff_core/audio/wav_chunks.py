"""What a WAV file says of the loop in it, for samplers (`smpl`: where to repeat, at which pitch) and sequencers (`acid`: beats and tempo).

Both chunks follow the samples, so that readers which do not know them have all they need before. Layouts: Microsoft and IBM's
"Multimedia Programming Interface and Data Specifications", 1994 (`smpl`); libsndfile's wav.c (`acid`, which was never published).
"""

import struct
from dataclasses import dataclass

NO_ROOT_NOTE = 60
"""Middle C: what a sampler plays a sample at as it is, where nobody says otherwise."""
ACID_ROOT_NOTE, ACID_STRETCH = 2, 4
QUARTER_NOTE = 4
"""The acid chunk's denominator of the metre: a beat is a quarter note."""
MAX_BEATS = 100_000


@dataclass(frozen=True)
class LoopInfo:
    """The metre of audio that is a loop from its first sample to its last. Its tempo follows from its length; see `bpm`."""

    beats: int | None
    """In all, 1 to 100,000; None for a loop without a tempo."""
    beats_per_bar: int = 4
    """1 to 64."""
    root_note: int | None = None
    """The MIDI note that it sounds at, 0 to 127, if it has one."""

    def __post_init__(self) -> None:
        if self.beats is not None and not 1 <= self.beats <= MAX_BEATS:
            raise ValueError(f"beats {self.beats}: a loop has 1 to {MAX_BEATS}")
        if not 1 <= self.beats_per_bar <= 64:
            raise ValueError(f"beats_per_bar {self.beats_per_bar}: a bar has 1 to 64")
        if self.root_note is not None and not 0 <= self.root_note <= 127:
            raise ValueError(f"root_note {self.root_note}: MIDI notes are 0 to 127")

    def bpm(self, length: int, sample_rate: int) -> float:
        """Beats per minute of a loop of `length` samples. Raises ValueError for a loop without a tempo."""
        if self.beats is None:
            raise ValueError("beats None: the loop has no tempo")
        return self.beats * 60 * sample_rate / length


def with_loop(content: bytes, length: int, sample_rate: int, loop: LoopInfo) -> bytes:
    """A WAV file's bytes, of `length` samples at `sample_rate` Hz in its data chunk, with the chunks of `loop` appended: `acid` with a tempo only.

    Raises ValueError where there are no samples to loop.
    """
    if not length:
        raise ValueError("audio of 0 samples: a loop needs some")
    assert content[:4] == b"RIFF"
    assert len(content) % 2 == 0
    content += _sampler_chunk(length, sample_rate, loop)
    if loop.beats is not None:
        content += _acid_chunk(length, sample_rate, loop)
    return content[:4] + struct.pack("<I", len(content) - 8) + content[8:]


def _sampler_chunk(length: int, sample_rate: int, loop: LoopInfo) -> bytes:
    """One loop, forward, for ever, over all samples; its end is the last sample that is played."""
    note = NO_ROOT_NOTE if loop.root_note is None else loop.root_note
    manufacturer = product = fraction = smpte_format = smpte_offset = extra = identifier = forward = first = (
        for_ever
    ) = 0
    head = (manufacturer, product, round(1e9 / sample_rate), note, fraction, smpte_format, smpte_offset, 1, extra)
    return _chunk(b"smpl", struct.pack("<9I6I", *head, identifier, forward, first, length - 1, fraction, for_ever))


def _acid_chunk(length: int, sample_rate: int, loop: LoopInfo) -> bytes:
    flags = ACID_STRETCH | (0 if loop.root_note is None else ACID_ROOT_NOTE)
    note = NO_ROOT_NOTE if loop.root_note is None else loop.root_note
    bpm = loop.bpm(length, sample_rate)
    return _chunk(
        b"acid", struct.pack("<IHHfIHHf", flags, note, 0x8000, 0.0, loop.beats, QUARTER_NOTE, loop.beats_per_bar, bpm)
    )


def _chunk(name: bytes, content: bytes) -> bytes:
    """Chunks begin at even offsets; these two are of even length."""
    assert len(content) % 2 == 0
    return name + struct.pack("<I", len(content)) + content
