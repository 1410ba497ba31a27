"""Bodies of HTTP requests: the requests of the core, with the model and the file format.

Audio comes with the request: in the multipart field `audio`, or in base64 as `audio` of a JSON object. Paths, URIs and
references of encodings are refused.
"""

import base64
import binascii
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic.json_schema import SkipJsonSchema

from audiodiff_core.audio import AudioFormat
from audiodiff_core.sampling.conditions import Reference
from audiodiff_core.sampling.requests import (
    REQUEST,
    SEEDS,
    ExtendRequest,
    GenerateRequest,
    InpaintRequest,
    InterpolateRequest,
    InvertRequest,
    RemixRequest,
    Seed,
    SeededRequest,
    VaryRequest,
)
from audiodiff_platform.serve.calls import Call
from audiodiff_platform.serve.errors import ApiError, invalid, of_validation

MAX_REQUESTS = 256
"""Largest number of requests in a list."""
MAX_ENCODED = 64
"""Largest number of audio files in a request for encodings."""
AUDIO, LIKE, PROMPT = "audio", "like", "prompt"
PREVIEW_EVERY = "preview_every"
JSON_FIELDS = frozenset({"regenerate", "encoding", "seeds"})
"""Fields whose form values are JSON."""

_COUNT = re.compile(r"[0-9]{1,9}", re.ASCII)

Uploaded = SkipJsonSchema[Reference | None]


def _or_random(seed: Any) -> Any:
    return secrets.randbelow(len(SEEDS)) if seed is None else seed


class HttpRequest(SeededRequest):
    """Fields of a body beside those of the request."""

    model: str | None = pydantic.Field(
        None, max_length=200, description="name of a model from /v1/models; null: the first model"
    )
    seed: Annotated[Seed, pydantic.BeforeValidator(_or_random)] = pydantic.Field(
        default_factory=lambda: _or_random(None),
        description="seed of the loop; null: a random seed, see the response headers",
    )
    format: AudioFormat = pydantic.Field("wav", description="file format")
    like: str | None = pydantic.Field(
        None, description="audio in base64 whose embedding by the encoder of the model is the encoding of the loop"
    )

    @pydantic.field_validator("encoding")
    @classmethod
    def _values_only(cls, encoding: Any) -> Any:
        """Reject the reference of an encoding, which would name a file of the server."""
        if isinstance(encoding, str):
            raise ValueError(f"encoding {encoding!r} is a reference: send the values")
        return encoding


class HttpGenerateRequest(HttpRequest, GenerateRequest):
    """Body of a request for a loop from noise."""


class HttpVaryRequest(HttpRequest, VaryRequest):
    """Body of a request for a variation of a slice of the audio."""

    kind: Literal["vary"] = "vary"
    source: Uploaded  # type: ignore[assignment]


class HttpInpaintRequest(HttpRequest, InpaintRequest):
    """Body of a request to regenerate spans of a slice of the audio."""

    kind: Literal["inpaint"] = "inpaint"
    source: Uploaded  # type: ignore[assignment]


class HttpExtendRequest(HttpRequest, ExtendRequest):
    """Body of a request for a long loop, which begins with the audio if there is any."""

    kind: Literal["extend"] = "extend"
    source: Uploaded = None


class HttpRemixRequest(HttpRequest, RemixRequest):
    """Body of a request for a variation of a whole track."""

    kind: Literal["remix"] = "remix"
    source: Uploaded  # type: ignore[assignment]


class HttpInvertRequest(HttpRequest, InvertRequest):
    """Body of a request to reproduce a slice of the audio from noise."""

    kind: Literal["invert"] = "invert"
    source: Uploaded  # type: ignore[assignment]


class HttpInterpolateRequest(HttpRequest, InterpolateRequest):
    """Body of a request for a loop between several seeds, or between several audio files."""

    kind: Literal["interpolate"] = "interpolate"
    sources: SkipJsonSchema[tuple[Reference, ...] | None] = None


