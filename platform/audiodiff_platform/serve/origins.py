"""Cross-origin requests (CORS): which pages of other servers may call this server."""

from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from audiodiff_platform.serve.errors import Problem
from audiodiff_platform.serve.limits import AUDIO_PER_HOUR, AUDIO_PER_MINUTE, CONCURRENT, REQUESTS

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
