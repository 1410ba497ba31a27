"""A model and a range of seeds -> audio files and a manifest, by shards, each of them whole or absent.

    OUT/generate.json           settings and their digest
    OUT/audio/<id>.wav          a loop; its id is its seed
    OUT/manifest/*.parquet      a row for each (`SCHEMA`)
    OUT/_commits, OUT/_SUCCESS  the commit protocol
"""

import hashlib
import io
import time
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic

from audiodiff_core.audio import AudioFormat, encode
from audiodiff_core.checkpoint import MODEL_INDEX, Model, load_model
from audiodiff_core.loops import level_db, seam_score
from audiodiff_core.pipeline import Geometry, Loop
from audiodiff_core.sampling import DEFAULT_BATCH_SIZES, ExecutionProfile, GenerateRequest, Precision, SamplingParameters
from audiodiff_core.seeds import SEEDS
from audiodiff_core.tempo import measure_tempo
from audiodiff_platform import commits
from audiodiff_platform.cluster import connected, cpus, gpus, require_resources, require_shared, say, usable_path
from audiodiff_platform.recipe import Options
from audiodiff_platform.shards import run_shards
from audiodiff_platform.storage import Folder

FORMAT_VERSION = 2
SETTINGS = "generate.json"
BATCHES_PER_SHARD = 4

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.string()),
        ("seed", pa.int64()),
        ("steps", pa.int32()),
        ("scheduler", pa.string()),
        ("eta", pa.float64()),
        ("guidance_scale", pa.float64()),
        ("width", pa.int32()),
        ("seamless", pa.bool_()),
        ("batch_size", pa.int32()),
        ("precision", pa.string()),
        ("device", pa.string()),
        ("compiled", pa.bool_()),
        ("threads", pa.int32()),
        ("model_digest", pa.string()),
        ("mel_digest", pa.string()),
        ("sha256", pa.string()),
        ("duration_s", pa.float64()),
        ("tempo_bpm", pa.float64()),  # null where there is no tempo
        ("tempo_confidence", pa.float64()),
        ("seam_score", pa.float64()),
        ("level_db", pa.float64()),
    ],
    metadata={"audiodiff_format_version": str(FORMAT_VERSION)},
)


class GenerateOptions(SamplingParameters, Options):
    """Which loops to make of which model."""

    model: str = pydantic.Field(description="model folder (train writes OUTPUT_DIR/model), s3:// or gs:// URI, or Hugging Face id")
    output_dir: str = pydantic.Field(description="folder for audio and manifest: a path, s3:// or gs://")
    count: int = pydantic.Field(ge=1, description="how many loops")
    seed: int = pydantic.Field(0, ge=SEEDS[0], le=SEEDS[-1], description="seed of the first loop; each next one has the next seed")
    format: AudioFormat = pydantic.Field("wav", description="file format: wav, flac, ogg or mp3")
    batch_size: int | None = pydantic.Field(None, ge=1, le=1_024, description="samples per network call, part of what fixes the bytes; none: by device")
    precision: Precision | None = pydantic.Field(None, description="arithmetic of the network: fp32, bf16 or fp16; none: by device, fp32 on a CPU")
    compiled: bool = pydantic.Field(False, description="compile the network at the start of each worker: worth it for many loops")
    num_workers: int | None = pydantic.Field(None, ge=1, description="parallel workers, a CPU or GPU each; none: all GPUs, else all CPUs")

    @pydantic.model_validator(mode="after")
    def _seeds_exist(self) -> Self:
        if self.seed + self.count - 1 > SEEDS[-1]:
            raise ValueError(f"seed {self.seed} with count {self.count}: seeds end at {SEEDS[-1]}")
        return self

    def settings(self, model: Model) -> dict[str, Any]:
        """All that decides what the folder holds, but for the device, which the manifest states."""
        free = {"model", "output_dir", "num_workers"}
        return {"format_version": FORMAT_VERSION, "model_digest": model.digest, **self.model_dump(exclude=free)}

    def shard_seeds(self) -> list[range]:
        """The seeds of each shard: a few batches, whatever the number of workers."""
        size = BATCHES_PER_SHARD * (self.batch_size or DEFAULT_BATCH_SIZES["cpu"])
        end = self.seed + self.count
        return [range(first, min(first + size, end)) for first in range(self.seed, end, size)]


