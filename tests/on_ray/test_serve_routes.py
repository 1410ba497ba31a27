"""Routes of the server without Ray: the ingress application, in front of calls that the tests answer."""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from audiodiff_core.mel import MelConfig
from audiodiff_core.sampling.requests import GenerateRequest, RemixRequest
from audiodiff_platform.serve import job_run, uploads
from audiodiff_platform.serve.calls import Audio, Call, Event, Failed, ModelFacts
from audiodiff_platform.serve.errors import Problem
from audiodiff_platform.serve.ingress import http_app
from audiodiff_platform.serve.job_run import MAX_FAILURES, JobRun
from audiodiff_platform.serve.keys import ApiKeys
from audiodiff_platform.serve.limits import Admission, KeyLimits, Limits, Refusal
from audiodiff_platform.serve.middleware import Gate, Message
from audiodiff_platform.serve.options import ServeOptions
from audiodiff_platform.serve.refusals import REFUSED_FOR_S, RecentRefusals
from audiodiff_platform.serve.results import DAY_S, Jobs
from audiodiff_platform.serve.services import Services
from audiodiff_platform.serve.stored_calls import stored
from audiodiff_platform.serve.task_folder import ResultsFullError, TaskFolder
from audiodiff_platform.serve.uploads import UploadDecoder
from audiodiff_platform.serve.usage import audio_seconds
from audiodiff_platform.storage import Folder

FACTS = ModelFacts("tiny", "path", "digest", 22_050, 1.0, 64, None)
PROVENANCE = {"duration_s": 1.0, "request": {"seed": 0}, "model": "tiny", "model_digest": "digest"}
AUDIO = Audio(b"RIFF", "audio/wav", '"tag"', PROVENANCE, {})
ENDLESS_SEED = 404


class Answered(Services):
    """Services that keep the calls, and answer each with one event, or never for the seed ENDLESS_SEED."""

    def __init__(self, event: Event = AUDIO, **options: Any) -> None:
        super().__init__(ServeOptions(model=("tiny=path",), **options), (FACTS,), cast("Any", None), cast("Any", None))
        self.event, self.calls = event, list[Call]()

    async def events(self, call: Call) -> AsyncGenerator[Event, None]:
        self.calls.append(call)
        if call.request.seed == ENDLESS_SEED:
            await asyncio.Future()
        yield self.event


def gate_of(services: Services, jobs: Any = None, limits: KeyLimits | None = None) -> Gate:
    app = http_app(services)
    app.state.results = SimpleNamespace(jobs=jobs)
    app.state.runner = SimpleNamespace(look=lambda: None, estimate_s=lambda _: None)
    return Gate(app, ApiKeys(None), limits or KeyLimits(Limits()), 10**6)


def answer(gate: Gate, method: str, path: str, content: Any = b"", **headers: str) -> httpx.Response:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()

    async def answered() -> httpx.Response:
        transport = httpx.ASGITransport(cast("Any", gate))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return await client.request(method, path, content=body, headers=named)

    return asyncio.run(answered())


def jobs_in(folder: Path) -> Jobs:
    return Jobs(TaskFolder(Folder(str(folder)), 10**6), DAY_S)


def test_a_list_keeps_what_is_made_before_its_deadline() -> None:
    gate = gate_of(Answered(request_timeout_s=0.3))
    requests = [{"seed": 1}, {"seed": ENDLESS_SEED}, *[{"seed": 2}] * 20]
    response = answer(gate, "POST", "/v1/generate", requests)
    made, late, *others = response.json()["data"]
    assert (response.status_code, made["media_type"], len(others)) == (200, "audio/wav", 20)
    assert late["error"]["code"] == "deadline_exceeded"
    events = answer(gate, "POST", "/v1/generate", requests, accept="text/event-stream").text
    assert events.count("event: audio\n") == 21
    assert 'event: error\ndata: {"index":1,"error":' in events
    assert events.endswith('event: done\ndata: {"count":22}\n\n')
    alone = answer(gate, "POST", "/v1/generate", [{"seed": ENDLESS_SEED}])
    assert (alone.status_code, "retry-after" in alone.headers) == (504, False)


