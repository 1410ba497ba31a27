"""A model and a range of seeds -> audio files and a manifest, by shards, each of them whole or absent.

    OUT/generate.json           settings and their digest
    OUT/audio/<id>.wav          a loop; its id is its seed
    OUT/manifest/*.parquet      a row for each (`SCHEMA`)
    OUT/_commits, OUT/_SUCCESS  the commit protocol
"""

import io
import logging
import time
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import torch

from audiodiff_core.audio import AudioFormat, encode
from audiodiff_core.checkpoint import MODEL_INDEX, Model, load_model
from audiodiff_core.loops import level_db, seam_score
from audiodiff_core.pipeline import Geometry, Loop
from audiodiff_core.sampling import DEFAULT_BATCH_SIZES, ExecutionProfile, GenerateRequest, Precision, SamplingParameters
from audiodiff_core.seeds import SEEDS
from audiodiff_core.tempo import measure_tempo
from audiodiff_platform import commits
from audiodiff_platform.cluster import require_shared, say, usable_path
from audiodiff_platform.cluster.capacity import Device
from audiodiff_platform.job import JobError
from audiodiff_platform.recipe import OutputOptions
from audiodiff_platform.storage import Folder
from audiodiff_platform.storage.lease import owned
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.engine import Counts, Record, ShardWork, engine
from audiodiff_platform.work.plan import ShardSize
from audiodiff_platform.work.sharded_job import FixedPlan, ShardedJob

FORMAT_VERSION = 2
SETTINGS = "generate.json"
BATCHES_PER_SHARD = 4
LOOPS_AT_MOST = 10_000_000  # of a folder: the driver lists their shards
DEATHS_OF_A_BATCH = 2
LOOP_FAILURES = (ArithmeticError, MemoryError, torch.OutOfMemoryError)
"""Errors of a loop, as opposed to those of storage (OSError), of the request (ValueError) and of the machine."""

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.string()),
        ("seed", pa.int64()),
        ("steps", pa.int32()),
        ("scheduler", pa.string()),
        ("eta", pa.float64()),
        ("guidance_scale", pa.float64()),
        ("width", pa.int32()),
        ("seamless", pa.bool_()),
        ("batch_size", pa.int32()),
        ("precision", pa.string()),
        ("device", pa.string()),
        ("compiled", pa.bool_()),
        ("threads", pa.int32()),
        ("model_digest", pa.string()),
        ("mel_digest", pa.string()),
        ("sha256", pa.string()),
        ("duration_s", pa.float64()),
        ("tempo_bpm", pa.float64()),  # null where there is no tempo
        ("tempo_confidence", pa.float64()),
        ("seam_score", pa.float64()),
        ("level_db", pa.float64()),
        ("reason", pa.string()),  # of a loop that could not be made, which has no file
    ],
    metadata={"audiodiff_format_version": str(FORMAT_VERSION)},
)


class GenerateOptions(SamplingParameters, OutputOptions):
    """Which loops to make of which model."""

    model: str = pydantic.Field(description="model folder (train writes OUTPUT_DIR/model), s3:// or gs:// URI, or Hugging Face id")
    output_dir: str = pydantic.Field(description="folder for audio and manifest: a path, s3:// or gs://")
    count: int = pydantic.Field(ge=1, le=LOOPS_AT_MOST, description="how many loops")
    seed: int = pydantic.Field(0, ge=SEEDS[0], le=SEEDS[-1], description="seed of the first loop; each next one has the next seed")
    format: AudioFormat = pydantic.Field("wav", description="file format: wav, flac, ogg or mp3")
    batch_size: int | None = pydantic.Field(None, ge=1, le=1_024, description="samples per network call, part of what fixes the bytes; none: by device")
    precision: Precision | None = pydantic.Field(None, description="arithmetic of the network: fp32, bf16 or fp16; none: by device, fp32 on a CPU")
    compiled: bool = pydantic.Field(False, description="compile the network at the start of each worker: worth it for many loops")
    num_workers: int | None = pydantic.Field(None, ge=1, description="parallel workers, a CPU or GPU each; none: all that nothing else has reserved")
    device: Device = pydantic.Field("auto", description="what workers run on: cpu, gpu, or auto for GPUs if the cluster has any now")

    @pydantic.model_validator(mode="after")
    def _seeds_exist(self) -> Self:
        if self.seed + self.count - 1 > SEEDS[-1]:
            raise ValueError(f"seed {self.seed} with count {self.count}: seeds end at {SEEDS[-1]}")
        return self

    def settings(self, model: Model) -> dict[str, Any]:
        """All that decides what the folder holds, but for the device, which the manifest states."""
        free = {"model", "output_dir", "num_workers", "device", "take_over"}
        return {"format_version": FORMAT_VERSION, "model_digest": model.digest, **self.model_dump(exclude=free)}

    def shard_seeds(self) -> list[range]:
        """The seeds of each shard: a few batches, whatever the number of workers."""
        size = BATCHES_PER_SHARD * (self.batch_size or DEFAULT_BATCH_SIZES["cpu"])
        end = self.seed + self.count
        return [range(first, min(first + size, end)) for first in range(self.seed, end, size)]


