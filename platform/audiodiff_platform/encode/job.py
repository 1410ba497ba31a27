"""Job that computes embeddings of audio files, or latents of a mel dataset.

Each shard of the result is complete or absent.

    OUT/encode.json          settings and their digest
    OUT/data/NNNNNN.parquet  embeddings, a row for each audio file (`mel_data/encodings.py`), or latents
                             (`mel_data/latents.py`)
    OUT/_plan                embeddings only: the files of each shard
    OUT/_commits, _SUCCESS   commits of shards, and the mark of a finished job

An encoder needs audio, but a mel dataset holds only images and the names of the audio files. Relative names are looked
up in `input_dir`, the folder from which the dataset was prepared. Absolute names are used unchanged.
"""

import time
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, Self

import pydantic

from audiodiff_core.checkpoint import load_vae
from audiodiff_core.embeddings import load_encoder
from audiodiff_core.latents import latent_shape
from audiodiff_core.models import network_digest
from audiodiff_platform.audio_files import Inputs, Source, described, shortened, skipped_in
from audiodiff_platform.cluster import encoder_source, require_shared, usable_encoder, usable_path
from audiodiff_platform.cluster.options import WorkerOptions
from audiodiff_platform.encode.embeddings import EmbeddingsWorker, embedded
from audiodiff_platform.encode.latents import LatentsWorker, encoded
from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.entry.options import OutputOptions
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.mel_data.latents import ENCODE_FORMAT_VERSION, ENCODE_SETTINGS
from audiodiff_platform.mel_data.loops_folder import LOOPS_SETTINGS, committed_files
from audiodiff_platform.mel_data.mel_dataset import MEL_CONFIG, VALIDATION_SPLIT, MelDataset
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.lease import owned
from audiodiff_platform.work.engine import ShardWork, engine
from audiodiff_platform.work.plan import ShardSize, SourcePlan, new_sources, shard_seconds
from audiodiff_platform.work.sharded_job import FixedPlan, ShardedJob

REASONS_SHOWN = 10
MIN_SHARD_SECONDS = 300
LATENT_BATCH_SIZE = 8
"""Number of images per call of the autoencoder. The rounding of the latents depends on this number."""
BYTES_PER_LATENT_VALUE = 8  # float32 mean and log variance


class EncodeOptions(WorkerOptions, OutputOptions):
    """Options of encode: input, output, and the encoder or autoencoder."""

    dataset_name: str | None = pydantic.Field(
        None,
        description="mel dataset (a path, s3:// or gs://) whose images are encoded, or whose audio files are embedded",
    )
    input_dir: str | None = pydantic.Field(
        None,
        description="audio to embed: a folder or list, as for prepare, or the output of generate; with dataset_name: "
        "the input_dir of the dataset",
    )
    output_dir: str = pydantic.Field(description="folder of the embeddings or latents: a path, s3:// or gs://")
    encoder: str | None = pydantic.Field(
        None, description="encoder for embeddings: the folder or Hugging Face id of an AudioEncoder or a CLAP model"
    )
    latents: bool = pydantic.Field(
        False, description="compute latents of the images of dataset_name with vae, instead of embeddings"
    )
    vae: str | None = pydantic.Field(
        None,
        description="autoencoder for latents: the folder, URI or Hugging Face id of an autoencoder from train_vae, or "
        "of a latent model",
    )
    max_bad_fraction: float = pydantic.Field(
        0.5, ge=0, le=1, description="share of unusable audio files above which the job fails"
    )

    @pydantic.model_validator(mode="after")
    def _check_combination(self) -> Self:
        if self.latents and not (self.dataset_name and self.vae and not self.encoder and not self.input_dir):
            raise ValueError("latents needs dataset_name and vae, and neither encoder nor input_dir")
        if not self.latents and (self.vae or not self.encoder or not (self.dataset_name or self.input_dir)):
            raise ValueError("embeddings need encoder, and input_dir or dataset_name or both; vae is for latents only")
        return self


def encode(options: EncodeOptions) -> dict[str, Any]:
    """Run the job.

    Returns:
        The summary: settings, the number of embeddings or latents, the digest of the result and the time in seconds.

    Raises:
        ValueError: An option is invalid, or the input lacks audio files.
        JobError: More than `options.max_bad_fraction` of the files are unusable, or planned files have changed.
    """
    began = time.monotonic()
    uris = {name: uri for name in ("dataset_name", "input_dir", "output_dir", "vae") if (uri := getattr(options, name))}
    options = options.model_copy(
        update={name: usable_path(name, uri, hub_id=name == "vae") for name, uri in uris.items()}
    )
    summary = encode_latents(options) if options.latents else embed(options)
    return {
        "verb": "encode",
        "output_dir": options.output_dir,
        "seconds": round(time.monotonic() - began, 1),
        **summary,
    }


