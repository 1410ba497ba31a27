"""Routes for operators, load balancers and Prometheus."""

from fastapi import APIRouter, Request, Response

from audiodiff_platform.serve.errors import ApiError, Problem
from audiodiff_platform.serve.exposition import exposition, metrics_of
from audiodiff_platform.serve.services import Served

router = APIRouter(tags=["operations"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Report that the HTTP interface runs."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(services: Served) -> dict[str, str]:
    """Report that a generation replica has loaded its models."""
    if not await services.is_ready():
        raise ApiError(Problem(503, "no generation replica is ready: try again", "not_ready", None, 1.0))
    return {"status": "ready"}


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request, services: Served) -> Response:
    """Return the metrics of all replicas in the text format of Prometheus."""
    deployments = services.deployments
    replicas = await metrics_of(deployments)
    text, media_type = exposition(deployments, replicas, request.headers.get("accept", ""))
    return Response(text, media_type=media_type)
