"""Server-sent events."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from audiodiff_platform.serve.calls import Accepted, Audio, Event, Failed, Joined, NotModified, Preview, Progress

MEDIA_TYPE = "text/event-stream"
DONE = "event: done\n"
"""Begin of the last event of a stream that did not fail."""
COMMENT_EVERY_S = 15.0
NAMES: dict[type[Event], str] = {
    Accepted: "accepted",
    Joined: "started",
    Progress: "progress",
    Preview: "preview",
    Audio: "audio",
    NotModified: "not_modified",
    Failed: "error",
}
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def text(name: str, data: dict[str, Any]) -> str:
    """Return the text of an event."""
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"


def described(event: Event) -> tuple[str, dict[str, Any]]:
    """Return the name and the data of an event."""
    match event:
        case Preview():
            return NAMES[Preview], {"step": event.step, "png": base64.b64encode(event.png).decode()}
        case Audio():
            return NAMES[Audio], audio_json(event)
        case Failed():
            return NAMES[Failed], dict(event.problem.body())
    return NAMES[type(event)], asdict(event)


def audio_json(audio: Audio) -> dict[str, Any]:
    """Return a result as JSON: the file in base64, its image if there is any, and its provenance."""
    image = {} if audio.png is None else {"png": base64.b64encode(audio.png).decode()}
    return {
        "audio": base64.b64encode(audio.content).decode(),
        "media_type": audio.media_type,
        **image,
        **audio.provenance,
        "seconds": audio.seconds,
    }


async def with_comments(texts: AsyncIterator[str], every_s: float = COMMENT_EVERY_S) -> AsyncIterator[str]:
    """Yield texts, and a comment after every `every_s` seconds without one, so that proxies keep the connection."""
    upcoming: asyncio.Future[str] | None = None
    try:
        while True:
            upcoming = upcoming or asyncio.ensure_future(anext(texts))
            done, _ = await asyncio.wait((upcoming,), timeout=every_s)
            if not done:
                yield ": waiting\n\n"
                continue
            try:
                yield upcoming.result()
            except StopAsyncIteration:
                return
            upcoming = None
    finally:
        if upcoming is not None:
            upcoming.cancel()
