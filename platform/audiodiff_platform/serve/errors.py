"""Errors of the HTTP interface, which have one shape on every route.

{"error": {"message": "...", "type": "invalid_request_error", "param": "steps", "code": "invalid_value"}}
"""

import math
from dataclasses import dataclass
from typing import Any

import pydantic
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

TYPES = {401: "authentication_error", 403: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
CODES = {404: "unknown_route", 405: "method_not_allowed"}
ERROR_CODE = "error_code"
"""Name of the code of the error in the state of the scope."""


@dataclass(frozen=True)
class Problem:
    """An error of a request.

    Attributes:
        status: Status of the response.
        message: What is wrong and what to do, in one line.
        code: The error for programs.
        param: Field of the request that is wrong, or None.
        retry_after_s: Seconds after which the request may succeed, or None.
    """

    status: int
    message: str
    code: str
    param: str | None = None
    retry_after_s: float | None = None

    def body(self) -> dict[str, dict[str, str | None]]:
        """Return the body of the response."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        param = None if self.param is None else _encodable(self.param)
        return {"error": {"message": _encodable(self.message), "type": kind, "param": param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Return the headers of the response."""
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        return headers

    def response(self) -> JSONResponse:
        """Return the response, which leaves the code in the state of the scope for metrics and logs."""
        return _ProblemResponse(self)


class _ProblemResponse(JSONResponse):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.body(), problem.status, problem.headers())
        self._code = problem.code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})[ERROR_CODE] = self._code
        await super().__call__(scope, receive, send)


class ApiError(Exception):
    """Error that ends a request.

    Args:
        problem: The error of the request.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem


INTERNAL = Problem(500, "the server failed: send the request again, or report its x-request-id", "internal_error")


def _encodable(text: str) -> str:
    """Return a text with escapes in place of the lone surrogates that JSON may hold, and UTF-8 may not."""
    return text.encode("utf-8", "backslashreplace").decode()


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """Return the error of a request with a wrong value."""
    return ApiError(Problem(422, " ".join(message.split()), code, param))


def of_validation(error: pydantic.ValidationError | RequestValidationError) -> Problem:
    """Return the error of fields that pydantic refuses. The message names all of them."""
    problems = error.errors()
    reports = [_report(problem) for problem in problems]
    code = {"missing": "missing_field", "extra_forbidden": "unknown_field"}.get(problems[0]["type"], "invalid_value")
    return Problem(422, "; ".join(reports), code, _field(problems[0]) or None)


def add_handlers(app: FastAPI) -> None:
    """Give all errors of an application the shape of this module."""

    async def of_api(_: Request, error: Any) -> JSONResponse:
        problem: Problem = error.problem
        return problem.response()

    async def of_http(request: Request, error: Any) -> JSONResponse:
        if error.status_code == 400:
            return invalid("the body is not JSON", code="invalid_json").problem.response()
        code = CODES.get(error.status_code, "http_error")
        message = {404: "no such route: see /docs", 405: "the route does not have this method: see /docs"}
        problem = Problem(error.status_code, message.get(error.status_code, str(error.detail)), code)
        response = problem.response()
        response.headers.update(error.headers or {})
        if error.status_code == 405 and (methods := _methods(request)):
            response.headers["Allow"] = ", ".join(sorted(methods))
        return response

    async def of_fields(_: Request, error: Any) -> JSONResponse:
        return of_validation(error).response()

    async def of_bug(_: Request, _error: Exception) -> JSONResponse:
        return INTERNAL.response()

    app.add_exception_handler(ApiError, of_api)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(RequestValidationError, of_fields)
    app.add_exception_handler(Exception, of_bug)


def _methods(request: Request) -> set[str]:
    """Return the methods of all routes at the path of a request that the description of the interface states."""
    path = getattr(request.scope.get("route"), "path", None)
    return {method.upper() for method in request.app.openapi()["paths"].get(path, {})}


def _field(problem: Any) -> str:
    places = [str(place) for place in problem["loc"] if place not in ("body", "query", "path")]
    return ".".join(places)


def _report(problem: Any) -> str:
    if problem["type"] == "value_error":
        message = str(problem["ctx"]["error"])
    else:
        message = f"{problem['msg'][:1].lower()}{problem['msg'][1:]}"
    field = _field(problem)
    return " ".join((f"{field}: {message}" if field else message).split())
