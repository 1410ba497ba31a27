"""Job that cuts audio files into slices and writes a mel dataset. Each shard is complete or absent.

1. Write the settings, and assign the sources to shards (`work/sharded_job.py`, `work/plan.py`).
2. Run workers on Ray Data (`worker.py`). Each worker writes the slices of a shard to `data/train-NNNNNN.parquet`, and
   the names of unusable files to `quarantine/`.
3. When all planned shards are committed, write the mel configuration, the dataset card and `_SUCCESS`.
"""

import time
from contextlib import nullcontext
from typing import Any, Self

import pydantic

from audiodiff_core.audio import AUDIO_EXTENSIONS
from audiodiff_core.mel import MelConfig
from audiodiff_core.mel.checks import check_mel, expected_bytes, expected_slices
from audiodiff_core.mel.slices import Slicing
from audiodiff_platform.audio_files import Inputs, Source, described, shortened, skipped_in
from audiodiff_platform.cluster import require_shared, usable_path
from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.entry.options import OutputOptions
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.mel_data.hub import claim_repository, publish
from audiodiff_platform.mel_data.mel_dataset import (
    DATASET_FORMAT_VERSION,
    DATASET_SETTINGS,
    MEL_CONFIG,
    TRAIN_SPLIT,
    VALIDATION_SPLIT,
    card,
    is_measured,
)
from audiodiff_platform.mel_data.slice_schema import MEASURED
from audiodiff_platform.prepare.duplicates import find_duplicates
from audiodiff_platform.prepare.measuring import check_measured
from audiodiff_platform.prepare.padding import Padding
from audiodiff_platform.prepare.worker import PrepareWorker, prepared
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.lease import Lease, owned
from audiodiff_platform.work.engine import Counts, Engine, ShardWork, engine
from audiodiff_platform.work.plan import SourcePlan, new_sources, shard_seconds
from audiodiff_platform.work.sharded_job import ShardedJob
from audiodiff_platform.work.verify import survey, verify

PARTS = ("data", "quarantine")
"""Folders of the files that commits name."""
REASONS_SHOWN = 10
MIN_SHARD_SECONDS = 300
MIN_SHARD_SLICES = 96


class PrepareOptions(Slicing, OutputOptions):
    """Options of prepare: input, output, slicing and mel parameters."""

    input_dir: str = pydantic.Field(
        description="input audio: a folder (a path, s3://, gs:// or hf://datasets/OWNER/NAME), which is searched "
        "recursively for audio files, .tar shards and Parquet files with an audio column; a single file; or a list of "
        "files: a .txt file with one URI or path per line, or a .parquet file with a column of URIs or paths (relative "
        "paths start at the folder of the list)"
    )
    output_dir: str = pydantic.Field(description="folder for the mel dataset: a path, s3:// or gs://")
    resolution: str = pydantic.Field(
        "256", description="image size in pixels: one number for a square, or width,height (STFT frames, mel bands)"
    )
    sample_rate: int = pydantic.Field(MelConfig().sample_rate, description="sample rate in Hz")
    hop_length: int = pydantic.Field(MelConfig().hop_length, description="hop length: samples between STFT frames")
    n_fft: int = pydantic.Field(MelConfig().n_fft, description="length of the STFT window in samples")
    validation_fraction: float = pydantic.Field(
        0.0,
        ge=0,
        lt=1,
        description="share of audio files in the validation split, which are selected by a hash of their content",
    )
    drop_duplicates: bool = pydantic.Field(
        False, description="keep only one of several audio files with equal bytes; all files are read twice"
    )
    measure: bool = pydantic.Field(
        True,
        description="measure tempo, key, loudness and brightness of each slice, on which networks can be conditioned; "
        "takes several times as long as the images",
    )
    max_bad_fraction: float = pydantic.Field(
        0.5, ge=0, le=1, description="share of unusable files above which the job fails"
    )
    shard_minutes: float | None = pydantic.Field(
        None,
        gt=0,
        description="minutes of audio per shard, estimated from file sizes; none: 5 to 180, by the size of the input",
    )
    num_workers: int | None = pydantic.Field(
        None, ge=1, description="number of workers, each on one CPU; none: all CPUs that are not reserved"
    )
    verify: bool = pydantic.Field(False, description="read the finished dataset again and check all digests")
    push_to_hub: str | None = pydantic.Field(
        None,
        description="Hugging Face dataset OWNER/NAME to which the finished dataset is published; none: not published",
    )

    @pydantic.field_validator("resolution", mode="before")
    @classmethod
    def _resolution_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) else value

    @pydantic.model_validator(mode="after")
    def _check_mel_options(self) -> Self:
        self.mel()
        return self

    def mel(self) -> MelConfig:
        """Return the mel configuration.

        Raises:
            ValueError: A mel option is out of range.
        """
        sides = self.resolution.split(",")
        if len(sides) > 2 or not all(side.strip().isdigit() for side in sides):
            raise ValueError(f"resolution is {self.resolution!r}: must be one integer, or two as width,height")
        values = {
            "x_res": sides[0],
            "y_res": sides[-1],
            "sample_rate": self.sample_rate,
            "hop_length": self.hop_length,
            "n_fft": self.n_fft,
        }
        try:
            return MelConfig.model_validate(values)
        except pydantic.ValidationError as error:
            raise ValueError(
                "; ".join(f"{problem['loc'][0]} is {problem['input']}: {problem['msg']}" for problem in error.errors())
            ) from None

    def slicing(self) -> Slicing:
        """Return the options of slicing."""
        return Slicing.model_validate(self.model_dump(include=set(Slicing.model_fields)))

    def shard_seconds(self, sources: list[Source]) -> float:
        """Return the duration of the audio of a shard in seconds. The default depends on `sources`."""
        if self.shard_minutes is not None:
            return self.shard_minutes * 60
        step_s = self.mel().slice_duration_s * (1 - self.overlap)
        return shard_seconds(sources, max(MIN_SHARD_SECONDS, MIN_SHARD_SLICES * step_s))

    def settings(self, measured: bool) -> dict[str, Any]:
        """Return the settings that determine the content of the dataset.

        Args:
            measured: Whether an existing dataset has the columns of measured features. True if there is none.
        """
        chosen = self.model_dump(include={*Slicing.model_fields, "validation_fraction", "drop_duplicates"})
        columns = {"measured": list(MEASURED)} if measured and self.measure else {}
        return {"format_version": DATASET_FORMAT_VERSION, "mel": self.mel().model_dump(), **chosen, **columns}


