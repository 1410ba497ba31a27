"""Options that all training jobs share, and the settings that identify a training run."""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import pydantic

from audiodiff_platform.cluster.capacity import Device
from audiodiff_platform.entry.options import NO_VALUE, OutputOptions

TRAIN_FORMAT_VERSION = 5

TrackerName = Literal["tensorboard", "mlflow", "wandb", "trackio"]
Autocast = Literal["no", "bf16", "fp16"]
Precision = Literal[Autocast, "tf32"]
DEFAULT_EPOCHS = 100

_PATHS = {"output_dir", "dataset_name", "mel_config", "from_pretrained", "vae", "latents", "encodings", "push_to_hub"}
_LIMITS = {"max_train_steps", "num_epochs", "max_train_minutes"}
_EXECUTION = {
    "num_workers",
    "device",
    "accelerator_type",
    "data_workers",
    "take_over",
    "checkpoint_minutes",
    "checkpoints_kept",
    "resume",
    "report_to",
    "preview_count",
    "gradient_checkpointing",
    "torch_compile",
    "fsdp",
    "validate_in",
}
_EXPORT = {"keep", "best_by", "scheduler"}  # applied to trained weights


def _worker_range(value: Any) -> Any:
    """Split the text LOW:HIGH into a pair; return other values unchanged."""
    if isinstance(value, str) and ":" in value:
        low, _, high = value.partition(":")
        return (low, high)
    return value


