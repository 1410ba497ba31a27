"""Pages of other servers: which may read the responses of this server (CORS), and which may call it without a key.

A browser sends some requests of any page without asking (mode no-cors), and lets a page of a name that resolves to this
machine read the responses (DNS rebinding). With keys, such requests have none. Without keys, they are told by their
Origin and Host headers, which a page cannot choose.
"""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from audiodiff_platform.serve.errors import ApiError, Problem
from audiodiff_platform.serve.limits import AUDIO_PER_HOUR, AUDIO_PER_MINUTE, CONCURRENT, REQUESTS
from audiodiff_platform.serve.options import is_loopback

METHODS = ("GET", "POST", "DELETE")
REQUEST_HEADERS = ("Authorization", "Content-Type", "Idempotency-Key", "If-None-Match")
RESPONSE_HEADERS = (
    "ETag",
    "Idempotent-Replayed",
    "Retry-After",
    "Server-Timing",
    "X-Audiodiff-Digest",
    "X-Audiodiff-Model",
    "X-Audiodiff-Seed",
    "X-Request-Id",
    *(
        f"x-ratelimit-{kind}-{limit}"
        for limit in (REQUESTS, AUDIO_PER_MINUTE, AUDIO_PER_HOUR)
        for kind in ("limit", "remaining", "reset")
    ),
    *(f"x-ratelimit-{kind}-{CONCURRENT}" for kind in ("limit", "remaining")),
)
PREFLIGHT_S = 600
"""Time for which a browser may keep the answer to a preflight request."""


def refuse_foreign_pages(headers: Headers, origins: Sequence[str]) -> None:
    """Refuse a request to a server without keys if a page of another server sent it.

    Args:
        headers: The headers of the request. Clients other than browsers send no Origin.
        origins: The origins whose pages may call the server.

    Raises:
        ApiError: Such a page sent it.
    """
    host, origin = headers.get("host"), headers.get("origin")
    if host is not None and not _names_loopback(host):
        message = f"Host {host!r}: a server without keys is called by a name of loopback, as 127.0.0.1 or localhost"
        raise ApiError(Problem(403, message, "host_not_allowed"))
    if origin is not None and origin not in (f"http://{host}", f"https://{host}", *origins):
        message = f"Origin {origin!r}: this server lets pages of other servers call it with allow_origin only"
        raise ApiError(Problem(403, message, "origin_not_allowed"))


def _names_loopback(host: str) -> bool:
    """Return whether a Host header, with a port or without, names this machine alone."""
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def with_origins(app: Any, origins: Sequence[str]) -> Any:
    """Return an application whose responses pages of some origins may read. No origin changes nothing.

    Args:
        app: The application with its gate: browsers send preflight requests without a key.
        origins: The origins, such as https://example.com.
    """
    if not origins:
        return app
    return _Origins(
        app,
        allow_origins=origins,
        allow_methods=METHODS,
        allow_headers=REQUEST_HEADERS,
        expose_headers=RESPONSE_HEADERS,
        max_age=PREFLIGHT_S,
    )


class _Origins(CORSMiddleware):
    def preflight_response(self, request_headers: Headers) -> Response:
        """Return the response to a preflight request, whose errors have the shape of all errors."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        message = f"{bytes(response.body).decode()}: this server allows other origins, methods or headers"
        refused = Problem(400, message, "origin_not_allowed").response()
        refused.headers["Vary"] = "Origin"
        return refused
