"""Route with the field names that clients of vLLM-Omni use for generated audio."""

from typing import Any

import pydantic
from fastapi import APIRouter, Request, Response

from audiodiff_core.audio import AudioFormat
from audiodiff_core.diffusion.methods import MAX_STEPS
from audiodiff_core.sampling.conditions import Prompt
from audiodiff_core.sampling.parameters import MAX_DURATION_S, MAX_GUIDANCE, Numeric
from audiodiff_core.sampling.requests import SEEDS
from audiodiff_platform.serve.bodies import call_of
from audiodiff_platform.serve.errors import ApiError, Problem
from audiodiff_platform.serve.routes.responses import answer
from audiodiff_platform.serve.services import Served

NAMES = {
    "input": "prompt",
    "num_inference_steps": "steps",
    "audio_length": "duration_s",
    "response_format": "format",
}
"""Fields of a request by their names in the body. The other fields have the same names."""

router = APIRouter(tags=["loops"])


class AudioRequest(Numeric):
    """Body of a request for audio."""

    model_config = pydantic.ConfigDict(extra="forbid")

    input: Prompt | None = pydantic.Field(None, description="prompt, for models whose encoder embeds texts")
    model: str | None = pydantic.Field(None, max_length=200, description="name of a model; null: the first model")
    seed: int | None = pydantic.Field(None, ge=SEEDS[0], le=SEEDS[-1], description="seed; null: a random seed")
    num_inference_steps: int | None = pydantic.Field(None, ge=1, le=MAX_STEPS, description="denoising steps")
    guidance_scale: float | None = pydantic.Field(None, ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)
    audio_length: float | None = pydantic.Field(
        None, gt=0, le=MAX_DURATION_S, allow_inf_nan=False, description="duration in seconds"
    )
    response_format: AudioFormat = pydantic.Field("wav", description="file format")


@router.post("/v1/audio/generate", response_class=Response)
async def generate_audio(request: Request, services: Served, body: AudioRequest) -> Response:
    """Generate audio. The body has the names of vLLM-Omni, and the responses are those of `/v1/generate`."""
    stated = body.model_dump(exclude_none=True)
    fields: dict[str, Any] = {NAMES.get(name, name): value for name, value in stated.items()}
    try:
        return await answer(services, request, call_of(fields))
    except ApiError as error:
        raise ApiError(_renamed(error.problem)) from error


def _renamed(problem: Problem) -> Problem:
    """Return an error with the name of the field in the body."""
    names = {field: name for name, field in NAMES.items()}
    if problem.param not in names:
        return problem
    name = names[problem.param]
    message = problem.message.removeprefix(f"{problem.param}: ")
    return Problem(problem.status, f"{name}: {message}", problem.code, name, problem.retry_after_s)
