"""Generation deployment: replicas that load models by name, and generate loops in continuous batches."""

import asyncio
import time
import weakref
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import cast

import torch
from ray import serve as ray_serve

from audiodiff_core.audio import AudioDecodeError, Samples
from audiodiff_core.pipeline.task_batch import Started
from audiodiff_core.sampling import ExecutionProfile
from audiodiff_core.sampling.requests import Request
from audiodiff_platform.serve.admission import network_calls, slots_of
from audiodiff_platform.serve.batch_thread import Job, problem_of
from audiodiff_platform.serve.calls import Accepted, Audio, Call, Event, Failed, Joined, ModelFacts, NotModified, Vector
from audiodiff_platform.serve.errors import ApiError, Problem
from audiodiff_platform.serve.exposition import ReplicaMetrics
from audiodiff_platform.serve.metrics import GenerationMetrics
from audiodiff_platform.serve.options import ServeOptions
from audiodiff_platform.serve.served_model import ServedModel
from audiodiff_platform.serve.uploads import DecodedUploads, UploadDecoder

MAX_STEP_S = 120.0
"""Longest duration of a step of a healthy replica."""
MAX_LATENTS = 16
"""Largest number of slices of a file whose latents are computed."""


class Generation:
    """Replica that generates loops.

    A replica loads up to `max_models` models when it starts, so that it is ready when it is constructed. If there are
    more, it loads each at its first request in place of the least recently used.

    Args:
        options: Options of the server.
        models: The served models.
        on_gpu: Whether the replica has a GPU, or a share of it.
    """

    def __init__(self, options: ServeOptions, models: tuple[ModelFacts, ...], on_gpu: bool) -> None:
        if on_gpu and options.gpus_per_replica < 1:
            torch.cuda.set_per_process_memory_fraction(options.gpus_per_replica)
        device = None if on_gpu else "cpu"
        self._profile = ExecutionProfile.here(options.precision, options.batch_size, options.compiled, device)
        self._profile.prepare_process()
        self._options = options
        self._metrics = GenerationMetrics()
        self._models: weakref.WeakSet[ServedModel] = weakref.WeakSet()
        self._facts = {model.name: model for model in models}
        self._loading: dict[str, asyncio.Future[ServedModel]] = {}
        preloaded = {model.name: self._load(model) for model in models[: options.max_models]}
        self._uploads = UploadDecoder(options.max_wait_s, options.longest_track_s)
        self._checking = asyncio.Semaphore(1)

        async def load(name: str) -> ServedModel:
            if name in preloaded:
                return preloaded.pop(name)
            if name not in self._loading:
                loading = asyncio.to_thread(self._load, self._facts[name])
                self._loading[name] = asyncio.ensure_future(loading)
            try:  # a request that is refused meanwhile does not interrupt the load
                return await asyncio.shield(self._loading[name])
            finally:
                if name in self._loading and self._loading[name].done():
                    del self._loading[name]

        self._model = ray_serve.multiplexed(load, max_num_models_per_replica=options.max_models)

    async def generate(self, call: Call) -> AsyncGenerator[Event, None]:
        """Yield the events of a request, of which the last is Audio, NotModified or Failed.

        Closing the iterator stops the request before the next step.
        """
        end = "cancelled"
        try:
            async with aclosing(self._events(call)) as events:
                async for event in events:
                    end = _end(event) or end
                    yield event
        except ApiError as error:
            end = error.problem.code
            yield Failed(error.problem)
        finally:
            self._metrics.of(call.model).ended(end)

    async def latents(self, name: str, content: bytes) -> tuple[Vector, ...] | Problem:
        """Return the latents of the slices of an audio file, or the reason why there are none.

        Args:
            name: Name of a latent model.
            content: Content of the file.
        """
        model = await self._model(name)
        longest_s = MAX_LATENTS * model.facts.duration_s
        try:
            samples = await self._uploads.whole(content, model.facts.sample_rate, longest_s)
        except AudioDecodeError as error:
            return Problem(422, error.reason, "undecodable_audio")
        return await asyncio.to_thread(model.latents, samples)

    async def ready(self) -> list[str]:
        """Return the names of the models. The replica has loaded them, or loads them at their first request."""
        return list(self._facts)

    async def metrics(self) -> ReplicaMetrics:
        """Return the metrics of the replica."""
        loads = {model.facts.name: model.thread.load for model in self._models}
        return ReplicaMetrics.here(self._metrics.families(loads))

    async def check_health(self) -> None:
        """Raise RuntimeError if a step takes longer than MAX_STEP_S. Ray Serve then replaces the replica."""
        for model in self._models:
            if model.thread.seconds_in_step > MAX_STEP_S:
                raise RuntimeError(f"model {model.facts.name}: a step has taken longer than {MAX_STEP_S:g} s")

    def _load(self, facts: ModelFacts) -> ServedModel:
        model = ServedModel(facts, self._profile, self._options, self._metrics.of(facts.name))
        self._models.add(model)
        return model

    async def _events(self, call: Call) -> AsyncGenerator[Event, None]:
        model = await self._model(call.model)
        if not call.known:
            model.thread.require_room()  # refuses before any work is done
        files = DecodedUploads()
        started = await self._started(call, model, files)
        request = cast("Request", started.request)
        etag = model.etag(call, request)
        if etag in call.known:
            yield NotModified(etag)
            return
        events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        calls = network_calls(request, model.pipeline.geometry)
        finish = partial(model.audio, call, etag)
        job = Job(started, calls, slots_of(request), tell, finish, call.progress, call.preview_every)
        position, wait_s = model.thread.admit(job)
        try:
            yield Accepted(etag, position, wait_s)
            if call.uploads:
                files.samples = await self._decoded(call, request, model)
                job.end_stage("decode")
            model.thread.enter(job)
            options = self._options
            async with aclosing(within_limits(events, options.max_wait_s, options.request_timeout_s)) as limited:
                async for event in limited:
                    if call.progress or isinstance(event, Audio | Failed):
                        yield event
        finally:
            model.thread.cancel(job)

    async def _started(self, call: Call, model: ServedModel, files: DecodedUploads) -> Started:
        """Check a request and create its task, one request at a time.

        The first request with a sampling method and a number of steps takes up to seconds, in which the coefficients of
        the steps are measured. The others wait, unless their client leaves or the queue fills.
        """
        limit_s = self._options.max_wait_s
        try:
            async with asyncio.timeout(limit_s), self._checking:
                if not call.known:
                    model.thread.require_room()
                return await asyncio.to_thread(model.started, call, files)
        except TimeoutError:
            raise ApiError(waited(limit_s)) from None
        except ValueError as error:
            raise ApiError(problem_of(error)) from error

    async def _decoded(self, call: Call, request: Request, model: ServedModel) -> dict[str, Samples]:
        """Decode the uploads of a call within the longest wait."""
        try:
            async with asyncio.timeout(self._options.max_wait_s):
                return await self._uploads.decode(request, call.uploads, model.pipeline.geometry)
        except TimeoutError:
            raise ApiError(
                Problem(503, "the audio was not decoded in time: try again", "decoding_slow", None, 1.0)
            ) from None
        except (AudioDecodeError, OSError) as error:
            raise ApiError(problem_of(error)) from error


