"""The Python client against a real server over loopback: answers, retries, streams, jobs and errors."""

import asyncio
import base64
import json
import re
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from audiodiff_core.sampling import requests as core_requests
from audiodiff_platform import client as package
from audiodiff_platform.client import AsyncClient, Client, Event, fields
from audiodiff_platform.client.events import EventParser
from audiodiff_platform.client.retries import Retries, retry_after_s
from tests.servers.faults import read_body

ROOT = Path(__file__).parents[2]
KEY = "only-in-this-test"
WAV = b"RIFF....WAVE"
PNG = b"\x89PNG"


@dataclass
class Request:
    """A request that the server received."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def form(self) -> list[tuple[str, bytes]]:
        """The fields of a multipart form, in order."""
        boundary = re.search(r"boundary=(\S+)", self.headers["content-type"])
        assert boundary
        parts = self.body.split(b"--" + boundary[1].encode())[1:-1]
        found = []
        for part in parts:
            head, _, content = part.partition(b"\r\n\r\n")
            name = re.search(rb' name="([^"]+)"', head)
            assert name
            found.append((name[1].decode(), content.removesuffix(b"\r\n")))
        return found


@dataclass
class Answer:
    """An answer, whose body is sent in parts. Without a status, the connection is closed."""

    status: int | None = 200
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes] | None = None


class Server(ThreadingHTTPServer):
    """A server that gives the answers of a test in turn, and keeps the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer] = []
        self.requests: list[Request] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def answer(self) -> None:
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, url.path, parse_qs(url.query), headers, read_body(self))
        self.server.requests.append(request)
        answer = self.server.answers.pop(0)
        if answer.status is None:
            self.close_connection = True
            return
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        parts = [body] if answer.parts is None else answer.parts
        self.send_response(answer.status)
        for name, value in ({"Content-Type": "application/json"} | answer.headers).items():
            self.send_header(name, value)
        if answer.parts is None:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        for part in parts:
            self.wfile.write(part)
            self.wfile.flush()

    do_GET = do_POST = do_DELETE = answer

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url, KEY, timeout_s=10) as client:
        yield client


