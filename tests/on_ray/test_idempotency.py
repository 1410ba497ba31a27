"""Idempotency-Key: one run and one response for a request that is repeated."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from audiodiff_platform.serve.expiry import Expiry
from audiodiff_platform.serve.idempotency import (
    IdempotencyMismatchError,
    IdempotentRequests,
    RunningRequest,
    StillRunningError,
    StoredResponse,
)
from audiodiff_platform.serve.limits import KeyLimits, Limits
from audiodiff_platform.serve.result_folder import Results
from audiodiff_platform.serve.results import DAY_S, Jobs
from audiodiff_platform.serve.stored_responses import Message, Receive, Scope, Send, StoredResponses
from audiodiff_platform.serve.task_folder import DamagedResultError, TaskEndedError, TaskFolder
from audiodiff_platform.serve.usage import Usage
from audiodiff_platform.storage import Folder
from tests.clocks import Clock
from tests.rare import rare
from tests.servers.stores import Stores

LEASE_S = 60.0
RESPONSE = StoredResponse(200, {"X-Audiodiff-Seed": "7"}, b"audio")


@pytest.fixture
def clock() -> Clock:
    return Clock(1_800_000_000)


@pytest.fixture(params=["disk", "s3", rare("gs")])
def tasks(request: pytest.FixtureRequest, tmp_path: Path, stores: Stores, clock: Clock) -> TaskFolder:
    on_disk = request.param == "disk"
    uri = str(tmp_path / "results") if on_disk else f"{getattr(stores, request.param).make_bucket()}/results"
    return TaskFolder(Folder(uri), 10**6, LEASE_S, clock)


def begun(requests: IdempotentRequests, owner: str, key: str, digest: str) -> RunningRequest:
    outcome = requests.begin(owner, key, digest)
    assert isinstance(outcome, RunningRequest)
    return outcome


def test_a_repetition_gets_the_stored_response(tasks: TaskFolder, clock: Clock) -> None:
    requests = IdempotentRequests(tasks, ttl_s=100)
    running = begun(requests, "alice", "key-1", "digest")
    with pytest.raises(StillRunningError):
        requests.begin("alice", "key-1", "digest")
    running.heartbeat()
    running.finish(RESPONSE)
    assert requests.begin("alice", "key-1", "digest") == RESPONSE
    with pytest.raises(IdempotencyMismatchError, match="key-1 was used with another body"):
        requests.begin("alice", "key-1", "other")
    begun(requests, "bob", "key-1", "other").release()
    clock.now += 100
    assert Expiry(tasks, unfinished_s=100).sweep() == 2
    begun(requests, "alice", "key-1", "other")


def test_a_dead_process_blocks_for_one_lease(tasks: TaskFolder, clock: Clock) -> None:
    requests = IdempotentRequests(tasks)
    dead = begun(requests, "alice", "key", "digest")
    clock.now += LEASE_S - 1
    with pytest.raises(StillRunningError):
        requests.begin("alice", "key", "digest")
    clock.now += 1
    with pytest.raises(IdempotencyMismatchError):
        requests.begin("alice", "key", "other")
    running = begun(requests, "alice", "key", "digest")
    with pytest.raises(TaskEndedError):
        dead.heartbeat()
    running.finish(RESPONSE)
    dead.finish(StoredResponse(200, {}, b"late"))
    assert requests.begin("alice", "key", "digest") == RESPONSE


def test_a_released_request_runs_at_once(tasks: TaskFolder) -> None:
    requests = IdempotentRequests(tasks)
    begun(requests, "alice", "key", "digest").release()
    begun(requests, "alice", "key", "digest").finish(RESPONSE)
    assert requests.begin("alice", "key", "digest") == RESPONSE


def test_a_refused_request_gives_its_key_free(tasks: TaskFolder, clock: Clock) -> None:
    requests = IdempotentRequests(tasks)
    begun(requests, "alice", "key", "wrong").forget()
    assert (list(tasks.folder.walk()), tasks.used_bytes) == ([], 0)
    slow = begun(requests, "alice", "key", "right")
    clock.now += LEASE_S
    other = begun(requests, "alice", "key", "right")
    with pytest.raises(TaskEndedError):
        slow.forget()
    other.finish(RESPONSE)
    assert requests.begin("alice", "key", "right") == RESPONSE


def test_of_many_replicas_one_runs_the_request(tasks: TaskFolder) -> None:
    replicas = [IdempotentRequests(TaskFolder(tasks.folder, 10**6, LEASE_S, tasks.now)) for _ in range(6)]

    def begin(requests: IdempotentRequests) -> bool:
        try:
            return isinstance(requests.begin("alice", "key", "digest"), RunningRequest)
        except StillRunningError:
            return False

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(begin, replicas)) == 1


def test_a_damaged_response_is_reported(tmp_path: Path) -> None:
    requests = IdempotentRequests(TaskFolder(Folder(str(tmp_path)), 10**6))
    begun(requests, "alice", "key", "digest").finish(RESPONSE)
    (body,) = tmp_path.glob("idempotent/alice/*/content-*")
    body.write_bytes(b"audi")
    with pytest.raises(DamagedResultError, match="use a new key"):
        requests.begin("alice", "key", "digest")


@pytest.mark.parametrize("key", ["", "a b", "schlüssel", "x" * 256, "key\n"])
def test_keys_are_visible_ascii(tmp_path: Path, key: str) -> None:
    requests = IdempotentRequests(TaskFolder(Folder(str(tmp_path)), 10**6))
    with pytest.raises(ValueError, match="Idempotency-Key: must be 1 to 255 visible ASCII characters"):
        requests.begin("alice", key, "digest")
    begun(requests, "alice", "../../x", "digest")
    assert [path.name for path in tmp_path.iterdir()] == ["idempotent"]


class Answer:
    """An ASGI application with one answer, which counts its runs."""

    def __init__(self, status: int, parts: list[bytes]) -> None:
        self.status, self.parts, self.runs = status, parts, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        self.runs += 1
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        for part in self.parts:
            await send({"type": "http.response.body", "body": part, "more_body": part is not self.parts[-1]})


async def statuses_of_two(app: StoredResponses) -> list[int]:
    """Request the same twice, the second time when the last byte of the first response is sent."""
    scope: Scope = {"type": "http", "method": "POST", "path": "/v1/generate"}
    scope["headers"] = [(b"idempotency-key", b"one")]
    scope["state"] = {"usage": Usage("alice", KeyLimits(Limits()))}
    statuses: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
        elif not message.get("more_body", False) and len(statuses) == 1:
            await app(dict(scope), receive, send)

    await app(dict(scope), receive, send)
    return statuses


@pytest.mark.parametrize(
    ("answer", "runs"),
    [
        (Answer(200, [b"event: audio\n", b"event: done\n"]), 1),
        (Answer(200, [b"event: progress\n", b"event: error\n"]), 2),
        (Answer(422, [b"{}"]), 2),
        (Answer(503, [b"{}"]), 2),
    ],
)
def test_a_client_that_has_the_response_can_repeat_the_request_at_once(
    tmp_path: Path, answer: Answer, runs: int
) -> None:
    tasks = TaskFolder(Folder(str(tmp_path)), 10**6)
    results = Results(Jobs(tasks, DAY_S), IdempotentRequests(tasks), Expiry(tasks, DAY_S))
    assert asyncio.run(statuses_of_two(StoredResponses(answer, results))) == [answer.status] * 2
    assert answer.runs == runs
    assert any(tmp_path.rglob("request.json")) == (answer.status == 200), "a refusal leaves nothing"
