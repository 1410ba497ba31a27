"""Pages of Ogg files."""

import os
import re
import struct
from typing import BinaryIO

from audiodiff_core.audio.formats import UnusableError

OGG_PAGE_BYTES = 65_307  # at most
OGG_LAST_PAGE = 4  # a flag

_OGG_END = re.compile(r"^ *(?:PCM end|Last Granule pos) *: (\d+)", re.MULTILINE)


def is_unbroken_ogg(content: BinaryIO) -> bool:
    """Whether an Ogg file is one stream, its pages in sequence from the first to the one that is marked as the last; a tag may follow."""
    serial = number = 0
    while (header := content.read(27))[:4] == b"OggS" and len(header) == 27:
        kind, page_serial, page_number, segments = struct.unpack("<5xB8xII4xB", header)
        serial = serial if number else page_serial
        if (page_serial, page_number) != (serial, number):
            return False
        content.seek(sum(content.read(segments)), os.SEEK_CUR)
        number += 1
        if kind & OGG_LAST_PAGE:
            tail = content.read(OGG_PAGE_BYTES)
            return len(tail) < OGG_PAGE_BYTES and b"OggS" not in tail
    return False


def check_ogg_end(content: BinaryIO, log: str) -> None:
    """Raises where the last page of the first stream is cut, is not marked as the last, or ends later than the last one that libsndfile took."""
    content.seek(14)
    serial = content.read(4)
    content.seek(max(0, content.seek(0, os.SEEK_END) - 2 * OGG_PAGE_BYTES))
    tail = content.read()
    page = tail[tail.rfind(b"OggS") :] if b"OggS" in tail else b""
    if len(page) >= 18 and page[14:18] != serial:
        return  # another stream follows
    if len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]) or not page[5] & OGG_LAST_PAGE:
        raise UnusableError("truncated: its Ogg stream has no end")
    end = _OGG_END.search(log)
    if end and int(end[1]) < int.from_bytes(page[6:14], "little"):
        raise UnusableError("corrupt: the end of its Ogg stream cannot be read")
