"""Routes that generate from uploaded audio: variations, inpainting, long loops, remixes and interpolations."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from audiodiff_platform.serve.bodies import AUDIO, LIKE, call_of, form_values
from audiodiff_platform.serve.calls import Call
from audiodiff_platform.serve.errors import invalid
from audiodiff_platform.serve.routes.generate import json_body
from audiodiff_platform.serve.routes.openapi import documented
from audiodiff_platform.serve.routes.responses import answer
from audiodiff_platform.serve.services import Served

ROUTES = {
    "/v1/variations": ("vary", "Generate a variation of a slice of the audio."),
    "/v1/inpaint": ("inpaint", "Regenerate spans of a slice of the audio to fit the rest."),
    "/v1/extend": ("extend", "Generate a long loop, which begins with the audio if there is any."),
    "/v1/remix": ("remix", "Generate a variation of a whole track, window by window."),
    "/v1/interpolate": ("interpolate", "Generate a loop between several seeds, or between several audio files."),
}
MAX_FILES, MAX_FIELDS = 256, 64

router = APIRouter(tags=["loops"])


async def upload_call(request: Request, kind: str) -> Call:
    """Return the call of a form or of a JSON object.

    Raises:
        ApiError: The body or a field is wrong.
    """
    if is_form(request):
        values, files = await form_of(request, (AUDIO, LIKE))
        like = [content for name, content in files if name == LIKE]
        if len(like) > 1:
            raise invalid(f"{len(like)} files: a request takes one", LIKE)
        audio = [content for name, content in files if name == AUDIO]
        return call_of(values, kind, audio, like[0] if like else None)
    return call_of(await json_object(request), kind)


def is_form(request: Request) -> bool:
    """Return whether the body of a request is a form."""
    kind = request.headers.get("content-type", "")
    return kind.startswith(("multipart/form-data", "application/x-www-form-urlencoded"))


async def form_of(request: Request, file_fields: Sequence[str]) -> tuple[dict[str, Any], list[tuple[str, bytes]]]:
    """Return the values of a form, and the fields and the contents of its files.

    Args:
        request: The request.
        file_fields: Fields in which files may be sent.

    Raises:
        ApiError: The form cannot be read, or has a file in another field.
    """
    try:
        async with request.form(max_files=MAX_FILES, max_fields=MAX_FIELDS) as form:
            items = form.multi_items()
            files = [(name, await value.read()) for name, value in items if isinstance(value, UploadFile)]
            texts = {name: value for name, value in items if isinstance(value, str)}
    except HTTPException as error:
        raise invalid(f"the form cannot be read ({error.detail})", code="invalid_form") from error
    for name in {name for name, _ in files} - set(file_fields):
        raise invalid(f"{name}: files are sent in the field {' or '.join(file_fields)}", name, "unknown_field")
    for name in texts.keys() & set(file_fields):
        raise invalid(f"{name}: must be a file", name)
    return form_values(texts), files


async def json_object(request: Request) -> dict[str, Any]:
    """Parse the body as a JSON object.

    Raises:
        ApiError: It is something else.
    """
    data = await json_body(request)
    if not isinstance(data, dict):
        raise invalid("the body must be a form or a JSON object")
    return data


def _route(kind: str) -> Callable[[Request, Served], Awaitable[Response]]:
    async def generate_from_audio(request: Request, services: Served) -> Response:
        return await answer(services, request, await upload_call(request, kind))

    return generate_from_audio


for _path, (_kind, _description) in ROUTES.items():
    router.add_api_route(
        _path,
        _route(_kind),
        methods=["POST"],
        name=_kind,
        description=_description,
        response_class=Response,
        **documented(_kind),
    )
