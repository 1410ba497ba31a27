"""Checks of the rows of requests, all before any work starts.

A bad row is described as `row N: field: reason`, with N from 1.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import pydantic

from audiodiff_core.pipeline import References, RequestCheck
from audiodiff_core.sampling import REQUEST, SamplingParameters
from audiodiff_core.sampling.conditions import Condition, Conditioned
from audiodiff_core.sampling.parameters import FEATURE_FIELDS
from audiodiff_core.sampling.requests import RemixRequest, Request, Strength, VaryRequest
from audiodiff_platform.audio_files import Source
from audiodiff_platform.cluster import usable_path
from audiodiff_platform.generate.file_names import MAX_ID_BYTES, name_problem
from audiodiff_platform.generate.request_files import file_version, look_up
from audiodiff_platform.generate.request_rows import Row
from audiodiff_platform.mel_data.encodings import Encodings

MAX_BAD_SHOWN = 20
CONCURRENT_LOOK_UPS = 32
LENGTHS = frozenset({"width", "duration_s", "bars"})
STARTS = frozenset({"strength", "start_step"})
ENCODINGS = frozenset({"encoding", *Conditioned.model_fields})
SOURCE_FIELDS = ("source", "sources")
_FIELD_OF_WORD = {"mask": "regenerate", "duration": "duration_s", "encodings": "encoding"}


@dataclass(frozen=True)
class LoopRow:
    """A loop to generate, or a bad row.

    Args:
        id: Name of the loop.
        request: The request with all defaults filled in as JSON, or None for a bad row.
        encoding: Values of the encoding, or empty. An encoding by name is a view of the values that all rows share.
        seconds: Estimated duration of the loop.
        reason: Description of a bad row, or why the quality gate rejected the loop.
        condition: The condition whose embedding is the encoding, or None.
        origin: Digest of the encoder that embedded the condition, with size and version of the file, or None.
    """

    id: str
    request: str | None
    encoding: Sequence[float] | npt.NDArray[np.float32] = ()
    seconds: float = 0.0
    reason: str | None = None
    condition: Condition | None = None
    origin: str | None = None

    @property
    def values(self) -> list[float]:
        """The values of the encoding, or an empty list."""
        return self.encoding.tolist() if isinstance(self.encoding, np.ndarray) else list(self.encoding)


@dataclass
class RowChecks:
    """Checks of rows of requests against a model.

    Args:
        check: Check of requests against the model.
        defaults: Fields of rows that do not set them.
        encodings: Encodings by name, or None.
        sources: Files that are known to exist, by the name that rows state.
        max_id_bytes: Maximum size of an id in bytes.

    Attributes:
        sources: Also the sources of good rows, after `checked`.
        conditions: Conditions to embed, each with size and version of its file, or an empty text for a prompt.
    """

    check: RequestCheck
    defaults: Mapping[str, Any]
    encodings: Encodings | None = None
    sources: dict[str, Source] = field(default_factory=dict)
    max_id_bytes: int = MAX_ID_BYTES
    _ids: dict[str, int] = field(default_factory=dict)
    conditions: dict[Condition, str] = field(default_factory=dict)
    _files: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """Rows by the field and the name of a file that has to exist."""

    def checked(self, rows: Iterable[Row]) -> list[LoopRow]:
        """Return a loop for each row, or the description of what is bad about the row."""
        loops = [self._loop(number, row) for number, row in zip(count(1), rows, strict=False)]
        for number, reason in self._missing():
            loops[number - 1] = bad_row(number, [reason])
        for (name, file), numbers in self._files.items():
            if name == "source" and not any(loops[number - 1].request for number in numbers):
                self.sources.pop(file, None)
        return loops

    def _loop(self, number: int, row: Row) -> LoopRow:
        if isinstance(row, str):
            return bad_row(number, [row])
        name, problems = self._named(number, row.get("id"))
        stated = {key: value for key, value in row.items() if key != "id"}
        try:
            request: Request = REQUEST.validate_python({**self._defaults_for(stated), **stated})
        except pydantic.ValidationError as error:
            return bad_row(number, [*problems, *_problems(error)])
        request, wrong_uris = _with_usable_sources(request)
        problems += wrong_uris
        try:
            vector = self._vector(request)
            encodings = {str(request.encoding): vector} if vector is not None else {}
            filled = self.check.resolved(request, References(encodings=encodings, embedding=any_embedding(self.check)))
        except ValueError as error:
            return bad_row(number, [*problems, _named_problem(str(error), request.kind)])
        if problems:
            return bad_row(number, problems)
        for source in sources_of(filled):
            if source not in self.sources:
                self._files.setdefault(("source", source), []).append(number)
        if filled.like is not None:
            self._files.setdefault(("like", filled.like), []).append(number)
        elif filled.condition is not None:
            self.conditions[filled.condition] = ""
        if vector is None and filled.encoding is not None:
            vector = np.array(filled.encoding, np.float32)
            filled = filled.model_copy(update={"encoding": None})
        text, values = filled.model_dump_json(exclude_none=True), () if vector is None else vector
        return LoopRow(name, text, values, self.check.seconds(filled), condition=filled.condition)

    def _named(self, number: int, stated: Any) -> tuple[str, list[str]]:
        """Return the id of a row, and what is wrong with it."""
        name = f"{number:010d}" if stated is None else str(stated)
        if not isinstance(stated, str | int | None) or isinstance(stated, bool):
            return name, ["id: is not text"]
        if (problem := name_problem(name, self.max_id_bytes)) is not None:
            return name, [f"id: {problem}"]
        first = self._ids.setdefault(unicodedata.normalize("NFC", name).casefold(), number)
        return name, [] if first == number else [f"id: {name} is the id of row {first}"]

    def _defaults_for(self, stated: Mapping[str, Any]) -> dict[str, Any]:
        """Return the defaults of a row.

        A field that is null has no default itself. A row that states any length has no default length. The same holds
        for a start. Encodings and features replace each other. `bpm` is a length if there are bars. Otherwise it is a
        feature, which a row of another length has only if the model knows it.
        """
        kind = stated.get("kind", "generate")
        left_out = {*stated}
        given = {name for name, value in stated.items() if value is not None}
        features = {*FEATURE_FIELDS}
        if LENGTHS & given:
            left_out |= LENGTHS
        if "bars" in given or "bars" in self.defaults.keys() - left_out:
            features.remove("bpm")
        elif not self._knows_tempo and (LENGTHS & given or "bars" in self.defaults):
            left_out.add("bpm")
        if ENCODINGS & given:
            left_out |= ENCODINGS | features
        elif features & given:
            left_out |= ENCODINGS
        if kind not in ("vary", "remix") or STARTS & given:
            left_out |= STARTS
        return {name: value for name, value in self.defaults.items() if name not in left_out}

    @property
    def _knows_tempo(self) -> bool:
        """True if the model is conditioned on tempo."""
        return self.check.conditions is not None and "tempo" in self.check.conditions.names

    def _vector(self, request: Request) -> npt.NDArray[np.float32] | None:
        """Return the encoding (dim,) that a request names, or None."""
        if not isinstance(request.encoding, str):
            return None
        if self.encodings is None:
            raise ValueError(f"encoding {request.encoding}: pass encodings, or state the values in the row")
        return self.encodings.vector(request.encoding)

    def _missing(self) -> Iterator[tuple[int, str]]:
        """Yield the rows whose files do not exist, with the reasons. The other files are noted."""
        with ThreadPoolExecutor(CONCURRENT_LOOK_UPS) as pool:
            looked_up = pool.map(look_up, [file for _, file in self._files])
            for ((name, file), rows), found in zip(self._files.items(), looked_up, strict=True):
                if isinstance(found, str):
                    yield from ((row, f"{name}: {file}: {found}") for row in rows)
                elif name == "like":
                    self.conditions[Condition("like", file)] = file_version(found)
                else:
                    self.sources[file] = found


def require_good(origin: str, loops: Sequence[LoopRow]) -> None:
    """Raise ValueError with the bad rows, if there are any.

    Args:
        origin: Name of the file or folder of the rows.
        loops: All rows.
    """
    bad = [loop.reason for loop in loops if loop.reason is not None]
    if bad:
        more = f"; and {len(bad) - MAX_BAD_SHOWN:,} more" if len(bad) > MAX_BAD_SHOWN else ""
        raise ValueError(
            f"{origin}: {len(bad):,} of {len(loops):,} rows are bad (correct them, or use skip_bad): "
            f"{'; '.join(bad[:MAX_BAD_SHOWN])}{more}"
        )


def stated_defaults(options: SamplingParameters) -> dict[str, Any]:
    """Return the sampling options that are stated, the strength and the condition, as defaults of rows."""
    names = {*SamplingParameters.model_fields, *Conditioned.model_fields, "strength"} & options.model_fields_set
    return {name: value for name in sorted(names) if (value := getattr(options, name)) is not None}


def sources_of(request: Request) -> tuple[str, ...]:
    """Return the references of the sources of a request."""
    one = getattr(request, "source", None)
    return (one,) if one is not None else tuple(getattr(request, "sources", None) or ())


def _with_usable_sources(request: Request) -> tuple[Request, list[str]]:
    """Return a request with sources that any process of the job can open, and what is wrong with them."""
    try:
        update: dict[str, Any] = {}
        if (one := getattr(request, "source", None)) is not None:
            update["source"] = usable_path("source", one)
        elif several := getattr(request, "sources", None):
            update["sources"] = tuple(usable_path("sources", source) for source in several)
        if request.like is not None:
            update["like"] = usable_path("like", request.like)
    except ValueError as error:
        return request, [_named_problem(str(error), request.kind)]
    return request.model_copy(update=update), []


def any_embedding(check: RequestCheck) -> Callable[[Condition], Any]:
    """Return a function that stands for the encoder of a model, which a check does not need."""

    def embedding(condition: Condition) -> Any:
        del condition
        return np.zeros(check.geometry.encoding_dim or 0, np.float32)

    return embedding


def _problems(error: pydantic.ValidationError) -> list[str]:
    """Return `field: reason` for each field of a request that is wrong."""
    reasons: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        place = problem["loc"]
        name = str(place[1] if len(place) > 1 else "kind")
        reason = f"{problem['msg'][:1].lower()}{problem['msg'][1:]}"
        match problem["type"]:
            case "extra_forbidden":
                reason = f"is unknown for the kind {place[0]}"
            case "union_tag_invalid":
                known = problem["ctx"]["expected_tags"].replace("'", "")
                reason = f"{problem['ctx']['tag']} is unknown: use one of {known}"
            case "missing":
                reason = f"is required for the kind {place[0]}"
            case "value_error":
                reason = str(problem["ctx"]["error"])
                name = _named_problem(reason, name).partition(": ")[0] if len(place) == 1 else name
        reasons.setdefault(name, _bounded(reason.removeprefix(f"{name} ")))
    return [f"{name}: {reason}" for name, reason in reasons.items()]


def _named_problem(message: str, kind: str) -> str:
    """Return `field: reason` for a message that begins with the name of a field, as those of the core do."""
    word, _, rest = message.partition(" ")
    name = _FIELD_OF_WORD.get(word.rstrip(":"), word)
    if name in {*VaryRequest.model_fields, *RemixRequest.model_fields, *Strength.model_fields, "regenerate", "sources"}:
        return f"{name}: {_bounded(rest)}"
    return f"{kind}: {_bounded(message)}"


def _bounded(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_ID_BYTES else f"{line[:MAX_ID_BYTES]}..."


def bad_row(number: int, problems: Sequence[str]) -> LoopRow:
    """Return a row that is bad, with its number from 1 and its problems as `field: reason`."""
    return LoopRow(
        f"{number:010d}", None, reason="; ".join(f"row {number}: {_bounded(problem)}" for problem in problems)
    )
