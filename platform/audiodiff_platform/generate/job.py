"""Job that generates loops from a model and a range of seeds, as audio files with a manifest.

Loops are generated in shards. Each shard is complete or absent.

    OUT/generate.json           settings and their digest
    OUT/audio/<id>.wav          a loop, whose id is its seed
    OUT/manifest/*.parquet      a row for each loop (`MANIFEST_SCHEMA`)
    OUT/_commits, OUT/_SUCCESS  commits of shards, and the mark of a finished job
"""

import time
from typing import Any

import numpy as np

from audiodiff_core.audio import encode_audio
from audiodiff_core.checkpoint import MODEL_INDEX, load_model
from audiodiff_core.pipeline import Geometry
from audiodiff_platform.cluster import require_shared, usable_path
from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.generate.worker import GenerateWorker, shard_counts
from audiodiff_platform.mel_data.loops_folder import LOOPS_FORMAT_VERSION, LOOPS_SETTINGS
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.lease import owned
from audiodiff_platform.work.engine import ShardWork, engine
from audiodiff_platform.work.plan import ShardSize
from audiodiff_platform.work.sharded_job import FixedPlan, ShardedJob


def generate(options: GenerateOptions) -> dict[str, Any]:
    """Generate the loops whose shards are not yet committed.

    Args:
        options: Options of the job.

    Returns:
        The summary as JSON values: loops, failures, output folder, digest of the model, and seconds taken.

    Raises:
        ValueError: An option is invalid for the model, or the output folder holds loops of other settings.
        JobError: All loops failed, or a worker failed.
    """
    start = time.monotonic()
    paths = {
        "model": usable_path("model", options.model, hub_id=True),
        "output_dir": usable_path("output_dir", options.output_dir),
    }
    options = options.model_copy(update=paths)
    model = load_model(options.model)
    geometry = Geometry.of(model.unet, model.vae, model.mel)
    if geometry.encoding_dim is not None:
        raise ValueError(
            f"model {options.model} is conditional: generate does not support encodings, use an unconditional model"
        )
    options = geometry.resolved(options, model.scheduler)
    # Encode one sample, so that a format without support for the sample rate fails before the work begins.
    encode_audio(np.zeros(1, np.float32), model.mel.sample_rate, options.format)
    output = Folder(options.output_dir)
    settings = options.settings(model)
    commits.require_same(output, LOOPS_SETTINGS, settings)
    seconds = geometry.width(options) * model.mel.hop_length / model.mel.sample_rate
    shards = dict(enumerate(options.shard_seeds()))
    plan = FixedPlan(
        {shard: ShardSize(sources=len(seeds), seconds=len(seeds) * seconds) for shard, seeds in shards.items()}
    )
    work = ShardWork("audiodiff generate", GenerateWorker, (options, model.digest), options.output_dir, shard_counts)
    with owned(output, options.take_over) as lease:
        job = ShardedJob(work, lease, (LOOPS_SETTINGS, settings), plan, ("audio", "manifest"), "loops")
        if job.pending:
            pending_s = sum(size.seconds for size in job.pending.values())
            output.require_free_space(int(pending_s * model.mel.sample_rate) * 2, "the audio")
            say(f"{options.count} loops of {seconds:.2f} s, {len(job.pending)} of {len(shards)} shards to do")
            with engine(len(job.pending), options.num_workers, options.device, isolated=job.needs_isolation) as running:
                require_shared("model", options.model, MODEL_INDEX)
                job.run(running)
        records = job.records()
        rows, failed = (sum(record[key] for record in records.values()) for key in ("rows", "failed"))
        if failed == options.count:
            raise JobError(f"all {failed} loops failed: see column reason in {output.uri}/manifest")
        if failed:
            say(f"warning: {failed} of {options.count} loops failed: see column reason in {output.uri}/manifest")
        summary = {
            "format_version": LOOPS_FORMAT_VERSION,
            "loops": rows - failed,
            "failed": failed,
            "model_digest": model.digest,
        }
        job.succeed(summary)
    return {
        "verb": "generate",
        "output_dir": options.output_dir,
        "seconds": round(time.monotonic() - start, 1),
        **summary,
    }
