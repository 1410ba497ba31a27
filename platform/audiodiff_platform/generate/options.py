"""Options of generate."""

from typing import Any, Self

import pydantic

from audiodiff_core.audio import AudioFormat
from audiodiff_core.checkpoint import Model
from audiodiff_core.sampling import DEFAULT_BATCH_SIZES, Precision, SamplingParameters
from audiodiff_core.seeds import SEEDS
from audiodiff_platform.cluster.capacity import Device
from audiodiff_platform.entry.options import OutputOptions
from audiodiff_platform.mel_data.loops_folder import LOOPS_FORMAT_VERSION

BATCHES_PER_SHARD = 4
LOOPS_AT_MOST = 10_000_000  # of a folder: the driver lists their shards


class GenerateOptions(SamplingParameters, OutputOptions):
    """Which loops to make of which model."""

    model: str = pydantic.Field(
        description="model folder (train writes OUTPUT_DIR/model), s3:// or gs:// URI, or Hugging Face id"
    )
    output_dir: str = pydantic.Field(description="folder for audio and manifest: a path, s3:// or gs://")
    count: int = pydantic.Field(ge=1, le=LOOPS_AT_MOST, description="how many loops")
    seed: int = pydantic.Field(
        0, ge=SEEDS[0], le=SEEDS[-1], description="seed of the first loop; each next one has the next seed"
    )
    format: AudioFormat = pydantic.Field("wav", description="file format: wav, flac, ogg or mp3")
    batch_size: int | None = pydantic.Field(
        None, ge=1, le=1_024, description="samples per network call, part of what fixes the bytes; none: by device"
    )
    precision: Precision | None = pydantic.Field(
        None, description="arithmetic of the network: fp32, bf16 or fp16; none: by device, fp32 on a CPU"
    )
    compiled: bool = pydantic.Field(
        False, description="compile the network at the start of each worker: worth it for many loops"
    )
    num_workers: int | None = pydantic.Field(
        None, ge=1, description="parallel workers, a CPU or GPU each; none: all that nothing else has reserved"
    )
    device: Device = pydantic.Field(
        "auto", description="what workers run on: cpu, gpu, or auto for GPUs if the cluster has any now"
    )

    @pydantic.model_validator(mode="after")
    def _seeds_exist(self) -> Self:
        if self.seed + self.count - 1 > SEEDS[-1]:
            raise ValueError(f"seed {self.seed} with count {self.count}: seeds end at {SEEDS[-1]}")
        return self

    def settings(self, model: Model) -> dict[str, Any]:
        """All that decides what the folder holds, but for the device, which the manifest states."""
        free = {"model", "output_dir", "num_workers", "device", "take_over"}
        return {"format_version": LOOPS_FORMAT_VERSION, "model_digest": model.digest, **self.model_dump(exclude=free)}

    def shard_seeds(self) -> list[range]:
        """The seeds of each shard: a few batches, whatever the number of workers."""
        size = BATCHES_PER_SHARD * (self.batch_size or DEFAULT_BATCH_SIZES["cpu"])
        end = self.seed + self.count
        return [range(first, min(first + size, end)) for first in range(self.seed, end, size)]
