"""Gate of the HTTP interface and limits of time, without Ray: bodies, disconnects, waits and deadlines."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Iterable
from pathlib import Path
from typing import Any

import pytest

from audiodiff_platform.serve import key_file, middleware
from audiodiff_platform.serve.calls import Audio, Event, Failed, Joined, Progress
from audiodiff_platform.serve.errors import ApiError, Problem
from audiodiff_platform.serve.events import with_comments
from audiodiff_platform.serve.generation import within_limits
from audiodiff_platform.serve.key_file import HashedKey
from audiodiff_platform.serve.keys import ApiKeys
from audiodiff_platform.serve.limits import KeyLimits, Limits
from audiodiff_platform.serve.middleware import App, Gate, Message

AUDIO = Audio(b"", "audio/wav", "", {}, {})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def gate_of(app: App, key: HashedKey | None = None) -> Gate:
    return Gate(app, ApiKeys(key), KeyLimits(Limits()), 100)


async def answer(
    gate: Gate, messages: Iterable[Message | Awaitable[Message]], path: str = "/v1/generate", **headers: str
) -> tuple[int, bytes]:
    """Send the messages of a client that then stays, and return the status and the body of the response."""
    sent: list[Message] = []
    coming = list(messages)

    async def receive() -> Message:
        message: Message | Awaitable[Message] = coming.pop(0) if coming else asyncio.Future[Message]()
        return await message if isinstance(message, Awaitable) else message

    async def send(message: Message) -> None:
        sent.append(message)

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await gate({"type": "http", "method": "POST", "path": path, "headers": named}, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def part(body: bytes, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def code(body: bytes) -> str:
    return str(json.loads(body)["error"]["code"])


def test_a_body_in_parts_reaches_the_route_whole() -> None:
    gate = gate_of(echo)
    assert asyncio.run(answer(gate, [part(b"ab", True), part(b"c")])) == (200, b"abc")


def test_a_body_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_TIMEOUT_S", 0.01)
    status, body = asyncio.run(answer(gate_of(echo), [part(b"ab", True)]))
    assert (status, code(body)) == (408, "body_timeout")


def test_a_long_body_has_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_TIMEOUT_S", 0.2)
    monkeypatch.setattr(middleware, "BODY_BYTES_PER_S", 1)

    async def late() -> Message:
        await asyncio.sleep(0.4)
        return part(b"c")

    assert asyncio.run(answer(gate_of(echo), [part(b"ab", True), late()])) == (200, b"abc")


def test_bodies_share_a_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "MAX_BUFFERED_BYTES", 10)
    monkeypatch.setattr(middleware, "MAX_JSON_BYTES", 0)
    gate = Gate(echo, ApiKeys(None), KeyLimits(Limits()), 6)
    largest = b"12345678"

    async def three() -> list[tuple[int, bytes]]:
        waiting = [asyncio.ensure_future(answer(gate, [part(largest, True)])) for _ in range(2)]
        await asyncio.sleep(0)
        refused = await answer(gate, [part(b"1")])
        for other in waiting:
            other.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return [refused, await answer(gate, [part(largest)])]

    (status, body), after = asyncio.run(three())
    assert (status, code(body)) == (503, "uploads_full")
    assert after == (200, largest)


@pytest.mark.parametrize("key", [None, HashedKey.of("right", b"right")])
def test_a_body_on_an_open_route_is_refused_before_it_is_held(key: HashedKey | None) -> None:
    gate = gate_of(echo, key)

    async def flood() -> list[tuple[int, bytes]]:
        stated = await answer(gate, [part(b"", True)], "/healthz", content_length="1")
        return [stated, await answer(gate, [part(b"a", True)], "/static/app.js")]

    for status, body in asyncio.run(flood()):
        assert (status, code(body)) == (413, "body_too_large")


def test_pages_of_other_servers_cannot_call_a_server_without_keys() -> None:
    origin = "https://example.com"
    open_to_all = Gate(echo, ApiKeys(None), KeyLimits(Limits()), 100, (origin,))
    keyed = gate_of(echo, HashedKey.of("right", b"right"))
    cases: list[tuple[Gate, dict[str, str], str | None]] = [
        (open_to_all, {}, None),
        (open_to_all, {"host": "localhost:8000", "origin": "http://localhost:8000"}, None),
        (open_to_all, {"host": "[::1]:8000", "origin": origin}, None),
        (open_to_all, {"host": "127.0.0.2"}, None),
        (open_to_all, {"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:3000"}, "origin_not_allowed"),
        (open_to_all, {"host": "127.0.0.1:8000", "origin": "null"}, "origin_not_allowed"),
        (open_to_all, {"host": "example.com:8000", "origin": "http://example.com:8000"}, "host_not_allowed"),
        (open_to_all, {"host": "127.0.0.1.example.com"}, "host_not_allowed"),
        (keyed, {"host": "example.com", "origin": "https://other.org", "authorization": "Bearer right"}, None),
    ]
    for gate, headers, refusal in cases:
        for path in ("/v1/generate", "/"):
            status, body = asyncio.run(answer(gate, [part(b"")], path, **headers))
            assert (status, body) == (200, b"") if refusal is None else (status, code(body)) == (403, refusal), headers


def test_a_client_that_leaves_cancels_its_request() -> None:
    cancelled: list[str] = []

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.Future()
        finally:
            cancelled.append(scope["path"])

    async def leave() -> None:
        messages = [part(b""), {"type": "http.disconnect"}]

        async def receive() -> Message:
            return messages.pop(0)

        async def send(message: Message) -> None:
            raise AssertionError(message)

        await gate_of(endless)({"type": "http", "path": "/a", "headers": []}, receive, send)

    asyncio.run(leave())
    assert cancelled == ["/a"]


def test_only_open_routes_need_no_key() -> None:
    gate = gate_of(echo, HashedKey.of("right", b"right"))
    cases = [("/v1/models", "Bearer wrong", 401), ("/v1/models", "bearer right", 200), ("/healthz", "", 200)]
    for path, authorization, status in cases:
        assert asyncio.run(answer(gate, [part(b"")], path, authorization=authorization))[0] == status


def test_a_key_file_that_is_out_of_reach_is_no_wrong_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    key = key_file.add(str(file), "alice")
    keys = ApiKeys(file=str(file), grace_s=0, clock=itertools.count().__next__)
    gate = Gate(echo, keys, KeyLimits(Limits()), 100)
    authorization = f"Bearer {key}"
    assert asyncio.run(answer(gate, [part(b"")], authorization=authorization))[0] == 200
    file.unlink()
    keys.refresh()
    status, body = asyncio.run(answer(gate, [part(b"")], authorization=authorization))
    assert (status, code(body)) == (503, "keys_unavailable")


async def collected(told: Iterable[Event], max_wait_s: float, request_timeout_s: float) -> list[Event | Problem]:
    events: asyncio.Queue[Event] = asyncio.Queue()
    for event in told:
        events.put_nowait(event)
    seen: list[Event | Problem] = []
    try:
        async for event in within_limits(events, max_wait_s, request_timeout_s):
            seen.append(event)
    except ApiError as error:
        seen.append(error.problem)
    return seen


def test_a_request_ends_with_its_audio_or_at_a_limit() -> None:
    joined, progress = Joined(0), Progress(1, 2)
    assert asyncio.run(collected([joined, progress, AUDIO, progress], 60, 60)) == [joined, progress, AUDIO]
    failed = Failed(Problem(500, "a", "b"))
    assert asyncio.run(collected([failed], 60, 60)) == [failed]
    (waited,) = asyncio.run(collected([], 0.01, 60))
    assert isinstance(waited, Problem)
    assert (waited.status, waited.code, waited.headers()["Retry-After"]) == (503, "wait_too_long", "1")
    *_, late = asyncio.run(collected([joined], 60, 0.01))
    assert isinstance(late, Problem)
    assert (late.status, late.code, late.headers()) == (504, "deadline_exceeded", {}), "clients do not repeat it"


def test_a_client_that_has_the_response_is_within_its_limits() -> None:
    async def reserving(scope: Any, receive: Any, send: Any) -> None:
        try:
            scope["state"]["usage"].reserve()
        except ApiError as error:
            await error.problem.response()(scope, receive, send)
        else:
            await echo(scope, receive, send)

    gate = Gate(reserving, ApiKeys(None), KeyLimits(Limits(concurrent_requests=1)), 100)
    statuses: list[int] = []

    async def request() -> None:
        messages = [{"type": "http.request", "body": b"{}", "more_body": False}]

        async def receive() -> Message:
            return messages.pop() if messages else await asyncio.Future[Message]()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
            elif len(statuses) == 1:
                await request()

        await gate({"type": "http", "method": "POST", "path": "/v1/generate", "headers": []}, receive, send)

    asyncio.run(request())
    assert statuses == [200, 200]


def test_a_quiet_stream_has_comments() -> None:
    async def texts() -> AsyncIterator[str]:
        quiet = asyncio.Event()
        yield "a"
        asyncio.get_running_loop().call_later(0.05, quiet.set)
        await quiet.wait()
        yield "b"

    async def all_of() -> list[str]:
        return [text async for text in with_comments(texts(), 0.01)]

    first, *comments, last = asyncio.run(all_of())
    assert (first, last) == ("a", "b")
    assert set(comments) == {": waiting\n\n"}
