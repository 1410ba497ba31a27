"""Sizes of ID3 and APE tags, which programs write before, between or after audio of any format."""

from typing import BinaryIO

ID3_FOOTER = 0x10
APE_HEADER = 0x20
"""Flag that distinguishes the header of an APE tag, which precedes the items, from its footer."""
TAG_HEAD_BYTES = 32
MAX_LEADING_TAGS = 1_000


def tag_size(head: bytes) -> int:
    """Return the size of a tag in bytes.

    Args:
        head: The first TAG_HEAD_BYTES bytes of the tag.

    Returns:
        The size in bytes, or 0 if the bytes do not begin a tag.
    """
    if head[:3] == b"ID3" and len(head) >= 10:  # the size has four bytes with seven bits each
        size = sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:10])))
        return size + (20 if head[5] & ID3_FOOTER else 10)
    if head[:8] == b"APETAGEX" and len(head) == TAG_HEAD_BYTES:
        return 32 + (int.from_bytes(head[12:16], "little") if head[23] & APE_HEADER else 0)
    if head[:3] == b"TAG":
        return 227 if head[3:4] == b"+" else 128
    return 0


def leading_tags_size(content: BinaryIO) -> int:
    """Return the total size in bytes of the tags at the start of `content`."""
    position = 0
    for _ in range(MAX_LEADING_TAGS):
        content.seek(position)
        size = tag_size(content.read(TAG_HEAD_BYTES))
        if not size:
            break
        position += size
    return position
