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
    OUT/_conditions             embeddings of `like` and `prompt`, until the job has ended
    OUT/_commits, OUT/_SUCCESS  commits of shards, and the mark of a finished job

With a quality gate, the loops are first generated and measured as candidates (`rounds.py`). The accepted candidates are
then delivered (`delivery.py`), and the manifest has rows for the rejected candidates too.
"""

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from audiodiff_core.audio import BYTES_PER_SAMPLE, encode_audio
from audiodiff_core.checkpoint import load_model, load_outline
from audiodiff_core.pipeline import RequestCheck
from audiodiff_core.sampling.batch_sizes import CPU_BATCH_SIZE, GPU_BATCH_SIZE
from audiodiff_platform.cluster import runs_on_gpus, usable_encoder, usable_path
from audiodiff_platform.generate.conditions import CONDITIONS, with_encodings
from audiodiff_platform.generate.delivery import DeliveryWorker, delivery_counts
from audiodiff_platform.generate.finished import reread, summary, write_pages
from audiodiff_platform.generate.gate import require_comparable
from audiodiff_platform.generate.handover import GenerateFinisher
from audiodiff_platform.generate.loop_rows import loop_rows
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.generate.progress import LoopProgress
from audiodiff_platform.generate.reference import ReferenceData
from audiodiff_platform.generate.request_plan import grown
from audiodiff_platform.generate.rounds import Rounds, starts
from audiodiff_platform.generate.stage import run_pending
from audiodiff_platform.generate.worker import GenerateWorker, shard_counts
from audiodiff_platform.mel_data.loops_folder import LOOPS_CARD, LOOPS_PAGE, LOOPS_PARTS, LOOPS_SETTINGS
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.lease import owned
from audiodiff_platform.work import plan_files
from audiodiff_platform.work.shard_work import ShardWork
from audiodiff_platform.work.sharded_job import ShardedJob

BATCHES_PER_SHARD = 4


def generate(options: GenerateOptions) -> dict[str, Any]:
    """Generate the loops whose shards are not yet committed.

    Args:
        options: Options of the job.

    Returns:
        The summary as JSON values: output folder, loops, failures and digest of the model; seconds of audio of all
        loops; seconds taken, and the figures of this run (see `LoopProgress.close`).

    Raises:
        ValueError: An option or a row is invalid for the model, or the output folder holds other loops.
        JobError: All loops failed, or a worker failed.
    """
    start = time.monotonic()
    if options.verify or options.report:
        return reread(options)
    options = _with_usable_paths(options)
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
    bytes_per_second = model.mel.sample_rate * BYTES_PER_SAMPLE[options.format]
    if loops.count > (planned := plan_files.row_count(output)):
        new_s = loops.seconds * (loops.count - planned) / loops.count
        output.require_free_space(int(new_s * bytes_per_second), "the audio")
    shard_size = BATCHES_PER_SHARD * _batch_size(options)
    work = ShardWork(
        "audiodiff generate",
        GenerateWorker,
        (options, model.digest),
        options.output_dir,
        shard_counts,
        finisher=GenerateFinisher,
    )
    with owned(output, options.take_over) as lease, ExitStack() as connection:
        decided = None
        if options.gated:
            rounds = Rounds(options, check, model, settings, shard_size, bytes_per_second, reference)
            decided = rounds.decided(connection)
            loops = decided.loops
        else:
            loops = connection.enter_context(
                with_encodings(options, loops, model.record, check.geometry.encoding_dim, output)
            )
        plan = grown(output, loops, shard_size)
        if decided is not None:
            arguments = (options, model.digest, starts(plan.shards), decided.starts)
            work = replace(work, worker=DeliveryWorker, arguments=arguments, counts=delivery_counts, finisher=None)
        job = ShardedJob(work, lease, (LOOPS_SETTINGS, settings), plan, LOOPS_PARTS, "loops", remakes=True)
        progress = LoopProgress(job.unit, job.pending, options.node_price)
        run_pending(
            job, options, bytes_per_second, connection, sources=loops.sources, progress=None if decided else progress
        )
        records = job.records()
        counted = summary(output, records, model.digest)
        if decided is not None:
            counted |= decided.summary()
        if job.pending or not all(output.exists(name) for name in (LOOPS_CARD, LOOPS_PAGE, commits.SUCCESS)):
            write_pages(output, records, counted, made=job.pending, model=model, seconds=time.monotonic() - start)
        if decided is not None:
            decided.remove_files()
        output.remove(CONDITIONS)
        job.succeed(counted)
        figures = (decided.progress if decided else progress).close()
    return {
        "verb": "generate",
        "output_dir": options.output_dir,
        "seconds": round(time.monotonic() - start, 1),
        **counted,
        "audio_s": round(sum(record["audio_s"] for record in records.values()), 1),
        **figures,
    }


def _with_usable_paths(options: GenerateOptions) -> GenerateOptions:
    """Return the options with paths that any process of the job can open."""
    names = ("model", "output_dir", "requests", "input_dir", "encodings", "like", "reference")
    paths = {name: usable_path(name, uri, hub_id=name == "model") for name in names if (uri := getattr(options, name))}
    if options.encoder is not None:
        paths["encoder"] = usable_encoder(options.encoder)
    # A copy keeps which options are stated: these are the defaults of rows.
    return options.model_copy(update=paths)


def _batch_size(options: GenerateOptions) -> int:
    """Return the batch size of the workers, so that shards are whole batches."""
    if options.batch_size is not None:
        return options.batch_size
    return GPU_BATCH_SIZE if runs_on_gpus(options.device) else CPU_BATCH_SIZE