def _tracker_names(value: Any) -> Any:
    """Split names at commas and drop `none`; return values that are not text unchanged."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        return texts
    return tuple(name for text in texts for name in text.split(",") if name.casefold() not in NO_VALUE)


class RunOptions(OutputOptions):
    """Options that all training jobs share: data, stopping point, optimization, workers.

    The dataset determines the mel parameters.
    """

    dataset_name: str = pydantic.Field(
        description="mel dataset written by prepare (a path, s3:// or gs://), or a dataset of the original project: "
        "a folder written by save_to_disk, a folder of Parquet files, or a Hub id OWNER/NAME"
    )
    mel_config: str | None = pydantic.Field(
        None,
        description="mel_config.json for a dataset that holds none, such as a dataset of the original project: "
        "a path, s3:// or gs://; none: 22050 Hz, hop length 512, n_fft 2048",
    )
    output_dir: str = pydantic.Field(description="run folder: a path, s3:// or gs://")
    resume: Literal["auto", "never", "must"] = pydantic.Field(
        "auto",
        description="auto: resume from the newest checkpoint in the run folder, or start at step 0 if it holds none; "
        "never: reject a run folder that holds checkpoints; must: reject a run folder that holds none",
    )
    max_train_steps: int | None = pydantic.Field(None, ge=0, description="stop after this many optimizer steps")
    num_epochs: int | None = pydantic.Field(
        None,
        ge=1,
        description=f"stop after this many passes over the dataset; {DEFAULT_EPOCHS} if no limit is set",
    )
    max_train_minutes: float | None = pydantic.Field(None, gt=0, description="stop after this many minutes of training")
    train_batch_size: int | None = pydantic.Field(
        None,
        ge=1,
        description="samples per forward pass, summed over all workers; none: 16 on CPUs; on each GPU the largest "
        "power of two, up to 64, that fits in memory and leaves an epoch 8 steps; a resumed run keeps its value",
    )
    gradient_accumulation_steps: int = pydantic.Field(1, ge=1, description="forward passes per optimizer step")
    learning_rate: float = pydantic.Field(1e-4, gt=0, description="peak learning rate")
    lr_warmup_steps: int = pydantic.Field(500, ge=0, description="steps over which the learning rate rises to its peak")
    mixed_precision: Precision | None = pydantic.Field(
        None,
        description="precision of the forward pass: no (float32), tf32 (float32 with products of 10-bit "
        "mantissas on a GPU), bf16 or fp16; none: bf16 on GPUs that support it, else no; a resumed run keeps its value",
    )
    checkpoint_minutes: float = pydantic.Field(
        5.0,
        gt=0,
        description="minutes between checkpoints, and the most work that a failure loses; "
        "a checkpoint is validated if no other validation is in progress",
    )
    checkpoints_kept: int = pydantic.Field(
        2, ge=1, description="number of newest checkpoints to keep, in addition to the best checkpoint"
    )
    report_to: Annotated[tuple[TrackerName, ...], pydantic.BeforeValidator(_tracker_names)] = pydantic.Field(
        ("tensorboard",),
        description="experiment trackers that receive the metrics in addition to metrics.jsonl: "
        "tensorboard, mlflow, wandb, trackio, or none; may be repeated",
    )
    seed: int = pydantic.Field(
        0, ge=0, le=2**63 - 1, description="seed of the initial weights, the data order and the noise"
    )
    num_workers: Annotated[int | tuple[int, int] | None, pydantic.BeforeValidator(_worker_range)] = pydantic.Field(
        None,
        description="training processes, one CPU or GPU each: a number, or LOW:HIGH to follow the size of the cluster; "
        "at most train_batch_size; none: all GPUs (or CPUs, if there are no GPUs) that are not reserved",
    )
    device: Device = pydantic.Field(
        "auto", description="device of the workers: cpu, gpu, or auto for GPUs if the cluster has or can add any"
    )
    accelerator_type: str | None = pydantic.Field(
        None, description="kind of GPU to train on in a cluster of several kinds, such as A100 or H100; none: any"
    )
    data_workers: int | None = pydantic.Field(
        None,
        ge=0,
        description="processes per training worker that read and decode samples, each on a CPU of its own; 0: the "
        "training process reads; none: 0 on CPUs; on GPUs the CPUs for each GPU less one, at most 8",
    )

    validate_in: Literal["auto", "group", "task"] = pydantic.Field(
        "auto",
        description="where checkpoints are validated: group: by the training workers, which pause and share the "
        "samples; task: beside training, on a GPU that training leaves free, else on a CPU; "
        "auto: group if training uses all free GPUs, else task",
    )

    @pydantic.model_validator(mode="after")
    def _workers_have_samples(self) -> Self:
        self.require_samples()
        return self

    def require_samples(self) -> None:
        """Reject a worker range that is not a range, or whose lower bound exceeds the batch size.

        Raises:
            ValueError: The numbers of workers cannot be used.
        """
        if isinstance(self.num_workers, tuple):
            low, high = self.num_workers
            if not 1 <= low <= high:
                raise ValueError(f"num_workers {low}:{high}: must be LOW:HIGH with 1 <= LOW <= HIGH, such as 2:8")
            workers = low
        elif self.num_workers is not None:
            if self.num_workers < 1:
                raise ValueError(f"num_workers {self.num_workers}: must be at least 1")
            workers = self.num_workers
        else:
            return
        if self.train_batch_size is not None and workers > self.train_batch_size:
            raise ValueError(
                f"num_workers {workers}: must be at most train_batch_size ({self.train_batch_size}), "
                "because each worker needs a sample"
            )

    def filled_in(self, values: Mapping[str, Any]) -> Self:
        """Return these options with `values` of options that were not set.

        Raises:
            ValueError: The batch is too small for the workers.
        """
        filled = self.model_copy(update=dict(values))
        filled.require_samples()
        return filled

    @property
    def batch_size(self) -> int:
        """Samples per forward pass, summed over all workers, after the job has chosen it."""
        assert self.train_batch_size is not None, "train_batch_size is not chosen yet"
        return self.train_batch_size

    @property
    def precision(self) -> Precision:
        """Precision of the forward pass, after the job has chosen it."""
        assert self.mixed_precision is not None, "mixed_precision is not chosen yet"
        return self.mixed_precision

    @property
    def autocast(self) -> Autocast:
        """Mixed precision for accelerate. With TF32, all tensors are float32."""
        return "no" if self.precision == "tf32" else self.precision

    def usable_workers(self, low: int, high: int) -> range:
        """Return the worker counts in [low, high] that leave each worker at least one sample of a batch."""
        return range(low, min(high, self.batch_size) + 1)

    def samples_per_worker(self, workers: int) -> float:
        """Return the mean number of samples that one of `workers` workers processes in an optimizer step."""
        return self.batch_size * self.gradient_accumulation_steps / workers

    def settings(self, **digests: str | None) -> dict[str, Any]:
        """Return everything that determines the weights after a given number of steps, except rounding.

        Args:
            digests: Digests of the contents of the inputs, by setting name.

        Returns:
            JSON values: the format version, the digests and the options that affect the weights.
        """
        return {
            "format_version": TRAIN_FORMAT_VERSION,
            **digests,
            **self.model_dump(mode="json", exclude=_PATHS | _LIMITS | _EXECUTION | _EXPORT),
        }

    def recipe(self) -> dict[str, Any]:
        """Return the options to record with a model: all options except paths and execution settings."""
        return self.model_dump(mode="json", exclude=_PATHS | _EXECUTION)

    @property
    def best_metric(self) -> str:
        """The validation metric whose lowest value marks the best checkpoint."""
        return "validation_loss"

    def run_id(self) -> str:
        """Return the name of this run in experiment trackers, derived from the run folder."""
        return f"audiodiff-{hashlib.sha256(self.output_dir.encode()).hexdigest()[:12]}"

    def step_limit(self, rows: int) -> int | None:
        """Return the step at which training stops, or None if only the clock stops it.

        Args:
            rows: Number of rows of the dataset.
        """
        steps_per_epoch = rows / (self.batch_size * self.gradient_accumulation_steps)
        epochs = self.num_epochs
        if epochs is None and self.max_train_steps is None and self.max_train_minutes is None:
            epochs = DEFAULT_EPOCHS
        limits = [
            limit
            for limit in (self.max_train_steps, None if epochs is None else max(1, round(epochs * steps_per_epoch)))
            if limit is not None
        ]
        return min(limits, default=None)
