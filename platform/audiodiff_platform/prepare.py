"""Audio files -> a mel dataset, by shards, each of them whole or absent.

1. The settings are claimed and the files planned into shards (`plan.py`, `commits.py`).
2. Actors make shards: file by file, slice by slice, into `data/train-NNNNNN.parquet`; files that cannot be used go to `quarantine/`.
3. When every planned shard is committed: mel configuration, dataset card, `_SUCCESS`.
"""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic

from audiodiff_core.audio import AudioDecodeError, open_local
from audiodiff_core.mel import Mel, MelConfig
from audiodiff_core.slices import encode_png, mel_slices
from audiodiff_platform import commits
from audiodiff_platform.cluster import connected, cpus, require_resources, require_shared, say, usable_path
from audiodiff_platform.dataset import FORMAT_VERSION, MEL_CONFIG, SCHEMA, SETTINGS, card, data_file
from audiodiff_platform.job import JobError
from audiodiff_platform.plan import append_plan, list_sources, plan_shards, read_plan
from audiodiff_platform.recipe import Options
from audiodiff_platform.shards import run_shards
from audiodiff_platform.storage import Folder

ROW_GROUP_ROWS = 128
QUARANTINE_SCHEMA = pa.schema([("audio_file", pa.string()), ("reason", pa.string()), ("size", pa.int64())])

Row = dict[str, Any]


class PrepareOptions(Options):
    """What to cut into which images. The mel parameters are stated here and nowhere else."""

    input_dir: str = pydantic.Field(description="folder of audio files, searched recursively: a path, s3:// or gs://")
    output_dir: str = pydantic.Field(description="folder for the mel dataset: a path, s3:// or gs://")
    resolution: str = pydantic.Field("256", description="image size in pixels: one side, or width,height (frames,bands)")
    sample_rate: int = pydantic.Field(MelConfig().sample_rate, description="sample rate in Hz")
    hop_length: int = pydantic.Field(MelConfig().hop_length, description="samples between frames")
    n_fft: int = pydantic.Field(MelConfig().n_fft, description="STFT window in samples")
    overlap: float = pydantic.Field(0.0, ge=0, lt=1, description="share of a slice that the next one repeats, 0 to 1")
    max_bad_fraction: float = pydantic.Field(0.5, ge=0, le=1, description="share of files that may be unusable before the job fails, 0 to 1")
    shard_minutes: float | None = pydantic.Field(None, gt=0, description="audio per shard in minutes, estimated from file sizes; none: 10 to 180 by corpus")
    num_workers: int | None = pydantic.Field(None, ge=1, description="parallel workers, a CPU each; none: all CPUs")

    @pydantic.field_validator("resolution", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) else value

    @pydantic.model_validator(mode="after")
    def _mel_is_possible(self) -> Self:
        self.mel()
        return self

    def mel(self) -> MelConfig:
        """The mel configuration asked for; raises ValueError that names the value out of range."""
        sides = self.resolution.split(",")
        if len(sides) > 2 or not all(side.strip().isdigit() for side in sides):
            raise ValueError(f"resolution is {self.resolution!r}: one whole number, or two as width,height")
        values = {"x_res": sides[0], "y_res": sides[-1], "sample_rate": self.sample_rate, "hop_length": self.hop_length, "n_fft": self.n_fft}
        try:
            return MelConfig.model_validate(values)
        except pydantic.ValidationError as error:
            raise ValueError("; ".join(f"{problem['loc'][0]} is {problem['input']}: {problem['msg']}" for problem in error.errors())) from None

    def settings(self) -> dict[str, Any]:
        """All that decides what the dataset holds."""
        return {"format_version": FORMAT_VERSION, "mel": self.mel().model_dump(), "overlap": self.overlap}


def prepare(options: PrepareOptions) -> dict[str, Any]:
    """Runs the job; says how many files became how many slices."""
    began = time.monotonic()
    places = {name: usable_path(name, getattr(options, name)) for name in ("input_dir", "output_dir")}
    options = options.model_copy(update=places)
    for finding in options.mel().lint():
        say(f"warning: {finding}")
    source_folder, output = Folder(options.input_dir), Folder(options.output_dir)
    sources, skipped = list_sources(source_folder)
    seconds = sum(source.seconds for source in sources)
    slices = seconds / options.mel().slice_duration_s / (1 - options.overlap) + len(sources)
    output.require_free_space(int(slices * options.mel().x_res * options.mel().y_res), "the dataset")
    commits.require_same(output, SETTINGS, options.settings())
    planned, added = plan_shards(output, sources, options.shard_minutes)
    done = commits.committed(output)
    pending = sorted({*planned, *added} - set(done))
    if pending:
        say(f"{len(sources)} files ({skipped} others skipped), about {seconds / 60:,.0f} minutes, {len(pending)} of {len(planned | added)} shards to do")
        with connected():
            workers = options.num_workers or cpus()
            require_resources(workers)
            require_shared("input_dir", options.input_dir, sources[0].uri)
            commits.claim(output, SETTINGS, options.settings())
            require_shared("output_dir", options.output_dir, SETTINGS)
            append_plan(output, added)
            commits.begin(output)
            for finished, counts in enumerate(run_shards(PrepareWorker, (options,), pending, workers), start=1):
                say(f"shard {counts['shard']} done ({finished} of {len(pending)}): {counts['rows']} slices, {counts['failed']} files unusable")
    return _finish(options, output, began)