def generate(options: GenerateOptions) -> dict[str, Any]:
    """Runs the job; says how many loops there are and where."""
    began = time.monotonic()
    places = {"model": usable_path("model", options.model, hub_id=True), "output_dir": usable_path("output_dir", options.output_dir)}
    options = options.model_copy(update=places)
    model = load_model(options.model)
    geometry = Geometry.of(model.unet, model.vae, model.mel)
    if geometry.encoding_dim is not None:
        raise ValueError(f"model {options.model} is conditional: it makes loops of encodings, which generate cannot be given")
    options = geometry.resolved(options, model.scheduler)
    encode(np.zeros(1, np.float32), model.mel.sample_rate, options.format)  # raises if the format cannot hold the rate
    output = Folder(options.output_dir)
    settings = options.settings(model)
    commits.require_same(output, SETTINGS, settings)
    seconds = geometry.width(options) * model.mel.hop_length / model.mel.sample_rate
    shards = dict(enumerate(options.shard_seeds()))
    plan = FixedPlan({shard: ShardSize(sources=len(seeds), seconds=len(seeds) * seconds) for shard, seeds in shards.items()})
    work = ShardWork("audiodiff generate", GenerateWorker, (options, model.digest), options.output_dir, generated)
    with owned(output, options.take_over) as lease:
        job = ShardedJob(work, lease, (SETTINGS, settings), plan, ("audio", "manifest"), "loops")
        if job.pending:
            left_s = sum(size.seconds for size in job.pending.values())
            output.require_free_space(int(left_s * model.mel.sample_rate) * 2, "the audio")
            say(f"{options.count} loops of {seconds:.2f} s, {len(job.pending)} of {len(shards)} shards to do")
            with engine(len(job.pending), options.num_workers, options.device, isolated=job.needs_isolation) as running:
                require_shared("model", options.model, MODEL_INDEX)
                job.run(running)
        records = job.records()
        made, failed = (sum(record[key] for record in records.values()) for key in ("rows", "failed"))
        if failed == options.count:
            raise JobError(f"none of the {failed} loops could be made: see the column reason of {output.uri}/manifest")
        if failed:
            say(f"warning: {failed} of {options.count} loops could not be made: see the column reason of {output.uri}/manifest")
        summary = {"format_version": FORMAT_VERSION, "loops": made - failed, "failed": failed, "model_digest": model.digest}
        job.succeed(summary)
    return {"verb": "generate", "output_dir": options.output_dir, "seconds": round(time.monotonic() - began, 1), **summary}


