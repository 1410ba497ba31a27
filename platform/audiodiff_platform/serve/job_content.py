"""Content of a job of several requests: a zip file, made while it is sent."""

import io
import json
import zipfile
from collections.abc import Callable, Iterator

from audiodiff_core.audio import MEDIA_TYPES
from audiodiff_platform.serve.job_record import Item, Job

SUMMARY = "items.json"


class _Sent(io.RawIOBase):
    """A file that is written once, in order, and holds what has not been sent."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, part: object) -> int:
        content = bytes(memoryview(part))  # type: ignore[arg-type]
        self._parts.append(content)
        return len(content)

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


def extension_of(item: Item) -> str:
    """Return the extension of the file of an item."""
    return next((f".{name}" for name, kind in MEDIA_TYPES.items() if kind == item.media_type), "")


def zipped(job: Job, read: Callable[[int], bytes]) -> Iterator[bytes]:
    """Yield the parts of a zip file with the audio of all requests, and items.json, which names the failed ones.

    Args:
        job: A completed job.
        read: Function that returns the content of an item by its index.
    """
    sent = _Sent()
    with zipfile.ZipFile(sent, "w", zipfile.ZIP_STORED) as file:
        for item in job.items:
            if item.error is None:
                file.writestr(zipfile.ZipInfo(f"{item.index:04d}{extension_of(item)}"), read(item.index))
                yield sent.taken()
        items = [item.model_dump(mode="json", exclude={"file"}) for item in job.items]
        file.writestr(zipfile.ZipInfo(SUMMARY), json.dumps(items, indent=2))
    yield sent.taken()
