"""Audio -> embeddings to condition on, or a mel dataset -> latents to train on; by shards, each of them whole or absent.

    OUT/encode.json          settings and their digest
    OUT/data/NNNNNN.parquet  embeddings: a row for each audio file (`encodings.py`); latents: see `latents_dataset.py`
    OUT/_plan                embeddings: which files make which shard
    OUT/_commits, _SUCCESS   the commit protocol

An encoder listens to audio, and a mel dataset holds pictures of it: its files are found again by the names in it, in the folder that it was
prepared from (input_dir) or, where they are absolute, where they say.
"""

import time
from collections.abc import Iterator
from typing import Any, Self

import pydantic

from audiodiff_core.checkpoint import load_vae
from audiodiff_core.embeddings import load_encoder
from audiodiff_core.latents import latent_shape
from audiodiff_core.models import network_digest
from audiodiff_platform.audio_files import Inputs, Source, described, shortened, skipped_in
from audiodiff_platform.cluster import encoder_source, require_shared, usable_encoder, usable_path
from audiodiff_platform.cluster.capacity import Device
from audiodiff_platform.encode.embeddings import EmbeddingsWorker, embedded
from audiodiff_platform.encode.latents import LatentsWorker, encoded
from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.entry.options import OutputOptions
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.mel_data.latents import LATENTS_FORMAT_VERSION, LATENTS_SETTINGS
from audiodiff_platform.mel_data.mel_dataset import MEL_CONFIG, VALIDATION_SPLIT, MelDataset
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.lease import owned
from audiodiff_platform.work.engine import ShardWork, engine
from audiodiff_platform.work.plan import ShardSize, SourcePlan, new_sources, shard_seconds
from audiodiff_platform.work.sharded_job import FixedPlan, ShardedJob

REASONS_SHOWN = 10
SHARD_SECONDS_AT_LEAST = 300  # of audio
LATENT_BATCH_SIZE = 8  # images at once, part of what fixes the bytes
BYTES_PER_LATENT_VALUE = 8  # mean and log variance


class EncodeOptions(OutputOptions):
    """What to encode with what."""

    dataset_name: str | None = pydantic.Field(
        None, description="mel dataset whose latents, or embeddings of whose files, are made: a path, s3:// or gs://"
    )
    input_dir: str | None = pydantic.Field(
        None,
        description="audio to embed, as prepare takes it: a folder or a list; beside dataset_name: what that was prepared from",
    )
    output_dir: str = pydantic.Field(description="folder for the embeddings or latents: a path, s3:// or gs://")
    encoder: str | None = pydantic.Field(
        None, description="what makes embeddings: folder or Hugging Face id of an AudioEncoder or a CLAP"
    )
    latents: bool = pydantic.Field(
        False, description="make latents of the dataset's images by the autoencoder `vae`, instead of embeddings"
    )
    vae: str | None = pydantic.Field(
        None,
        description="autoencoder for latents: a folder of train_vae or of a latent model, a URI or a Hugging Face id",
    )
    max_bad_fraction: float = pydantic.Field(
        0.5, ge=0, le=1, description="share of audio files that may be unusable before the job fails, 0 to 1"
    )
    num_workers: int | None = pydantic.Field(
        None, ge=1, description="parallel workers, a CPU or GPU each; none: all that nothing else has reserved"
    )
    device: Device = pydantic.Field(
        "auto", description="what workers run on: cpu, gpu, or auto for GPUs if the cluster has any now"
    )

    @pydantic.model_validator(mode="after")
    def _one_thing_is_asked_for(self) -> Self:
        if self.latents and not (self.dataset_name and self.vae and not self.encoder and not self.input_dir):
            raise ValueError("latents needs dataset_name and vae, and neither encoder nor input_dir")
        if not self.latents and (self.vae or not self.encoder or not (self.dataset_name or self.input_dir)):
            raise ValueError("embeddings need encoder, and input_dir or dataset_name or both; vae is for latents only")
        return self


def encode(options: EncodeOptions) -> dict[str, Any]:
    """Runs the job; says how many embeddings or latents there are and where."""
    began = time.monotonic()
    stated = {
        name: uri for name in ("dataset_name", "input_dir", "output_dir", "vae") if (uri := getattr(options, name))
    }
    options = options.model_copy(
        update={name: usable_path(name, uri, hub_id=name == "vae") for name, uri in stated.items()}
    )
    summary = encode_latents(options) if options.latents else embed(options)
    return {
        "verb": "encode",
        "output_dir": options.output_dir,
        "seconds": round(time.monotonic() - began, 1),
        **summary,
    }


