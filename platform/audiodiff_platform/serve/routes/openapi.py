"""OpenAPI descriptions of routes whose bodies are parsed by hand: forms, lists and objects of one kind of request."""

from typing import Any

from audiodiff_core.audio import MEDIA_TYPES
from audiodiff_platform.serve.bodies import AUDIO, BODIES, JSON_FIELDS

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
BASE64 = {"type": "string", "contentEncoding": "base64"}
FILE = {"type": "string", "contentMediaType": "application/octet-stream"}
ERRORS = {
    401: "the API key is missing or wrong",
    404: "there is no such model, encoder or job",
    408: "the body did not arrive in time",
    409: "the first request with the Idempotency-Key still runs; see Retry-After",
    410: "the result is damaged",
    413: "the body is too large",
    422: "a field, the JSON or the audio is wrong",
    429: "a limit of the API key is reached; see Retry-After",
    500: "the server failed",
    501: "the server keeps no results",
    503: "the server is full, or a replica ended; see Retry-After",
    507: "there is no space for results",
}


def documented(kind: str) -> dict[str, Any]:
    """Return the arguments of a route that describe its body and its responses."""
    responses: dict[int | str, dict[str, Any]] = {
        200: {
            "description": "the loop",
            "content": {
                **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES.values()},
                "application/json": {"schema": {"type": "object"}},
                "text/event-stream": {"schema": {"type": "string"}},
            },
        },
        304: {"description": "the client holds the result"},
        **errors(),
    }
    return {"responses": responses, "openapi_extra": {"requestBody": {"content": _contents(kind), "required": False}}}


def encode_documented() -> dict[str, Any]:
    """Return the arguments of the route that embeds audio."""
    text, file = ({"type": "array", "items": item} for item in (BASE64, FILE))
    encoder = {"type": "string", "description": "name of an encoder from /v1/models; by default the first"}
    contents = {
        kind: {"schema": {"type": "object", "required": [AUDIO], "properties": {AUDIO: audio, "encoder": encoder}}}
        for kind, audio in (("multipart/form-data", file), ("application/json", text))
    }
    return {"responses": errors(), "openapi_extra": {"requestBody": {"content": contents, "required": True}}}


def generate_content() -> dict[str, Any]:
    """Return the description of a body with a request or a list of requests of any kind."""
    return _contents("generate")


def errors() -> dict[int | str, dict[str, Any]]:
    """Return the descriptions of all errors."""
    content = {"application/json": {"schema": ERROR}}
    return {status: {"description": text, "content": content} for status, text in ERRORS.items()}


def _contents(kind: str) -> dict[str, Any]:
    schema = BODIES[kind].model_json_schema()
    schema["properties"]["preview_every"] = {"type": "integer", "minimum": 0, "default": 0}
    if kind == "generate":
        example = {"seed": 7, "steps": 50, "format": "wav"}
        return {
            "application/json": {"schema": {"anyOf": [schema, {"type": "array", "items": schema}]}, "example": example}
        }
    text, file = BASE64, FILE
    properties = schema["properties"]
    form = {
        name: {"type": "string", "contentMediaType": "application/json"} if name in JSON_FIELDS else value
        for name, value in properties.items()
    }
    several = kind == "interpolate"
    return {
        "multipart/form-data": {
            "schema": {
                **schema,
                "properties": {**form, AUDIO: {"type": "array", "items": file} if several else file},
            }
        },
        "application/json": {
            "schema": {
                **schema,
                "properties": {**properties, AUDIO: {"type": "array", "items": text} if several else text},
            }
        },
    }
