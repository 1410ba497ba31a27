"""Loops that a job generates: the rows of a file, the seeds of a sweep, or variations of a folder."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

import pydantic

from audiodiff_core.audio import AUDIO_EXTENSIONS
from audiodiff_core.pipeline import References, RequestCheck
from audiodiff_core.sampling import GenerateRequest, SamplingParameters
from audiodiff_core.sampling.conditions import Condition, Conditioned
from audiodiff_core.sampling.requests import Request
from audiodiff_platform.audio_files import Inputs, Source, described
from audiodiff_platform.audio_files.source_files import is_absolute
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.generate.checked_rows import (
    LoopRow,
    RowChecks,
    any_embedding,
    require_good,
    stated_defaults,
)
from audiodiff_platform.generate.file_names import spelled_key
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.generate.request_files import file_version, look_up
from audiodiff_platform.generate.request_rows import MAX_ROWS, Row, read_rows
from audiodiff_platform.mel_data.encodings import Encodings, read_encodings

MAX_STEM = 100
_UNSAFE = re.compile(r"[^\w.+-]+")


@dataclass(frozen=True)
class LoopRows:
    """The loops of a job.

    Args:
        rows: The loops in their order.
        count: Number of loops.
        seconds: Estimated duration of all loops.
        origin: Option that states the loops, for error messages.
        ordered: Whether the order is part of the request. Otherwise new loops may stand between earlier loops.
        conditions: Conditions to embed, each with size and version of its file, or an empty text for a prompt.
        sources: The files of the sources of the loops, by the name that the requests state.
    """

    rows: Iterable[LoopRow]
    count: int
    seconds: float
    origin: str
    ordered: bool = True
    conditions: Mapping[Condition, str] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)


def loop_rows(options: GenerateOptions, check: RequestCheck) -> LoopRows:
    """Return the loops of a job, all of which the model supports.

    Args:
        options: Options of the job.
        check: Check of requests against the model.

    Raises:
        ValueError: Rows are bad, and `skip_bad` is not set, or the model has no encoder.
    """
    if options.encoder is not None and (reason := check.no_encoder):
        raise ValueError(f"encoder {options.encoder}: {reason}")
    if options.requests is None and options.input_dir is None:
        return _seeded(options, check)
    encodings = _encodings(options, check)
    files = list[tuple[str, Source]]() if options.requests is not None else _input_files(options)
    rows = read_rows(options.requests) if options.requests is not None else _variations(options, files)
    checks = RowChecks(
        check,
        stated_defaults(options),
        encodings,
        sources={uri: replace(source, uri=uri) for uri, source in files},
        max_id_bytes=options.name_template.max_id_bytes,
    )
    loops = checks.checked(rows)
    origin = "requests" if options.requests is not None else "input_dir"
    if not options.skip_bad:
        require_good(f"{origin} {options.requests or options.input_dir}", loops)
    seconds = sum(loop.seconds for loop in loops)
    ordered = options.requests is not None
    return LoopRows(loops, len(loops), seconds, origin, ordered, checks.conditions, checks.sources)


def _encodings(options: GenerateOptions, check: RequestCheck) -> Encodings | None:
    """Read the encodings, and check their size."""
    if options.encodings is None:
        return None
    dim = check.geometry.encoding_dim
    if dim is None:
        raise ValueError(f"encodings {options.encodings}: the model is not conditional, omit them")
    encodings = read_encodings(options.encodings)
    if encodings.dim != dim:
        raise ValueError(
            f"encodings {options.encodings}: hold vectors of {encodings.dim} values, the model takes {dim}: "
            "use the encoder of its training"
        )
    return encodings


@dataclass(frozen=True)
class _Seeded:
    """Loops of seeds: for each seed, one loop of each combination."""

    seeds: range
    combinations: list[tuple[str, str, str, float]]
    """Suffix of the id, JSON before and after the seed, and duration."""
    condition: Condition | None

    def __iter__(self) -> Iterator[LoopRow]:
        for seed in self.seeds:
            for suffix, before, after, seconds in self.combinations:
                request = f"{before}{seed}{after}"
                yield LoopRow(f"{seed:010d}{suffix}", request, seconds=seconds, condition=self.condition)


def _seeded(options: GenerateOptions, check: RequestCheck) -> LoopRows:
    parameters = options.model_dump(include={*SamplingParameters.model_fields, *Conditioned.model_fields})
    references = References(embedding=any_embedding(check))
    combinations, problems = list[tuple[str, str, str, float]](), list[str]()
    known = set[tuple[Any, ...]]()
    for values in _combinations(options.sweep):
        label = f"sweep {' '.join(f'{name}={value}' for name, value in values.items())}: " if values else ""
        try:
            stated = GenerateRequest.model_validate({**parameters, **values})
            request = check.resolved(stated, references)
        except pydantic.ValidationError as error:
            reasons = "; ".join(_reason(problem) for problem in error.errors(include_url=False))
            problems.append(f"{label}{reasons}")
            continue
        except ValueError as error:
            problems.append(f"{label}{error}")
            continue
        if (combination := tuple(getattr(stated, name) for name in values)) in known:
            problems.append(f"{label}stated twice, list each value once")
            continue
        known.add(combination)
        suffix = _suffix(values, request)
        before, marker, after = request.model_dump_json(exclude_none=True).partition('"seed":0')
        assert marker, "a request has a seed"
        combinations.append((suffix, f'{before}"seed":', after, check.seconds(request)))
    if problems:
        raise ValueError("; ".join(problems))
    count = len(options.seeds) * len(combinations)
    seconds = len(options.seeds) * sum(seconds for *_, seconds in combinations)
    conditions = {} if options.condition is None else {options.condition: _version(options.condition)}
    seeded = _Seeded(options.seeds, combinations, options.condition)
    return LoopRows(seeded, count, seconds, "count", conditions=conditions)


def _version(condition: Condition) -> str:
    """Return size and version of the file of a condition, or an empty text for a prompt."""
    if condition.field == "prompt":
        return ""
    if isinstance(found := look_up(condition.text), str):
        raise ValueError(f"like {condition.text}: {found}")
    return file_version(found)


def _reason(problem: Any) -> str:
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    return f"{problem['loc'][0]}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"


def _combinations(sweep: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield all combinations of the values of a sweep."""
    values: dict[str, list[str]] = {}
    for stated in sweep:
        name, equals, listed = stated.partition("=")
        name = name.strip()
        if not equals or name not in SamplingParameters.model_fields:
            names = ", ".join(SamplingParameters.model_fields)
            raise ValueError(f"sweep {stated}: use NAME=VALUE,VALUE with one of the names {names}")
        if name in values:
            raise ValueError(f"sweep {stated}: {name} is swept twice, list all its values at once")
        values[name] = [value.strip() for value in listed.split(",")]
    for chosen in product(*values.values()):
        yield dict(zip(values, chosen, strict=True))


