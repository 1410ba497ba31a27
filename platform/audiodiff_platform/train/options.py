"""What training can be told, and which of it decides the weights."""

import hashlib
from typing import Annotated, Any, Literal, Self

import pydantic

from audiodiff_core.diffusion.objectives import BetaSchedule, Objective, SavedScheduler
from audiodiff_core.diffusion.schedulers import PredictionType
from audiodiff_core.models import PRESETS, VAE_PRESETS, PresetName, VaePresetName, objective_for
from audiodiff_core.training import MAX_GRADIENT_NORM, OptimizerName, RateSchedule
from audiodiff_core.training.vae_losses import VaeObjective
from audiodiff_core.training.weight_average import EMA_DECAY
from audiodiff_platform.cluster.capacity import Device
from audiodiff_platform.entry.options import NO_VALUE, OutputOptions

TRAIN_FORMAT_VERSION = 3

TrackerName = Literal["tensorboard", "mlflow", "wandb", "trackio"]
DEFAULT_EPOCHS = 100
FRECHET_FROM = 64  # previews
OBJECTIVE = ("prediction_type", "zero_terminal_snr", "beta_schedule", "min_snr_gamma", "conditioning_dropout")


def _workers(value: Any) -> Any:
    """LOW:HIGH as a pair."""
    if isinstance(value, str) and ":" in value:
        low, _, high = value.partition(":")
        return (low, high)
    return value


def _names(value: Any) -> Any:
    """Split names at commas, and read `none` as no names."""
    stated = [value] if isinstance(value, str) else value
    if not isinstance(stated, list | tuple) or not all(isinstance(text, str) for text in stated):
        return stated
    return tuple(name for text in stated for name in text.split(",") if name.casefold() not in NO_VALUE)


class RunOptions(OutputOptions):
    """What every training can be told: its data, its length, its machines. The mel parameters come with the data."""

    dataset_name: str = pydantic.Field(
        description="mel dataset made by prepare (a path, s3:// or gs://), or one of the original's: a folder of save_to_disk or Parquet, a Hub id OWNER/NAME"
    )
    mel_config: str | None = pydantic.Field(
        None,
        description="mel_config.json of a dataset that carries none, as the original's: a path, s3:// or gs://; "
        "none: the original's defaults 22050 Hz, hop length 512, n_fft 2048",
    )
    output_dir: str = pydantic.Field(description="run folder: a path, s3:// or gs://")
    resume: Literal["auto", "never", "must"] = pydantic.Field(
        "auto",
        description="auto: goes on from what the run folder holds, if anything; never: refuses a folder that holds checkpoints; must: one without",
    )
    max_train_steps: int | None = pydantic.Field(None, ge=0, description="stop after this many optimizer steps")
    num_epochs: int | None = pydantic.Field(
        None, ge=1, description=f"stop after this many passes over the data; {DEFAULT_EPOCHS} where no stop is given"
    )
    max_train_minutes: float | None = pydantic.Field(None, gt=0, description="stop after this many minutes of training")
    train_batch_size: int = pydantic.Field(16, ge=1, description="samples per forward pass, over all workers")
    gradient_accumulation_steps: int = pydantic.Field(1, ge=1, description="forward passes per optimizer step")
    learning_rate: float = pydantic.Field(1e-4, gt=0, description="peak of the learning rate")
    lr_warmup_steps: int = pydantic.Field(500, ge=0, description="steps over which the learning rate rises to its peak")
    mixed_precision: Literal["no", "bf16", "fp16"] = pydantic.Field(
        "no", description="arithmetic of the forward pass: no (float32), bf16 or fp16"
    )
    checkpoint_minutes: float = pydantic.Field(
        5.0, gt=0, description="minutes between checkpoints: what a failure costs at most; each is validated"
    )
    checkpoints_kept: int = pydantic.Field(
        2, ge=1, description="last checkpoints that are kept, besides the best by validation"
    )
    report_to: Annotated[tuple[TrackerName, ...], pydantic.BeforeValidator(_names)] = pydantic.Field(
        ("tensorboard",),
        description="who is told the figures besides metrics.jsonl: tensorboard, mlflow, wandb, trackio, or none; can be given several times",
    )
    seed: int = pydantic.Field(0, ge=0, le=2**63 - 1, description="names initial weights, data order and noise")
    num_workers: Annotated[int | tuple[int, int] | None, pydantic.BeforeValidator(_workers)] = pydantic.Field(
        None,
        description="training processes, a CPU or GPU each: a number, or LOW:HIGH for as many as the cluster has at a time; at most "
        "train_batch_size; none: all GPUs, or else CPUs, that nothing else has reserved",
    )

    device: Device = pydantic.Field(
        "auto", description="what workers run on: cpu, gpu, or auto for GPUs if the cluster has any now"
    )

    @pydantic.model_validator(mode="after")
    def _workers_have_samples(self) -> Self:
        if isinstance(self.num_workers, tuple):
            low, high = self.num_workers
            if not 1 <= low <= high:
                raise ValueError(f"num_workers {low}:{high} is not a range of numbers from 1 on: use one such as 2:8")
            most = low
        elif self.num_workers is not None:
            if self.num_workers < 1:
                raise ValueError(f"num_workers {self.num_workers} is not a number from 1 on")
            most = self.num_workers
        else:
            return self
        if most > self.train_batch_size:
            raise ValueError(
                f"num_workers {most} is more than train_batch_size ({self.train_batch_size}): each worker needs a sample, use at most as many"
            )
        return self

    def usable_workers(self, low: int, high: int) -> range:
        """Return the numbers of workers in [low, high] that can share a batch: each worker takes at least one sample."""
        return range(low, min(high, self.train_batch_size) + 1)

    def samples_per_worker(self, workers: int) -> float:
        """Return the mean number of samples of a worker in a step."""
        return self.train_batch_size * self.gradient_accumulation_steps / workers

    def settings(self, **digests: str | None) -> dict[str, Any]:
        """All that decides the weights after a given number of steps, but for rounding: the options, and what the inputs hold by their digests."""
        return {
            "format_version": TRAIN_FORMAT_VERSION,
            **digests,
            **self.model_dump(mode="json", exclude=_PLACES | _STOPS | _MACHINES | _CHOICES),
        }

    def recipe(self) -> dict[str, Any]:
        """What a model's record says of how it was made: all but the places and machines."""
        return self.model_dump(mode="json", exclude=_PLACES | _MACHINES)

    @property
    def judged_by(self) -> str:
        """The figure of validation that the best checkpoint has the lowest of."""
        return "validation_loss"

    def run_id(self) -> str:
        """Names the run folder to those who keep many runs."""
        return f"audiodiff-{hashlib.sha256(self.output_dir.encode()).hexdigest()[:12]}"

    def steps_at_most(self, rows: int) -> int | None:
        """The step at which training stops, or None where only the clock stops it."""
        per_epoch = rows / (self.train_batch_size * self.gradient_accumulation_steps)
        epochs = self.num_epochs
        if epochs is None and self.max_train_steps is None and self.max_train_minutes is None:
            epochs = DEFAULT_EPOCHS
        bounds = [
            bound
            for bound in (self.max_train_steps, None if epochs is None else max(1, round(epochs * per_epoch)))
            if bound is not None
        ]
        return min(bounds, default=None)