def prepare(options: PrepareOptions) -> dict[str, Any]:
    """Run the job.

    Returns:
        The summary: numbers of files, slices and shards, the digest of the dataset and the time in seconds.

    Raises:
        ValueError: An option is invalid or the input holds no audio files.
        JobError: More than `options.max_bad_fraction` of the files are unusable, or planned files have changed.
    """
    began = time.monotonic()
    uris = {name: usable_path(name, getattr(options, name)) for name in ("input_dir", "output_dir")}
    options = options.model_copy(update=uris)
    inputs, output = Inputs(options.input_dir, options.output_dir), Folder(options.output_dir)
    if options.measure:
        check_measured(output, stated="measure" in options.model_fields_set)
    commits.require_same(output, DATASET_SETTINGS, options.settings(is_measured(output)))
    if options.push_to_hub:
        claim_repository(options.push_to_hub)
    with owned(output, options.take_over) as lease:
        summary = _prepare(options, inputs, lease)
    if options.push_to_hub:
        publish(output, options.push_to_hub)
    seconds = round(time.monotonic() - began, 1)
    return {"verb": "prepare", "output_dir": options.output_dir, "seconds": seconds, **summary}


def _prepare(options: PrepareOptions, inputs: Inputs, lease: Lease) -> dict[str, Any]:
    """Write the missing shards, complete the dataset in the folder of `lease`, and return the summary."""
    planned, new = new_sources(lease.folder, inputs.sources(), inputs)
    for line in inputs.describe():
        say(line)
    if not planned and not new:
        supported = " ".join(sorted(AUDIO_EXTENSIONS))
        raise ValueError(
            f"input_dir {options.input_dir}: holds no audio files ({described(inputs.skipped)}; supported: {supported})"
        )
    plan = SourcePlan(lease.folder, planned, new, options.shard_seconds(new))
    job = _job(options, lease, plan)
    if job.pending:
        _check(options, lease.folder, new)
    shards = (
        len(job.pending) + (len(new) if options.drop_duplicates else 0) + (len(plan.shards) if options.verify else 0)
    )
    with engine(shards, options.num_workers, isolated=job.needs_isolation) if shards else nullcontext() as running:
        if job.pending:
            assert running is not None
            if new:
                require_shared("input_dir", str(inputs.folder.uri), new[0].uri)
            _make(options, job, plan, running)
        summary = _finish(options, job, inputs)
        if options.verify:
            assert running is not None
            verify(survey(lease.folder, PARTS), running)
    return summary