BODIES: dict[str, type[HttpRequest]] = {
    "generate": HttpGenerateRequest,
    "vary": HttpVaryRequest,
    "inpaint": HttpInpaintRequest,
    "extend": HttpExtendRequest,
    "remix": HttpRemixRequest,
    "invert": HttpInvertRequest,
    "interpolate": HttpInterpolateRequest,
}
"""Bodies by kind of request."""


def call_of(
    fields: Mapping[str, Any], kind: str | None = None, audio: Sequence[bytes] = (), like: bytes | None = None
) -> Call:
    """Check the fields of a body, and return its call. The call has no model if the body names none.

    Args:
        fields: The fields of a JSON object or of a form.
        kind: Kind of request of the route. None: `kind` of the fields, by default generate.
        audio: Contents of the uploaded files of a form.
        like: Content of the uploaded file of a form whose embedding is the encoding, or None.

    Raises:
        ApiError: A field is wrong.
    """
    values = dict(fields)
    stated = values.pop("kind", kind or "generate")
    if stated not in ([kind] if kind else list(BODIES)):
        raise invalid(f"kind {stated}: use {kind or ', '.join(BODIES)}", "kind")
    kind = str(stated)
    every = str(values.pop(PREVIEW_EVERY, 0))
    if not _COUNT.fullmatch(every):
        message = f"{PREVIEW_EVERY} {every[:40]}: must be the number of steps between previews, 0 for none"
        raise invalid(message, PREVIEW_EVERY)
    for name in ("source", "sources"):
        if name in values:
            raise invalid(f"{name}: the server reads no files, send the audio in the field {AUDIO}", name)
    if AUDIO in values:
        audio = [*audio, *decoded(values.pop(AUDIO), AUDIO)]
    if isinstance(values.get(LIKE), str):
        like = decoded(values[LIKE], LIKE)[0]
    if like is not None:
        values[LIKE] = LIKE
    names = [AUDIO] if len(audio) == 1 else [f"{AUDIO}[{index}]" for index in range(len(audio))]
    try:
        body = BODIES[kind].model_validate({**values, **_sources(kind, names)})
        own = REQUEST.validate_python(body.model_dump(exclude={"model", "format", LIKE, PROMPT}))
    except pydantic.ValidationError as error:
        raise ApiError(of_validation(error)) from error
    uploads = dict(zip(names, audio, strict=True))
    condition = body.prompt if like is None else like
    return Call(body.model or "", own, body.format, uploads, preview_every=int(every), condition=condition)


def form_values(fields: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of form fields. An empty field is not set.

    Raises:
        ApiError: A list is not JSON.
    """
    values: dict[str, Any] = {}
    for name, text in fields.items():
        if text == "":
            continue
        try:
            values[name] = json.loads(text) if name in JSON_FIELDS else text
        except ValueError as error:
            raise invalid(f"{name}: must be a list as JSON ({error})", name) from error
    return values


def _sources(kind: str, names: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a request that name its uploads."""
    if kind == "interpolate":
        if len(names) == 1:
            raise invalid(f"1 audio file: a request of kind interpolate takes two or more in the field {AUDIO}", AUDIO)
        return {"sources": tuple(names)} if names else {}
    if kind == "generate":
        if names:
            raise invalid("a request of kind generate takes no audio: use another route or kind", AUDIO)
        return {}
    if len(names) > 1 or (not names and kind != "extend"):
        raise invalid(f"{len(names)} audio files: a request of kind {kind} takes one in the field {AUDIO}", AUDIO)
    return {"source": names[0]} if names else {}


def decoded(value: Any, field: str) -> list[bytes]:
    """Decode the base64 text of one or several files.

    Raises:
        ApiError: The value of the field is something else.
    """
    try:
        return [base64.b64decode(text, validate=True) for text in ([value] if isinstance(value, str) else list(value))]
    except (binascii.Error, ValueError, TypeError) as error:
        raise invalid(f"{field}: must be base64, or a list of base64 texts ({error})", field) from error
