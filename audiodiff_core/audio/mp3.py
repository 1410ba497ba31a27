"""Headers of MP3 files."""

import re
from typing import BinaryIO


def states_mp3_length(content: BinaryIO) -> bool:
    """Whether an MP3 has a Xing tag or the like. Without one, libsndfile's count of frames supposes that all of it has the bit rate of its first frame."""
    content.seek(0)
    head = content.read(10)
    if head[:3] == b"ID3":  # followed by its size in four times seven bits
        content.seek(10 + sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:10]))))
    return re.search(rb"Xing|Info|VBRI", head + content.read(4_096)) is not None