_PLACES = {"output_dir", "dataset_name", "mel_config", "from_pretrained", "vae", "latents", "encodings", "push_to_hub"}
_STOPS = {"max_train_steps", "num_epochs", "max_train_minutes"}
_MACHINES = {
    "num_workers",
    "device",
    "take_over",
    "checkpoint_minutes",
    "checkpoints_kept",
    "resume",
    "report_to",
    "preview_count",
}
_MACHINES |= {"gradient_checkpointing", "torch_compile", "fsdp"}
_CHOICES = {"keep", "best_by", "scheduler"}  # how the model is written from what was trained


class TrainOptions(RunOptions):
    """What diffusion model to train, and how."""

    preset: PresetName | None = pydantic.Field(
        None,
        description=f"network: {', '.join(PRESETS)}; none: tiny, or with from_pretrained the network of that model",
    )
    from_pretrained: str | None = pydantic.Field(
        None,
        description="model to go on from, of the same mel parameters: a folder, s3://, gs:// or a Hub id OWNER/NAME",
    )
    vae: str | None = pydantic.Field(
        None,
        description="autoencoder of a latent preset, as train_vae writes it: a folder, s3://, gs://, a Hub id OWNER/NAME or a CompVis .ckpt",
    )
    latents: str | None = pydantic.Field(
        None,
        description="what encode --latents made of the dataset with that vae; none: the vae encodes while training",
    )
    encodings: str | None = pydantic.Field(
        None,
        description="what a conditional preset is told of each audio file: what encode wrote, or the original's pickle",
    )
    prediction_type: PredictionType | None = pydantic.Field(
        None,
        description="what the network predicts: epsilon, v_prediction, sample or flow (rectified flow); none: the preset's",
    )
    zero_terminal_snr: bool | None = pydantic.Field(
        None, description="whether the last level of noise is noise alone; none: yes, but for epsilon"
    )
    beta_schedule: BetaSchedule | None = pydantic.Field(
        None, description="how the noise grows: linear, scaled_linear or squaredcos_cap_v2; none: linear"
    )
    min_snr_gamma: float | None = pydantic.Field(
        None,
        gt=0,
        description="signal-to-noise ratio at which min-SNR weights are cut off, such as 5; none: even weights",
    )
    conditioning_dropout: float | None = pydantic.Field(
        None,
        ge=0,
        lt=1,
        description="share of samples that are not shown their encoding, which guidance needs; none: 0.1 in a conditional network",
    )
    scheduler: SavedScheduler | None = pydantic.Field(
        None,
        description="scheduler that the model is saved with: ddim or ddpm, flow_euler for a flow; none: ddim or flow_euler",
    )
    lr_scheduler: RateSchedule = pydantic.Field(
        "cosine", description="how the learning rate falls after its warm-up: cosine, linear or constant"
    )
    optimizer: OptimizerName = pydantic.Field(
        "adamw", description="adamw (fused) or adamw_8bit (needs a CUDA GPU and bitsandbytes)"
    )
    ema_decay: float = pydantic.Field(
        EMA_DECAY, ge=0, lt=1, description="most that the moving average of the weights keeps of itself in a step"
    )
    max_gradient_norm: float = pydantic.Field(
        MAX_GRADIENT_NORM, gt=0, description="norm at which gradients are clipped"
    )
    gradient_checkpointing: bool = pydantic.Field(
        False, description="computes activations again in the backward pass: less memory, about a third more time"
    )
    torch_compile: bool = pydantic.Field(
        False, description="compiles the network first, for minutes: pays in long runs"
    )
    fsdp: bool = pydantic.Field(
        False, description="shards network, average and optimizer over the workers, for networks that do not fit in one"
    )
    keep: Literal["last", "best"] = pydantic.Field(
        "last", description="which weights the model is written from: the last, or those that validation found the best"
    )
    best_by: Literal["validation_loss", "frechet"] = pydantic.Field(
        "validation_loss",
        description=f"figure of validation that the best has the lowest of: validation_loss, or frechet, of {FRECHET_FROM} previews or more",
    )
    push_to_hub: str | None = pydantic.Field(
        None,
        description="Hugging Face model OWNER/NAME to publish the finished model as, private where it is new; none: not published",
    )
    preview_count: int = pydantic.Field(
        4,
        ge=0,
        description=f"pictures and sounds that each validation makes with the seeds from 0 on; from {FRECHET_FROM} on also their Fréchet distance",
    )

    @pydantic.model_validator(mode="after")
    def _parts_go_together(self) -> Self:
        if self.from_pretrained is not None and self.preset is not None:
            raise ValueError(
                f"preset {self.preset} with from_pretrained {self.from_pretrained}: the network is that of the model, leave preset out"
            )
        if self.latents is not None and self.vae is None and self.from_pretrained is None:
            raise ValueError(f"latents {self.latents}: the model needs the vae that made them too")
        if self.best_by == "frechet" and self.preview_count < FRECHET_FROM:
            raise ValueError(
                f"best_by frechet with preview_count {self.preview_count}: the distance is taken from {FRECHET_FROM} previews on"
            )
        if self.from_pretrained is None:
            self.objective()
        return self

    @property
    def judged_by(self) -> str:
        return self.best_by

    def network_preset(self) -> PresetName:
        """The preset of a network that starts from nothing."""
        return self.preset or "tiny"

    def objective(self, learned: Objective | None = None) -> Objective:
        """The objective: what is asked for, in the place of what the preset has or the model to go on from `learned` with."""
        try:
            return objective_for(self.network_preset(), learned, **{name: getattr(self, name) for name in OBJECTIVE})
        except pydantic.ValidationError as error:
            raise ValueError(
                "; ".join(str(problem.get("ctx", {}).get("error", problem["msg"])) for problem in error.errors())
            ) from None

    def resolved(self, objective: Objective) -> Self:
        """The same with what was left open stated, so that a default and its statement are one training: the preset, and what `objective` came to."""
        preset = None if self.from_pretrained is not None else self.network_preset()
        return self.model_copy(update={"preset": preset, **{name: getattr(objective, name) for name in OBJECTIVE}})


