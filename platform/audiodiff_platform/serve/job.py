"""Models behind HTTP: one autoscaling Ray Serve deployment, which gathers requests into the sampler's batches.

    POST /v1/generate   {"model", "seed", "steps", "scheduler", "format"}, all optional -> audio; headers say seed and model
    GET  /v1/models     names and what they make
    GET  /healthz       200 when a replica has its models loaded

Beyond loopback every request but /healthz must carry `Authorization: Bearer KEY`, with KEY from the environment (AUDIODIFF_API_KEY).
"""

import asyncio
import hmac
import ipaddress
import secrets
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Self

import pydantic
import pydantic_settings
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from ray import serve as ray_serve
from ray.serve.config import AutoscalingConfig, HTTPOptions

from audiodiff_core.audio import MEDIA_TYPES, AudioFormat
from audiodiff_core.checkpoint import MODEL_INDEX, load_model
from audiodiff_core.pipeline import AudioDiffusionPipeline, Loop
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest, Precision, SamplingParameters
from audiodiff_core.seeds import SEEDS
from audiodiff_platform.cluster import connected, cpus, gpus, require_resources, require_shared, usable_path
from audiodiff_platform.entry.options import Options
from audiodiff_platform.entry.terminal import say

BATCH_WAIT_S = 0.01
MAX_BODY_BYTES = 64 * 1024
REQUEST_TIMEOUT_S = 600.0
SHUTDOWN_GRACE_S = 60.0
MAX_ONGOING_REQUESTS = 64
APPLICATION = "audiodiff"

app = FastAPI(title="audiodiff", description="Loops from mel-spectrogram diffusion models.")


