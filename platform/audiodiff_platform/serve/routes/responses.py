"""Responses to requests for loops: an audio file, JSON or server-sent events, as the client accepts."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from audiodiff_platform.serve import events as sse
from audiodiff_platform.serve.calls import Audio, Call, Event, Failed, NotModified
from audiodiff_platform.serve.errors import ApiError, Problem
from audiodiff_platform.serve.services import LOST, Services
from audiodiff_platform.serve.usage import Usage, audio_seconds

LIST_AT_ONCE = 8
"""Largest number of requests of one list that wait or run at the same time."""


async def answer(services: Services, request: Request, call: Call) -> Response:
    """Answer one request in the form that the client accepts."""
    accepts = request.headers.get("accept", "")
    call = services.addressed(call)
    usage = reserved(services, request, [call])
    if sse.MEDIA_TYPE in accepts:
        return await _streamed(services, usage, replace(call, measured=True, progress=True))
    as_json = "application/json" in accepts
    tags = (tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(","))
    known = frozenset(tag for tag in tags if tag)
    outcome = await services.result(replace(call, measured=as_json, preview_every=0, known=known))
    usage.count(outcome)
    if isinstance(outcome, NotModified):
        return Response(status_code=304, headers={"ETag": outcome.etag})
    assert isinstance(outcome, Audio)
    if as_json:
        return JSONResponse(sse.audio_json(outcome), headers=headers_of(outcome))
    return Response(outcome.content, media_type=outcome.media_type, headers=headers_of(outcome))


async def answer_list(services: Services, request: Request, calls: Sequence[Call | Problem]) -> Response:
    """Answer a list of requests within the longest time of one. A wrong, failed or late one has an error as its result.

    Raises:
        ApiError: All requests failed.
    """
    usage = reserved(services, request, [call for call in calls if isinstance(call, Call)])
    limit_s = services.options.request_timeout_s
    deadline = asyncio.get_running_loop().time() + limit_s
    message = f"the list took longer than {limit_s:g} s: send fewer requests at a time, or a job"
    late = Problem(504, message, "deadline_exceeded")
    if sse.MEDIA_TYPE in request.headers.get("accept", ""):
        return _event_stream(_list_texts(services, usage, calls, deadline, late))
    at_once = asyncio.Semaphore(LIST_AT_ONCE)

    async def outcome(call: Call | Problem) -> Audio | Problem:
        if isinstance(call, Problem):
            return call
        try:
            async with asyncio.timeout_at(deadline), at_once:
                result = await services.result(replace(services.addressed(call), measured=True, preview_every=0))
        except TimeoutError:
            return late
        except ApiError as error:
            return error.problem
        assert isinstance(result, Audio)
        usage.count(result)
        return result

    outcomes = await asyncio.gather(*(outcome(call) for call in calls))
    problems = [one for one in outcomes if isinstance(one, Problem)]
    if len(problems) == len(outcomes):
        raise ApiError(problems[0])
    data = [one.body() if isinstance(one, Problem) else sse.audio_json(one) for one in outcomes]
    return JSONResponse({"data": [{"index": index, **one} for index, one in enumerate(data)]})


def headers_of(audio: Audio) -> dict[str, str]:
    """Return the headers of a response with audio."""
    stages = ", ".join(f"{stage};dur={1_000 * seconds:.1f}" for stage, seconds in audio.seconds.items())
    return {
        "X-Audiodiff-Seed": str(audio.provenance["request"]["seed"]),
        "X-Audiodiff-Model": audio.provenance["model"],
        "X-Audiodiff-Digest": audio.provenance["model_digest"],
        "ETag": audio.etag,
        "Cache-Control": "private, no-cache",
        "Server-Timing": stages,
    }


def reserved(services: Services, request: Request, calls: Sequence[Call]) -> Usage:
    """Reserve a request and the audio of its calls within the limits of the API key.

    Raises:
        ApiError: A limit of the key is reached.
    """
    usage: Usage = request.state.usage
    models = {model.name: model for model in services.models}
    longest_s = services.options.longest_track_s
    usage.reserve(sum(audio_seconds(call, models.get(call.model, services.models[0]), longest_s) for call in calls))
    return usage


async def _streamed(services: Services, usage: Usage, call: Call) -> Response:
    """Answer one request with server-sent events, or with its status if it is refused at once."""
    events = services.events(call)
    first = await anext(events, Failed(LOST))
    if isinstance(first, Failed):
        await events.aclose()
        raise ApiError(first.problem)
    return _event_stream(_texts(usage, first, events))


def _event_stream(texts: AsyncIterator[str]) -> Response:
    return StreamingResponse(sse.with_comments(texts), media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)


async def _texts(usage: Usage, first: Event, events: AsyncGenerator[Event, None]) -> AsyncIterator[str]:
    async with aclosing(events) as following:
        yield sse.text(*sse.described(first))
        last = first
        async for last in following:
            usage.count(last)
            yield sse.text(*sse.described(last))
    usage.settle()  # a client may take the last event for the end of the response
    if not isinstance(last, Failed):
        yield sse.text("done", {})


async def _list_texts(
    services: Services, usage: Usage, calls: Sequence[Call | Problem], deadline: float, late: Problem
) -> AsyncIterator[str]:
    """Yield the events of all requests of a list, each with the index of its request, as they happen."""
    texts: asyncio.Queue[str] = asyncio.Queue()
    at_once = asyncio.Semaphore(LIST_AT_ONCE)

    def tell(index: int, event: Event) -> None:
        name, data = sse.described(event)
        texts.put_nowait(sse.text(name, {"index": index, **data}))

    async def run(index: int, call: Call | Problem) -> None:
        if isinstance(call, Problem):
            tell(index, Failed(call))
            return
        try:
            async with asyncio.timeout_at(deadline), at_once:
                addressed = replace(services.addressed(call), measured=True, progress=True)
                async with aclosing(services.events(addressed)) as events:
                    async for event in events:
                        usage.count(event)
                        tell(index, event)
        except TimeoutError:
            tell(index, Failed(late))
        except ApiError as error:
            tell(index, Failed(error.problem))

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(run(index, call)) for index, call in enumerate(calls)]
        ended = asyncio.gather(*running)
        while not (ended.done() and texts.empty()):
            upcoming = asyncio.ensure_future(texts.get())
            await asyncio.wait((upcoming, ended), return_when=asyncio.FIRST_COMPLETED)
            if upcoming.done():
                yield upcoming.result()
            else:
                upcoming.cancel()
    usage.settle()
    yield sse.text("done", {"count": len(calls)})
