"""Options of diffusion and autoencoder training."""

from typing import Annotated, Any, Literal, Self

import pydantic

from audiodiff_core.diffusion.methods import PredictionType
from audiodiff_core.diffusion.objectives import BetaSchedule, Objective, SavedScheduler, TimestepSampling
from audiodiff_core.embeddings.measured import CONDITION_NAMES, ConditionName, MeasuredConditions
from audiodiff_core.models import PRESETS, VAE_PRESETS, PresetName, VaePresetName, objective_for
from audiodiff_core.training import MAX_GRADIENT_NORM, OptimizerName, RateSchedule
from audiodiff_core.training.vae_losses import VaeObjective
from audiodiff_core.training.weight_average import EMA_DECAY
from audiodiff_platform.entry.options import NO_VALUE
from audiodiff_platform.train.run_options import RunOptions

MIN_FRECHET_PREVIEWS = 64
OBJECTIVE_FIELDS = (
    "prediction_type",
    "zero_terminal_snr",
    "beta_schedule",
    "min_snr_gamma",
    "timestep_sampling",
    "conditioning_dropout",
)


def _condition_names(value: Any) -> Any:
    """Split names at commas, and put known names in their order; return values that are not text unchanged."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        return texts
    names = [name.strip() for text in texts for name in text.split(",")]
    names = [name for name in names if name.casefold() not in NO_VALUE]
    return tuple(sorted(dict.fromkeys(names), key=[*CONDITION_NAMES, *names].index))


class TrainOptions(RunOptions):
    """Options of diffusion training."""

    preset: PresetName | None = pydantic.Field(
        None,
        description=f"network: {', '.join(PRESETS)}; none: tiny, or the network of from_pretrained",
    )
    from_pretrained: str | None = pydantic.Field(
        None,
        description="pretrained model to start from, with the same mel parameters: "
        "a folder, s3://, gs://, a Hub id OWNER/NAME or builtin:loops",
    )
    vae: str | None = pydantic.Field(
        None,
        description="autoencoder of a latent preset, written by train_vae: "
        "a folder, s3://, gs://, a Hub id OWNER/NAME or a CompVis .ckpt",
    )
    latents: str | None = pydantic.Field(
        None,
        description="latents of the dataset, written by encode --latents with the same vae; "
        "none: the vae encodes images during training",
    )
    encodings: str | None = pydantic.Field(
        None,
        description="encodings of the audio files, the condition of a conditional preset: "
        "the output of encode, or a pickle of the original project",
    )
    condition: Annotated[tuple[ConditionName, ...], pydantic.BeforeValidator(_condition_names)] = pydantic.Field(
        (),
        description="measured features of slices, as the condition of a conditional preset: one or several of "
        f"{', '.join(CONDITION_NAMES)}, such as tempo,key",
    )
    prediction_type: PredictionType | None = pydantic.Field(
        None,
        description="target of the network: epsilon, v_prediction, sample or flow (rectified flow); "
        "none: the target of the preset",
    )
    zero_terminal_snr: bool | None = pydantic.Field(
        None, description="make the last noise level pure noise; none: true, unless prediction_type is epsilon"
    )
    beta_schedule: BetaSchedule | None = pydantic.Field(
        None, description="noise schedule: linear, scaled_linear or squaredcos_cap_v2; none: linear"
    )
    min_snr_gamma: float | None = pydantic.Field(
        None,
        gt=0,
        description="signal-to-noise ratio at which min-SNR loss weights are clipped, such as 5; none: equal weights",
    )
    timestep_sampling: TimestepSampling | None = pydantic.Field(
        None,
        description="distribution of the timesteps: uniform or logit_normal; none: logit_normal for v_prediction and "
        "flow, otherwise uniform",
    )
    conditioning_dropout: float | None = pydantic.Field(
        None,
        ge=0,
        lt=1,
        description="fraction of samples trained without their encoding, required for guidance; "
        "none: 0.1 for a conditional network",
    )
    scheduler: SavedScheduler | None = pydantic.Field(
        None,
        description="scheduler saved with the model: ddim or ddpm, or flow_euler for prediction_type flow; "
        "none: ddim or flow_euler",
    )
    lr_scheduler: RateSchedule = pydantic.Field(
        "cosine", description="decay of the learning rate after warm-up: cosine, linear or constant"
    )
    optimizer: OptimizerName = pydantic.Field(
        "adamw", description="adamw (fused) or adamw_8bit (needs a CUDA GPU and bitsandbytes)"
    )
    ema_decay: float = pydantic.Field(
        EMA_DECAY, ge=0, lt=1, description="maximum decay of the exponential moving average of the weights, per step"
    )
    max_gradient_norm: float = pydantic.Field(
        MAX_GRADIENT_NORM, gt=0, description="maximum gradient norm, for clipping"
    )
    gradient_checkpointing: bool = pydantic.Field(
        False, description="recompute activations in the backward pass: less memory, about a third more time"
    )
    torch_compile: bool = pydantic.Field(
        False, description="compile the network first, which takes minutes and speeds up long runs"
    )
    fsdp: bool = pydantic.Field(
        False,
        description="shard weights, averaged weights and optimizer over the workers, "
        "for a network that does not fit on one device",
    )
    keep: Literal["last", "best"] = pydantic.Field(
        "last", description="checkpoint to write the model from: the last, or the best by validation"
    )
    best_by: Literal["validation_loss", "frechet"] = pydantic.Field(
        "validation_loss",
        description="validation metric that is lowest for the best checkpoint: validation_loss, "
        f"or frechet, which needs at least {MIN_FRECHET_PREVIEWS} previews",
    )
    push_to_hub: str | None = pydantic.Field(
        None,
        description="Hugging Face model OWNER/NAME to publish the finished model to; a new repository is private; "
        "none: do not publish",
    )
    preview_count: int = pydantic.Field(
        4,
        ge=0,
        description="images and sounds generated by each validation, from seeds 0, 1, ...; "
        f"{MIN_FRECHET_PREVIEWS} or more are also compared with the dataset by Fréchet distance",
    )

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        """Reject options that contradict each other."""
        if self.from_pretrained is not None and self.preset is not None:
            raise ValueError(
                f"preset {self.preset} with from_pretrained {self.from_pretrained}: "
                "the model determines the network, leave preset out"
            )
        if self.latents is not None and self.vae is None and self.from_pretrained is None:
            raise ValueError(f"latents {self.latents}: the model also needs the vae that encoded them, set vae")
        if self.condition and self.encodings is not None:
            raise ValueError(
                f"condition {','.join(self.condition)} with encodings {self.encodings}: "
                "both state the encoding, set only one of them"
            )
        if self.fsdp and self.optimizer == "adamw_8bit":
            raise ValueError(f"optimizer {self.optimizer} with fsdp: bitsandbytes cannot shard moments, use adamw")
        if self.best_by == "frechet" and self.preview_count < MIN_FRECHET_PREVIEWS:
            raise ValueError(
                f"best_by frechet with preview_count {self.preview_count}: "
                f"the Fréchet distance needs preview_count {MIN_FRECHET_PREVIEWS} or more"
            )
        if self.from_pretrained is None:
            self.objective()
        return self

    @property
    def best_metric(self) -> str:
        return self.best_by

    @property
    def conditions(self) -> MeasuredConditions | None:
        """Conditions on measured features, or None."""
        return MeasuredConditions.of(self.condition) if self.condition else None

    def settings(self, **digests: str | None) -> dict[str, Any]:
        """Return everything that determines the weights. See `RunOptions.settings`.

        A run without conditions has the settings of earlier versions.
        """
        settings = super().settings(**digests)
        if not self.condition:
            del settings["condition"]
        return settings

    def recipe(self) -> dict[str, Any]:
        """Return the options to record with a model, which records the conditions with their encoding instead."""
        recipe = super().recipe()
        del recipe["condition"]
        return recipe

    def network_preset(self) -> PresetName:
        """Return the preset of a network that is initialized from the seed."""
        return self.preset or "tiny"

    def objective(self, pretrained: Objective | None = None) -> Objective:
        """Return the training objective: the base objective, with the values of the options that are set.

        Args:
            pretrained: Objective of the pretrained model, which is the base objective. If None, the objective of the
                preset is the base objective.

        Raises:
            ValueError: The options contradict each other or the base objective.
        """
        options = {name: getattr(self, name) for name in OBJECTIVE_FIELDS}
        try:
            return objective_for(self.network_preset(), pretrained, latent=self.vae is not None, **options)
        except pydantic.ValidationError as error:
            raise ValueError(
                "; ".join(str(problem.get("ctx", {}).get("error", problem["msg"])) for problem in error.errors())
            ) from None

    def resolved(self, objective: Objective) -> Self:
        """Return these options with the preset and the fields of `objective` filled in.

        The settings of the run are then the same for an unset option and for an option set to the default value.
        """
        preset = None if self.from_pretrained is not None else self.network_preset()
        fields = {name: getattr(objective, name) for name in OBJECTIVE_FIELDS}
        return self.model_copy(update={"preset": preset, **fields})


class TrainVaeOptions(RunOptions):
    """Options of autoencoder training."""

    preset: VaePresetName = pydantic.Field("vae-256", description=f"autoencoder: {', '.join(VAE_PRESETS)}")
    kl_weight: float = pydantic.Field(
        VaeObjective().kl_weight,
        ge=0,
        description="weight of the KL divergence of the latents from a standard normal distribution",
    )
    spectral_weight: float = pydantic.Field(
        VaeObjective().spectral_weight,
        ge=0,
        description="weight of the spectral distance between image and reconstruction",
    )
    adversarial_weight: float = pydantic.Field(
        VaeObjective().adversarial_weight,
        ge=0,
        description="weight of the adversarial loss; 0: train without a discriminator",
    )
    adversarial_start: int = pydantic.Field(
        VaeObjective().adversarial_start, ge=0, description="optimizer steps before the adversarial loss starts"
    )
    lr_scheduler: RateSchedule = pydantic.Field(
        "cosine", description="decay of the learning rate after warm-up: cosine, linear or constant"
    )
    ema_decay: float = pydantic.Field(
        EMA_DECAY, ge=0, lt=1, description="maximum decay of the exponential moving average of the weights, per step"
    )
    gradient_checkpointing: bool = pydantic.Field(
        False, description="recompute activations in the backward pass: less memory, about a third more time"
    )

    @pydantic.field_validator("mixed_precision")
    @classmethod
    def _wide_enough(cls, value: str | None) -> str | None:
        """Reject fp16."""
        if value == "fp16":
            raise ValueError("mixed_precision fp16: the range of fp16 is too narrow for an autoencoder, use bf16 or no")
        return value

    def objective(self) -> VaeObjective:
        """Return the weights of the losses."""
        return VaeObjective.model_validate(self.model_dump(include=set(VaeObjective.model_fields)))
