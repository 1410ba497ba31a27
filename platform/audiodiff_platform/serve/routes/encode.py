"""Route that embeds audio, or computes its latents."""

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import APIRouter, Request

from audiodiff_platform.serve.bodies import AUDIO, MAX_ENCODED, decoded
from audiodiff_platform.serve.errors import ApiError, Problem, invalid
from audiodiff_platform.serve.routes.openapi import encode_documented
from audiodiff_platform.serve.routes.uploads import form_of, is_form, json_object
from audiodiff_platform.serve.services import Served

MAX_WITH_LATENTS = 8
"""Largest number of audio files in a request for latents, whose values are many."""

T = TypeVar("T")

router = APIRouter(tags=["encodings"])


@router.post("/v1/encode", **encode_documented())
async def encode(request: Request, services: Served) -> dict[str, Any]:
    """Embed audio files with an encoder of the server: by default the first. A latent model computes latents."""
    if is_form(request):
        values, files = await form_of(request, (AUDIO,))
        contents = [content for _, content in files]
    else:
        values = await json_object(request)
        contents = decoded(values.pop(AUDIO, []), AUDIO)
    name = values.pop("encoder", None)
    for field in values:
        raise invalid(f"{field}: is no field of this route", field, "unknown_field")
    model = services.latent_model(name)
    if model is not None:
        _require_count(contents, MAX_WITH_LATENTS)
        request.state.usage.reserve()
        latents = await _all(services.latents(model, content) for content in contents)
        data = [{"index": index, "latents": outcome} for index, outcome in enumerate(latents)]
        return {"data": data, "encoder": model.name, "digest": model.digest, "latent_shape": model.latent_shape}
    encoder = services.encoder(name)
    _require_count(contents, MAX_ENCODED)
    request.state.usage.reserve()
    encodings = await _all(services.encoded(encoder, content) for content in contents)
    data = [{"index": index, "encoding": outcome} for index, outcome in enumerate(encodings)]
    return {"data": data, "encoder": encoder.name, "digest": encoder.digest}


def _require_count(contents: Sequence[bytes], most: int) -> None:
    if not 1 <= len(contents) <= most:
        raise invalid(f"{len(contents)} audio files: send 1 to {most} in the field {AUDIO}", AUDIO)


async def _all(calls: Iterable[Awaitable[T | Problem]]) -> list[T]:
    """Return the results of the calls for all files.

    Raises:
        ApiError: A file has no result.
    """
    outcomes = await asyncio.gather(*calls)
    results: list[T] = []
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, Problem):
            field = AUDIO if len(outcomes) == 1 else f"{AUDIO}[{index}]"
            raise ApiError(replace(outcome, message=f"{field}: {outcome.message}", param=field))
        results.append(outcome)
    return results