def test_tags_that_the_client_holds() -> None:
    services = Answered()
    for tags in ({}, {"if_none_match": ""}, {"if_none_match": 'W/"a", "b",'}):
        assert answer(gate_of(services), "POST", "/v1/generate", {}, **tags).status_code == 200
    assert [call.known for call in services.calls] == [frozenset(), frozenset(), {'"a"', '"b"'}]


@pytest.mark.parametrize("wrong", ["²", pytest.param("9" * 5_000, id="5,000 digits"), -1, 1.5, True, None, [1]])
def test_previews_are_a_number_of_steps(wrong: Any) -> None:
    gate = gate_of(Answered())
    for path in ("/v1/generate", "/v1/jobs"):
        response = answer(gate, "POST", path, {"preview_every": wrong})
        assert (response.status_code, response.json()["error"]["param"]) == (422, "preview_every")
    first, second = answer(gate, "POST", "/v1/generate", [{"preview_every": wrong}, {}]).json()["data"]
    assert (first["error"]["param"], second["media_type"]) == ("preview_every", "audio/wav")


def test_each_event_stream_and_job_takes_previews(tmp_path: Path) -> None:
    services = Answered()
    gate = gate_of(services, jobs_in(tmp_path))
    requests = [{"preview_every": 2}, {"preview_every": "3"}]
    answer(gate, "POST", "/v1/generate", requests, accept="text/event-stream")
    answer(gate, "POST", "/v1/generate", requests)
    assert [call.preview_every for call in services.calls] == [2, 3, 0, 0]
    created = answer(gate, "POST", "/v1/jobs", {"preview_every": 2})
    assert (created.status_code, created.json()["status"]) == (200, "queued")


@pytest.mark.parametrize("body", [b'{"kind": "\\ud800"}', b'{"preview_every": "\\udfff"}', b'{"\\ud800": 1}'])
def test_text_that_is_no_unicode_is_refused(body: bytes) -> None:
    gate = gate_of(Answered())
    for path in ("/v1/generate", "/v1/jobs", "/v1/remix", "/v1/audio/generate"):
        headers = {"content_type": "application/json"}
        response = answer(gate, "POST", path, body, **headers)
        assert (response.status_code, response.json()["error"]["type"]) == (422, "invalid_request_error"), path
    (wrong, right) = answer(gate, "POST", "/v1/generate", b"[" + body + b", {}]").json()["data"]
    assert ("error" in wrong, "error" in right) == (True, False)


def test_a_path_with_a_slash_more_is_another() -> None:
    response = answer(gate_of(Answered()), "GET", "/v1/models/")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown_route")


def is_free(limits: KeyLimits) -> bool:
    """Return whether a second of audio can be reserved."""
    outcome = limits.admit("anonymous", 1.0)
    if isinstance(outcome, Admission):
        limits.settle(outcome, 0)
    return not isinstance(outcome, Refusal)