def _suffix(combination: Mapping[str, str], request: Request) -> str:
    """Return the suffix of the ids of a combination, in which keys are spelled as in names of files.

    Args:
        combination: The values of the sweep.
        request: The request with these values.
    """
    texts = {name: _UNSAFE.sub("_", value) for name, value in combination.items()}
    if "key" in texts and request.key is not None:
        texts["key"] = spelled_key(request.key)
    return "".join(f"-{name}{text}" for name, text in texts.items())


def _input_files(options: GenerateOptions) -> list[tuple[str, Source]]:
    """Return the audio files of `input_dir`, each after its absolute path or URI."""
    assert options.input_dir is not None
    inputs = Inputs(options.input_dir, options.output_dir)
    sources = sorted(inputs.sources(), key=lambda source: source.uri)
    files = [source for source in sources if source.extension in AUDIO_EXTENSIONS]
    for line in inputs.describe():
        say(line)
    if containers := len(sources) - len(files):
        say(f"skipped: {containers:,} containers, whose members have no paths")
    if not files:
        raise ValueError(f"input_dir {options.input_dir}: holds no audio files ({described(inputs.skipped)})")
    if len(files) * len(options.seeds) > MAX_ROWS:
        raise ValueError(
            f"input_dir {options.input_dir}: {len(files):,} files with {len(options.seeds):,} seeds: "
            f"at most {MAX_ROWS:,} loops, use several output folders"
        )
    return [(_absolute(inputs, source), source) for source in files]


def _absolute(inputs: Inputs, source: Source) -> str:
    """Return the absolute path or URI of a source, with the spelling of `usable_path`."""
    folder = inputs.folder
    if is_absolute(source.uri) and source.version != "elsewhere":  # listed, in any folder
        uri = source.uri
    else:
        uri = folder.path(source.uri) if folder.is_local else f"{folder.uri}/{source.uri}"
    return uri if "://" in uri else str(Path(uri))


def _variations(options: GenerateOptions, files: Sequence[tuple[str, Source]]) -> Iterator[Row]:
    """Yield a row for each seed and file, with ids that do not depend on the other files."""
    for seed in options.seeds:
        suffix = f"-{seed:010d}" if options.count is not None else ""
        for uri, source in files:
            # A file that cannot be read fails alone when it is decoded.
            yield {"kind": "vary", "source": uri, "seed": seed, "id": f"{_file_id(source.uri)}{suffix}"}


def _file_id(uri: str) -> str:
    """Return a safe id of a file: its path and a digest of the path."""
    stem = _UNSAFE.sub("_", str(PurePosixPath(uri).with_suffix("")).replace("/", "-")).strip("._-")
    digest = hashlib.sha256(uri.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{stem.encode()[:MAX_STEM].decode(errors='ignore')}-{digest}"