def _finish(options: PrepareOptions, output: Folder, began: float) -> dict[str, Any]:
    """Checks the whole, removes leftovers, writes configuration, card and `_SUCCESS`."""
    records = commits.committed(output)
    files, rows = (sum(record[key] for record in records.values()) for key in ("files", "rows"))
    failed = sum(len(record["failures"]) for record in records.values())
    reasons = [f"{failure['audio_file']}: {failure['reason']}" for record in records.values() for failure in record["failures"]]
    if failed > options.max_bad_fraction * files or rows == 0:
        raise JobError(f"{failed} of {files} files cannot be used (max_bad_fraction {options.max_bad_fraction}), such as {reasons[0] if reasons else 'none'}")
    for kind in ("data", "quarantine"):
        kept = {name for record in records.values() for name in record["parts"]}
        for name in output.names(f"{kind}/*"):
            if name not in kept:
                output.remove(name)
    digest = commits.settings_digest({"settings": options.settings(), "shards": {str(k): records[k]["sha256"] for k in sorted(records)}})
    summary = {"format_version": FORMAT_VERSION, "files": files, "slices": rows, "quarantined": failed, "shards": len(records), "digest": digest}
    output.write(MEL_CONFIG, options.mel().to_json().encode())
    output.write("README.md", card(options.mel(), options.overlap, summary).encode())
    commits.succeed(output, summary)
    for reason in reasons[:10]:
        say(f"quarantined: {reason}")
    return {"verb": "prepare", "output_dir": options.output_dir, "seconds": round(time.monotonic() - began, 1), **summary}


class PrepareWorker:
    """Makes shards of a dataset; lives in an actor."""

    def __init__(self, options: PrepareOptions) -> None:
        self.options = options
        self.source, self.output = Folder(options.input_dir), Folder(options.output_dir)
        self.mel = Mel(options.mel())

    def shard(self, shard: int) -> dict[str, int]:
        """Writes the shard's data and quarantine files, then commits it."""
        (sources,) = read_plan(self.output, only=shard).values()
        scratch = self.output.scratch()
        data, row_groups, failures = scratch / "data.parquet", [], []
        with pq.ParquetWriter(data, SCHEMA, compression={"image.bytes": "none", **dict.fromkeys(_plain_columns(), "zstd")}) as writer:
            waiting: list[Row] = []
            for source in sources:
                try:
                    waiting += list(self._rows(source.uri))
                except AudioDecodeError as error:
                    failures.append({"audio_file": source.uri, "reason": error.reason, "size": source.size})
                while len(waiting) >= ROW_GROUP_ROWS:
                    writer.write_table(pa.Table.from_pylist(waiting[:ROW_GROUP_ROWS], SCHEMA))
                    row_groups.append(ROW_GROUP_ROWS)
                    waiting = waiting[ROW_GROUP_ROWS:]
            if waiting:
                writer.write_table(pa.Table.from_pylist(waiting, SCHEMA))
                row_groups.append(len(waiting))
        with data.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        record: dict[str, Any] = {"rows": sum(row_groups), "row_groups": row_groups, "files": len(sources), "failures": failures, "parts": []}
        record |= {"bytes": data.stat().st_size, "sha256": sha256}
        if row_groups:
            self.output.move_in(data, data_file(shard))
            record["parts"].append(data_file(shard))
        if failures:
            quarantine = f"quarantine/{shard:06d}.parquet"
            pq.write_table(pa.Table.from_pylist(failures, QUARANTINE_SCHEMA), scratch / "quarantine.parquet")
            self.output.move_in(scratch / "quarantine.parquet", quarantine)
            record["parts"].append(quarantine)
        commits.commit(self.output, shard, record)
        _remove(scratch)
        return {"shard": shard, "rows": record["rows"], "failed": len(failures)}

    def _rows(self, uri: str) -> Iterator[Row]:
        """A file's rows; raises AudioDecodeError where it cannot be used."""
        address = self.source.path(uri) if self.source.is_local else f"{self.source.uri}/{uri}"
        with open_local(address) as local:
            assert isinstance(local, str)
            with open(local, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            silent = True
            for piece in mel_slices(local, self.mel, self.options.overlap):
                silent = False
                yield {
                    "image": {"bytes": encode_png(piece.image), "path": None},
                    "audio_file": uri,
                    "slice": piece.index,
                    "source_sha256": sha256,
                    "start_s": piece.start_s,
                    "duration_s": self.mel.config.slice_duration_s,
                    "reference_db": piece.reference_db,
                }
            if silent:
                raise AudioDecodeError(uri, "silent throughout")


def _plain_columns() -> list[str]:
    return [name for name in SCHEMA.names if name != "image"] + ["image.path"]


def _remove(scratch: Path) -> None:
    for file in scratch.iterdir():
        file.unlink()
    scratch.rmdir()
