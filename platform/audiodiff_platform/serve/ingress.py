"""Ingress deployment: HTTP on FastAPI. Its process imports neither torch nor diffusers."""

from typing import Any

from fastapi import FastAPI
from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle

from audiodiff_platform.serve.calls import EncoderFacts, ModelFacts
from audiodiff_platform.serve.errors import add_handlers
from audiodiff_platform.serve.middleware import Gate
from audiodiff_platform.serve.options import ServeOptions
from audiodiff_platform.serve.routes import ROUTERS
from audiodiff_platform.serve.services import Services


def http_app(services: Services) -> FastAPI:
    """Build the application of all routes, behind no gate."""
    app = FastAPI(title="audiodiff", description="Loops from mel-spectrogram diffusion models.")
    app.state.services = services
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
        key_hash: Hash of the key that requests must have, or None.
        generation: Handle of the generation deployment.
        encoders: The served encoders.
        encoding: Handle of the encoding deployment, or None without encoders.
    """

    def __init__(
        self,
        options: ServeOptions,
        models: tuple[ModelFacts, ...],
        key_hash: str | None,
        generation: DeploymentHandle,
        *,
        encoders: tuple[EncoderFacts, ...] = (),
        encoding: DeploymentHandle | None = None,
    ) -> None:
        self._services = Services(options, models, generation, encoders, encoding)
        self._key_hash = key_hash

    def __serve_build_asgi_app__(self) -> Any:
        """Return the application behind its gate."""
        megabytes = self._services.options.max_upload_mb
        return Gate(http_app(self._services), self._key_hash, megabytes * 1_000_000)
