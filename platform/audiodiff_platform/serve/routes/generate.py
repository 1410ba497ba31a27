"""Route that generates loops from noise, or from requests of any kind with audio in base64."""

import asyncio
import json
from typing import Any

from fastapi import APIRouter, Request, Response

from audiodiff_platform.serve.bodies import MAX_REQUESTS, call_of
from audiodiff_platform.serve.calls import Call
from audiodiff_platform.serve.errors import ApiError, Problem, invalid
from audiodiff_platform.serve.routes.openapi import documented
from audiodiff_platform.serve.routes.responses import answer, answer_list
from audiodiff_platform.serve.services import Served

LONG_BODY_BYTES = 1 << 20
"""Size above which a body is parsed on a thread."""

router = APIRouter(tags=["loops"])


@router.post("/v1/generate", response_class=Response, **documented("generate"))
async def generate(request: Request, services: Served) -> Response:
    """Generate a loop, or the loops of a list of requests.

    The response is the audio, JSON with the audio in base64 (`Accept: application/json`), or server-sent events
    (`Accept: text/event-stream`). A list is answered in JSON or by events.
    """
    data = await json_body(request)
    if isinstance(data, dict):
        return await answer(services, request, call_of(data))
    if not isinstance(data, list) or not 1 <= len(data) <= MAX_REQUESTS:
        raise invalid(f"the body must be a request, or a list of 1 to {MAX_REQUESTS} requests")
    return await answer_list(services, request, [_call_or_problem(entry) for entry in data])


def _call_or_problem(entry: Any) -> Call | Problem:
    if not isinstance(entry, dict):
        return invalid("a request must be an object").problem
    try:
        return call_of(entry)
    except ApiError as error:
        return error.problem


async def json_body(request: Request) -> Any:
    """Parse the body as JSON.

    Raises:
        ApiError: It is not JSON.
    """
    body = await request.body()
    if not body:
        return {}
    try:
        return await asyncio.to_thread(json.loads, body) if len(body) > LONG_BODY_BYTES else json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not JSON ({error})", code="invalid_json") from error
