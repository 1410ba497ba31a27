"""HTTP server that generates loops, as an autoscaling Ray Serve deployment.

    POST /v1/generate   audio of one loop, with its seed and model in the response headers;
                        body: {"model", "seed", "steps", "scheduler", "format"}, all optional
    GET  /v1/models     names, digests, sample rates and durations of the models
    GET  /healthz       status 200 after a replica has loaded its models

The server combines concurrent requests into batches. If the environment variable AUDIODIFF_API_KEY is set, all
requests except /healthz must have the header `Authorization: Bearer KEY`. The variable is required if other machines
can reach the server.
"""

import asyncio
import hmac
import ipaddress
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Self

import pydantic
import pydantic_settings
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from ray import serve as ray_serve
from ray.serve.config import AutoscalingConfig, HTTPOptions

from audiodiff_core.audio import MEDIA_TYPES
from audiodiff_core.checkpoint import MODEL_INDEX, load_model, load_outline
from audiodiff_core.pipeline import Loop, LoopPipeline, RequestCheck
from audiodiff_core.sampling import ExecutionProfile, SeededRequest
from audiodiff_core.sampling import Request as LoopRequest
from audiodiff_platform.cluster import (
    WorkerResources,
    connected,
    cpus,
    gpus,
    require_resources,
    require_shared,
    usable_path,
)
from audiodiff_platform.cluster.options import ProfileOptions
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.serve.bodies import HttpGenerateRequest

BATCH_WAIT_S = 0.01
MAX_BODY_BYTES = 64 * 1024
REQUEST_TIMEOUT_S = 600.0
SHUTDOWN_GRACE_S = 60.0
MAX_ONGOING_REQUESTS = 64
APPLICATION = "audiodiff"

app = FastAPI(title="audiodiff", description="Loops from mel-spectrogram diffusion models.")