def _end(event: Event) -> str | None:
    """Return how an event ends a request, or None if it does not."""
    match event:
        case Audio():
            return "audio"
        case NotModified():
            return "not_modified"
        case Failed(problem):
            return problem.code
    return None


def waited(seconds: float) -> Problem:
    """Return what the client of a request is told that waited too long."""
    return Problem(503, f"the request waited {seconds:g} s: try again later", "wait_too_long", None, seconds)


async def within_limits(
    events: asyncio.Queue[Event], max_wait_s: float, request_timeout_s: float
) -> AsyncGenerator[Event, None]:
    """Yield the events of a request up to the last.

    Args:
        events: The events, as they happen.
        max_wait_s: Longest time until the request joins the batch.
        request_timeout_s: Longest time until the last event.

    Raises:
        ApiError: A limit is exceeded.
    """
    began, limit_s = time.monotonic(), max_wait_s
    refusal = waited(limit_s)
    while True:
        try:
            event = await asyncio.wait_for(events.get(), began + limit_s - time.monotonic())
        except TimeoutError:
            raise ApiError(refusal) from None
        yield event
        if isinstance(event, Audio | Failed):
            return
        if isinstance(event, Joined):
            limit_s = request_timeout_s
            message = f"the request took longer than {limit_s:g} s: ask for fewer steps or a shorter loop"
            refusal = Problem(504, message, "deadline_exceeded")
