"""Ingress deployment: HTTP on FastAPI. Its process imports neither torch nor diffusers."""

from typing import Any

from fastapi import FastAPI
from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle

from audiodiff_platform.serve.background import in_background
from audiodiff_platform.serve.calls import EncoderFacts, ModelFacts
from audiodiff_platform.serve.errors import add_handlers
from audiodiff_platform.serve.exposition import ReplicaMetrics
from audiodiff_platform.serve.job_runner import JobRunner
from audiodiff_platform.serve.key_file import HashedKey
from audiodiff_platform.serve.keys import ApiKeys
from audiodiff_platform.serve.limits import KeyLimits
from audiodiff_platform.serve.metrics import HttpMetrics
from audiodiff_platform.serve.middleware import Gate, is_open
from audiodiff_platform.serve.observation import Observed
from audiodiff_platform.serve.options import ServeOptions
from audiodiff_platform.serve.origins import with_origins
from audiodiff_platform.serve.result_folder import Results
from audiodiff_platform.serve.routes import ROUTERS
from audiodiff_platform.serve.routes.openapi import complete
from audiodiff_platform.serve.services import Services
from audiodiff_platform.serve.stored_responses import StoredResponses


class _Described(FastAPI):
    """Application whose description states the limits of the server."""

    def __init__(self, services: Services, **settings: Any) -> None:
        super().__init__(**settings)
        self.state.services = services

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI description."""
        if self.openapi_schema is None:
            services: Services = self.state.services
            complete(super().openapi(), services.options, is_open, services.fixed_fields)
        assert self.openapi_schema is not None
        return self.openapi_schema


def http_app(services: Services) -> FastAPI:
    """Build the application of all routes, behind no gate."""
    description = "Loops from mel-spectrogram diffusion models."
    app = _Described(
        services, title="audiodiff", description=description, lifespan=in_background, redirect_slashes=False
    )
    add_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    return app


@ray_serve.ingress()
class Ingress:
    """Replica that answers HTTP requests.

    Args:
        options: Options of the server.
        models: The served models.
        key: The hashed API key of the environment of the command that deployed the server, or None.
        generation: Handle of the generation deployment.
        encoders: The served encoders.
        encoding: Handle of the encoding deployment, or None without encoders.
    """

    def __init__(
        self,
        options: ServeOptions,
        models: tuple[ModelFacts, ...],
        key: HashedKey | None,
        generation: DeploymentHandle,
        *,
        encoders: tuple[EncoderFacts, ...] = (),
        encoding: DeploymentHandle | None = None,
    ) -> None:
        context = ray_serve.get_replica_context()
        own = ray_serve.get_deployment_handle(context.deployment, context.app_name)
        self._services = Services(options, models, generation, own, encoders, encoding)
        self._metrics = HttpMetrics()
        self._keys = ApiKeys(key, options.key_file)

    def __serve_build_asgi_app__(self) -> Any:
        """Return the application behind its gate."""
        options = self._services.options
        app = http_app(self._services)
        app.state.background = [self._keys.keep_fresh]
        results = None if options.results_dir is None else Results.of(options)
        app.state.results = results
        if results is not None:
            runner = app.state.runner = JobRunner(self._services, results)
            app.state.background += [runner.run, results.keep_clean]
        limits = KeyLimits(options.limits)
        origins = options.allow_origin
        gate = Gate(StoredResponses(app, results), self._keys, limits, options.max_upload_mb * 1_000_000, origins)
        return Observed(with_origins(gate, origins), self._metrics)

    async def metrics(self) -> ReplicaMetrics:
        """Return the metrics of the replica."""
        return ReplicaMetrics.here(self._metrics.families())