def error(code: str, message: str = "a reason", param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


AUDIO = Answer(
    200,
    WAV,
    {
        "Content-Type": "audio/wav",
        "X-Audiodiff-Seed": "7",
        "X-Audiodiff-Model": "drums",
        "X-Audiodiff-Digest": "d" * 64,
    },
)
AUDIO_JSON = {
    "audio": base64.b64encode(WAV).decode(),
    "media_type": "audio/wav",
    "model": "drums",
    "model_digest": "d" * 64,
    "request": {"kind": "generate", "seed": 7, "steps": 50},
    "seconds": {"sample": 0.5},
}
BUSY = Answer(503, error("queue_full"), {"Retry-After": "0"})


def test_audio_comes_with_what_determined_it(server: Server, client: Client, tmp_path: Path) -> None:
    server.answers = [AUDIO, AUDIO]
    audio = client.generate(model="drums", seed=7, steps=50, encoding=[0.5, 1.0])
    assert (audio.content, audio.media_type, audio.seed, audio.model) == (WAV, "audio/wav", 7, "drums")
    assert audio.digest == "d" * 64
    assert audio.save(tmp_path / "loop.wav").read_bytes() == WAV
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/v1/generate")
    assert request.json == {"model": "drums", "seed": 7, "steps": 50, "encoding": [0.5, 1.0]}
    assert request.headers["authorization"] == f"Bearer {KEY}"
    client.generate(seed=None)
    assert 0 <= server.requests[1].json["seed"] < 2**32, "a random seed is drawn by the client"


def test_a_list_comes_as_json(server: Server, client: Client) -> None:
    server.answers = [Answer(200, {"data": [{"index": 0, **AUDIO_JSON}, {"index": 1, **error("not_finite")}]})]
    first, second = client.generate_all([{"seed": 7}, {"steps": 10}], idempotency_key="one")
    assert isinstance(second, package.InvalidRequestError)
    assert second.code == "not_finite"
    assert isinstance(first, package.Audio)
    assert (first.content, first.seed, first.model, first.digest) == (WAV, 7, "drums", "d" * 64)
    assert first.provenance["seconds"] == {"sample": 0.5}
    (request,) = server.requests
    assert (request.headers["accept"], request.headers["idempotency-key"]) == ("application/json", "one")
    assert [set(body) for body in request.json] == [{"seed"}, {"seed", "steps"}]


def test_audio_is_sent_as_a_form(server: Server, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "private name.wav"
    file.write_bytes(b"\r\n--file\xff")
    calls: list[tuple[str, Callable[[], object], list[bytes], dict[str, Any]]] = [
        ("variations", lambda: client.variations(file, seed=1, strength=0.5), [b"\r\n--file\xff"], {"strength": 0.5}),
        (
            "inpaint",
            lambda: client.inpaint(b"bytes", seed=1, regenerate=[(0.5, 1.0)], model="7"),
            [b"bytes"],
            {"regenerate": [[0.5, 1.0]], "model": "7"},
        ),
        ("extend", lambda: client.extend(str(file), seed=1, duration_s=9), [b"\r\n--file\xff"], {"duration_s": 9}),
        ("remix", lambda: client.remix(b"bytes", seed=1, seamless=False), [b"bytes"], {"seamless": False}),
        (
            "interpolate",
            lambda: client.interpolate([b"a", b"b"], seed=1, position=0.2),
            [b"a", b"b"],
            {"position": 0.2},
        ),
        ("encode", lambda: client.encode([b"a", b"b"], encoder="clap"), [b"a", b"b"], {"encoder": "clap"}),
    ]
    for path, call, contents, sent in calls:
        encodings = {"data": [{"index": 0, "encoding": [0.5]}, {"index": 1, "encoding": [1]}]}
        server.answers = [Answer(200, encodings) if path == "encode" else AUDIO]
        call()
        request = server.requests.pop()
        assert request.path == f"/v1/{path}"
        assert b"private" not in request.body
        form = request.form
        assert [content for name, content in form if name in ("audio", "like")] == contents
        texts = {name: content.decode() for name, content in form if name not in ("audio", "like")}
        expected = {name: value if isinstance(value, str) else json.dumps(value) for name, value in sent.items()}
        assert texts == expected | ({} if path == "encode" else {"seed": "1"})


def test_without_audio_or_for_generate_they_are_json(server: Server, client: Client) -> None:
    server.answers = [AUDIO] * 3 + [Answer(200, parts=[stream(("done", {}))])] * 2
    client.extend(seed=1, duration_s=9)
    client.interpolate(seeds=[1, 2], seed=3)
    client.generate(seed=1, like=b"like")
    list(client.events("generate", seed=1, like=b"like"))
    list(client.events("generate", [b"audio"], seed=1, kind="vary"))
    assert [request.json for request in server.requests] == [
        {"seed": 1, "duration_s": 9},
        {"seed": 3, "seeds": [1, 2]},
        {"seed": 1, "like": "bGlrZQ=="},
        {"seed": 1, "like": "bGlrZQ=="},
        {"seed": 1, "kind": "vary", "audio": ["YXVkaW8="]},
    ]


def test_models_and_encodings(server: Server, client: Client) -> None:
    model = {"name": "drums", "digest": "d", "sample_rate": 22_050, "duration_s": 5.9, "new_field": 1}
    server.answers = [
        Answer(200, {"models": [model]}),
        Answer(200, {"encoder": "clap", "data": [{"index": 0, "encoding": [0.5, 1]}]}),
        Answer(200, {"encoder": "drums", "data": [{"index": 0, "latents": [[0.5, 1], [2, 3]]}]}),
    ]
    (listed,) = client.models()
    assert (listed.name, listed.sample_rate, listed.model_extra) == ("drums", 22_050, {"new_field": 1})
    assert client.encode([b"a"])[0].encoding == (0.5, 1.0)
    assert client.latents([b"a"], model="drums")[0].latents == ((0.5, 1.0), (2.0, 3.0))
    assert b'name="encoder"' in server.requests[-1].body
    assert b"drums" in server.requests[-1].body


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, package.ApiError),
        (401, package.AuthenticationError),
        (404, package.NotFoundError),
        (409, package.ConflictError),
        (413, package.TooLargeError),
        (422, package.InvalidRequestError),
        (500, package.ServerError),
    ],
)
def test_errors(server: Server, client: Client, status: int, kind: type[package.ApiError]) -> None:
    server.answers = [Answer(status, error("wrong", "steps 0: too few", "steps"), {"x-request-id": "r1"})]
    with pytest.raises(package.ApiError, match=f"{status}: steps 0: too few") as raised:
        client.generate(seed=1, steps=0)
    assert type(raised.value) is kind
    assert (raised.value.status, raised.value.code, raised.value.param) == (status, "wrong", "steps")
    assert raised.value.request_id == "r1"
    assert KEY not in repr(raised.value) + repr(client) + str(vars(client))


