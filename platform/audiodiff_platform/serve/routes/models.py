"""Route that lists the models."""

from typing import Any

from fastapi import APIRouter

from audiodiff_platform.serve.services import Served

router = APIRouter(tags=["models"])


@router.get("/v1/models")
async def models(services: Served) -> dict[str, list[dict[str, Any]]]:
    """List the models, of which the first is the default."""
    return {
        "models": [
            {
                "name": model.name,
                "digest": model.digest,
                "sample_rate": model.sample_rate,
                "duration_s": model.duration_s,
                "encoding_dim": model.encoding_dim,
            }
            for model in services.models
        ]
    }
