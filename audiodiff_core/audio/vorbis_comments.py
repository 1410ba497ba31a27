"""Vorbis comments of FLAC and Ogg Vorbis files.

Only the headers are rewritten: the encoded audio stays as it is.

Layouts: Xiph.Org, "Ogg Vorbis I format specification: comment field and header specification"; RFC 9639 (FLAC);
RFC 3533 (Ogg).
"""

import io
import struct
import zlib
from collections.abc import Iterator, Sequence

from audiodiff_core.audio.ogg_pages import CAPTURE, FIRST_PAGE, NO_GRANULE, PAGE_HEADER, Page, page_checksum, pages

Comments = Sequence[tuple[str, str]]
"""Names and values of comments."""
PageContent = tuple[int, int, bytes, bytes]
"""Flags, granule position, lacing values and body of an Ogg page."""

FLAC_MAGIC = b"fLaC"
LAST_BLOCK = 0x80
COMMENT_BLOCK = 4
HEADER_PACKETS = 3
COMMENT_PACKET = b"\x03vorbis"
FRAMING_BIT = b"\x01"
CONTINUED_PAGE = 1
MAX_SEGMENTS = 255


def flac_with_comments(content: bytes, comments: Comments) -> bytes:
    """Replace the comments of a FLAC file. The name of the encoder library is kept.

    Args:
        content: The bytes of a file that libsndfile wrote.
        comments: The comments.
    """
    assert content.startswith(FLAC_MAGIC)
    blocks: list[tuple[int, bytes]] = []
    place, is_last = len(FLAC_MAGIC), False
    while not is_last:
        kind, size = content[place] & ~LAST_BLOCK, int.from_bytes(content[place + 1 : place + 4], "big")
        is_last = bool(content[place] & LAST_BLOCK)
        block = content[place + 4 : place + 4 + size]
        blocks.append((kind, _comment_list(_vendor(block), comments) if kind == COMMENT_BLOCK else block))
        place += 4 + size
    assert COMMENT_BLOCK in dict(blocks), "libFLAC writes a comment block"
    head = b"".join(
        bytes([kind | (LAST_BLOCK if number == len(blocks) - 1 else 0)]) + len(block).to_bytes(3, "big") + block
        for number, (kind, block) in enumerate(blocks)
    )
    return FLAC_MAGIC + head + content[place:]


def ogg_with_comments(content: bytes, comments: Comments) -> bytes:
    """Replace the comments of an Ogg Vorbis file, and the random serial number of its stream.

    The serial number is a checksum of the audio, so that the same audio always gives the same bytes.

    Args:
        content: The bytes of a file that libsndfile wrote.
        comments: The comments.
    """
    found = [page for page in pages(io.BytesIO(content)) if isinstance(page, Page)]
    count = next(number for number in range(1, len(found)) if _packets(found[: number + 1]) >= HEADER_PACKETS) + 1
    assert _packets(found[:count]) == HEADER_PACKETS, "the setup header ends its page"
    bodies = [_split(content[page.start : page.end]) for page in found]
    identification = bodies[0][1]
    headers = b"".join(body for _, body in bodies[1:count])
    assert headers.startswith(COMMENT_PACKET)
    old = headers[len(COMMENT_PACKET) :]
    setup = old[_size(old) + len(FRAMING_BIT) :]
    new = COMMENT_PACKET + _comment_list(_vendor(old), comments) + FRAMING_BIT
    serial = zlib.crc32(b"".join(body for _, body in bodies[count:]))
    contents = [
        (FIRST_PAGE, 0, *_laced([identification])),
        *_header_pages([new, setup]),
        *((page.flags, page.granule, *body) for page, body in zip(found[count:], bodies[count:], strict=True)),
    ]
    return b"".join(_page(content, serial, number) for number, content in enumerate(contents))


def _comment_list(vendor: bytes, comments: Comments) -> bytes:
    fields = [_sized(f"{name}={value}".encode()) for name, value in comments]
    return _sized(vendor) + struct.pack("<I", len(fields)) + b"".join(fields)


def _sized(text: bytes) -> bytes:
    return struct.pack("<I", len(text)) + text


def _vendor(comment_list: bytes) -> bytes:
    (size,) = struct.unpack_from("<I", comment_list)
    return comment_list[4 : 4 + size]


def _size(content: bytes) -> int:
    """Return the size in bytes of the comment list at the start of `content`."""
    place = 4 + len(_vendor(content))
    (count,) = struct.unpack_from("<I", content, place)
    place += 4
    for _ in range(count):
        (size,) = struct.unpack_from("<I", content, place)
        place += 4 + size
    return place


def _packets(found: Sequence[Page]) -> int:
    return sum(page.packets for page in found)


def _split(page: bytes) -> tuple[bytes, bytes]:
    """Return the lacing values and the body of a page."""
    segments = page[PAGE_HEADER.size - 1]
    return page[PAGE_HEADER.size : PAGE_HEADER.size + segments], page[PAGE_HEADER.size + segments :]


def _laced(packets: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Return the lacing values and the body of whole packets."""
    lacing = b"".join(b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in packets)
    return lacing, b"".join(packets)


def _header_pages(packets: Sequence[bytes]) -> Iterator[PageContent]:
    """Yield the pages of packets that hold no audio."""
    lacing, body = _laced(packets)
    is_continued = False
    while lacing:
        on_page, lacing = lacing[:MAX_SEGMENTS], lacing[MAX_SEGMENTS:]
        size = sum(on_page)
        ends_packet = min(on_page) < 255
        yield CONTINUED_PAGE if is_continued else 0, 0 if ends_packet else NO_GRANULE, on_page, body[:size]
        body, is_continued = body[size:], on_page[-1] == 255


def _page(content: PageContent, serial: int, number: int) -> bytes:
    """Return the bytes of a page with its checksum."""
    flags, granule, lacing, body = content

    def packed(checksum: int) -> bytes:
        return PAGE_HEADER.pack(CAPTURE, 0, flags, granule, serial, number, checksum, len(lacing)) + lacing + body

    return packed(page_checksum(packed(0)))
