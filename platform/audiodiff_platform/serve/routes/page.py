"""Page at `/` to make loops in a browser, and its files.

None of them needs an API key: the page asks for the key, and sends it with each call. The content security policy
allows the files of this server only, and no script or style in the markup.
"""

import hashlib
from importlib.resources import files
from pathlib import PurePath

from fastapi import APIRouter, Request, Response

from audiodiff_platform.serve.errors import ApiError, Problem

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # kept by the browser, and asked for again by its ETag
}
INDEX = "index.html"
CONTENTS = {
    file.name: file.read_bytes()
    for file in files("audiodiff_platform.serve").joinpath("static").iterdir()
    if PurePath(file.name).suffix in MEDIA_TYPES
}
"""The files of the page by name."""

router = APIRouter(include_in_schema=False)


@router.get("/")
async def page(request: Request) -> Response:
    """Return the page."""
    return _file(request, INDEX)


@router.get("/static/{name}")
async def static(request: Request, name: str) -> Response:
    """Return a file of the page."""
    if name not in CONTENTS:
        raise ApiError(Problem(404, "no such route: see /docs", "unknown_route"))
    return _file(request, name)


def _file(request: Request, name: str) -> Response:
    content = CONTENTS[name]
    headers = {**HEADERS, "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}
    if request.headers.get("if-none-match", "").removeprefix("W/") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=MEDIA_TYPES[PurePath(name).suffix], headers=headers)
