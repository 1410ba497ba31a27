"""Continuous batching of a served model, without Ray: joining, leaving, refusing and failing between steps."""

import asyncio
import contextlib
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from audiodiff_core.audio import AudioDecodeError, Samples
from audiodiff_core.checkpoint import load_model
from audiodiff_core.mel import MelConfig
from audiodiff_core.pipeline import Loop, LoopPipeline
from audiodiff_core.pipeline.task_batch import Started
from audiodiff_core.sampling import REQUEST, ExecutionProfile
from audiodiff_platform.serve import generation
from audiodiff_platform.serve.admission import (
    BURST_S,
    OVERLOAD_AFTER_S,
    OVERLOAD_ENDS_S,
    QueueLimit,
    calls_until_a_slot,
    network_calls,
    slots_of,
)
from audiodiff_platform.serve.batch_thread import BatchThread, Job, problem_of
from audiodiff_platform.serve.calls import Audio, Call, Event, Failed, Joined, Progress
from audiodiff_platform.serve.errors import ApiError
from audiodiff_platform.serve.generation import Generation
from audiodiff_platform.serve.metrics import GenerationMetrics
from audiodiff_platform.serve.options import ServeOptions
from audiodiff_platform.serve.served_model import ServedModel
from audiodiff_platform.serve.uploads import DecodedUploads

WAIT_S = 60
ENDLESS = {"kind": "extend", "duration_s": 700, "steps": 1_000}

Submit = Callable[..., tuple[Job, "queue.Queue[Event]"]]


@pytest.fixture(scope="module")
def pipeline(model: Path) -> LoopPipeline:
    return LoopPipeline.of(load_model(model), ExecutionProfile(batch_size=2))


@pytest.fixture
def thread(pipeline: LoopPipeline) -> Iterator[BatchThread]:
    thread = BatchThread(pipeline, queue_slots=2, max_wait_s=1e9, metrics=GenerationMetrics().of("tiny"))
    yield thread
    thread.close()


def finished(loop: Loop, seconds: dict[str, float]) -> Audio:
    return Audio(loop.file(22_050, "wav"), "audio/wav", "", {}, seconds)


@pytest.fixture
def submit(thread: BatchThread) -> Submit:
    def submit(number: int, files: Any = None, enter: bool = True, **fields: Any) -> tuple[Job, "queue.Queue[Event]"]:
        request = REQUEST.validate_python({"steps": 3, **fields})
        events: queue.Queue[Event] = queue.Queue()
        started = thread.session.started(number, request, files=files or DecodedUploads())
        job = Job(started, 1_000, slots_of(request), events.put, finished, progress=True)
        thread.admit(job)
        if enter:
            thread.enter(job)
        return job, events

    return submit


def until(kind: type[Event], events: "queue.Queue[Event]") -> list[Event]:
    """Return the events up to the first of a kind."""
    seen: list[Event] = []
    while not seen or not isinstance(seen[-1], kind):
        seen.append(events.get(timeout=WAIT_S))
    return seen


def test_a_request_joins_a_running_batch_and_its_bytes_do_not_show_it(
    pipeline: LoopPipeline, thread: BatchThread, submit: Submit
) -> None:
    (alone,) = pipeline.generate([REQUEST.validate_python({"seed": 7, "steps": 3})])
    endless, events = submit(0, **ENDLESS)
    until(Progress, events)
    _, others = submit(1, seed=7)
    *steps, audio = until(Audio, others)
    assert isinstance(steps[0], Joined)
    assert steps[1:] == [Progress(step, 3) for step in (1, 2, 3)]
    assert isinstance(audio, Audio)
    assert audio.content == alone.file(22_050, "wav")
    assert audio.seconds.keys() == {"queue", "sample", "render"}
    thread.cancel(endless)


