"""Routes for operators and load balancers, which need no key."""

from fastapi import APIRouter

from audiodiff_platform.serve.errors import ApiError, Problem
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