class TrainVaeOptions(RunOptions):
    """What autoencoder to train, and how."""

    preset: VaePresetName = pydantic.Field("vae-256", description=f"autoencoder: {', '.join(VAE_PRESETS)}")
    kl_weight: float = pydantic.Field(
        VaeObjective().kl_weight, ge=0, description="weight of the latents' divergence from a normal distribution"
    )
    spectral_weight: float = pydantic.Field(
        VaeObjective().spectral_weight, ge=0, description="weight of the spectral distance of image and reconstruction"
    )
    adversarial_weight: float = pydantic.Field(
        VaeObjective().adversarial_weight,
        ge=0,
        description="weight of the discriminator's verdict; 0: no discriminator",
    )
    adversarial_start: int = pydantic.Field(
        VaeObjective().adversarial_start, ge=0, description="optimizer steps before the discriminator comes in"
    )
    lr_scheduler: RateSchedule = pydantic.Field(
        "cosine", description="how the learning rate falls after its warm-up: cosine, linear or constant"
    )
    ema_decay: float = pydantic.Field(
        EMA_DECAY, ge=0, lt=1, description="most that the moving average of the weights keeps of itself in a step"
    )
    gradient_checkpointing: bool = pydantic.Field(
        False, description="computes activations again in the backward pass: less memory, about a third more time"
    )

    @pydantic.field_validator("mixed_precision")
    @classmethod
    def _wide_enough(cls, value: str) -> str:
        if value == "fp16":
            raise ValueError("mixed_precision fp16 is too narrow for an autoencoder: use bf16 or no")
        return value

    def objective(self) -> VaeObjective:
        return VaeObjective.model_validate(self.model_dump(include=set(VaeObjective.model_fields)))