def embed(options: EncodeOptions) -> dict[str, Any]:
    """Compute embeddings of the audio files of an input or of a mel dataset, and return the summary."""
    assert options.encoder is not None
    inputs = Inputs(options.input_dir, options.output_dir) if options.input_dir else Inputs(str(options.dataset_name))
    name = usable_encoder(options.encoder)
    encoder, output = load_encoder(name), Folder(options.output_dir)
    settings = {
        "format_version": ENCODE_FORMAT_VERSION,
        "encoder": encoder.name,
        "encoder_digest": encoder.digest,
        "dim": encoder.dim,
    }
    commits.require_same(output, ENCODE_SETTINGS, settings)
    tracks = _tracks(options.dataset_name) if options.dataset_name else None
    with owned(output, options.take_over) as lease:
        planned, new = new_sources(output, _sources(options, inputs, tracks), inputs)
        for line in inputs.describe():
            say(line)
        if not planned and not new:
            raise ValueError(f"input_dir {options.input_dir}: holds no audio files ({described(inputs.skipped)})")
        plan = SourcePlan(output, planned, new, shard_seconds(new, MIN_SHARD_SECONDS))
        arguments = (inputs.uri, options.output_dir, name, settings["encoder_digest"])
        work = ShardWork("audiodiff encode", EmbeddingsWorker, arguments, options.output_dir, embedded)
        job = ShardedJob(work, lease, (ENCODE_SETTINGS, settings), plan, ("data",), "embeddings")
        if job.pending:
            seconds = sum(source.seconds for source in new)
            say(
                f"{len({source.uri for source in new}):,} new files to embed, "
                f"about {seconds / 60:,.0f} minutes estimated from their sizes"
            )
            with engine(len(job.pending), options.num_workers, options.device, isolated=job.needs_isolation) as running:
                if new:
                    require_shared("input_dir", str(inputs.folder.uri), new[0].uri)
                require_shared("encoder", encoder_source(name), "config.json")
                job.run(running)
        return _finish_embeddings(options, job, settings, tracks, inputs)


def _tracks(dataset_name: str) -> set[str]:
    """Return the names of the audio files of a mel dataset, of both splits."""
    return MelDataset(dataset_name).audio_files() | MelDataset(dataset_name, VALIDATION_SPLIT).audio_files()


def _sources(options: EncodeOptions, inputs: Inputs, tracks: set[str] | None) -> Iterator[Source]:
    """Yield the sources to embed: the complete input, or only the audio files `tracks` of a dataset.

    Raise ValueError if some of the `tracks` are not in the input.
    """
    if tracks is None:
        yield from _loops(options, inputs) if Folder(inputs.uri).exists(LOOPS_SETTINGS) else inputs.sources()
        return
    if options.input_dir is None:
        relative = min((track for track in tracks if "://" not in track and not track.startswith("/")), default=None)
        if relative is not None:
            raise ValueError(
                f"dataset_name {options.dataset_name} holds no audio, and names its audio files relative to a "
                f"folder ({relative}): pass this folder as input_dir"
            )
        for source in inputs.named(sorted(tracks)):
            if source.version == "missing" and source.in_container:
                raise ValueError(
                    f"dataset_name {options.dataset_name} names members of containers ({source.uri}): "
                    "pass the list from which it was prepared as input_dir"
                )
            yield source
        return
    remaining, in_order = set(tracks), sorted(tracks)
    for source in inputs.sources():
        if source.is_container and (members := _members(in_order, source.uri)):
            remaining.difference_update(members)
            yield source
        elif source.uri in tracks:
            remaining.discard(source.uri)
            yield source
    if remaining:
        missing = f"{len(remaining):,} of the {len(tracks):,} files of dataset_name {options.dataset_name}"
        raise ValueError(f"input_dir {options.input_dir}: lacks {missing}, such as {min(remaining)}")


def _members(in_order: list[str], container: str) -> list[str]:
    """Return the tracks in a container, of tracks in the order of their names."""
    first, stop = bisect_left(in_order, f"{container}/"), bisect_left(in_order, f"{container}0")  # "0" follows "/"
    return in_order[first:stop]


def _loops(options: EncodeOptions, inputs: Inputs) -> Iterator[Source]:
    """Yield the files of a folder of generated loops by the paths in its manifest. The version is the digest."""
    try:
        for part in committed_files(Folder(inputs.uri), "audio"):
            yield Source(part.path, part.bytes or 0, part.sha256)
    except ValueError as error:
        raise ValueError(f"input_dir {options.input_dir}: {error}") from error


