"""Tags that are put before, between or after audio of any format: ID3 and APE."""

from typing import BinaryIO

ID3_FOOTER = 0x10
APE_HEADER = 0x20
"""A flag of an APE tag: these bytes are its header, and its items follow."""
TAG_HEAD_BYTES = 32
MAX_LEADING_TAGS = 1_000


def tag_size(head: bytes) -> int:
    """Size in bytes of the tag that begins with `head`, its first TAG_HEAD_BYTES bytes; 0 if these are no tag."""
    if head[:3] == b"ID3" and len(head) >= 10:  # the size in four times seven bits
        size = sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:10])))
        return size + (20 if head[5] & ID3_FOOTER else 10)
    if head[:8] == b"APETAGEX" and len(head) == TAG_HEAD_BYTES:
        return 32 + (int.from_bytes(head[12:16], "little") if head[23] & APE_HEADER else 0)
    if head[:3] == b"TAG":
        return 227 if head[3:4] == b"+" else 128
    return 0


def leading_tags_size(content: BinaryIO) -> int:
    """Size in bytes of the tags at the start of `content`."""
    position = 0
    for _ in range(MAX_LEADING_TAGS):
        content.seek(position)
        size = tag_size(content.read(TAG_HEAD_BYTES))
        if not size:
            break
        position += size
    return position