class GenerateWorker:
    """A worker that makes shards of loops with one loaded model."""

    def __init__(self, options: GenerateOptions, model_digest: str) -> None:
        self.options = options
        self.output = Folder(options.output_dir)
        self.profile = ExecutionProfile.here(options.precision, options.batch_size, options.compiled)
        self.profile.prepare_process()
        model = load_model(options.model)
        if model.digest != model_digest:
            raise ValueError(f"model {options.model} has changed since the job began: digest {model.digest}, it was {model_digest}")
        self.digest = model.digest
        self.pipeline = model.pipeline(self.profile)

    def shard(self, shard: int, attempts: Attempts) -> Record:
        """Write the audio files of a shard and its part of the manifest.

        The loops are made in batches. After two deaths of a process, or an error in a batch, the loops are made one by
        one: a loop that fails alone, or that ends two processes alone, gets a row with the reason.
        """
        parameters = self.options.model_dump(include=set(SamplingParameters.model_fields))
        requests = [GenerateRequest(seed=seed, **parameters) for seed in self.options.shard_seeds()[shard]]
        rows = None if len(attempts.deaths) >= DEATHS_OF_A_BATCH else self._batched(requests, attempts)
        if rows is None:
            rows = self._one_by_one(requests, attempts)
        attempts.require_ownership()
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(sorted(rows, key=lambda row: row["seed"]), SCHEMA), buffer, compression="zstd")
        manifest = f"manifest/{shard:06d}.parquet"
        self.output.write(manifest, buffer.getvalue())
        made = [row for row in rows if row["path"]]
        parts = {manifest: commits.sha256(buffer.getvalue()), **{row["path"]: row["sha256"] for row in made}}
        sizes = {manifest: len(buffer.getvalue()), **{row["path"]: row["bytes"] for row in made}}
        return {"rows": len(rows), "failed": len(rows) - len(made), "parts": parts, "sizes": sizes}

    def _batched(self, requests: Sequence[GenerateRequest], attempts: Attempts) -> list[dict[str, Any]] | None:
        """Make loops in batches -> their rows of the manifest, or None if a loop failed and took its batch along."""
        rows = []
        try:
            for loop in self.pipeline.generate(requests):
                rows.append(self._row(loop))
                attempts.require_running()
        except (*LOOP_FAILURES, RuntimeError) as error:
            logging.getLogger(__name__).warning("a batch failed, its loops are made one by one: %s", error)
            return None
        return rows

    def _one_by_one(self, requests: Sequence[GenerateRequest], attempts: Attempts) -> list[dict[str, Any]]:
        """Make each loop alone -> their rows of the manifest, with the reason where a loop cannot be made."""
        rows = []
        for request in requests:
            if attempts.gives_up(str(request.seed)):
                rows.append(self._failed(request, attempts.reason))
                continue
            attempts.start(str(request.seed))
            try:
                (loop,) = self.pipeline.generate([request])
                rows.append(self._row(loop))
            except LOOP_FAILURES as error:
                rows.append(self._failed(request, f"{type(error).__name__}: {' '.join(str(error).split())}"))
        return rows

    def _row(self, loop: Loop) -> dict[str, Any]:
        """Write the file of a loop -> the row of the manifest."""
        mel = self.pipeline.mel
        content = loop.file(mel.sample_rate, self.options.format)
        path = f"audio/{loop.request.seed:010d}.{self.options.format}"
        self.output.write(path, content)
        tempo = measure_tempo(loop.audio, mel.sample_rate)
        return {
            **self._stated(loop.request),
            "path": path,
            "sha256": commits.sha256(content),
            "bytes": len(content),
            "duration_s": len(loop.audio) / mel.sample_rate,
            "tempo_bpm": tempo.bpm,
            "tempo_confidence": tempo.confidence,
            "seam_score": seam_score(loop.audio, mel.sample_rate),
            "level_db": level_db(loop.audio),
            "reason": None,
        }

    def _failed(self, request: GenerateRequest, reason: str) -> dict[str, Any]:
        measured = dict.fromkeys(("path", "sha256", "duration_s", "tempo_bpm", "tempo_confidence", "seam_score", "level_db"))
        return {**self._stated(request), **measured, "reason": reason}

    def _stated(self, request: GenerateRequest) -> dict[str, Any]:
        """The columns of the manifest that say what was asked for, of which model, and how it was computed."""
        return {
            "id": f"{request.seed:010d}",
            **request.model_dump(),
            **self.profile.model_dump(),
            "threads": self.profile.threads,
            "model_digest": self.digest,
            "mel_digest": self.pipeline.mel.digest,
        }


def generated(record: Record) -> Counts:
    """Count the loops and failures of a shard."""
    return {"files": record["rows"] - record["failed"], "failed": record["failed"]}
