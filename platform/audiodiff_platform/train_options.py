"""What training can be told, and which of it decides the weights."""

from typing import Any, Literal, Self

import pydantic

from audiodiff_core.models import PRESETS, PresetName
from audiodiff_core.objectives import Objective, PredictionType, SavedScheduler
from audiodiff_platform.data_order import STREAMS
from audiodiff_platform.recipe import Options

FORMAT_VERSION = 1
DEFAULT_EPOCHS = 100


class TrainOptions(Options):
    """What to train on which data, for how long. The mel parameters come with the data."""

    dataset_name: str = pydantic.Field(
        description="mel dataset made by prepare (a path, s3:// or gs://), or one of the original's: a folder of save_to_disk or Parquet, a Hub id OWNER/NAME"
    )
    mel_config: str | None = pydantic.Field(
        None,
        description="mel_config.json of a dataset that carries none, as the original's: a path, s3:// or gs://; "
        "none: the original's defaults 22050 Hz, hop length 512, n_fft 2048",
    )
    output_dir: str = pydantic.Field(description="run folder, the model in its subfolder model: a path, s3:// or gs://")
    preset: PresetName = pydantic.Field("tiny", description=f"network: {', '.join(PRESETS)}")
    prediction_type: PredictionType | None = pydantic.Field(None, description="what the network predicts: epsilon, v_prediction or sample; none: the preset's")
    scheduler: SavedScheduler = pydantic.Field("ddim", description="scheduler that the model is saved with: ddim or ddpm")
    max_train_steps: int | None = pydantic.Field(None, ge=0, description="stop after this many optimizer steps")
    num_epochs: int | None = pydantic.Field(None, ge=1, description=f"stop after this many passes over the data; {DEFAULT_EPOCHS} where no stop is given")
    max_train_minutes: float | None = pydantic.Field(None, gt=0, description="stop after this many minutes of training")
    train_batch_size: int = pydantic.Field(16, ge=1, description="samples per forward pass, over all workers")
    gradient_accumulation_steps: int = pydantic.Field(1, ge=1, description="forward passes per optimizer step")
    learning_rate: float = pydantic.Field(1e-4, gt=0, description="peak of the learning rate")
    lr_warmup_steps: int = pydantic.Field(500, ge=0, description="steps over which the learning rate rises to its peak")
    mixed_precision: Literal["no", "bf16", "fp16"] = pydantic.Field("no", description="arithmetic of the forward pass: no (float32), bf16 or fp16")
    checkpoint_minutes: float = pydantic.Field(5.0, gt=0, description="minutes between checkpoints: what a failure costs at most")
    seed: int = pydantic.Field(0, ge=0, le=2**63 - 1, description="names initial weights, data order and noise")
    num_workers: int | None = pydantic.Field(None, ge=1, description="training processes, a CPU or GPU each; none: all GPUs, else all CPUs")

    @pydantic.model_validator(mode="after")
    def _workers_divide(self) -> Self:
        for name, whole in (("train_batch_size", self.train_batch_size), ("streams of the data order", STREAMS)):
            if self.num_workers and whole % self.num_workers:
                raise ValueError(f"num_workers {self.num_workers} does not divide {name} ({whole})")
        return self

    def settings(self, data_digest: str) -> dict[str, Any]:
        """All that decides the weights after a given number of steps, but for rounding."""
        free = {"output_dir", "dataset_name", "mel_config", "max_train_steps", "num_epochs", "max_train_minutes", "checkpoint_minutes", "num_workers"}
        return {"format_version": FORMAT_VERSION, "data_digest": data_digest, **self.model_dump(exclude=free)}

    def objective(self) -> Objective:
        """The preset's objective, or the prediction type asked for (epsilon without zero terminal SNR, the others with it)."""
        if self.prediction_type is None:
            return PRESETS[self.preset].objective
        return Objective(prediction_type=self.prediction_type, zero_terminal_snr=self.prediction_type != "epsilon")

    def recipe(self) -> dict[str, Any]:
        """What a model's record says of how it was trained: the settings and the stopping point, not the places and machines."""
        return self.model_dump(exclude={"output_dir", "dataset_name", "mel_config", "num_workers", "checkpoint_minutes"})

    def steps_at_most(self, rows: int) -> int | None:
        """The step at which training stops, or None where only the clock stops it."""
        per_epoch = rows / (self.train_batch_size * self.gradient_accumulation_steps)
        epochs = self.num_epochs
        if epochs is None and self.max_train_steps is None and self.max_train_minutes is None:
            epochs = DEFAULT_EPOCHS
        bounds = [bound for bound in (self.max_train_steps, None if epochs is None else max(1, round(epochs * per_epoch))) if bound is not None]
        return min(bounds, default=None)