def test_a_job_costs_its_audio_although_its_client_leaves() -> None:
    begun, may_end = threading.Event(), threading.Event()

    def create(*_: Any) -> None:
        begun.set()
        may_end.wait(10)

    async def leave(gate: Gate) -> None:
        messages: list[Message] = [{"type": "http.request", "body": b"{}"}]

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await asyncio.to_thread(begun.wait, 10)
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            raise AssertionError(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/jobs", "query_string": b"", "headers": []}
        await gate(scope, receive, send)
        may_end.set()

    limits = KeyLimits(Limits(audio_s_per_hour=1))
    asyncio.run(leave(gate_of(Answered(), SimpleNamespace(create=create), limits)))
    assert begun.is_set()
    assert not is_free(limits)


def test_a_job_that_is_not_created_costs_nothing() -> None:
    def create(*_: Any) -> None:
        raise ResultsFullError("full")

    limits = KeyLimits(Limits(audio_s_per_hour=1))
    response = answer(gate_of(Answered(), SimpleNamespace(create=create), limits), "POST", "/v1/jobs")
    assert response.status_code == 507
    assert is_free(limits)


def test_a_remix_is_as_long_as_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ServeOptions(model=("tiny=path",), max_duration_s=30, audio_s_per_minute=20)
    assert options.longest_track_s == 20
    request = RemixRequest(kind="remix", source="audio")
    call = Call("tiny", request, "wav", {"audio": b"track"})
    assert audio_seconds(call, FACTS, options.longest_track_s) == 20
    assert audio_seconds(call, FACTS, 0.5) == 1, "a track of less than a window"
    asked: list[float] = []
    decoder = SimpleNamespace(samples=lambda *arguments: asked.append(arguments[-1]))
    monkeypatch.setattr(uploads, "Decoder", lambda _: decoder)
    geometry = cast("Any", SimpleNamespace(mel=MelConfig()))
    asyncio.run(UploadDecoder(1, options.longest_track_s).decode(request, call.uploads, geometry))
    assert asked == [20]


@pytest.mark.parametrize("code", ["step_failed", "decoding_slow", "replica_lost", "deadline_exceeded"])
def test_a_job_that_fails_again_and_again_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr(job_run, "MAX_PAUSE_S", 0)
    refusals = {"deadline_exceeded": (Problem(504, "late", code), 1)}
    problem, most = refusals.get(code, (Problem(503, "failed", code, None, 1.0), MAX_FAILURES))
    services, jobs = Answered(Failed(problem)), jobs_in(tmp_path)
    created = jobs.create("alice", *stored([services.addressed(Call("", GenerateRequest(seed=1), "wav"))]))
    running = jobs.claim("alice", created.id)
    assert running is not None
    asyncio.run(asyncio.wait_for(JobRun(running, services, asyncio.Semaphore(1)).run(), 10))
    ended = jobs.get("alice", created.id)
    assert ended.error is not None
    assert (ended.status, ended.error.code, len(services.calls)) == ("failed", code, most)


class Replica:
    """Handle of a generation deployment that answers each call with the next of some events."""

    def __init__(self, *events: Event) -> None:
        self.events, self.called = iter(events), list[str]()
        self.generate = SimpleNamespace(remote=self._remote)

    def options(self, **_: Any) -> "Replica":
        return self

    def _remote(self, call: Call) -> Any:
        self.called.append(call.model)
        return _Answer(next(self.events))


class _Answer:
    def __init__(self, event: Event) -> None:
        self.events = iter([event])

    def __aiter__(self) -> "_Answer":
        return self

    async def __anext__(self) -> Event:
        for event in self.events:
            return event
        raise StopAsyncIteration

    def cancel(self) -> None:
        pass


def test_the_refusal_of_a_full_replica_is_repeated_for_a_moment_without_a_call() -> None:
    full, other = (Failed(Problem(503, "no", code, None, 1.0)) for code in ("queue_full", "step_failed"))
    replica = Replica(other, full, AUDIO, AUDIO, full, AUDIO)
    models = (FACTS, replace(FACTS, name="other"))
    options = ServeOptions(model=("tiny=path", "other=path"), max_models=2)
    services = Services(options, models, cast("Any", replica), cast("Any", None))
    now = 100.0
    services._refusals = RecentRefusals(clock=lambda: now)

    def outcome(model: str = "tiny", **fields: Any) -> Event:
        async def last() -> Event:
            call = Call(model, GenerateRequest(seed=1), "wav", **fields)
            return [event async for event in services.events(call)][-1]

        return asyncio.run(last())

    assert [outcome(), outcome()] == [other, full], "another failure is not repeated"
    assert [outcome(), outcome(), len(replica.called)] == [full, full, 2]
    assert outcome("other") == AUDIO, "the other model has a queue of its own"
    assert outcome(known=frozenset({'"tag"'})) == AUDIO, "what the client may hold needs no room"
    now += 2 * REFUSED_FOR_S
    assert [outcome(), outcome(), len(replica.called)] == [full, full, 5]
    now += 2 * REFUSED_FOR_S
    assert outcome() == AUDIO
