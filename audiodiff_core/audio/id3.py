"""ID3 tags, which precede the audio of MP3 files.

Layout: M. Nilsson, "ID3 tag version 2.3.0", 1999.
"""

from collections.abc import Sequence

LATIN_1 = b"\0"
UNSTATED_LANGUAGE = b"XXX"
"""Language code of a comment whose language is not stated."""
NO_DESCRIPTION = b"\0"


def id3_tag(texts: Sequence[tuple[str, str]], comment: str) -> bytes:
    """Return an ID3 tag of version 2.3, or nothing if there is nothing to state.

    Args:
        texts: Identifiers of text frames, such as TBPM, with their ASCII texts.
        comment: The comment in ASCII, or an empty text.
    """
    frames = [_frame(name, LATIN_1 + text.encode("ascii")) for name, text in texts]
    if comment:
        frames.append(_frame("COMM", LATIN_1 + UNSTATED_LANGUAGE + NO_DESCRIPTION + comment.encode("ascii")))
    if not frames:
        return b""
    size = sum(map(len, frames))
    synchsafe = bytes(size >> 7 * place & 0x7F for place in (3, 2, 1, 0))
    return b"ID3\x03\x00\x00" + synchsafe + b"".join(frames)


def _frame(name: str, content: bytes) -> bytes:
    no_flags = b"\0\0"
    return name.encode("ascii") + len(content).to_bytes(4, "big") + no_flags + content
