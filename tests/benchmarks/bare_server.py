"""The smallest Ray Serve application with an ingress and a second deployment, as the floor of the server's overhead."""

from collections.abc import AsyncGenerator

from fastapi import FastAPI, Request
from ray import serve as ray_serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle


class Echo:
    """Replica that returns a number as a stream of one item."""

    async def call(self, value: int) -> AsyncGenerator[int, None]:
        """Yield the number."""
        yield value


bare_api = FastAPI()


@ray_serve.ingress(bare_api)
class Bare:
    """Ingress that passes the seed of a request on to Echo."""

    def __init__(self, echo: DeploymentHandle) -> None:
        self._echo = echo.options(stream=True)

    @bare_api.post("/")
    async def call(self, request: Request) -> int:
        """Answer a request with its seed."""
        value = int((await request.json())["seed"])
        (event,) = [int(event) async for event in self._echo.call.remote(value)]
        return event


def bare_application() -> Application:
    """Return the application that only sends a number through two deployments."""
    echo = ray_serve.deployment(Echo, name="echo", max_ongoing_requests=100)
    ingress = ray_serve.deployment(Bare, name="bare", ray_actor_options={"num_cpus": 0})
    return ingress.bind(echo.bind())