class ServeOptions(ProfileOptions):
    """Options of serve: models, address and replicas."""

    model: tuple[str, ...] = pydantic.Field(
        description="NAME=PATH of a model, where PATH is a folder, URI or Hugging Face id; can be repeated"
    )
    host: str = pydantic.Field(
        "127.0.0.1", description="address to listen on; addresses other than loopback require AUDIODIFF_API_KEY"
    )
    port: int = pydantic.Field(8_000, ge=1, le=65_535, description="TCP port")
    compiled: bool = pydantic.Field(
        False, description="compile the network when a replica starts, which takes minutes but speeds up requests"
    )
    max_replicas: int | None = pydantic.Field(
        None,
        ge=1,
        description="maximum number of replicas, each on one GPU or CPU; none: all GPUs, or all CPUs without GPUs",
    )

    @pydantic.field_validator("model", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _models_are_named(self) -> Self:
        for entry in self.model:
            name, _, path = entry.partition("=")
            if not path or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
                raise ValueError(f"model {entry!r}: must be NAME=PATH, with letters, digits, '.', '_' and '-' in NAME")
        if len(self.paths()) != len(self.model):
            raise ValueError(f"model {', '.join(self.model)}: names must be unique")
        return self

    def paths(self) -> dict[str, str]:
        """Return the path, URI or id of each model by its name."""
        return dict(entry.split("=", 1) for entry in self.model)

    @property
    def is_on_loopback(self) -> bool:
        """True if only this machine can reach the server."""
        return self.host == "localhost" or (_is_address(self.host) and ipaddress.ip_address(self.host).is_loopback)


class Secrets(pydantic_settings.BaseSettings):
    """Secrets from environment variables, which keep them out of recipes and process lists."""

    model_config = pydantic_settings.SettingsConfigDict(env_prefix="AUDIODIFF_")

    api_key: pydantic.SecretStr | None = None


@app.middleware("http")
async def _limit_body(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Reject bodies larger than MAX_BODY_BYTES before they are read."""
    length = request.headers.get("content-length", "0" if "transfer-encoding" not in request.headers else "")
    if not length.isdigit() or int(length) > MAX_BODY_BYTES:
        return Response(f"the body must have a Content-Length of at most {MAX_BODY_BYTES} bytes", status_code=413)
    return await call_next(request)


def _check_api_key(request: Request) -> None:
    api_key = request.app.state.api_key
    authorization = request.headers.get("authorization", "")
    if api_key is not None and not hmac.compare_digest(authorization.encode(), f"Bearer {api_key}".encode()):
        raise HTTPException(
            401, "API key missing or wrong: send Authorization: Bearer KEY", headers={"WWW-Authenticate": "Bearer"}
        )


Authorized = Annotated[None, Depends(_check_api_key)]


@ray_serve.ingress(app)
class LoopServer:
    """Replica of the server, which loads all models and generates loops in batches.

    The networks run on a thread, so that the event loop stays responsive.

    Args:
        options: Options of the server.
        api_key: Key that requests must have, or None.
    """

    def __init__(self, options: ServeOptions, api_key: str | None) -> None:
        app.state.api_key = api_key
        profile = ExecutionProfile.here(options.precision, options.batch_size, options.compiled)
        profile.prepare_process()
        self.pipelines: dict[str, LoopPipeline] = {}
        self.digests: dict[str, str] = {}
        self.checks: dict[str, RequestCheck] = {}
        for name, path in options.paths().items():
            model, self.checks[name] = load_model(path), RequestCheck(load_outline(path))
            self.pipelines[name], self.digests[name] = LoopPipeline.of(model, profile), model.digest
        self.loops.set_max_batch_size(profile.batch_size)

    @app.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        """Report that the models are loaded."""
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models(self, _: Authorized) -> dict[str, list[dict[str, Any]]]:
        """List the models: name, digest, sample rate in Hz, and duration of a loop in seconds."""
        return {"models": [self._describe(name, pipeline) for name, pipeline in self.pipelines.items()]}

    @app.post("/v1/generate", response_class=Response, responses={200: {"content": {"audio/wav": {}}}})
    async def generate(self, body: HttpGenerateRequest, _: Authorized) -> Response:
        """Generate a loop and return its audio file. Response headers state its seed and model."""
        name = body.model or next(iter(self.pipelines))
        if name not in self.pipelines:
            raise HTTPException(404, f"model {name} is not served: use one of {', '.join(self.pipelines)}")
        try:
            request = self.checks[name].resolved(body.request())
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        loop = await self.loops((name, request))
        content = await asyncio.to_thread(loop.file, self.pipelines[name].mel.sample_rate, body.format)
        headers = {"X-Audiodiff-Seed": str(request.seed), "X-Audiodiff-Model": name}
        return Response(content, media_type=MEDIA_TYPES[body.format], headers=headers)

    @ray_serve.batch(max_batch_size=1, batch_wait_timeout_s=BATCH_WAIT_S)
    async def loops(self, batch: list[tuple[str, LoopRequest]]) -> list[Loop]:
        """Generate a batch of loops.

        Ray Serve collects the batch: a caller passes one pair and awaits one loop.

        Args:
            batch: Pairs of a model name and a request.
        """
        return await asyncio.to_thread(self._generate_batch, batch)

    def _generate_batch(self, batch: list[tuple[str, LoopRequest]]) -> list[Loop]:
        """Return the loops of a batch. Equal requests are generated once."""
        loops: dict[tuple[str, SeededRequest], Loop] = {}
        for name, pipeline in self.pipelines.items():
            requests = list(dict.fromkeys(request for model, request in batch if model == name))
            loops |= {(name, loop.request): loop for loop in pipeline.generate(requests)}
        return [loops[pair] for pair in batch]

    def _describe(self, name: str, pipeline: LoopPipeline) -> dict[str, Any]:
        mel = pipeline.mel
        return {
            "name": name,
            "digest": self.digests[name],
            "sample_rate": mel.sample_rate,
            "duration_s": mel.audio_size / mel.sample_rate,
        }


def serve(options: ServeOptions) -> dict[str, Any]:
    """Run the server until SIGINT (Ctrl-C) or SIGTERM.

    Args:
        options: Options of the server.

    Returns:
        The summary as JSON values: the names of the models.

    Raises:
        ValueError: A model cannot be loaded, an API key is required and not set, or the cluster is too small.
    """
    key = Secrets().api_key
    if not options.is_on_loopback and key is None:
        raise ValueError(
            f"host {options.host} is reachable from other machines: set AUDIODIFF_API_KEY, or use 127.0.0.1"
        )
    models = tuple(f"{name}={usable_path('model', path, hub_id=True)}" for name, path in options.paths().items())
    options = options.model_copy(update={"model": models})
    for path in options.paths().values():
        load_model(path)
    with connected():
        replicas = options.max_replicas or gpus() or cpus()
        require_resources(replicas, WorkerResources(gpus=int(gpus() > 0)), option="max_replicas")
        for path in options.paths().values():
            require_shared("model", path, MODEL_INDEX)
        start(options, replicas, None if key is None else key.get_secret_value())
        url = f"http://{options.host}:{options.port}/v1/generate"
        say(f"serving {', '.join(options.paths())} at {url} (press Ctrl-C to stop)")
        _wait_for_signal()
        say("stopping")
        ray_serve.shutdown()
    return {"verb": "serve", "models": list(options.paths())}


def start(options: ServeOptions, replicas: int, api_key: str | None) -> None:
    """Start the deployment on the connected Ray cluster, and return when it is ready.

    Args:
        options: Options of the server.
        replicas: Maximum number of replicas.
        api_key: Key that requests must have, or None.
    """
    ray_serve.start(
        proxy_location="HeadOnly",
        http_options=HTTPOptions(host=options.host, port=options.port, request_timeout_s=REQUEST_TIMEOUT_S),
    )
    batch = ExecutionProfile.here(options.precision, options.batch_size).batch_size
    deployment = ray_serve.deployment(
        LoopServer,
        name="loops",
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        graceful_shutdown_timeout_s=SHUTDOWN_GRACE_S,
        autoscaling_config=AutoscalingConfig(min_replicas=1, max_replicas=replicas, target_ongoing_requests=batch),
        ray_actor_options={"num_cpus": 1, "num_gpus": int(gpus() > 0)},
    )
    ray_serve.run(deployment.bind(options, api_key), name=APPLICATION, route_prefix="/")


def _wait_for_signal() -> None:
    stopped = threading.Event()
    previous = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    stopped.wait()
    for number, handler in previous.items():
        signal.signal(number, handler)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
