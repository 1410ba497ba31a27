"""A stage of generate: the shards of a job in one folder that are not committed yet."""

from collections.abc import Iterable
from contextlib import ExitStack

from audiodiff_core.checkpoint import MODEL_INDEX
from audiodiff_platform.cluster import require_shared, require_shared_files
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.generate.progress import LoopProgress
from audiodiff_platform.work.engine import engine
from audiodiff_platform.work.sharded_job import ShardedJob


def run_pending(
    job: ShardedJob,
    options: GenerateOptions,
    bytes_per_second: float,
    connection: ExitStack,
    *,
    sources: Iterable[str],
    progress: LoopProgress | None = None,
) -> None:
    """Run the pending shards of a job, if there are any.

    Args:
        job: The job.
        options: Options of generate.
        bytes_per_second: Size of the audio in bytes per second.
        connection: The connection to Ray, which is opened here if it is needed. The caller closes it after its last
            stage.
        sources: Files of the sources of the loops.
        progress: Counter of the finished shards, or None for the lines of any sharded job.

    Raises:
        ValueError: Some nodes cannot see the model, a source or the output folder.
        JobError: A worker failed.
    """
    if not job.pending:
        return
    pending_s = sum(size.seconds for size in job.pending.values())
    job.output.require_free_space(int(pending_s * bytes_per_second), "the audio")
    shards = job.plan.shards.values()
    say(
        f"{sum(size.sources for size in shards):,} {job.unit}, {sum(size.seconds for size in shards):,.0f} s in all, "
        f"{len(job.pending):,} of {len(shards):,} shards to do"
    )
    running = connection.enter_context(
        engine(len(job.pending), options.num_workers, options.device, isolated=job.needs_isolation)
    )
    require_shared("model", options.model, MODEL_INDEX)
    require_shared_files("source" if options.input_dir is None else "input_dir", sources)
    job.run(running, progress=progress)
    if progress is not None:
        progress.end()
