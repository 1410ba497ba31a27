"""Server-sent events, from chunks of bytes that end anywhere.

The stream is split at CR, LF and CR LF only, as the standard says. Text decoders of HTTP clients also split at
characters such as U+2028, which are allowed within the data.
"""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from audiodiff_platform.client.answers import Audio
from audiodiff_platform.client.errors import error_of_json

DONE = "done"


@dataclass(frozen=True)
class Event:
    """An event of a request that runs.

    Attributes:
        type: The type: progress, preview, audio, done, or another that the server sends.
        data: The data, as JSON values.
    """

    type: str
    data: dict[str, Any] = field(repr=False)

    @property
    def audio(self) -> Audio:
        """The audio of an `audio` event."""
        return Audio.of_json(self.data)

    @property
    def png(self) -> bytes:
        """The mel image of a `preview` event."""
        return base64.b64decode(self.data["png"], validate=True)


class EventParser:
    """Parser of a stream of events."""

    def __init__(self) -> None:
        self._line: list[bytes] = []  # the parts of a line whose end has not arrived
        self._after_cr = False
        self._type, self._data = "", list[bytes]()

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events that end in a chunk.

        Raises:
            ApiError: An `error` event.
        """
        if self._after_cr and chunk:
            chunk, self._after_cr = chunk.removeprefix(b"\n"), False
        self._after_cr = self._after_cr or chunk.endswith(b"\r")
        first, *others = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._line.append(first)
        for other in others:
            yield from self._take(b"".join(self._line))
            self._line = [other]

    def _take(self, line: bytes) -> Iterator[Event]:
        if not line:
            if self._data:
                yield _event(self._type or "message", json.loads(b"\n".join(self._data)))
            self._type, self._data = "", []
            return
        name, _, value = line.partition(b":")  # a comment has an empty name
        value = value.removeprefix(b" ")
        if name == b"event":
            self._type = value.decode()
        elif name == b"data":
            self._data.append(value)


def _event(kind: str, data: dict[str, Any]) -> Event:
    if kind == "error":
        raise error_of_json(data)
    return Event(kind, data)
