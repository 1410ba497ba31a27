"""A model and a range of seeds -> audio files and a manifest, by shards, each of them whole or absent.

OUT/generate.json           settings and their digest
OUT/audio/<id>.wav          a loop; its id is its seed
OUT/manifest/*.parquet      a row for each (`SCHEMA`)
OUT/_commits, OUT/_SUCCESS  the commit protocol
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
from audiodiff_platform.generate.worker import GenerateWorker, generated
from audiodiff_platform.mel_data.loops_folder import LOOPS_FORMAT_VERSION, LOOPS_SETTINGS
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.lease import owned
from audiodiff_platform.work.engine import ShardWork, engine
from audiodiff_platform.work.plan import ShardSize
from audiodiff_platform.work.sharded_job import FixedPlan, ShardedJob


def generate(options: GenerateOptions) -> dict[str, Any]:
    """Runs the job; says how many loops there are and where."""
    began = time.monotonic()
    places = {
        "model": usable_path("model", options.model, hub_id=True),
        "output_dir": usable_path("output_dir", options.output_dir),
    }
    options = options.model_copy(update=places)
    model = load_model(options.model)
    geometry = Geometry.of(model.unet, model.vae, model.mel)
    if geometry.encoding_dim is not None:
        raise ValueError(
            f"model {options.model} is conditional: it makes loops of encodings, which generate cannot be given"
        )
    options = geometry.resolved(options, model.scheduler)
    encode_audio(
        np.zeros(1, np.float32), model.mel.sample_rate, options.format
    )  # raises if the format cannot hold the rate
    output = Folder(options.output_dir)
    settings = options.settings(model)
    commits.require_same(output, LOOPS_SETTINGS, settings)
    seconds = geometry.width(options) * model.mel.hop_length / model.mel.sample_rate
    shards = dict(enumerate(options.shard_seeds()))
    plan = FixedPlan(
        {shard: ShardSize(sources=len(seeds), seconds=len(seeds) * seconds) for shard, seeds in shards.items()}
    )
    work = ShardWork("audiodiff generate", GenerateWorker, (options, model.digest), options.output_dir, generated)
    with owned(output, options.take_over) as lease:
        job = ShardedJob(work, lease, (LOOPS_SETTINGS, settings), plan, ("audio", "manifest"), "loops")
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
            say(
                f"warning: {failed} of {options.count} loops could not be made: see the column reason of {output.uri}/manifest"
            )
        summary = {
            "format_version": LOOPS_FORMAT_VERSION,
            "loops": made - failed,
            "failed": failed,
            "model_digest": model.digest,
        }
        job.succeed(summary)
    return {
        "verb": "generate",
        "output_dir": options.output_dir,
        "seconds": round(time.monotonic() - began, 1),
        **summary,
    }