def test_an_answer_of_a_proxy_is_an_error_too(server: Server, client: Client) -> None:
    html = {"Content-Type": "text/html"}
    server.answers = [Answer(502, b"<h1>Bad\nGateway</h1>", html), Answer(200, b"<h1>Sign in</h1>", html)]
    with pytest.raises(package.ServerError, match="502: <h1>Bad Gateway</h1>"):
        client.models()
    with pytest.raises(package.AudiodiffError, match="GET /v1/models: the answer is not that of an audiodiff server"):
        client.models()


def test_a_refused_or_broken_call_is_repeated(server: Server, client: Client) -> None:
    limited = Answer(429, error("rate_limited"), {"Retry-After": "0"})
    server.answers = [BUSY, limited, Answer(None), AUDIO]
    assert client.generate().content == WAV
    assert len(server.requests) == 4
    assert len({request.body for request in server.requests}) == 1, "a repetition has the same seed"


def test_a_call_is_repeated_a_few_times_only(server: Server) -> None:
    server.answers = [BUSY] * 3
    with (
        Client(server.url, retries=Retries(most=2)) as client,
        pytest.raises(package.UnavailableError, match="503") as raised,
    ):
        client.generate(seed=1)
    assert raised.value.retry_after_s == 0
    assert server.answers == []


def test_a_long_retry_after_is_an_error_at_once(server: Server, client: Client) -> None:
    server.answers = [Answer(429, error("rate_limited"), {"Retry-After": "3600"})]
    with pytest.raises(package.RateLimitError) as raised:
        client.generate(seed=1)
    assert raised.value.retry_after_s == 3_600
    assert len(server.requests) == 1


def test_a_job_is_repeated_under_one_key(server: Server, client: Client) -> None:
    running = Answer(409, error("idempotency_running"), {"Retry-After": "0"})
    server.answers = [Answer(None), running, Answer(200, {"id": "job_1", "status": "queued", "created_at": 1})]
    assert client.jobs.create({"kind": "vary", "audio": b"bytes"}).id == "job_1"
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1
    assert server.requests[0].json == {"kind": "vary", "audio": base64.b64encode(b"bytes").decode()}


def test_a_deletion_is_not_repeated_once_it_was_sent(server: Server, client: Client) -> None:
    server.answers = [BUSY, Answer(None), Answer(200)]
    with pytest.raises(package.ConnectionFailedError):
        client.jobs.delete("job_1")
    assert len(server.requests) == 2, "a repetition would delete the job that the call cancelled"


def pause_s(
    outcome: httpx.Response | httpx.TransportError,
    retry: int = 0,
    *,
    is_keyed: bool = False,
    is_deletion: bool = False,
) -> float | None:
    return Retries().pause_s(outcome, retry, is_keyed=is_keyed, is_deletion=is_deletion)


def test_pauses() -> None:
    for seconds in (0, 7):
        pause = pause_s(httpx.Response(503, headers={"Retry-After": str(seconds)}))
        assert pause is not None
        assert seconds <= pause <= 1.1 * seconds
    growing = [pause_s(httpx.ConnectError("refused"), retry) for retry in range(4)]
    assert [low <= (pause or 0) <= 2 * low for low, pause in zip((0.25, 0.5, 1, 2), growing, strict=True)] == [True] * 4
    assert pause_s(httpx.ConnectError("refused"), 4) is None
    assert pause_s(httpx.ConnectTimeout("late")) is not None
    assert pause_s(httpx.ReadTimeout("late")) is None
    assert pause_s(httpx.Response(500)) is None
    assert pause_s(httpx.Response(504)) is None
    assert pause_s(httpx.ReadError("broken")) is not None
    assert pause_s(httpx.ReadError("broken"), is_deletion=True) is None
    assert pause_s(httpx.ConnectError("refused"), is_deletion=True) is not None
    assert pause_s(httpx.Response(409)) is None
    assert pause_s(httpx.Response(409), is_keyed=True) is not None
    assert retry_after_s(httpx.Headers({"Retry-After": "soon"})) is None
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)
    assert 50 < (retry_after_s(httpx.Headers({"Retry-After": in_a_minute})) or 0) <= 60


