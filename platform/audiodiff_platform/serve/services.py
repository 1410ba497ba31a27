"""Services that the routes share: the served models, and calls to the generation and encoding deployments."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from fastapi import Depends, Request
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from audiodiff_core.sampling.conditions import no_encoder, no_feature, no_guidance
from audiodiff_platform.serve.calls import Call, EncoderFacts, Event, Failed, ModelFacts, Vector
from audiodiff_platform.serve.errors import ApiError, Problem, invalid
from audiodiff_platform.serve.options import ServeOptions
from audiodiff_platform.serve.refusals import QUEUE_FULL, RecentRefusals
from audiodiff_platform.serve.usage import audio_seconds

READY_FOR_S = 10.0
"""Time for which an answer of a generation replica counts as its readiness."""
READY_WITHIN_S = 2.0

LOST = Problem(503, "the replica that worked on the request ended: send the request again", "replica_lost", None, 1.0)


@dataclass
class Services:
    """Parts of the server that routes use.

    Attributes:
        options: Options of the server.
        models: The served models. The first is the default.
        generation: Handle of the generation deployment.
        ingress: Handle of the deployment of this replica.
        encoders: The served encoders. The first is the default.
        encoding: Handle of the encoding deployment, or None without encoders.
    """

    options: ServeOptions
    models: tuple[ModelFacts, ...]
    generation: DeploymentHandle
    ingress: DeploymentHandle
    encoders: tuple[EncoderFacts, ...] = ()
    encoding: DeploymentHandle | None = None
    _ready_at: float = field(default=float("-inf"))
    _refusals: RecentRefusals = field(default_factory=RecentRefusals)

    def addressed(self, call: Call) -> Call:
        """Return a call with the name of its model filled in.

        Raises:
            ApiError: There is no such model, the request exceeds a limit of the server, or the model does not take its
                conditions.
        """
        names = [model.name for model in self.models]
        name = call.model or names[0]
        if name not in names:
            message = f"model {name} is not served: use one of {', '.join(names)}"
            raise ApiError(Problem(404, message, "model_not_found", "model"))
        steps, most = call.request.steps, self.options.max_steps
        if steps is not None and steps > most:
            raise invalid(f"steps: {steps} is more than {most}, the limit of this server", "steps")
        seconds = audio_seconds(call, self.models[names.index(name)], self.options.longest_track_s)
        longest_s = self.options.max_duration_s
        if seconds > longest_s:
            raise invalid(
                f"duration_s: {seconds:g} s is more than {longest_s:g} s, the limit of this server", "duration_s"
            )
        self._require_conditions(name, call)
        return replace(call, model=name)

    def encoder(self, name: str | None) -> EncoderFacts:
        """Return the encoder of a name, by default the first.

        Raises:
            ApiError: There is no such encoder.
        """
        if not self.encoders:
            raise ApiError(Problem(404, "no encoder is served", "encoder_not_found", "encoder"))
        names = [encoder.name for encoder in self.encoders]
        if name is not None and name not in names:
            message = f"encoder {name} is not served: use one of {', '.join(names)}"
            raise ApiError(Problem(404, message, "encoder_not_found", "encoder"))
        return self.encoders[0 if name is None else names.index(name)]

    def encoder_of(self, model: ModelFacts) -> EncoderFacts | None:
        """Return the served encoder of the training encodings of a model, or None."""
        return next((encoder for encoder in self.encoders if encoder.digest == model.encoder_digest), None)

    @property
    def fixed_fields(self) -> dict[str, object]:
        """Fields of requests that have one value for all served models, with this value."""
        fixed: dict[str, object] = {}
        if not any(encoder is not None and encoder.embeds_text for encoder in map(self.encoder_of, self.models)):
            fixed |= {"prompt": None, "input": None}
        if all(model.encoding_dim is None for model in self.models):
            fixed |= {"guidance_scale": 1}
        known = {condition for model in self.models for condition in model.conditions}
        return fixed | dict.fromkeys({"key", "loudness", "brightness"} - known)

    async def encoded(self, encoder: EncoderFacts, item: bytes | str) -> Vector | Problem:
        """Return the embedding of an audio file or of a text, or the reason why there is none."""
        assert self.encoding is not None, "an encoder is served"
        outcome: Vector | Problem = await self._outcome(self.encoding.encode.remote(encoder.name, item))
        return outcome

    async def _outcome(self, response: Any) -> Any:
        """Return the outcome of an encoding, or the problem of the deployment."""
        try:
            return await asyncio.wait_for(response, self.options.request_timeout_s)
        except TimeoutError:
            response.cancel()
            return Problem(504, "the encoder took too long: send less audio", "deadline_exceeded")
        except BackPressureError:
            return Problem(503, "the server is full: try again later", QUEUE_FULL, None, 1.0)
        except (RayError, RayServeException):
            return LOST

    def _generation(self, model: str) -> DeploymentHandle:
        """Return a handle that prefers the replicas that hold a model."""
        if len(self.models) > self.options.max_models:
            return self.generation.options(multiplexed_model_id=model)
        return self.generation

    def latent_model(self, name: str | None) -> ModelFacts | None:
        """Return the latent model of a name, or None if there is none. The names of encoders come first."""
        if any(encoder.name == name for encoder in self.encoders):
            return None
        return next((model for model in self.models if model.name == name and model.latent_shape is not None), None)

    async def latents(self, model: ModelFacts, content: bytes) -> tuple[Vector, ...] | Problem:
        """Return the latents of the slices of an audio file, or the reason why there are none."""
        outcome: tuple[Vector, ...] | Problem
        outcome = await self._outcome(self._generation(model.name).latents.remote(model.name, content))
        return outcome

    def _require_conditions(self, name: str, call: Call) -> None:
        """Raise ApiError if a model does not take the conditions of a call, before its job is accepted."""
        (model,) = (model for model in self.models if model.name == name)
        if reason := no_guidance(call.request.guidance_scale, model.encoding_dim):
            raise invalid(reason, "guidance_scale")
        for stated in call.request.features:
            if reason := no_feature(call.request, stated, model.conditions):
                raise invalid(reason, stated)
        if call.condition is not None:
            self._require_encoder(name, call.condition)

    def _require_encoder(self, name: str, condition: bytes | str) -> EncoderFacts:
        """Return the encoder of a model for a condition, or raise ApiError if there is none."""
        (model,) = (model for model in self.models if model.name == name)
        if reason := no_encoder(model.encoding_dim, model.conditions):
            raise _no_encoder(condition, reason)
        encoder = self.encoder_of(model)
        if encoder is None or (isinstance(condition, str) and not encoder.embeds_text):
            reason = "the encoder of the model is not served" if encoder is None else f"{encoder.name} embeds no text"
            raise _no_encoder(condition, f"{reason}, send the values of the encoding")
        return encoder

    async def _with_encoding(self, call: Call, condition: bytes | str) -> Call:
        """Return a call with the embedding of its condition as the encoding of its request.

        Raises:
            ApiError: There is none.
        """
        encoder = self._require_encoder(call.model, condition)
        field = _field_of(condition)
        outcome = await self.encoded(encoder, condition)
        if isinstance(outcome, Problem):
            raise ApiError(replace(outcome, message=f"{field}: {outcome.message}", param=field))
        request = call.request.model_copy(update={"encoding": outcome})
        return replace(call, request=request, condition=None)

    async def events(self, call: Call) -> AsyncGenerator[Event, None]:
        """Yield the events of a call, of which the last is Audio, NotModified or Failed.

        Closing the iterator stops the request before the next step.
        """
        if call.condition is not None:
            try:
                call = await self._with_encoding(call, call.condition)
            except ApiError as error:
                yield Failed(error.problem)
                return
        if not call.known and (refusal := self._refusals.of(call.model)) is not None:
            yield Failed(refusal)
            return
        response: Any = self._generation(call.model).options(stream=True).generate.remote(call)
        events = aiter(response)
        limit_s: float | None = self.options.max_wait_s  # for a replica
        try:
            while True:
                try:
                    event = await asyncio.wait_for(anext(events), limit_s)
                except StopAsyncIteration:
                    return
                limit_s = None
                if isinstance(event, Failed):
                    self._refusals.record(call.model, event.problem)
                yield event
        except TimeoutError:
            yield Failed(
                Problem(503, "no replica is free: try again later", "no_replica", None, self.options.max_wait_s)
            )
        except BackPressureError:
            yield Failed(Problem(503, "the server is full: try again later", QUEUE_FULL, None, 1.0))
        except (RayError, RayServeException):
            yield Failed(LOST)
        finally:
            response.cancel()

    async def result(self, call: Call) -> Event:
        """Return the last event of a call.

        Raises:
            ApiError: The request failed.
        """
        async with aclosing(self.events(call)) as events:
            last: Event = Failed(LOST)
            async for event in events:
                last = event
        if isinstance(last, Failed):
            raise ApiError(last.problem)
        return last

    @property
    def deployments(self) -> dict[str, DeploymentHandle]:
        """Handles of all deployments by their names."""
        handles = {"ingress": self.ingress, "generation": self.generation}
        return handles if self.encoding is None else {**handles, "encoding": self.encoding}

    async def is_ready(self) -> bool:
        """Return whether a generation replica has loaded its models, or can be started at a request."""
        if self.options.min_replicas == 0 or time.monotonic() - self._ready_at < READY_FOR_S:
            return True
        response = self.generation.ready.remote()
        try:
            await asyncio.wait_for(response, READY_WITHIN_S)
        except (TimeoutError, RayError, RayServeException):
            response.cancel()
            return False
        self._ready_at = time.monotonic()
        return True


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def _field_of(condition: bytes | str) -> str:
    """Return the field of a request that states a condition."""
    return "prompt" if isinstance(condition, str) else "like"


def _no_encoder(condition: bytes | str, reason: str) -> ApiError:
    field = _field_of(condition)
    return ApiError(Problem(422, f"{field}: {reason}", "no_encoder", field))


Served = Annotated[Services, Depends(_services)]
