"""Parsing and assembly of Ogg pages and packets, and encoders of Ogg files."""

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

from audiodiff_core.audio.ogg_pages import page_checksum

Samples = npt.NDArray[np.float32]

CONTINUED, FIRST, LAST = 1, 2, 4
NO_GRANULE = -1


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
        return head + struct.pack("<I", page_checksum(head + bytes(4) + tail)) + tail


@dataclass(frozen=True)
class Packet:
    content: bytes
    granule: int
    """Granule position of the page if no later packet ends on the page, else NO_GRANULE."""


def pages_of(content: bytes) -> list[Page]:
    """Return the pages of an intact file."""
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
    return [dataclasses.replace(page, serial=serial, number=number) for number, page in enumerate(pages)]


def without_end(pages: Sequence[Page]) -> list[Page]:
    return [dataclasses.replace(page, flags=page.flags & ~LAST) for page in pages]


def packets_of(pages: Iterable[Page]) -> list[Packet]:
    packets: list[Packet] = []
    part = b""
    for page in pages:
        at = 0
        last_end = max((place for place, size in enumerate(page.lacing) if size < 255), default=-1)
        for place, size in enumerate(page.lacing):
            part += page.body[at : at + size]
            at += size
            if size < 255:
                packets.append(Packet(part, page.granule if place == last_end else NO_GRANULE))
                part = b""
    return packets


def paged(groups: Iterable[Sequence[Packet]], serial: int = 1, segments: int = 255) -> list[Page]:
    """Return a stream with up to `segments` segments per page. Each of `groups` begins on a new page."""
    pages: list[Page] = []
    for group in groups:
        pieces = [(packet, start) for packet in group for start in range(0, len(packet.content) + 1, 255)]
        for place in range(0, len(pieces), segments):
            held = pieces[place : place + segments]
            bodies = [packet.content[start : start + 255] for packet, start in held]
            granules = [packet.granule for (packet, _), body in zip(held, bodies, strict=True) if len(body) < 255]
            flags = CONTINUED if held[0][1] else 0
            lacing = bytes(map(len, bodies))
            granule = granules[-1] if granules else NO_GRANULE
            pages.append(Page(flags, granule, serial, len(pages), lacing, b"".join(bodies)))
    pages[0] = dataclasses.replace(pages[0], flags=FIRST)
    pages[-1] = dataclasses.replace(pages[-1], flags=pages[-1].flags | LAST)
    return pages


def sndfile_ogg(samples: Samples, rate: int, subtype: str = "VORBIS") -> bytes:
    """Encode samples (n, channels) with libsndfile. Opus supports 8, 12, 16, 24 and 48 kHz."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate, samples.shape[1], subtype, format="OGG") as sound:
        for start in range(0, len(samples), 10_000):
            sound.write(samples[start : start + 10_000])
    return buffer.getvalue()


def ffmpeg_ogg(samples: Samples, rate: int, codec: str) -> bytes:
    """Encode stereo samples (n, 2) with FFmpeg: `vorbis` (its own encoder), `libopus` or `flac`."""
    buffer = io.BytesIO()
    container: Any = av.open(buffer, "w", format="ogg")
    with container:
        stream = container.add_stream(codec, rate=rate, layout="stereo", options={"strict": "experimental"})
        kind = {"vorbis": "fltp", "libopus": "flt", "flac": "s16"}[codec]
        convert = av.AudioResampler(format=kind, layout="stereo", rate=rate)
        for start in range(0, len(samples), 1_024):
            part = np.ascontiguousarray(samples[start : start + 1_024].T)
            frame: Any = av.AudioFrame.from_ndarray(part, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = rate, start
            container.mux(itertools.chain.from_iterable(map(stream.encode, convert.resample(frame))))
        container.mux(packet for packet in stream.encode(None) if packet.size)
    return buffer.getvalue()


def with_granules(packets: Sequence[Packet]) -> list[Packet]:
    """Return the packets of a Vorbis or Opus stream that begins at 0, with their granule positions."""
    head = packets[0].content
    opus = head.startswith(b"OpusHead")
    sizes = (0, 0) if opus else (1 << (head[28] & 15), 1 << (head[28] >> 4))
    headers = 2 if opus else 3
    timed = [dataclasses.replace(packet, granule=0) for packet in packets[:headers]]
    granule = before = 0
    for packet in packets[headers:]:
        if opus:
            granule += _opus_frames(packet.content)
        else:  # encoders write two modes: short blocks and long blocks
            size = sizes[packet.content[0] >> 1 & 1]
            granule += (before + size) // 4 if before else 0
            before = size
        timed.append(dataclasses.replace(packet, granule=granule))
    timed[-1] = packets[-1]
    return timed


def _opus_frames(packet: bytes) -> int:
    """Return the number of samples of a packet at 48 kHz (RFC 6716, section 3.1)."""
    configuration = packet[0] >> 3
    if configuration < 12:
        frames = (480, 960, 1_920, 2_880)[configuration % 4]
    elif configuration < 16:
        frames = (480, 960)[configuration % 2]
    else:
        frames = (120, 240, 480, 960)[configuration % 4]
    count = (1, 2, 2)[packet[0] & 3] if packet[0] & 3 < 3 else packet[1] & 63
    return frames * count