def test_a_server_out_of_reach(server: Server) -> None:
    with (
        Client("http://127.0.0.1:1", retries=Retries(most=0)) as client,
        pytest.raises(package.ConnectionFailedError, match="GET /v1/models: "),
    ):
        client.models()


def stream(*events: tuple[str, dict[str, Any]]) -> bytes:
    texts = [f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n: a comment\n\n" for name, data in events]
    return b": begun\n\n" + "".join(texts).encode()


EVENTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("accepted", {"position": 0, "name": "a\u2028b\x85c"}),
    ("progress", {"step": 1, "steps": 2}),
    ("preview", {"step": 1, "png": base64.b64encode(PNG).decode()}),
    ("audio", AUDIO_JSON),
    ("done", {}),
)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_events_are_the_same_in_all_chunks(line_end: bytes) -> None:
    content = stream(*EVENTS).replace(b"\n", line_end)
    whole = list(EventParser().feed(content))
    assert [(event.type, event.data) for event in whole] == list(EVENTS)
    for size in (1, 2, 3, 7, 64):
        parser = EventParser()
        chunks = [content[start : start + size] for start in range(0, len(content), size)]
        assert [event for chunk in chunks for event in parser.feed(chunk)] == whole
    lines = [b"data: {\n", b"data:\n", b'data: "a": 1}\n', b"id: 3\nretry: 1\nunknown\n\n", b"event: x\n\n"]
    assert list(EventParser().feed(b"".join(lines).replace(b"\n", line_end))) == [Event("message", {"a": 1})]


def test_a_stream_of_events(server: Server, client: Client) -> None:
    content = stream(*EVENTS)
    kind = {"Content-Type": "text/event-stream"}
    server.answers = [BUSY, Answer(200, headers=kind, parts=[content[:50], content[50:51], content[51:]])]
    events = list(client.events("generate", seed=7))
    assert [event.type for event in events] == [name for name, _ in EVENTS]
    assert (events[2].png, events[3].audio.content, events[3].audio.seed) == (PNG, WAV, 7)
    assert server.requests[0].headers["accept"] == "text/event-stream"
    failing = stream(EVENTS[1], ("error", error("not_finite", "the result is not finite")))
    server.answers = [Answer(200, headers=kind, parts=[failing]), Answer(200, headers=kind, parts=[stream(EVENTS[1])])]
    with pytest.raises(package.InvalidRequestError, match=r"^the result is not finite") as raised:
        list(client.events("generate", seed=7))
    assert raised.value.code == "not_finite"
    with pytest.raises(package.ConnectionFailedError, match="the stream ended before its result"):
        list(client.events("generate", seed=7))
    server.answers = [Answer(422, error("wrong"))]
    with pytest.raises(package.InvalidRequestError):
        list(client.events("generate", seed=7))
    server.answers = [Answer(200, headers=kind, parts=[content])]
    with closing(client.events("variations", [b"bytes"], seed=7)) as begun:
        assert next(begun).type == "accepted"


def job(status: str, **values: Any) -> Answer:
    return Answer(200, {"id": "job_1", "object": "job", "status": status, "created_at": 1.5, **values})


def test_jobs(server: Server, client: Client) -> None:
    server.answers = [job("queued", queue_position=3), job("in_progress", progress=50, step=5), job("completed")]
    seen: list[str] = []
    done = client.jobs.wait("job_1", poll_s=0, on_progress=lambda read: seen.append(read.status))
    assert (done.status, seen) == ("completed", ["queued", "in_progress", "completed"])
    server.answers = [job("failed", error={"code": "not_finite", "message": "not finite"})]
    with pytest.raises(package.JobFailedError, match="job job_1 is failed: not finite") as raised:
        client.jobs.wait("job_1")
    assert raised.value.job.error is not None
    server.answers = [job("queued")]
    with pytest.raises(package.TimedOutError, match="job job_1 is queued after 0 s"):
        client.jobs.wait("job_1", timeout_s=0)
    page = {"object": "list", "data": [json.loads(json.dumps(job("completed").body))], "has_more": True}
    server.answers = [Answer(200, page), Answer(200, b"zip"), Answer(200, WAV), Answer(200, {"deleted": True})]
    server.requests.clear()
    assert client.jobs.list(limit=1, after="job_2").data[0].id == "job_1"
    assert (client.jobs.content("job_1"), client.jobs.content("job_1", index=1)) == (b"zip", WAV)
    client.jobs.delete("job_1")
    assert [(request.method, request.path, request.query) for request in server.requests] == [
        ("GET", "/v1/jobs", {"limit": ["1"], "after": ["job_2"]}),
        ("GET", "/v1/jobs/job_1/content", {}),
        ("GET", "/v1/jobs/job_1/content", {"index": ["1"]}),
        ("DELETE", "/v1/jobs/job_1", {}),
    ]
    with pytest.raises(ValueError, match=r"job id '\.\./models'"):
        client.jobs.get("../models")


