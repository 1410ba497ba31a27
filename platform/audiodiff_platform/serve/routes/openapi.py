"""OpenAPI descriptions of routes whose bodies are parsed by hand: forms, lists and objects of one kind of request."""

from collections.abc import Callable, Mapping
from typing import Any

from audiodiff_core.audio import MEDIA_TYPES
from audiodiff_core.sampling.requests import MAX_KEYS
from audiodiff_platform.serve.bodies import (
    AUDIO,
    BODIES,
    JSON_FIELDS,
    LIKE,
    MAX_ENCODED,
    MAX_REQUESTS,
    PREVIEW_EVERY,
)
from audiodiff_platform.serve.options import ServeOptions

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
KEY_SCHEME = "key"
BASE64 = {"type": "string", "contentEncoding": "base64"}
FILE = {"type": "string", "contentMediaType": "application/octet-stream"}
ERRORS = {
    401: "the API key is missing or wrong",
    403: "a page of another server sent the request to a server without keys",
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
    504: "the request took too long",
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
    }
    content = any_content() if kind == "generate" else _upload_contents(kind)
    return {"responses": responses, "openapi_extra": {"requestBody": {"content": content, "required": False}}}


def encode_documented() -> dict[str, Any]:
    """Return the arguments of the route that embeds audio."""
    text, file = ({"type": "array", "items": item, "minItems": 1, "maxItems": MAX_ENCODED} for item in (BASE64, FILE))
    encoder = {"type": "string", "description": "name of an encoder or of a latent model; by default the first encoder"}
    contents = {
        kind: {
            "schema": {
                "type": "object",
                "required": [AUDIO],
                "properties": {AUDIO: audio, "encoder": encoder},
                "additionalProperties": False,
            }
        }
        for kind, audio in (("multipart/form-data", file), ("application/json", text))
    }
    return {"openapi_extra": {"requestBody": {"content": contents, "required": True}}}


def any_content() -> dict[str, Any]:
    """Return the description of a body with a request or a list of requests of any kind."""
    kinds: list[dict[str, Any]] = [{"$ref": _reference("generate")}]
    kinds += [{"allOf": [{"$ref": _reference(kind)}, {"required": ["kind"]}]} for kind in BODIES if kind != "generate"]
    several = {"type": "array", "items": {"anyOf": kinds}, "minItems": 1, "maxItems": MAX_REQUESTS}
    example = {"seed": 7, "steps": 50, "format": "wav"}
    return {"application/json": {"schema": {"anyOf": [*kinds, several]}, "example": example}}


def complete(
    described: dict[str, Any], options: ServeOptions, is_open: Callable[[str], bool], fixed: Mapping[str, object]
) -> None:
    """Add to an OpenAPI document what all routes share: bodies, errors, the API key, and the limits of the server.

    Args:
        described: The document.
        options: Options of the server.
        is_open: Whether a path needs no key.
        fixed: Fields that have one value for all served models, with this value.
    """
    components = described.setdefault("components", {})
    components.setdefault("schemas", {}).update({BODIES[kind].__name__: _json_schema(kind) for kind in BODIES})
    components["securitySchemes"] = {KEY_SCHEME: {"type": "http", "scheme": "bearer"}}
    content = {"application/json": {"schema": ERROR}}
    errors = {str(status): {"description": text, "content": content} for status, text in ERRORS.items()}
    for path, operations in described["paths"].items():
        for operation in operations.values():
            operation["responses"] = {**operation["responses"], **errors}
            operation["security"] = [] if is_open(path) else [{KEY_SCHEME: []}]
    for schema in components["schemas"].values():
        for name in fixed.keys() & schema.get("properties", {}).keys():
            field = schema["properties"][name]
            nulls = [option for option in field.pop("anyOf", ()) if option == {"type": "null"}]
            field.pop("type", None)
            field["anyOf"] = [{"const": fixed[name]}, *nulls]
    _state_limits(described, options)


def _state_limits(described: Any, options: ServeOptions) -> None:
    """Write the limits of a server into the descriptions of all fields of these names."""
    limits: dict[str, float] = dict.fromkeys(("steps", "num_inference_steps"), options.max_steps)
    limits |= dict.fromkeys(("duration_s", "audio_length"), options.max_duration_s)
    if isinstance(described, list):
        for entry in described:
            _state_limits(entry, options)
    if not isinstance(described, dict):
        return
    properties = described.get("properties")
    if not isinstance(properties, dict):
        properties = {}
    for name in limits.keys() & properties.keys():
        for option in properties[name].get("anyOf", [properties[name]]):
            if option.get("type") in ("integer", "number"):
                option["maximum"] = limits[name]
    for entry in described.values():
        _state_limits(entry, options)


def _reference(kind: str) -> str:
    return f"#/components/schemas/{BODIES[kind].__name__}"


def _json_schema(kind: str) -> dict[str, Any]:
    """Return the schema of a JSON body of a kind of request."""
    schema = BODIES[kind].model_json_schema()
    properties = {**schema["properties"], PREVIEW_EVERY: {"type": "integer", "minimum": 0, "default": 0}}
    values = [option for option in properties["encoding"]["anyOf"] if option["type"] != "string"]  # no references
    properties["encoding"] = {**properties["encoding"], "anyOf": values}
    seed = {name: properties["seed"].pop(name) for name in ("type", "minimum", "maximum")}
    properties["seed"] = {**properties["seed"], "anyOf": [seed, {"type": "null"}]}
    if kind == "generate":
        return {**schema, "properties": properties}
    several = {"type": "array", "items": BASE64, "minItems": 2, "maxItems": MAX_KEYS}
    properties[AUDIO] = several if kind == "interpolate" else BASE64
    required = [*schema.get("required", ()), *([] if kind in ("interpolate", "extend") else [AUDIO])]
    return {**schema, "properties": properties, **({"required": required} if required else {})}


def _upload_contents(kind: str) -> dict[str, Any]:
    """Return the description of the body of a route with uploads: a form, or JSON with the audio in base64."""
    schema = _json_schema(kind)
    form = {
        name: {"type": "string", "contentMediaType": "application/json"} if name in JSON_FIELDS else value
        for name, value in schema["properties"].items()
    }
    form[AUDIO] = {**form[AUDIO], "items": FILE} if kind == "interpolate" else FILE
    form[LIKE] = FILE
    return {
        "multipart/form-data": {"schema": {**schema, "properties": form}},
        "application/json": {"schema": {"$ref": _reference(kind)}},
    }