def _finish_embeddings(
    options: EncodeOptions, job: ShardedJob, settings: dict[str, Any], tracks: set[str] | None, inputs: Inputs
) -> dict[str, Any]:
    """Check the number of unusable files, write `_SUCCESS` and return the summary."""
    records = job.records()
    failures = [failure for record in records.values() for failure in record["failures"]]
    for failure in failures[:REASONS_SHOWN]:
        say(f"unusable: {failure['audio_file']}: {failure['reason']}")
    embeddings = sum(record["rows"] for record in records.values())
    files = embeddings + len(failures)
    if len(failures) > options.max_bad_fraction * files or not embeddings:
        raise JobError(
            f"{len(failures)} of {files} files cannot be used (max_bad_fraction {options.max_bad_fraction:g})"
        )
    reasons = {failure["audio_file"]: failure["reason"] for failure in failures}
    if tracks is not None and (lost := sorted(tracks & reasons.keys())):
        raise JobError(
            f"{len(lost)} files of dataset_name {options.dataset_name} cannot be embedded, such as {lost[0]} "
            f"({reasons[lost[0]]}): replace or split these files, prepare them into another folder, and encode that one"
        )
    summary = {**settings, "embeddings": embeddings, "unusable": len(failures), "digest": _digest(settings, records)}
    job.succeed(summary)
    in_containers = skipped_in(records.values())
    return {
        **summary,
        "others": inputs.others + in_containers.total(),
        "skipped": shortened(inputs.skipped + in_containers),
    }


def encode_latents(options: EncodeOptions) -> dict[str, Any]:
    """Compute the latents of all slices of a mel dataset, in its order, and return the summary."""
    assert options.dataset_name is not None
    assert options.vae is not None
    dataset, output = MelDataset(options.dataset_name), Folder(options.output_dir)
    vae = load_vae(options.vae)
    try:
        shape = latent_shape(vae, dataset.mel.y_res, dataset.mel.x_res)
    except ValueError as error:
        raise ValueError(f"vae {options.vae} cannot encode dataset_name {options.dataset_name}: {error}") from error
    settings = {
        "format_version": ENCODE_FORMAT_VERSION,
        "dataset_digest": dataset.digest,
        "vae_digest": network_digest(vae),
        "latent_shape": list(shape),
        "batch_size": LATENT_BATCH_SIZE,
    }
    commits.require_same(output, ENCODE_SETTINGS, settings)
    rows: dict[int, int] = {}
    for shard, _, count in (*dataset.groups, *MelDataset(options.dataset_name, VALIDATION_SPLIT).groups):
        rows[shard] = rows.get(shard, 0) + count
    plan = FixedPlan(
        {
            shard: ShardSize(sources=count, seconds=count * dataset.mel.slice_duration_s)
            for shard, count in sorted(rows.items())
        }
    )
    arguments = (options.dataset_name, options.output_dir, options.vae, settings["vae_digest"], LATENT_BATCH_SIZE)
    work = ShardWork("audiodiff encode latents", LatentsWorker, arguments, options.output_dir, encoded)
    with owned(output, options.take_over) as lease:
        job = ShardedJob(work, lease, (ENCODE_SETTINGS, settings), plan, ("data",), "latents")
        if job.pending:
            pending = sum(rows[shard] for shard in job.pending)
            values = shape[0] * shape[1] * shape[2]
            output.require_free_space(pending * values * BYTES_PER_LATENT_VALUE, "the latents")
            say(
                f"{pending:,} images to encode as latents of {'x'.join(map(str, shape))}, "
                f"{len(job.pending):,} of {len(plan.shards):,} shards"
            )
            with engine(len(job.pending), options.num_workers, options.device, isolated=job.needs_isolation) as running:
                require_shared("dataset_name", options.dataset_name, MelDataset.probe_file)
                require_shared("vae", options.vae, probe_file="")
                job.run(running)
        records = job.records()
        output.write(MEL_CONFIG, dataset.mel.to_json().encode())
        summary = {
            **settings,
            "latents": sum(record["rows"] for record in records.values()),
            "digest": _digest(settings, records),
        }
        job.succeed(summary)
    return summary


def _digest(settings: dict[str, Any], records: dict[int, dict[str, Any]]) -> str:
    """Return the digest of the settings and parts of a finished folder."""
    parts = {name: digest for record in records.values() for name, digest in record["parts"].items()}
    return commits.settings_digest({"settings": settings, "parts": parts})
