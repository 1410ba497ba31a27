"""Gate of the HTTP interface: every request passes here before its route.

1. A server without keys refuses what pages of other servers send (see `origins`).
2. The API key is checked, except on open routes. The limits of the key are applied by the routes (see `usage`).
3. The body is read within limits of its size, its duration and the memory of all bodies, so that a slow or endless
   body occupies neither a route nor a slot of a batch. Open routes take no body.
4. A client that disconnects cancels its request, also where the header `x-request-disconnect-disabled` keeps Ray Serve
   from doing so.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from starlette.datastructures import Headers

from audiodiff_platform.serve.errors import ApiError, Problem
from audiodiff_platform.serve.keys import ApiKeys, KeysUnavailableError
from audiodiff_platform.serve.limits import KeyLimits
from audiodiff_platform.serve.origins import refuse_foreign_pages
from audiodiff_platform.serve.usage import Usage

OPEN_ROUTES = frozenset({"/", "/healthz", "/readyz"})
OPEN_PREFIX = "/static/"
"""Start of the paths of the files of the page."""
MAX_JSON_BYTES = 4 << 20
"""Largest body of a route without uploads."""
BODY_TIMEOUT_S = 30.0
"""Longest time in which a body of size zero arrives."""
BODY_BYTES_PER_S = 250_000
"""Rate at which this time grows with the size of a body."""
MAX_BUFFERED_BYTES = 512 << 20
"""Largest size of all bodies that a replica of the ingress holds, unless two of the largest need more."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger("ray.serve")

UNAUTHORIZED = Problem(401, "API key missing or wrong: send Authorization: Bearer KEY", "invalid_api_key")
KEYS_UNAVAILABLE = Problem(503, "API keys cannot be checked now: try again later", "keys_unavailable", None, 10.0)


def is_open(path: str) -> bool:
    """Return whether a path needs no key."""
    return path in OPEN_ROUTES or path.startswith(OPEN_PREFIX)


def largest_body(max_upload_bytes: int) -> int:
    """Return the largest size of a body with uploads in base64."""
    return max_upload_bytes * 4 // 3 + MAX_JSON_BYTES


def body_timeout_s(size: int) -> float:
    """Return the longest time in which a body of a size arrives."""
    return BODY_TIMEOUT_S + size / BODY_BYTES_PER_S


class Gate:
    """ASGI middleware that checks the key, bounds the body, and cancels the requests of disconnected clients.

    Args:
        app: The application.
        keys: The API keys.
        limits: The limits of the keys.
        max_upload_bytes: Largest body of a request with uploads.
        origins: Origins whose pages may call a server without keys.
    """

    def __init__(
        self, app: App, keys: ApiKeys, limits: KeyLimits, max_upload_bytes: int, origins: Sequence[str] = ()
    ) -> None:
        self._app, self._keys, self._limits, self._max_upload_bytes = app, keys, limits, max_upload_bytes
        self._origins = origins
        self._buffered, self._max_buffered = 0, max(MAX_BUFFERED_BYTES, 2 * largest_body(max_upload_bytes))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            held += size
            self._buffered += size
            if self._buffered > self._max_buffered:
                raise ApiError(Problem(503, "too many uploads at once: try again", "uploads_full", None, 1.0))

        usage = None
        try:
            if not self._keys.are_required:
                refuse_foreign_pages(headers, self._origins)
            if not is_open(scope["path"]):
                usage = Usage(self._key_name(headers), self._limits)
                scope.setdefault("state", {})["usage"] = usage
                send = usage.sending(send)
            limit = 0 if usage is None else self._limit(headers)
            body = await self._body(headers, limit, receive, hold)
            if body is not None:
                await self._respond(scope, body, receive, send)
        except ApiError as error:
            await error.problem.response()(scope, receive, send)
        finally:
            self._buffered -= held
            if usage is not None:
                usage.settle()

    def _key_name(self, headers: Headers) -> str:
        """Return the name of the API key of a request.

        Raises:
            ApiError: The key is missing or wrong, or no key can be checked now.
        """
        try:
            name = self._keys.name_of(headers.get("authorization"))
        except KeysUnavailableError:
            raise ApiError(KEYS_UNAVAILABLE) from None
        if name is None:
            raise ApiError(UNAUTHORIZED)
        return name

    async def _body(self, headers: Headers, limit: int, receive: Receive, hold: Callable[[int], None]) -> bytes | None:
        """Read a body of at most `limit` bytes. Return None if the client disconnected."""
        most = f"send at most {limit} bytes" if limit else "the route takes none"
        too_large = Problem(413, f"the body is too large: {most}", "body_too_large")
        stated = headers.get("content-length", "0")
        if not stated.isdecimal() or int(stated) > limit:
            raise ApiError(too_large)
        parts: list[bytes] = []
        size, began = 0, asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(began + body_timeout_s(0)) as allowed:
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    size += len(part)
                    if size > limit:
                        raise ApiError(too_large)
                    hold(len(part))
                    allowed.reschedule(began + body_timeout_s(size))
                    parts.append(part)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            message_408 = f"{size} bytes of the body arrived within {body_timeout_s(size):g} s: use a faster connection"
            raise ApiError(Problem(408, message_408, "body_timeout")) from None

    def _limit(self, headers: Headers) -> int:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            return self._max_upload_bytes + MAX_JSON_BYTES
        return largest_body(self._max_upload_bytes)

    async def _respond(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Run the application, and cancel it if the client disconnects."""
        given = asyncio.Event()
        disconnected = asyncio.ensure_future(_disconnect(receive))

        async def replay() -> Message:
            if not given.is_set():
                given.set()
                return {"type": "http.request", "body": body, "more_body": False}
            await asyncio.shield(disconnected)
            return {"type": "http.disconnect"}

        responding = asyncio.ensure_future(self._app(scope, replay, send))
        try:
            await asyncio.wait((responding, disconnected), return_when=asyncio.FIRST_COMPLETED)
            if responding.done() and responding.exception() is not None:
                logger.error("request failed", exc_info=responding.exception())  # the client was told by a handler
        finally:
            for task in (responding, disconnected):
                task.cancel()
            await asyncio.gather(responding, disconnected, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
