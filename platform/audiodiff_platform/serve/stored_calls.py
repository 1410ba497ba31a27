"""Calls as JSON values and input files, for jobs."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from audiodiff_core.sampling import REQUEST
from audiodiff_platform.serve.calls import Call

STORED = frozenset({"model", "request", "format", "uploads", "condition"})
"""Fields of a call that determine its result."""
DELIVERY = frozenset({"measured", "progress", "preview_every", "known"})
"""Fields that shape the response, which a job does not have."""
assert {field.name for field in fields(Call)} == STORED | DELIVERY, "a job would lose a field of its calls"


def stored(calls: Sequence[Call]) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Return calls as JSON values, and the uploads that they refer to by number."""
    entries: list[dict[str, Any]] = []
    inputs: list[bytes] = []
    for call in calls:
        numbers = {}
        for name, content in call.uploads.items():
            numbers[name] = len(inputs)
            inputs.append(content)
        condition: dict[str, Any] = {}
        if isinstance(call.condition, bytes):
            condition = {"like": len(inputs)}
            inputs.append(call.condition)
        elif call.condition is not None:
            condition = {"prompt": call.condition}
        request = call.request.model_dump(mode="json", exclude_defaults=True) | {"kind": call.request.kind}
        entry = {"model": call.model, "format": call.format, "request": request, "uploads": numbers}
        entries.append(entry | {"condition": condition})
    return entries, inputs


def restored(entry: dict[str, Any], read: Callable[[int], bytes]) -> Call:
    """Return the call of JSON values.

    Args:
        entry: The JSON values.
        read: Function that returns an input file by its number.

    Raises:
        ValueError: The request is not valid, as after a change of the server.
    """
    uploads = {name: read(number) for name, number in entry["uploads"].items()}
    of_request = entry["condition"]
    condition = read(of_request["like"]) if "like" in of_request else of_request.get("prompt")
    request = REQUEST.validate_python(entry["request"])
    return Call(entry["model"], request, entry["format"], uploads, progress=True, condition=condition)