def embed(options: EncodeOptions) -> dict[str, Any]:
    """Embed the audio files of a folder, or of those that a mel dataset was made of -> the summary."""
    assert options.encoder is not None
    name = usable_encoder(options.encoder)
    encoder, output = load_encoder(name), Folder(options.output_dir)
    settings = {
        "format_version": LATENTS_FORMAT_VERSION,
        "encoder": encoder.name,
        "encoder_digest": encoder.digest,
        "dim": encoder.dim,
    }
    commits.require_same(output, LATENTS_SETTINGS, settings)
    tracks = _tracks(options.dataset_name) if options.dataset_name else None
    inputs = Inputs(options.input_dir or str(options.dataset_name))
    with owned(output, options.take_over) as lease:
        planned, new = new_sources(output, _sources(options, inputs, tracks), inputs)
        for line in inputs.describe():
            say(line)
        if not planned and not new:
            raise ValueError(f"input_dir {options.input_dir}: holds no audio files ({described(inputs.skipped)})")
        plan = SourcePlan(output, planned, new, shard_seconds(new, SHARD_SECONDS_AT_LEAST))
        arguments = (inputs.uri, options.output_dir, name, settings["encoder_digest"])
        work = ShardWork("audiodiff encode", EmbeddingsWorker, arguments, options.output_dir, embedded)
        job = ShardedJob(work, lease, (LATENTS_SETTINGS, settings), plan, ("data",), "embeddings")
        if job.pending:
            seconds = sum(source.seconds for source in new)
            say(
                f"{len({source.uri for source in new}):,} new files to embed, about {seconds / 60:,.0f} minutes by their sizes"
            )
            with engine(len(job.pending), options.num_workers, options.device, isolated=job.needs_isolation) as running:
                if new:
                    require_shared("input_dir", str(inputs.folder.uri), new[0].uri)
                require_shared("encoder", encoder_source(name), "config.json")
                job.run(running)
        return _finish_embeddings(options, job, settings, tracks, inputs)


def _tracks(dataset_name: str) -> set[str]:
    """The names of the files that a mel dataset was made of, held-out ones too."""
    return MelDataset(dataset_name).audio_files() | MelDataset(dataset_name, VALIDATION_SPLIT).audio_files()


def _sources(options: EncodeOptions, inputs: Inputs, tracks: set[str] | None) -> Iterator[Source]:
    """What is to be embedded; raises ValueError where a dataset's files are not to be found."""
    if tracks is None:
        yield from inputs.sources()
        return
    if options.input_dir is None:
        relative = min((track for track in tracks if "://" not in track and not track.startswith("/")), default=None)
        if relative is not None:
            raise ValueError(
                f"dataset_name {options.dataset_name} holds no audio and names it relative to a folder ({relative}): name that as input_dir"
            )
        yield from inputs.named(sorted(tracks))
        return
    left = set(tracks)
    for source in inputs.sources():
        if source.is_container and (members := {track for track in left if track.startswith(f"{source.uri}/")}):
            left -= members
            yield source
        elif source.uri in tracks:
            left.discard(source.uri)
            yield source
    if left:
        of = f"{len(left):,} of the {len(tracks):,} files of dataset_name {options.dataset_name}"
        raise ValueError(f"input_dir {options.input_dir}: lacks {of}, such as {min(left)}")


def _finish_embeddings(
    options: EncodeOptions, job: ShardedJob, settings: dict[str, Any], tracks: set[str] | None, inputs: Inputs
) -> dict[str, Any]:
    """Check the whole, then write `_SUCCESS`; return the summary."""
    records = job.records()
    failures = [failure for record in records.values() for failure in record["failures"]]
    for failure in failures[:REASONS_SHOWN]:
        say(f"unusable: {failure['audio_file']}: {failure['reason']}")
    made = sum(record["rows"] for record in records.values())
    if len(failures) > options.max_bad_fraction * (made + len(failures)) or not made:
        raise JobError(
            f"{len(failures)} of {made + len(failures)} files cannot be used (max_bad_fraction {options.max_bad_fraction:g})"
        )
    if tracks is not None and (lost := sorted(tracks & {failure["audio_file"] for failure in failures})):
        raise JobError(
            f"{len(lost)} files of dataset_name {options.dataset_name} cannot be embedded, such as {lost[0]}"
        )
    summary = {**settings, "embeddings": made, "unusable": len(failures), "digest": _digest(settings, records)}
    job.succeed(summary)
    in_containers = skipped_in(records.values())
    return {
        **summary,
        "others": inputs.others + in_containers.total(),
        "skipped": shortened(inputs.skipped + in_containers),
    }


def encode_latents(options: EncodeOptions) -> dict[str, Any]:
    """Latents of all slices of a mel dataset, in its order."""
    assert options.dataset_name is not None
    assert options.vae is not None
    dataset, output = MelDataset(options.dataset_name), Folder(options.output_dir)
    vae = load_vae(options.vae)
    try:
        shape = latent_shape(vae, dataset.mel.y_res, dataset.mel.x_res)
    except ValueError as error:
        raise ValueError(f"vae {options.vae} cannot encode dataset_name {options.dataset_name}: {error}") from error
    settings = {
        "format_version": LATENTS_FORMAT_VERSION,
        "dataset_digest": dataset.digest,
        "vae_digest": network_digest(vae),
        "latent_shape": list(shape),
        "batch_size": LATENT_BATCH_SIZE,
    }
    commits.require_same(output, LATENTS_SETTINGS, settings)
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
        job = ShardedJob(work, lease, (LATENTS_SETTINGS, settings), plan, ("data",), "latents")
        if job.pending:
            pending = sum(rows[shard] for shard in job.pending)
            values = shape[0] * shape[1] * shape[2]
            output.require_free_space(pending * values * BYTES_PER_LATENT_VALUE, "the latents")
            say(
                f"{pending:,} images to latents of {'x'.join(map(str, shape))}, {len(job.pending):,} of {len(plan.shards):,} shards to do"
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
    """Return the digest of the content of a finished folder."""
    parts = {name: digest for record in records.values() for name, digest in record["parts"].items()}
    return commits.settings_digest({"settings": settings, "parts": parts})
