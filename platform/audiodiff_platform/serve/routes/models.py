"""Route that lists the models."""

from typing import Any

from fastapi import APIRouter

from audiodiff_platform.serve.services import Served

router = APIRouter(tags=["models"])


@router.get("/v1/models")
async def models(services: Served) -> dict[str, list[dict[str, Any]]]:
    """List the models and the encoders, of which the first are the defaults."""
    return {
        "models": [
            {
                "name": model.name,
                "digest": model.digest,
                "sample_rate": model.sample_rate,
                "duration_s": model.duration_s,
                "encoding_dim": model.encoding_dim,
                "latent_shape": model.latent_shape,
                "conditions": model.conditions,
                "ranges": model.ranges,
                "encoder": None if (encoder := services.encoder_of(model)) is None else encoder.name,
                "text": encoder is not None and encoder.embeds_text,
            }
            for model in services.models
        ],
        "encoders": [
            {"name": encoder.name, "digest": encoder.digest, "dim": encoder.dim, "text": encoder.embeds_text}
            for encoder in services.encoders
        ],
    }
