"""Options of the verb `generate`."""

from typing import Any, Self

import pydantic

from audiodiff_core.audio import AudioFormat
from audiodiff_core.checkpoint import Model
from audiodiff_core.diffusion.seeds import SEEDS
from audiodiff_core.sampling import SamplingParameters
from audiodiff_core.sampling.profile import CPU_BATCH_SIZE
from audiodiff_platform.cluster.options import ProfileOptions, WorkerOptions
from audiodiff_platform.entry.options import OutputOptions
from audiodiff_platform.mel_data.loops_folder import LOOPS_FORMAT_VERSION

BATCHES_PER_SHARD = 4
MAX_LOOPS = 10_000_000
"""Maximum number of loops in a folder. The driver keeps a list of their shards."""


class GenerateOptions(SamplingParameters, ProfileOptions, WorkerOptions, OutputOptions):
    """Options of generate: model, seeds and sampling parameters of the loops, output folder, workers."""

    model: str = pydantic.Field(
        description="model: a folder (train writes OUTPUT_DIR/model), an s3:// or gs:// URI, or a Hugging Face id"
    )
    output_dir: str = pydantic.Field(description="folder for the audio files and the manifest: a path, s3:// or gs://")
    count: int = pydantic.Field(ge=1, le=MAX_LOOPS, description="number of loops")
    seed: int = pydantic.Field(
        0,
        ge=SEEDS[0],
        le=SEEDS[-1],
        description="seed of the first loop; the seeds of the following loops count up from it",
    )
    format: AudioFormat = pydantic.Field("wav", description="file format: wav, flac, ogg or mp3")
    compiled: bool = pydantic.Field(
        False, description="compile the network when a worker starts, which pays off for many loops"
    )

    @pydantic.model_validator(mode="after")
    def _seeds_exist(self) -> Self:
        if self.seed + self.count - 1 > SEEDS[-1]:
            raise ValueError(f"seed {self.seed} with count {self.count}: the last seed must be at most {SEEDS[-1]}")
        return self

    def settings(self, model: Model) -> dict[str, Any]:
        """Return the settings that determine the loops in a folder, as JSON values.

        The device is not part of the settings. The manifest records it for each loop.

        Args:
            model: The model of the loops.
        """
        excluded = {"model", "output_dir", "num_workers", "device", "take_over"}
        settings = self.model_dump(exclude=excluded)
        return {"format_version": LOOPS_FORMAT_VERSION, "model_digest": model.digest, **settings}

    def shard_seeds(self) -> list[range]:
        """Return the seeds of each shard. The shards do not depend on the number of workers."""
        size = BATCHES_PER_SHARD * (self.batch_size or CPU_BATCH_SIZE)
        end = self.seed + self.count
        return [range(first, min(first + size, end)) for first in range(self.seed, end, size)]
