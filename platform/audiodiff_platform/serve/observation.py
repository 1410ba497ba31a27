"""Observation of HTTP requests: metrics, and a line of the log for each request, without its body and its headers."""

import logging
import time

from audiodiff_platform.serve.errors import ERROR_CODE
from audiodiff_platform.serve.metrics import HttpMetrics
from audiodiff_platform.serve.middleware import App, Message, Receive, Scope, Send

NO_ROUTE = "none"
"""Route of a request that was refused before its route was found."""
DISCONNECTED = 499
"""Status of a request whose client disconnected before the response, as in nginx."""

logger = logging.getLogger("ray.serve")


class Observed:
    """ASGI middleware that counts requests, and logs them.

    Args:
        app: The application with its gate.
        metrics: Metrics of the replica.
    """

    def __init__(self, app: App, metrics: HttpMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        status, began = DISCONNECTED, time.monotonic()

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        finally:
            seconds = time.monotonic() - began
            route = getattr(scope.get("route"), "path", NO_ROUTE)
            code = state.get(ERROR_CODE)
            self._metrics.answered(scope["method"], route, status, seconds, code)
            usage = state.get("usage")
            facts = {
                "method": scope["method"],
                "endpoint": route,
                "status": status,
                "seconds": round(seconds, 4),
                "api_key_name": None if usage is None else usage.key,
                "error_code": code,
            }
            logger.info("request", extra=facts)
