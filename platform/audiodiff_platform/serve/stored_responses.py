"""Responses to requests with an Idempotency-Key: a repetition gets the response of the first request.

A response with a status of 2xx is stored. Any other ends the request as if it had not been made, so that a repetition
runs it again, also with another body.
"""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response

from audiodiff_platform.serve import events as sse
from audiodiff_platform.serve.errors import ApiError, Problem
from audiodiff_platform.serve.idempotency import (
    IdempotencyMismatchError,
    RunningRequest,
    StillRunningError,
    StoredResponse,
)
from audiodiff_platform.serve.result_folder import LEASE_S, NO_RESULTS, Results, on_results
from audiodiff_platform.serve.task_folder import TaskEndedError

HEADER = "idempotency-key"
UNINTERRUPTED = frozenset({"/v1/jobs"})
"""Routes that finish although the client has left: what they made is known by their response alone."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger("ray.serve")


class StoredResponses:
    """ASGI middleware behind the gate that stores responses by their Idempotency-Key.

    Args:
        app: The application.
        results: The folder of results, or None if there is none.
    """

    def __init__(self, app: App, results: Results | None) -> None:
        self._app, self._results = app, results
        self._finishing: set[asyncio.Future[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._answer(scope, receive, send)
        except ApiError as error:
            await error.problem.response()(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        usage = scope.get("state", {}).get("usage")
        if usage is None or scope["method"] != "POST" or (key := Headers(scope=scope).get(HEADER)) is None:
            await self._app(scope, receive, send)
            return
        if self._results is None:
            raise ApiError(NO_RESULTS)
        body = (await receive())["body"]
        begun = await self._begin(usage.key, key, await asyncio.to_thread(_digest, scope, body))
        if isinstance(begun, StoredResponse):
            headers = {**begun.headers, "Idempotent-Replayed": "true"}
            await Response(begun.body, begun.status, headers)(scope, receive, send)
            return
        running = asyncio.ensure_future(self._run(begun, scope, body, receive, send))
        self._finishing.add(running)
        running.add_done_callback(self._finishing.discard)
        await (asyncio.shield(running) if scope["path"] in UNINTERRUPTED else running)

    async def _begin(self, owner: str, key: str, digest: str) -> StoredResponse | RunningRequest:
        assert self._results is not None
        try:
            return await on_results(self._results.responses.begin, owner, key, digest)
        except IdempotencyMismatchError as error:
            raise ApiError(Problem(422, str(error), "idempotency_mismatch", "Idempotency-Key")) from error
        except ValueError as error:
            raise ApiError(Problem(422, str(error), "invalid_value", "Idempotency-Key")) from error
        except StillRunningError as error:
            raise ApiError(Problem(409, str(error), "still_running", "Idempotency-Key", error.retry_after_s)) from error

    async def _run(self, request: RunningRequest, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Answer a request. Before the end of the response is sent, it is stored, or the claim is given up."""
        start: Message = {}
        parts: list[bytes] = []
        received = [{"type": "http.request", "body": body, "more_body": False}]
        is_over = False

        async def body_again() -> Message:
            return received.pop() if received else await receive()

        async def send_and_keep(message: Message) -> None:
            nonlocal is_over
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                parts.append(message.get("body", b""))
                if not message.get("more_body", False):
                    beating.cancel()
                    if not 200 <= start["status"] < 300:
                        await _forget(request)
                    elif not await _finish(request, start, b"".join(parts)):
                        await _release(request)
                    is_over = True
            await send(message)

        beating = asyncio.ensure_future(_beat(request))
        try:
            await self._app(scope, body_again, send_and_keep)
        finally:
            beating.cancel()
            if not is_over:
                await _release(request)


async def _beat(request: RunningRequest) -> None:
    while True:
        await asyncio.sleep(LEASE_S / 4)
        with contextlib.suppress(OSError, TaskEndedError):  # the response is then stored by another process, or not
            await asyncio.to_thread(request.heartbeat)


async def _release(request: RunningRequest) -> None:
    with contextlib.suppress(OSError):  # its claim ends with the lease
        await asyncio.to_thread(request.release)


async def _forget(request: RunningRequest) -> None:
    with contextlib.suppress(OSError, TaskEndedError):  # its claim ends with the lease, or another process has it
        await asyncio.to_thread(request.forget)


async def _finish(request: RunningRequest, start: Message, body: bytes) -> bool:
    """Store a response. Return False if it is a stream that failed, or if there is no space."""
    response = _response(start, body)
    if sse.MEDIA_TYPE in response.headers.get("content-type", "") and sse.DONE.encode() not in body:
        return False
    try:
        await asyncio.to_thread(request.finish, response)
    except OSError:
        logger.exception("a response could not be stored")
        return False
    return True


def _response(start: Message, body: bytes) -> StoredResponse:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]}
    kept = {name: value for name, value in headers.items() if not name.startswith("x-ratelimit")}
    return StoredResponse(start["status"], kept, body)


def _digest(scope: Scope, body: bytes) -> str:
    """Return a digest of what a request asks for. The boundary of a form, which differs each time, does not count."""
    headers = Headers(scope=scope)
    kind, _, boundary = headers.get("content-type", "").partition("boundary=")
    if boundary:
        body = body.replace(boundary.strip('"').encode("latin-1"), b"")
    stated = [scope["path"], scope.get("query_string", b"").decode("latin-1"), kind, headers.get("accept", "")]
    return hashlib.sha256("\n".join(stated).encode() + b"\n" + body).hexdigest()