def _job(options: PrepareOptions, lease: Lease, plan: SourcePlan) -> ShardedJob:
    arguments = (options.input_dir, options.output_dir, options.mel(), options.slicing(), options.validation_fraction)
    work = ShardWork("audiodiff prepare", PrepareWorker, arguments, options.output_dir, prepared)
    settings = options.settings(is_measured(lease.folder))
    return ShardedJob(work, lease, (DATASET_SETTINGS, settings), plan, PARTS, "slices")


def _check(options: PrepareOptions, output: Folder, new: list[Source]) -> None:
    """Print the expected work and the findings on the mel configuration. Raise ValueError for errors."""
    mel = options.mel()
    seconds = sum(source.seconds for source in new)
    slices = expected_slices(mel, seconds, len(new), options.overlap)
    files = len({source.uri for source in new})
    say(f"{files:,} new files, about {seconds / 60:,.0f} minutes estimated from their sizes")
    for finding in check_mel(mel, slices):
        if finding.severity == "error":
            raise ValueError(finding.message)
        say(finding.message if finding.severity == "info" else f"{finding.severity}: {finding.message}")
    output.require_free_space(expected_bytes(mel, slices), "the dataset")


def _make(options: PrepareOptions, job: ShardedJob, plan: SourcePlan, running: Engine) -> None:
    """Write the pending shards. Raise JobError once the share of unusable files is too large."""
    unusable = sum(len(record["failures"]) for record in job.done.values())
    files = sum(size.sources for size in plan.shards.values())
    # The number of audio files in a container is unknown until a worker reads the container.
    is_count_known = not any(size.containers for size in plan.shards.values())

    def leave_out_duplicates() -> None:
        if options.drop_duplicates:
            plan.left_out = find_duplicates(options.input_dir, job.output, plan.new, running)

    def count(counts: Counts) -> None:
        nonlocal unusable
        unusable += counts["unusable"]
        if is_count_known and unusable > options.max_bad_fraction * files:
            raise JobError(
                f"{unusable} of {files} files cannot be used (max_bad_fraction {options.max_bad_fraction:g}): "
                f"see {job.output.uri}/quarantine"
            )

    job.run(running, before_plan=leave_out_duplicates, on_shard=count)


def _finish(options: PrepareOptions, job: ShardedJob, inputs: Inputs) -> dict[str, Any]:
    """Check the number of unusable files, write the last files of the dataset, and return the summary."""
    output, records = job.output, job.records()
    files, duplicates, train = (
        sum(record[key] for record in records.values()) for key in ("files", "duplicates", "rows")
    )
    validation = sum(record[VALIDATION_SPLIT]["rows"] for record in records.values())
    failures = [failure for record in records.values() for failure in record["failures"]]
    in_containers = skipped_in(records.values())
    for failure in failures[:REASONS_SHOWN]:
        say(f"quarantined: {failure['audio_file']}: {failure['reason']}")
    if len(failures) > REASONS_SHOWN:
        say(f"quarantined: {len(failures) - REASONS_SHOWN:,} more, see {output.uri}/quarantine")
    if len(failures) > options.max_bad_fraction * files or train == 0:
        raise JobError(
            f"{len(failures)} of {files} files cannot be used (max_bad_fraction {options.max_bad_fraction:g}), "
            f"the training split has {train} slices (skipped: {described(inputs.skipped + in_containers)})"
        )
    padding = Padding.of(records.values())
    if advice := padding.advice(options.mel()):
        say(f"warning: {advice}")
    measured = is_measured(output)
    parts = {name: digest for record in records.values() for name, digest in record["parts"].items()}
    summary: dict[str, Any] = {
        "format_version": DATASET_FORMAT_VERSION,
        "files": files,
        "quarantined": len(failures),
        "duplicates": duplicates,
        "slices": train + validation,
        "validation_slices": validation,
        "mostly_padding": round(padding.share, 4),
        "shards": len(records),
        "digest": commits.settings_digest({"settings": options.settings(measured), "parts": parts}),
    }
    output.write(MEL_CONFIG, options.mel().to_json().encode())
    splits = [TRAIN_SPLIT, VALIDATION_SPLIT] if validation else [TRAIN_SPLIT]
    output.write("README.md", card(options.mel(), options.slicing(), splits, summary, measured).encode())
    job.succeed(summary)
    return {
        **summary,
        "others": inputs.others + in_containers.total(),
        "skipped": shortened(inputs.skipped + in_containers),
    }
