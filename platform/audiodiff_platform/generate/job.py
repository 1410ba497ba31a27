"""Job that generates loops from a model and requests, as audio files with a manifest.

The requests are seeds, the rows of a file, or variations of the audio files of a folder. Loops are generated in shards.
Each shard is complete or absent. The same job with more requests adds shards.

    OUT/generate.json           settings and their digest
    OUT/_plan/*.parquet         the requests of each shard
    OUT/audio/<id>.wav          a loop; `name` is the template of the name
    OUT/pictures/<id>.png       its mel image, with `pictures`
    OUT/manifest/*.parquet      a row for each loop (`MANIFEST_SCHEMA`)
    OUT/_candidates             candidates of the quality gate and their measurements (`candidates.py`)
    OUT/_run.json               rate of the last run, metrics of the model
    OUT/report.html             page with a player for each loop
    OUT/README.md               data set card, by which `datasets` loads the manifest
    OUT/_commits, OUT/_SUCCESS  commits of shards, and the mark of a finished job

With a quality gate, the loops are first generated and measured as candidates (`rounds.py`). The accepted candidates are
then delivered (`delivery.py`), and the manifest has rows for the rejected candidates too.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from audiodiff_core.audio import encode_audio
from audiodiff_core.checkpoint import Model, load_model, load_outline
from audiodiff_core.pipeline import RequestCheck
from audiodiff_core.sampling.profile import CPU_BATCH_SIZE, GPU_BATCH_SIZE
from audiodiff_platform.cluster import runs_on_gpus, usable_path
from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.generate.delivery import DeliveryWorker, delivery_counts
from audiodiff_platform.generate.gate import require_comparable
from audiodiff_platform.generate.loop_rows import loop_rows
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.generate.reference import ReferenceData
from audiodiff_platform.generate.request_plan import grown
from audiodiff_platform.generate.rounds import Rounds, starts
from audiodiff_platform.generate.stage import run_pending
from audiodiff_platform.generate.worker import GenerateWorker, shard_counts
from audiodiff_platform.mel_data.loops_folder import LOOPS_FORMAT_VERSION, LOOPS_PAGE, LOOPS_RUN, LOOPS_SETTINGS, card
from audiodiff_platform.report.loops_page import write_loops_page
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.lease import owned
from audiodiff_platform.work import plan_files
from audiodiff_platform.work.engine import Record, ShardWork, engine
from audiodiff_platform.work.sharded_job import ShardedJob
from audiodiff_platform.work.verify import verify

BATCHES_PER_SHARD = 4
PARTS = ("audio", "pictures", "manifest")
"""Folders of the files of loops."""
CARD = "README.md"


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
    if options.verify or options.report:
        return _reread(options)
    names = ("model", "output_dir", "requests", "input_dir", "encodings", "reference")
    paths = {name: usable_path(name, uri, hub_id=name == "model") for name in names if (uri := getattr(options, name))}
    # A copy keeps which options are stated: these are the defaults of rows.
    options = options.model_copy(update=paths)
    check = RequestCheck(load_outline(options.model))
    loops = loop_rows(options, check)
    model = load_model(options.model)
    # Encode one sample, so that a format or level without support for the sample rate fails before the work begins.
    silence = np.zeros(1, np.float32)
    encode_audio(silence, model.mel.sample_rate, options.format)
    if options.level is not None:
        options.level.gain_db(silence, model.mel.sample_rate)
    output = Folder(options.output_dir)
    reference = ReferenceData(options, model.mel) if "copy" in options.reject else None
    require_comparable(options, model.mel)
    settings = options.settings(model, None if reference is None else reference.images.digest)
    commits.require_same(output, LOOPS_SETTINGS, settings)
    bytes_per_second = model.mel.sample_rate * 2
    if loops.count > (planned := plan_files.row_count(output)):
        new_s = loops.seconds * (loops.count - planned) / loops.count
        output.require_free_space(int(new_s * bytes_per_second), "the audio")
    shard_size = BATCHES_PER_SHARD * _batch_size(options)
    work = ShardWork("audiodiff generate", GenerateWorker, (options, model.digest), options.output_dir, shard_counts)
    with owned(output, options.take_over) as lease, ExitStack() as connection:
        decided = None
        if options.gated:
            rounds = Rounds(options, check, model.digest, settings, shard_size, bytes_per_second, reference)
            decided = rounds.decided(connection)
            loops = decided.loops
        plan = grown(output, loops, shard_size)
        if decided is not None:
            arguments = (options, model.digest, starts(plan.shards), decided.starts)
            work = replace(work, worker=DeliveryWorker, arguments=arguments, counts=delivery_counts)
        job = ShardedJob(work, lease, (LOOPS_SETTINGS, settings), plan, PARTS, "loops")
        run_pending(job, options, bytes_per_second, connection)
        records = job.records()
        rows, failed = (sum(record[key] for record in records.values()) for key in ("rows", "failed"))
        rejected = sum(record.get("rejected", 0) for record in records.values())
        if failed + rejected == loops.count:
            what = f"failed ({failed}) or were rejected ({rejected})" if rejected else "failed"
            raise JobError(f"all {loops.count} loops {what}: see column reason in {output.uri}/manifest")
        if failed:
            say(f"warning: {failed} of {loops.count} loops failed: see column reason in {output.uri}/manifest")
        summary = {
            "format_version": LOOPS_FORMAT_VERSION,
            "loops": rows - failed - rejected,
            "failed": failed,
            "model_digest": model.digest,
            **({} if decided is None else decided.summary()),
        }
        manifest = {
            name: digest
            for record in records.values()
            for name, digest in record["parts"].items()
            if name.startswith("manifest/")
        }
        output.write(CARD, card(summary, commits.settings_digest(manifest)).encode())
        if job.pending:
            made = [records[shard] for shard in job.pending]
            _write_run(output, made, time.monotonic() - start, model)
        if job.pending or not (output.exists(LOOPS_PAGE) and output.exists(commits.SUCCESS)):
            write_loops_page(output)
        job.succeed(summary)
        if decided is not None:
            decided.folder.remove("audio")
    return {
        "verb": "generate",
        "output_dir": options.output_dir,
        "seconds": round(time.monotonic() - start, 1),
        **summary,
    }


def _write_run(output: Folder, made: Sequence[Record], seconds: float, model: Model) -> None:
    """Write the rate of a run and the metrics of its model.

    Args:
        output: Output folder.
        made: Records of the shards of the run.
        seconds: Duration of the run.
        model: Model of the loops.
    """
    facts = {
        "loops": sum(record["rows"] - record["failed"] - record.get("rejected", 0) for record in made),
        "audio_s": round(sum(record["audio_s"] for record in made), 3),
        "seconds": round(seconds, 3),
        "model_metrics": model.record.metrics if model.record else {},
    }
    output.write_json(LOOPS_RUN, facts)


def _reread(options: GenerateOptions) -> dict[str, Any]:
    """Verify a finished folder or write its page again, and return the summary of the folder.

    Raises:
        ValueError: The folder is not finished.
        JobError: Files are missing or changed.
    """
    start, option = time.monotonic(), "report" if options.report else "verify"
    output = Folder(usable_path("output_dir", options.output_dir))
    try:
        summary, parts, _ = commits.finished(output)
    except FileNotFoundError:
        raise ValueError(
            f"{option}: {output.uri} holds no finished loops (no {commits.SUCCESS}): run without {option} first"
        ) from None
    if options.report:
        with owned(output, options.take_over):
            write_loops_page(output)
    else:
        shards = {part.shard for part in parts}
        with engine(len(shards), options.num_workers, "cpu") as running:
            verify(output, running)
    named = {name: value for name, value in summary.items() if name != "index_sha256"}
    return {"verb": "generate", "output_dir": output.uri, "seconds": round(time.monotonic() - start, 1), **named}


def _batch_size(options: GenerateOptions) -> int:
    """Return the batch size of the workers, so that shards are whole batches."""
    if options.batch_size is not None:
        return options.batch_size
    return GPU_BATCH_SIZE if runs_on_gpus(options.device) else CPU_BATCH_SIZE
