"""Links and logical streams of Ogg files (RFC 3533).

The links of a chain follow one another. The logical streams of a link are multiplexed: their pages are interleaved.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from audiodiff_core.audio.file_parts import Part
from audiodiff_core.audio.formats import UnusableError
from audiodiff_core.audio.ogg_pages import FIRST_PAGE, LAST_PAGE, NO_GRANULE, Junk, Page, as_last_page, pages

VORBIS, OPUS, FLAC = b"\x01vorbis", b"OpusHead", b"\x7fFLAC"
CODECS = (VORBIS, OPUS, FLAC, b"Speex   ", b"fLaC")
"""First bytes of the audio streams that libsndfile or FFmpeg can decode."""
MAX_STREAMS = 64
"""Maximum number of multiplexed streams."""


@dataclass(slots=True)
class LogicalStream:
    """Pages of one serial number in a link."""

    first: Page
    last: Page
    last_timed: Page
    """The last page that has a granule position and on which packets end."""
    packets: int
    """Number of packets that end on the pages."""
    has_audio: bool = False
    """True if a page follows the pages of the header."""
    has_untimed_end: bool = False
    """True if packets end after `last_timed`."""
    ended: bool = False
    """True after a page that is marked as the last."""

    @property
    def codec(self) -> bytes | None:
        """The entry of CODECS with which the stream begins, or None for any other stream."""
        return next((codec for codec in CODECS if self.first.head.startswith(codec)), None)

    @property
    def header_packets(self) -> int:
        """Number of packets in the header."""
        match self.codec:
            case b"\x01vorbis":
                return 3
            case b"\x7fFLAC":
                return 1 + int.from_bytes(self.first.head[7:9], "big")
            case _:
                return 2

    @property
    def stated_frames(self) -> int:
        """Number of frames that the header of a FLAC stream states, 0 if unknown."""
        return int.from_bytes(self.first.head[27:35], "big") & (1 << 36) - 1 if self.codec == FLAC else 0

    def add(self, page: Page) -> None:
        """Append a page of this stream.

        Pages may be missing between the header and the audio, as in the recording of a broadcast.

        Raises:
            UnusableError: A page is missing before `page`, or the stream has already ended.
        """
        if self.ended and page.packets:
            raise UnusableError("corrupt: pages follow the end of their Ogg stream")
        after_header = self.packets >= self.header_packets
        if page.number != (self.last.number + 1) % (1 << 32) and (self.has_audio or not after_header):
            raise UnusableError(f"corrupt: part of its Ogg stream is missing before byte {page.start}")
        self.last = page
        if page.packets:
            self.last_timed = self.last_timed if page.granule == NO_GRANULE else page
            self.has_untimed_end = page.granule == NO_GRANULE
        self.packets += page.packets
        self.has_audio = after_header
        self.ended = self.ended or bool(page.flags & LAST_PAGE)


@dataclass(slots=True)
class Link:
    """Streams of an Ogg file that begin together."""

    start: int
    """Position in bytes."""
    first_pages_end: int
    """End of the first pages of all streams."""
    end: int
    """End of the last page."""
    streams: dict[int, LogicalStream] = field(default_factory=dict)
    """Streams by serial number."""
    junk_after: Junk | None = None
    """Bytes between this link and the next one, or the end of the file."""

    @property
    def audio(self) -> LogicalStream:
        """The first audio stream.

        Raises:
            UnusableError: The link has no audio stream.
        """
        for stream in self.streams.values():
            if stream.codec is not None:
                return stream
        raise UnusableError("no Vorbis, Opus, FLAC or Speex among its Ogg streams")

    @property
    def is_empty(self) -> bool:
        """True if the audio stream has only a header."""
        return not self.audio.has_audio and self.audio.packets == self.audio.header_packets

    def add(self, page: Page) -> None:
        """Append a page of any of the streams.

        Raises:
            UnusableError: The page belongs to no stream of this link, or a stream is damaged.
        """
        if page.flags & FIRST_PAGE:
            if page.serial in self.streams:
                raise UnusableError(f"corrupt: two multiplexed Ogg streams have the serial number {page.serial}")
            if len(self.streams) == MAX_STREAMS:
                raise UnusableError(f"more than {MAX_STREAMS} Ogg streams are multiplexed")
            ended = bool(page.flags & LAST_PAGE)
            self.streams[page.serial] = LogicalStream(page, page, page, page.packets, ended=ended)
            self.first_pages_end = page.end
        elif page.serial not in self.streams:
            raise UnusableError(f"corrupt: the first page of an Ogg stream is missing before byte {page.start}")
        elif (stream := self.streams[page.serial]) is self.audio:
            stream.add(page)
        self.end = page.end
        self.junk_after = None

    def check_end(self) -> None:
        """Raise UnusableError if the end of the audio stream is missing."""
        audio = self.audio
        if audio.packets < audio.header_packets or (self.is_empty and not audio.ended):
            raise UnusableError("truncated: ends before the audio of its Ogg stream")
        if audio.has_untimed_end:
            raise UnusableError("corrupt: the last Ogg page has no granule position")
        if not audio.ended and self.junk_after and not self.junk_after.is_padding:
            raise UnusableError(
                f"corrupt: its Ogg stream has no end, and bytes that are not Ogg follow from byte {self.end}"
            )

    def whole(self) -> list[Part]:
        """Return the byte range of the link."""
        return [(self.start, self.end)]

    def audio_first(self) -> list[Part]:
        """Return the parts of the link, with the audio stream first.

        libsndfile then ignores the other streams.
        """
        audio = self.audio
        if audio.first.start == self.start:
            return [(self.start, audio.last.end)]
        return [(audio.first.start, audio.first.end), (self.first_pages_end, audio.last.end)]

    def marked_end(self, content: BinaryIO) -> list[Part]:
        """Return the parts of `audio_first`, with the last timed page marked as the end of its stream."""
        *others, (start, end) = self.audio_first()
        page = self.audio.last_timed
        return [*others, (start, page.start), as_last_page(content, page), (page.end, end)]


def links(content: BinaryIO) -> Iterator[Link]:
    """Yield each link of a chain after its end has been read.

    Args:
        content: The bytes of an Ogg file.

    Raises:
        UnusableError: The file is damaged or truncated.
    """
    link: Link | None = None
    for part in pages(content):
        if isinstance(part, Junk):
            assert link is not None  # the file begins with a page
            link.junk_after = part
            continue
        if link is None:
            link = Link(part.start, part.end, part.end)
        elif part.flags & FIRST_PAGE and link.end > link.first_pages_end:
            link.check_end()
            yield link
            link = Link(part.start, part.end, part.end)
        link.add(part)
    assert link is not None
    link.check_end()
    yield link
