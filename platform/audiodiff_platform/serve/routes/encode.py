"""Route that embeds audio."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from audiodiff_platform.serve.bodies import AUDIO, decoded
from audiodiff_platform.serve.errors import ApiError, Problem, invalid
from audiodiff_platform.serve.routes.openapi import encode_documented
from audiodiff_platform.serve.routes.uploads import form_of, is_form, json_object
from audiodiff_platform.serve.services import Served

MAX_ENCODED = 64
"""Largest number of audio files in a request."""

router = APIRouter(tags=["encodings"])


@router.post("/v1/encode", **encode_documented())
async def encode(request: Request, services: Served) -> dict[str, Any]:
    """Embed audio files with an encoder of the server: by default the first."""
    if is_form(request):
        values, files = await form_of(request, (AUDIO,))
        contents = [content for _, content in files]
    else:
        values = await json_object(request)
        contents = decoded(values.pop(AUDIO, []), AUDIO)
    name = values.pop("encoder", None)
    for field in values:
        raise invalid(f"{field}: is no field of this route", field, "unknown_field")
    encoder = services.encoder(name)
    if not 1 <= len(contents) <= MAX_ENCODED:
        raise invalid(f"{len(contents)} audio files: send 1 to {MAX_ENCODED} in the field {AUDIO}", AUDIO)
    request.state.usage.reserve()
    outcomes = await asyncio.gather(*(services.encoded(encoder, content) for content in contents))
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, Problem):
            field = AUDIO if len(contents) == 1 else f"{AUDIO}[{index}]"
            raise ApiError(
                Problem(outcome.status, f"{field}: {outcome.message}", outcome.code, field, outcome.retry_after_s)
            )
    data = [{"index": index, "encoding": outcome} for index, outcome in enumerate(outcomes)]
    return {"data": data, "encoder": encoder.name, "digest": encoder.digest}
