"""Pages and packets of Ogg files, taken apart and put together again, and encoders other than libsndfile's."""

import dataclasses
import io
import itertools
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import soundfile

Samples = npt.NDArray[np.float32]

CONTINUED, FIRST, LAST = 1, 2, 4
NO_GRANULE = -1


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1 ^ 0x04C11DB7 if value >> 31 else value << 1) & 0xFFFFFFFF
        table.append(value)
    return table


_CRC_TABLE = _crc_table()


def _crc(content: bytes) -> int:
    value = 0
    for byte in content:
        value = (value << 8 & 0xFFFFFFFF) ^ _CRC_TABLE[value >> 24 ^ byte]
    return value


@dataclass(frozen=True)
class Page:
    flags: int
    granule: int
    serial: int
    number: int
    lacing: bytes
    body: bytes

    def __bytes__(self) -> bytes:
        head = struct.pack("<4sBBqII", b"OggS", 0, self.flags, self.granule, self.serial, self.number)
        tail = bytes([len(self.lacing)]) + self.lacing + self.body
        return head + struct.pack("<I", _crc(head + bytes(4) + tail)) + tail


@dataclass(frozen=True)
class Packet:
    content: bytes
    granule: int
    """Its page's granule position if it is the last one that ends on the page, else NO_GRANULE."""


def pages_of(content: bytes) -> list[Page]:
    """The pages of an intact file."""
    pages, at = [], 0
    while at < len(content):
        mark, _, flags, granule, serial, number, _, count = struct.unpack_from("<4sBBqIIIB", content, at)
        assert mark == b"OggS"
        lacing = content[at + 27 : at + 27 + count]
        at += 27 + count
        pages.append(Page(flags, granule, serial, number, lacing, content[at : at + sum(lacing)]))
        at += sum(lacing)
    return pages


def joined(pages: Iterable[Page]) -> bytes:
    return b"".join(map(bytes, pages))


def renumbered(pages: Sequence[Page], serial: int = 1) -> list[Page]:
    """`pages` as one stream: numbers in sequence, the first and (if it was marked) the last page marked."""
    return [
        dataclasses.replace(page, serial=serial, number=number, flags=page.flags & ~FIRST | (FIRST if number == 0 else 0))
        for number, page in enumerate(pages)
    ]


def without_end(pages: Sequence[Page]) -> list[Page]:
    return [dataclasses.replace(page, flags=page.flags & ~LAST) for page in pages]


def packets_of(pages: Sequence[Page]) -> list[Packet]:
    packets: list[Packet] = []
    part = b""
    for page in pages:
        at = 0
        ends = [place for place, size in enumerate(page.lacing) if size < 255]
        for place, size in enumerate(page.lacing):
            part += page.body[at : at + size]
            at += size
            if size < 255:
                packets.append(Packet(part, page.granule if place == ends[-1] else NO_GRANULE))
                part = b""
    return packets


def paged(packets: Iterable[Sequence[Packet]], serial: int = 1, ended: bool = True) -> list[Page]:
    """A stream with a page for each of `packets`, or several where a page cannot hold them."""
    pages: list[Page] = []
    for group in packets:
        lacing = b"".join(bytes([255] * (len(packet.content) // 255) + [len(packet.content) % 255]) for packet in group)
        body = b"".join(packet.content for packet in group)
        granule = group[-1].granule
        ends = [place for place, size in enumerate(lacing) if size < 255]
        for start in range(0, len(lacing), 255):
            part = lacing[start : start + 255]
            complete = any(start <= place < start + 255 for place in ends)
            flags = CONTINUED if start and lacing[start - 1] == 255 else 0
            pages.append(Page(flags, granule if complete else NO_GRANULE, serial, len(pages), part, body[: sum(part)]))
            body = body[sum(part) :]
    pages[0] = dataclasses.replace(pages[0], flags=FIRST)
    if ended:
        pages[-1] = dataclasses.replace(pages[-1], flags=pages[-1].flags | LAST)
    return pages


def sndfile_ogg(samples: Samples, rate: int, subtype: str = "VORBIS") -> bytes:
    """Samples (n, channels) as encoded by libsndfile. Opus knows 8, 12, 16, 24 and 48 kHz."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate, samples.shape[1], subtype, format="OGG") as sound:
        for start in range(0, len(samples), 10_000):
            sound.write(samples[start : start + 10_000])
    return buffer.getvalue()


def ffmpeg_ogg(samples: Samples, rate: int, codec: str) -> bytes:
    """Stereo samples (n, 2) as encoded by FFmpeg: `vorbis` (its own encoder), `libopus`, `flac` or `speex`."""
    buffer = io.BytesIO()
    container: Any = av.open(buffer, "w", format="ogg")
    with container:
        stream = container.add_stream(codec, rate=rate, layout="stereo", options={"strict": "experimental"})
        kind = {"vorbis": "fltp", "libopus": "flt", "flac": "s16", "speex": "s16"}[codec]
        convert = av.AudioResampler(format=kind, layout="stereo", rate=rate)
        for start in range(0, len(samples), 1_024):
            part = np.ascontiguousarray(samples[start : start + 1_024].T)
            frame: Any = av.AudioFrame.from_ndarray(part, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = rate, start
            container.mux(itertools.chain.from_iterable(map(stream.encode, convert.resample(frame))))
        container.mux(packet for packet in stream.encode(None) if packet.size)
    return buffer.getvalue()
