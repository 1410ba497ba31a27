"""Finished folders of loops: their summary, their card and their page, which are also written or verified later."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from audiodiff_core.checkpoint import Model
from audiodiff_platform.cluster import usable_path
from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.mel_data.loops_folder import LOOPS_CARD, LOOPS_FORMAT_VERSION, LOOPS_PARTS, LOOPS_RUN, card
from audiodiff_platform.report.loops_page import write_loops_page
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.lease import owned
from audiodiff_platform.work.engine import engine
from audiodiff_platform.work.shard_work import Record
from audiodiff_platform.work.verify import survey, verify


def summary(output: Folder, records: Mapping[int, Record], model_digest: str) -> dict[str, Any]:
    """Return the counts of a folder, as JSON values.

    Args:
        output: Output folder.
        records: Records of all shards.
        model_digest: Digest of the model.

    Raises:
        JobError: No loop was generated, or all were rejected.
    """
    rows, failed = (sum(record[key] for record in records.values()) for key in ("rows", "failed"))
    rejected = sum(record.get("rejected", 0) for record in records.values())
    if failed + rejected == rows:
        what = f"failed ({failed}) or were rejected ({rejected})" if rejected else "failed"
        raise JobError(f"all {rows} loops {what}: see column reason in {output.uri}/manifest")
    if failed:
        say(f"warning: {failed} of {rows} loops failed: see column reason in {output.uri}/manifest")
    return {
        "format_version": LOOPS_FORMAT_VERSION,
        "loops": rows - failed - rejected,
        "failed": failed,
        "model_digest": model_digest,
    }


def write_pages(
    output: Folder,
    records: Mapping[int, Record],
    counted: Mapping[str, Any],
    *,
    made: Iterable[int],
    model: Model,
    seconds: float,
) -> None:
    """Write the card of the data set, the rate of a run, and the page.

    Args:
        output: Output folder.
        records: Records of all shards.
        counted: Counts of the folder (see `summary`).
        made: Shards of the run.
        model: Model of the loops.
        seconds: Duration of the run.
    """
    parts = (part for record in records.values() for part in record["parts"].items())
    manifest = {name: digest for name, digest in parts if name.startswith("manifest/")}
    output.write(LOOPS_CARD, card(counted, commits.settings_digest(manifest)).encode())
    if of_run := [records[shard] for shard in made]:
        facts = {
            "loops": sum(record["rows"] - record["failed"] - record.get("rejected", 0) for record in of_run),
            "audio_s": round(sum(record["audio_s"] for record in of_run), 3),
            "seconds": round(seconds, 3),
            "model_metrics": model.record.metrics if model.record else {},
        }
        output.write_json(LOOPS_RUN, facts)
    write_loops_page(output)


def reread(options: GenerateOptions) -> dict[str, Any]:
    """Verify a finished folder or write its page again, and return the summary of the folder.

    Raises:
        ValueError: The folder is not finished.
        JobError: Files are missing, changed, or named by no commit.
    """
    start, option = time.monotonic(), "report" if options.report else "verify"
    output = Folder(usable_path("output_dir", options.output_dir))
    try:
        counted = commits.summary_of(output)
        surveyed = None if options.report else survey(output, LOOPS_PARTS)
    except FileNotFoundError:
        raise ValueError(
            f"{option}: {output.uri} holds no finished loops (no {commits.SUCCESS}): run without {option} first"
        ) from None
    except ValueError as damage:
        raise JobError(f"{damage}, without {option}") from None
    if surveyed is None:
        with owned(output, options.take_over):
            write_loops_page(output)
    else:
        with engine(len(surveyed.shards), options.num_workers, "cpu") as running:
            verify(surveyed, running, remakes=True)
    named = {name: value for name, value in counted.items() if name != "index_sha256"}
    return {"verb": "generate", "output_dir": output.uri, "seconds": round(time.monotonic() - start, 1), **named}