def test_a_step_that_hangs_makes_the_replica_unhealthy(
    thread: BatchThread, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, released, step = threading.Event(), threading.Event(), thread.session.step

    def hang(*arguments: Any) -> Any:
        hanging.set()
        assert released.wait(WAIT_S)
        return step(*arguments)

    replica = Generation.__new__(Generation)
    served = ServedModel.__new__(ServedModel)
    served.facts = SimpleNamespace(name="tiny")  # type: ignore[assignment]
    served.thread = thread
    replica._models = weakref.WeakSet([served])
    asyncio.run(replica.check_health())
    monkeypatch.setattr(thread.session, "step", hang)
    _, events = submit(0, steps=1)
    assert hanging.wait(WAIT_S)
    asyncio.run(replica.check_health())
    monkeypatch.setattr(generation, "MAX_STEP_S", 0.0)
    with pytest.raises(RuntimeError, match="model tiny: a step has taken longer than 0 s"):
        asyncio.run(replica.check_health())
    released.set()
    until(Audio, events)


def test_requests_are_checked_one_after_the_other_while_the_queue_has_room(thread: BatchThread, submit: Submit) -> None:
    checking, released = threading.Event(), threading.Event()
    checked = list[str]()

    def started(call: Call, _: DecodedUploads) -> Started:
        checked.append(call.model)
        checking.set()
        assert released.wait(WAIT_S)
        return cast("Started", len(checked))

    async def check() -> None:
        replica = Generation.__new__(Generation)
        replica._checking, replica._options = asyncio.Semaphore(1), ServeOptions(model=("tiny=x",))
        model = cast("ServedModel", SimpleNamespace(thread=thread, started=started))
        calls = [Call(name, REQUEST.validate_python({}), "wav") for name in ("first", "leaves", "second", "late")]
        first, leaves, second, late = (
            asyncio.ensure_future(replica._started(call, model, DecodedUploads())) for call in calls
        )
        assert await asyncio.to_thread(checking.wait, WAIT_S)
        leaves.cancel()
        released.set()
        await asyncio.gather(first, second, late)
        assert checked == ["first", "second", "late"]
        running = [submit(number, **ENDLESS) for number in range(2)]
        for _, events in running:
            await asyncio.to_thread(until, Joined, events)
        waiting = [submit(number) for number in (2, 3)]
        with pytest.raises(ApiError) as refused:
            await replica._started(calls[0], model, DecodedUploads())
        assert refused.value.problem.code == "queue_full"
        assert len(checked) == 3
        for job, _ in running + waiting:
            thread.cancel(job)

    asyncio.run(check())


def test_a_request_that_waits_too_long_for_its_check_is_refused(thread: BatchThread) -> None:
    async def check() -> None:
        replica = Generation.__new__(Generation)
        replica._checking, replica._options = asyncio.Semaphore(0), ServeOptions(model=("tiny=x",), max_wait_s=0.01)
        model = cast("ServedModel", SimpleNamespace(thread=thread))
        with pytest.raises(ApiError, match=r"the request waited 0\.01 s: try again later"):
            await replica._started(Call("tiny", REQUEST.validate_python({}), "wav"), model, DecodedUploads())

    asyncio.run(check())


def test_a_request_beyond_the_queue_is_refused_until_another_leaves(thread: BatchThread, submit: Submit) -> None:
    running = [submit(number, **ENDLESS) for number in range(2)]
    for _, events in running:
        until(Joined, events)
    waiting = [submit(number) for number in (2, 3)]
    with pytest.raises(ApiError) as refused:
        submit(4)
    problem = refused.value.problem
    assert (problem.status, problem.code) == (503, "queue_full")
    assert problem.retry_after_s is not None
    assert problem.retry_after_s >= 1
    thread.cancel(waiting[0][0])
    _, last = submit(5)
    for job, _ in running:
        thread.cancel(job)
    until(Audio, last)
    until(Audio, waiting[1][1])
    assert waiting[0][1].empty()


def test_a_lasting_overload_shortens_the_queue_to_a_batch(thread: BatchThread, submit: Submit) -> None:
    now = 100.0
    thread._queue = QueueLimit(burst_slots=6, batch_slots=2, clock=lambda: now)
    running = [submit(number, **ENDLESS) for number in range(2)]
    for _, events in running:
        until(Joined, events)

    def admitted() -> list[Job]:
        """Submit requests until one is refused."""
        jobs = list[Job]()
        with contextlib.suppress(ApiError):
            while True:
                jobs.append(submit(10, enter=False)[0])
        return jobs

    burst = admitted()
    assert len(burst) == 6
    now += OVERLOAD_AFTER_S / 2
    thread.cancel(burst.pop())
    burst += admitted()
    assert len(burst) == 6, "refusals do not last yet"
    now += OVERLOAD_AFTER_S / 2
    for _ in range(4):
        thread.cancel(burst.pop())
        assert not admitted(), "what is in the queue stays, and nothing joins it"
        now += OVERLOAD_ENDS_S / 2
    thread.cancel(burst.pop())
    assert len(admitted()) == 1
    now += OVERLOAD_ENDS_S + 1
    burst += (after := admitted())
    assert len(after) == 4, "the overload is over"
    for job in [*burst, *(job for job, _ in running)]:
        thread.cancel(job)


def _arrivals(at_s: Sequence[float], batch_s: float) -> tuple[list[int], QueueLimit, list[float]]:
    """Return the room that requests of one slot find at their times, in an endless batch of 2 with a queue of 6."""
    now = [0.0]
    limit = QueueLimit(burst_slots=6, batch_slots=2, clock=lambda: now[0])
    rooms = []
    for seconds in at_s:
        now[0] = seconds
        limit.arrived(1, batch_s)
        rooms.append(limit.slots)
    return rooms, limit, now


def test_a_burst_fills_the_queue_whatever_follows_it_within_a_batch_does_not() -> None:
    burst = [index * BURST_S / 8 for index in range(8)]
    rooms, *_ = _arrivals(burst, batch_s=1.0)
    assert rooms == [6] * 8
    rooms, *_ = _arrivals([*burst, 0.5], batch_s=1.0)
    assert rooms[-1] == 2, "more arrived before than twice as many as the batch answers"
    rooms, *_ = _arrivals([*burst, 1.5], batch_s=1.0)
    assert rooms[-1] == 6, "they arrived before the time of a batch"


def test_requests_that_outpace_the_batch_find_a_short_queue_before_it_is_full() -> None:
    rooms, limit, now = _arrivals([0.1 * index for index in range(20)], batch_s=1.0)  # 5 times the capacity
    assert rooms[:4] == [6] * 4
    assert rooms[5:] == [2] * 15
    limit.refused()
    now[0] += OVERLOAD_ENDS_S - 0.1
    assert limit.slots == 2, "the overload lasts from the first refusal"
    limit.refused()
    now[0] += OVERLOAD_ENDS_S + 0.1
    assert limit.slots == 6, "none was refused"


def test_requests_below_the_capacity_may_fill_the_queue() -> None:
    rooms, limit, _ = _arrivals([0.6 * index for index in range(20)], batch_s=1.0)
    assert rooms == [6] * 20
    limit.refused()
    assert limit.slots == 6, "one refusal is no overload"


def test_a_request_that_would_wait_too_long_is_refused(pipeline: LoopPipeline) -> None:
    thread = BatchThread(pipeline, queue_slots=8, max_wait_s=0.5, metrics=GenerationMetrics().of("tiny"))
    thread.step_s = 1.0
    job = partial(Job, calls=9, slots=1, tell=print, finish=finished)
    for number in range(2):
        thread.admit(job(thread.session.started(number, REQUEST.validate_python({}))))
    with pytest.raises(ApiError) as refused:
        thread.admit(job(thread.session.started(2, REQUEST.validate_python({}))))
    assert refused.value.problem.code == "wait_too_long"
    assert refused.value.problem.retry_after_s == 8.5
    thread.close()


def test_a_request_without_its_sources_lets_others_pass(thread: BatchThread, submit: Submit) -> None:
    late, events = submit(0, enter=False)
    _, others = submit(1)
    until(Audio, others)
    thread.enter(late)
    until(Audio, events)


class Damaged:
    """Files that cannot be decoded."""

    def slice(self, file: str, index: int, mel: MelConfig) -> Samples:
        raise AudioDecodeError(file, "is damaged")

    def track(self, file: str, sample_rate: int, longest_s: float) -> Samples:
        raise MemoryError


def test_failures_concern_one_request(submit: Submit) -> None:
    _, good = submit(0)
    _, damaged = submit(1, Damaged(), kind="vary", source="audio")
    _, bug = submit(2, Damaged(), kind="remix", source="audio")
    problems = [until(Failed, events)[-1] for events in (damaged, bug)]
    assert [(one.problem.status, one.problem.code) for one in problems if isinstance(one, Failed)] == [
        (422, "undecodable_audio"),
        (500, "internal_error"),
    ]
    until(Audio, good)


def test_requests_of_a_step_that_fails_may_come_again(
    thread: BatchThread, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, events = submit(0, **ENDLESS)
    until(Progress, events)

    def broken(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(thread.session, "step", broken)
    failed = until(Failed, events)[-1]
    assert isinstance(failed, Failed)
    assert (failed.problem.status, failed.problem.code, failed.problem.retry_after_s) == (503, "step_failed", 1.0)
    until(Audio, submit(1)[1])


def test_a_closed_thread_ends_after_its_requests(thread: BatchThread, submit: Submit) -> None:
    _, events = submit(0)
    thread.close()
    until(Audio, events)
    thread._thread.join(WAIT_S)
    assert thread.is_closed
    with pytest.raises(ApiError, match="unloaded"):
        submit(1)


def test_the_wait_is_that_for_the_first_free_slot() -> None:
    assert calls_until_a_slot(4, [(5, 1)], []) == 0
    assert calls_until_a_slot(2, [(5, 1), (3, 1)], []) == 3
    assert calls_until_a_slot(2, [(5, 1), (3, 1)], [(4, 1)]) == 5
    assert calls_until_a_slot(2, [(5, 2)], [(4, 2), (1, 1)]) == 9
    assert calls_until_a_slot(1, [(5, 2)], [(4, 2)]) == 9


def test_the_network_calls_of_a_request_follow_its_kind(pipeline: LoopPipeline) -> None:
    window_s = pipeline.geometry.duration_s(32)
    cases: list[tuple[dict[str, Any], int]] = [
        ({"steps": 10}, 10),
        ({"kind": "vary", "source": "a", "steps": 10, "strength": 0.3}, 3),
        ({"kind": "vary", "source": "a", "steps": 10, "start_step": 4}, 6),
        ({"kind": "extend", "steps": 10, "duration_s": 4 * window_s}, 80),
        ({"kind": "invert", "source": "a", "steps": 10, "refinements": 2}, 40),
        ({"kind": "interpolate", "sources": ("a", "b"), "steps": 10, "refinements": 1}, 50),
    ]
    for fields, calls in cases:
        request = pipeline.resolved(REQUEST.validate_python(fields))
        assert network_calls(request, pipeline.geometry) == calls, fields


def test_storage_that_fails_is_not_told_to_clients() -> None:
    problem = problem_of(OSError(28, "No space left on device", "/scratch/secret"))
    assert problem.status == 503
    assert "secret" not in problem.message