def generate(options: GenerateOptions) -> dict[str, Any]:
    """Runs the job; says how many loops there are and where."""
    began = time.monotonic()
    places = {"model": usable_path("model", options.model, hub_id=True), "output_dir": usable_path("output_dir", options.output_dir)}
    options = options.model_copy(update=places)
    model = load_model(options.model)
    geometry = Geometry.of(model.unet, model.vae, model.mel)
    if geometry.encoding_dim is not None:
        raise ValueError(f"model {options.model} is conditional: it makes loops of encodings, which generate cannot be given")
    options = geometry.resolved(options, model.scheduler)
    encode(np.zeros(1, np.float32), model.mel.sample_rate, options.format)  # raises if the format cannot hold the rate
    output = Folder(options.output_dir)
    commits.require_same(output, SETTINGS, options.settings(model))
    done = commits.committed(output)
    made = sum(record["rows"] for record in done.values())
    if made < options.count:
        samples = geometry.width(options) * model.mel.hop_length
        output.require_free_space((options.count - made) * samples * 2, "the audio")
        shards = options.shard_seeds()
        pending = [shard for shard in range(len(shards)) if shard not in done]
        say(f"{options.count} loops of {samples / model.mel.sample_rate:.2f} s, {len(pending)} of {len(shards)} shards to do")
        with connected():
            gpu = gpus() > 0
            workers = options.num_workers or (gpus() if gpu else cpus())
            require_resources(workers, gpus_each=int(gpu))
            require_shared("model", options.model, MODEL_INDEX)
            commits.claim(output, SETTINGS, options.settings(model))
            require_shared("output_dir", options.output_dir, SETTINGS)
            commits.begin(output)
            for counts in run_shards(GenerateWorker, (options, model.digest), pending, workers, gpus=int(gpu)):
                made += counts["loops"]
                say(f"{made} of {options.count} loops, {(time.monotonic() - began):.0f} s")
    kept = {name for record in commits.committed(output).values() for name in record["parts"]}
    for name in output.names("audio/*") + output.names("manifest/*"):
        if name not in kept:
            output.remove(name)
    summary = {"format_version": FORMAT_VERSION, "loops": options.count, "model_digest": model.digest}
    commits.succeed(output, summary)
    return {"verb": "generate", "output_dir": options.output_dir, "seconds": round(time.monotonic() - began, 1), **summary}


class GenerateWorker:
    """Makes shards of loops with one loaded model; lives in an actor."""

    def __init__(self, options: GenerateOptions, model_digest: str) -> None:
        self.options = options
        self.output = Folder(options.output_dir)
        self.profile = ExecutionProfile.here(options.precision, options.batch_size, options.compiled)
        self.profile.prepare_process()
        model = load_model(options.model)
        if model.digest != model_digest:
            raise ValueError(f"model {options.model} has changed since the job began: digest {model.digest}, it was {model_digest}")
        self.digest = model.digest
        self.pipeline = model.pipeline(self.profile)

    def shard(self, shard: int) -> dict[str, int]:
        """Writes the shard's audio files and its part of the manifest, then commits it."""
        parameters = self.options.model_dump(include=set(SamplingParameters.model_fields))
        requests = [GenerateRequest(seed=seed, **parameters) for seed in self.options.shard_seeds()[shard]]
        rows = sorted(self._written(self.pipeline.generate(requests)), key=lambda row: row["seed"])
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer, compression="zstd")
        manifest = f"manifest/{shard:06d}.parquet"
        self.output.write(manifest, buffer.getvalue())
        commits.commit(self.output, shard, {"rows": len(rows), "parts": [manifest, *(row["path"] for row in rows)]})
        return {"shard": shard, "loops": len(rows)}

    def _written(self, loops: Iterator[Loop]) -> Iterator[dict[str, Any]]:
        """Writes each loop's file and yields its row of the manifest."""
        mel = self.pipeline.mel
        for loop in loops:
            name = f"{loop.request.seed:010d}"
            content = loop.file(mel.sample_rate, self.options.format)
            path = f"audio/{name}.{self.options.format}"
            self.output.write(path, content)
            tempo = measure_tempo(loop.audio, mel.sample_rate)
            yield {
                "id": name,
                "path": path,
                **loop.request.model_dump(),
                **self.profile.model_dump(),
                "threads": self.profile.threads,
                "model_digest": self.digest,
                "mel_digest": mel.digest,
                "sha256": hashlib.sha256(content).hexdigest(),
                "duration_s": len(loop.audio) / mel.sample_rate,
                "tempo_bpm": tempo.bpm,
                "tempo_confidence": tempo.confidence,
                "seam_score": seam_score(loop.audio, mel.sample_rate),
                "level_db": level_db(loop.audio),
            }