class ServeOptions(Options):
    """Which models to serve, and where."""

    model: tuple[str, ...] = pydantic.Field(
        description="NAME=PATH of a model folder, s3:// or gs:// URI or Hugging Face id; may be given more than once"
    )
    host: str = pydantic.Field(
        "127.0.0.1", description="address to listen on; beyond loopback AUDIODIFF_API_KEY must be set"
    )
    port: int = pydantic.Field(8_000, ge=1, le=65_535, description="TCP port")
    batch_size: int | None = pydantic.Field(
        None, ge=1, le=1_024, description="samples per network call, part of what fixes the bytes; none: by device"
    )
    precision: Precision | None = pydantic.Field(
        None, description="arithmetic of the network: fp32, bf16 or fp16; none: by device, fp32 on a CPU"
    )
    compiled: bool = pydantic.Field(
        False, description="compile the network at each replica's start: minutes later ready, then faster"
    )
    max_replicas: int | None = pydantic.Field(
        None, ge=1, description="replicas to scale to, a CPU or GPU each; none: all GPUs, else all CPUs"
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
                raise ValueError(f"model {entry!r} is not NAME=PATH with a name of letters, digits, '.', '_' and '-'")
        if len(self.paths()) != len(self.model):
            raise ValueError("model: two have the same name")
        return self

    def paths(self) -> dict[str, str]:
        return dict(entry.split("=", 1) for entry in self.model)

    @property
    def on_loopback(self) -> bool:
        return self.host == "localhost" or (_is_address(self.host) and ipaddress.ip_address(self.host).is_loopback)


class Secrets(pydantic_settings.BaseSettings):
    """What is read from the environment because it must not stand in a recipe or a process list."""

    model_config = pydantic_settings.SettingsConfigDict(env_prefix="AUDIODIFF_")

    api_key: pydantic.SecretStr | None = None


class HttpGenerateRequest(SamplingParameters):
    """The body of /v1/generate: a GenerateRequest, the model's name and the file format."""

    model: str | None = pydantic.Field(None, max_length=200, description="a name from /v1/models; none: the first")
    seed: int | None = pydantic.Field(
        None, ge=SEEDS[0], le=SEEDS[-1], description="names the loop; none: a new one is drawn and told"
    )
    format: AudioFormat = pydantic.Field("wav", description="file format")

    def request(self) -> GenerateRequest:
        seed = secrets.randbelow(len(SEEDS)) if self.seed is None else self.seed
        return GenerateRequest(seed=seed, **self.model_dump(include=set(SamplingParameters.model_fields)))


@app.middleware("http")
async def _bound_body(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuses bodies larger than any valid request, before they are read."""
    length = request.headers.get("content-length", "0" if "transfer-encoding" not in request.headers else "")
    if not length.isdigit() or int(length) > MAX_BODY_BYTES:
        return Response(f"the body must state its length and have at most {MAX_BODY_BYTES} bytes", status_code=413)
    return await call_next(request)


def _authorised(request: Request) -> None:
    expected = request.app.state.api_key
    given = request.headers.get("authorization", "")
    if expected is not None and not hmac.compare_digest(given.encode(), f"Bearer {expected}".encode()):
        raise HTTPException(401, "send Authorization: Bearer KEY", headers={"WWW-Authenticate": "Bearer"})


Authorised = Annotated[None, Depends(_authorised)]


@ray_serve.ingress(app)
class LoopServer:
    """A replica: all models loaded, requests batched, the network on a thread so that the event loop stays free."""

    def __init__(self, options: ServeOptions, api_key: str | None) -> None:
        app.state.api_key = api_key
        profile = ExecutionProfile.here(options.precision, options.batch_size, options.compiled)
        profile.prepare_process()
        self.pipelines: dict[str, AudioDiffusionPipeline] = {}
        self.digests: dict[str, str] = {}
        for name, path in options.paths().items():
            model = load_model(path)
            self.pipelines[name], self.digests[name] = model.pipeline(profile), model.digest
        self.loops.set_max_batch_size(profile.batch_size)

    @app.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models(self, _: Authorised) -> dict[str, list[dict[str, Any]]]:
        return {"models": [self._described(name, pipeline) for name, pipeline in self.pipelines.items()]}

    @app.post("/v1/generate", response_class=Response, responses={200: {"content": {"audio/wav": {}}}})
    async def generate(self, body: HttpGenerateRequest, _: Authorised) -> Response:
        name = body.model or next(iter(self.pipelines))
        if name not in self.pipelines:
            raise HTTPException(404, f"model {name} is not served: {', '.join(self.pipelines)} are")
        if self.pipelines[name].conditional:
            raise HTTPException(
                422, f"model {name} is conditional: it makes loops of encodings, which this cannot be given"
            )
        try:
            request = self.pipelines[name].resolved(body.request())
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        loop = await self.loops((name, request))
        content = loop.file(self.pipelines[name].mel.sample_rate, body.format)
        headers = {"X-Audiodiff-Seed": str(request.seed), "X-Audiodiff-Model": name}
        return Response(content, media_type=MEDIA_TYPES[body.format], headers=headers)

    @ray_serve.batch(max_batch_size=1, batch_wait_timeout_s=BATCH_WAIT_S)
    async def loops(self, wanted: list[tuple[str, GenerateRequest]]) -> list[Loop]:
        return await asyncio.to_thread(self._generated, wanted)

    def _generated(self, wanted: list[tuple[str, GenerateRequest]]) -> list[Loop]:
        made: dict[tuple[str, GenerateRequest], Loop] = {}
        for name, pipeline in self.pipelines.items():
            requests = list(dict.fromkeys(request for model, request in wanted if model == name))
            made |= {(name, loop.request): loop for loop in pipeline.generate(requests)}
        return [made[one] for one in wanted]

    def _described(self, name: str, pipeline: AudioDiffusionPipeline) -> dict[str, Any]:
        mel = pipeline.mel
        return {
            "name": name,
            "digest": self.digests[name],
            "sample_rate": mel.sample_rate,
            "duration_s": mel.audio_size / mel.sample_rate,
        }


def serve(options: ServeOptions) -> dict[str, Any]:
    """Serves until Ctrl-C or SIGTERM."""
    key = Secrets().api_key
    if not options.on_loopback and key is None:
        raise ValueError(f"host {options.host} is reached from other machines: set AUDIODIFF_API_KEY, or use 127.0.0.1")
    options = options.model_copy(
        update={
            "model": tuple(
                f"{name}={usable_path('model', path, hub_id=True)}" for name, path in options.paths().items()
            )
        }
    )
    for path in options.paths().values():
        load_model(path)
    with connected():
        replicas = options.max_replicas or gpus() or cpus()
        require_resources(replicas, gpus_each=int(gpus() > 0), option="max_replicas")
        for path in options.paths().values():
            require_shared("model", path, MODEL_INDEX)
        start(options, replicas, None if key is None else key.get_secret_value())
        say(
            f"serving {', '.join(options.paths())} at http://{options.host}:{options.port}/v1/generate (Ctrl-C ends it)"
        )
        _wait_for_signal()
        say("stopping")
        ray_serve.shutdown()
    return {"verb": "serve", "models": list(options.paths())}


def start(options: ServeOptions, replicas: int, api_key: str | None) -> None:
    """Brings the deployment up on the Ray that is connected; returns when it answers."""
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