def test_the_asynchronous_client(server: Server, tmp_path: Path) -> None:
    async def calls() -> None:
        async with AsyncClient(server.url, KEY, timeout_s=10) as client:
            server.answers = [BUSY, AUDIO]
            assert (await client.generate(seed=7)).content == WAV
            server.answers = [Answer(200, {"data": [AUDIO_JSON]})]
            assert [type(made) for made in await client.generate_all([{"seed": 7}])] == [package.Audio]
            server.answers = [AUDIO] * 5
            uploads: list[Awaitable[package.Audio]] = [
                client.variations(b"a", seed=1),
                client.inpaint(b"a", regenerate=[(0, 1)]),
                client.extend(b"a", duration_s=9),
                client.remix(b"a"),
                client.interpolate([b"a", b"b"]),
            ]
            for upload in uploads:
                assert (await upload).model == "drums"
            content = stream(*EVENTS)
            server.answers = [Answer(200, parts=[content[:70], content[70:]]), Answer(422, error("wrong"))]
            async with aclosing(client.events("generate", seed=7)) as events:
                assert [event.type async for event in events] == [name for name, _ in EVENTS]
            with pytest.raises(package.InvalidRequestError):
                await anext(client.events("generate"))
            server.answers = [Answer(200, {"models": []}), Answer(200, {"data": []})]
            assert (await client.models(), await client.encode([b"a"])) == ([], [])
            server.answers = [job("queued"), job("queued"), job("completed"), job("cancelled"), job("completed")]
            created = await client.jobs.create([{"seed": 1}])
            assert (await client.jobs.wait(created.id, poll_s=0)).has_ended
            with pytest.raises(package.JobFailedError, match="is cancelled"):
                await client.jobs.wait(created.id)
            assert (await client.jobs.get(created.id)).status == "completed"
            server.answers = [Answer(200, {"data": []}), Answer(200, WAV), Answer(200, {})]
            assert (await client.jobs.list()).data == ()
            assert await client.jobs.content(created.id, 0) == WAV
            await client.jobs.delete(created.id)

    asyncio.run(calls())


def test_the_environment_names_server_and_key(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIODIFF_URL", server.url)
    monkeypatch.setenv("AUDIODIFF_API_KEY", "schlüssel")
    server.answers = [Answer(200, {"models": []})]
    with Client.from_env(timeout_s=5) as client:
        assert client.models() == []
    sent = server.requests[0].headers["authorization"].encode("latin-1").decode()
    assert sent == "Bearer schlüssel"
    for wrong in ("", "key\n", "a\r\nb: c"):
        with pytest.raises(ValueError, match=r"api_key must be printable and not empty$"):
            Client(api_key=wrong)


@pytest.mark.parametrize(
    ("typed", "request_type"),
    [
        (fields.GenerateFields, core_requests.GenerateRequest),
        (fields.VaryFields, core_requests.VaryRequest),
        (fields.InpaintFields, core_requests.InpaintRequest),
        (fields.ExtendFields, core_requests.ExtendRequest),
        (fields.RemixFields, core_requests.RemixRequest),
        (fields.InterpolateFields, core_requests.InterpolateRequest),
    ],
)
def test_the_fields_are_those_of_the_requests(typed: Any, request_type: Any) -> None:
    of_http = {"model", "format"}
    assert set(typed.__annotations__) - of_http == set(request_type.model_fields) - {"kind", "source", "sources"}
    assert of_http <= set(typed.__annotations__)


def test_the_client_loads_nothing_heavy() -> None:
    program = "import sys; import audiodiff_platform.client; print(*sys.modules)"
    path = f"{ROOT}:{ROOT / 'platform'}"
    completed = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    loaded = set(completed.stdout.split())
    assert loaded & {"ray", "torch", "numpy", "fastapi", "audiodiff_core", "audiodiff_platform.storage"} == set()
