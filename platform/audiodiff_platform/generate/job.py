"""Job that generates loops from a model and requests, as audio files with a manifest.

The requests are seeds, the rows of a file, or variations of the audio files of a folder. Loops are generated in shards.
Each shard is complete or absent. The same job with more requests adds shards.

    OUT/generate.json           settings and their digest
    OUT/_plan/*.parquet         the requests of each shard
    OUT/audio/<id>.wav          a loop
    OUT/manifest/*.parquet      a row for each loop (`MANIFEST_SCHEMA`)
    OUT/_conditions             embeddings of `like` and `prompt`, until the job has ended
    OUT/_commits, OUT/_SUCCESS  commits of shards, and the mark of a finished job
"""

import time
from typing import Any

import numpy as np

from audiodiff_core.audio import encode_audio
from audiodiff_core.checkpoint import MODEL_INDEX, load_model, load_outline
from audiodiff_core.pipeline import RequestCheck
from audiodiff_core.sampling.profile import CPU_BATCH_SIZE, GPU_BATCH_SIZE
from audiodiff_platform.cluster import require_shared, runs_on_gpus, usable_encoder, usable_path
from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.generate.conditions import CONDITIONS, with_encodings
from audiodiff_platform.generate.loop_rows import loop_rows
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.generate.request_plan import grown
from audiodiff_platform.generate.worker import GenerateWorker, shard_counts
from audiodiff_platform.mel_data.loops_folder import LOOPS_FORMAT_VERSION, LOOPS_SETTINGS
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.lease import owned
from audiodiff_platform.work import plan_files
from audiodiff_platform.work.engine import ShardWork, engine
from audiodiff_platform.work.sharded_job import ShardedJob
from audiodiff_platform.work.verify import verify

BATCHES_PER_SHARD = 4


def generate(options: GenerateOptions) -> dict[str, Any]:
    """Generate the loops whose shards are not yet committed.

    Args:
        options: Options of the job.

    Returns:
        The summary as JSON values: loops, failures, output folder, digest of the model, and seconds taken.

    Raises:
        ValueError: An option or a row is invalid for the model, or the output folder holds other loops.
        JobError: All loops failed, or a worker failed.
    """
    start = time.monotonic()
    if options.verify:
        return _verified(options)
    names = ("model", "output_dir", "requests", "input_dir", "encodings", "like")
    paths = {name: usable_path(name, uri, hub_id=name == "model") for name in names if (uri := getattr(options, name))}
    if options.encoder is not None:
        paths["encoder"] = usable_encoder(options.encoder)
    # A copy keeps which options are stated: these are the defaults of rows.
    options = options.model_copy(update=paths)
    check = RequestCheck(load_outline(options.model))
    loops = loop_rows(options, check)
    model = load_model(options.model)
    # Encode one sample, so that a format without support for the sample rate fails before the work begins.
    encode_audio(np.zeros(1, np.float32), model.mel.sample_rate, options.format)
    output = Folder(options.output_dir)
    settings = options.settings(model)
    commits.require_same(output, LOOPS_SETTINGS, settings)
    bytes_per_second = model.mel.sample_rate * 2
    if loops.count > (planned := plan_files.row_count(output)):
        new_s = loops.seconds * (loops.count - planned) / loops.count
        output.require_free_space(int(new_s * bytes_per_second), "the audio")
    work = ShardWork("audiodiff generate", GenerateWorker, (options, model.digest), options.output_dir, shard_counts)
    with owned(output, options.take_over) as lease:
        with with_encodings(options, loops, model.record, check.geometry.encoding_dim, output) as encoded:
            plan = grown(output, encoded, BATCHES_PER_SHARD * _batch_size(options))
        job = ShardedJob(work, lease, (LOOPS_SETTINGS, settings), plan, ("audio", "manifest"), "loops")
        if job.pending:
            pending_s = sum(size.seconds for size in job.pending.values())
            output.require_free_space(int(pending_s * bytes_per_second), "the audio")
            say(
                f"{loops.count:,} loops, {loops.seconds:,.0f} s in all, "
                f"{len(job.pending):,} of {len(plan.shards):,} shards to do"
            )
            with engine(len(job.pending), options.num_workers, options.device, isolated=job.needs_isolation) as running:
                require_shared("model", options.model, MODEL_INDEX)
                job.run(running)
        records = job.records()
        rows, failed = (sum(record[key] for record in records.values()) for key in ("rows", "failed"))
        if failed == loops.count:
            raise JobError(f"all {failed} loops failed: see column reason in {output.uri}/manifest")
        if failed:
            say(f"warning: {failed} of {loops.count} loops failed: see column reason in {output.uri}/manifest")
        summary = {
            "format_version": LOOPS_FORMAT_VERSION,
            "loops": rows - failed,
            "failed": failed,
            "model_digest": model.digest,
        }
        job.succeed(summary)
        output.remove(CONDITIONS)
    return {
        "verb": "generate",
        "output_dir": options.output_dir,
        "seconds": round(time.monotonic() - start, 1),
        **summary,
    }


def _verified(options: GenerateOptions) -> dict[str, Any]:
    """Compare every file of a finished folder with its digest, and return the summary of the folder.

    Raises:
        ValueError: The folder is not finished.
        JobError: Files are missing or changed.
    """
    start = time.monotonic()
    output = Folder(usable_path("output_dir", options.output_dir))
    try:
        summary, parts, _ = commits.finished(output)
    except FileNotFoundError:
        raise ValueError(
            f"verify: {output.uri} holds no finished loops (no {commits.SUCCESS}): run without verify first"
        ) from None
    shards = {part.shard for part in parts}
    with engine(len(shards), options.num_workers, "cpu") as running:
        verify(output, running)
    named = {name: summary[name] for name in ("format_version", "loops", "failed", "model_digest")}
    return {"verb": "generate", "output_dir": output.uri, "seconds": round(time.monotonic() - start, 1), **named}


def _batch_size(options: GenerateOptions) -> int:
    """Return the batch size of the workers, so that shards are whole batches."""
    if options.batch_size is not None:
        return options.batch_size
    return GPU_BATCH_SIZE if runs_on_gpus(options.device) else CPU_BATCH_SIZE
