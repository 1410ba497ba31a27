"""Audio files made to harm decoders."""

import io
import struct
from pathlib import Path

import av
import numpy as np
import soundfile


def expanding_flac(file: Path) -> Path:
    """Write 408 s of eight channels with a few clicks: 144 MB of 16-bit samples in about 115 kB."""
    samples = np.zeros((9_000_000, 8), np.int16)
    samples[::1_000_000] = 20_000
    soundfile.write(file, samples, 22_050)
    return file


def repeating_m4a(file: Path, seconds: float, edits: int) -> Path:
    """Write a tone in AAC whose edit list plays it `edits` times.

    FFmpeg repeats the sample table for every edit. 1,000 edits expand 2 s of audio in 30 kB to more than half an hour;
    20,000 edits expand it, in 270 kB, to 11 hours, which take many seconds to decode on any machine.
    """
    tone = (np.sin(np.arange(round(44_100 * seconds)) * 0.05) * 8_000).astype(np.int16)
    content = io.BytesIO()
    with av.open(content, "w", format="ipod") as container:
        stream = container.add_stream("aac", rate=44_100, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone[np.newaxis], format="s16", layout="mono")
        frame.sample_rate = 44_100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    edit_list = _box(
        b"elst", struct.pack(">II", 0, edits) + struct.pack(">IiI", round(1_000 * seconds), 0, 1 << 16) * edits
    )

    def edited(kind: bytes, content: bytes) -> bytes:
        if kind not in {b"moov", b"trak"}:
            return _box(kind, content)
        boxes = [box for box in _boxes(content) if box[0] != b"edts"]
        inside = b"".join(edited(*box) + (_box(b"edts", edit_list) if box[0] == b"tkhd" else b"") for box in boxes)
        return _box(kind, inside)

    boxes = sorted(_boxes(content.getvalue()), key=lambda box: box[0] == b"moov")  # offsets into the audio stay
    file.write_bytes(b"".join(edited(*box) for box in boxes))
    return file


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def _boxes(content: bytes) -> list[tuple[bytes, bytes]]:
    boxes, start = [], 0
    while start < len(content):
        size, kind = struct.unpack_from(">I4s", content, start)
        boxes.append((kind, content[start + 8 : start + size]))
        start += size
    return boxes
