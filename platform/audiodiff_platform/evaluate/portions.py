"""Portions of the sides of a comparison, which are the units of work, and their way to the workers."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray

from audiodiff_platform.audio_files import Source

CHUNK = 16
"""Number of portions per object of Ray. A portion names up to thousands of files."""


@dataclass(frozen=True)
class Portion:
    """A unit of work: some sources of an audio folder, some loops of a folder, or one file of a mel dataset.

    Args:
        side: Name of the side.
        uri: URI of the audio folder, of the folder of loops or of the mel dataset.
        sources: Sources in the audio folder.
        manifests: Parts of the manifest of the folder of loops.
        part: Path of the file in the mel dataset, or an empty text.
        digests: Digests of `manifests`, or of the mel dataset.
        round_trips: Number of items, from the start of the portion, that are also converted to audio by the vocoder
            and embedded again.
    """

    side: str
    uri: str
    sources: tuple[Source, ...] = ()
    manifests: tuple[str, ...] = ()
    part: str = ""
    digests: tuple[str, ...] = ()
    round_trips: int = 0


class Portions:
    """All portions of a job, of which a worker loads only those that it needs.

    On Ray, the portions are objects in chunks. The driver must be connected, and must live as long as the workers.

    Args:
        portions: The portions.
    """

    def __init__(self, portions: Sequence[Portion]) -> None:
        chunks = [tuple(portions[first : first + CHUNK]) for first in range(0, len(portions), CHUNK)]
        self._on_ray = ray.is_initialized()
        self._chunks: list[Any] = [ray.put(chunk) for chunk in chunks] if self._on_ray else chunks

    def __getitem__(self, number: int) -> Portion:
        chunk = self._chunks[number // CHUNK]
        portion: Portion = (ray.get(chunk) if self._on_ray else chunk)[number % CHUNK]
        return portion


def digest(portions: Iterable[Portion]) -> str:
    """Return the SHA-256 of portions in hexadecimal."""
    sha256 = hashlib.sha256()
    for portion in portions:
        sha256.update(json.dumps(asdict(portion)).encode())
    return sha256.hexdigest()
