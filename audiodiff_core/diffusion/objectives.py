"""Training objectives: the forward process, the prediction target and the loss weights.

There are two families of objectives. Both add noise as x_t = signal * x0 + noise_scale * noise.

  diffusion  `num_train_timesteps` levels of noise, with integer timesteps; signal^2 + noise_scale^2 = 1
  flow       rectified flow (Liu et al. 2022): sigma in (0, 1), timestep = num_train_timesteps * sigma;
             signal = 1 - sigma, noise_scale = sigma

Sampling reads the objective from the configuration of the scheduler, which diffusers saves with the model.
"""

from functools import lru_cache
from typing import Any, Literal, Self, get_args

import numpy as np
import pydantic
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from audiodiff_core.diffusion.methods import PredictionType
from audiodiff_core.diffusion.philox import box_muller
from audiodiff_core.diffusion.schedulers import SCHEDULERS

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
SavedScheduler = Literal["ddim", "ddpm", "flow_euler"]
TimestepSampling = Literal["uniform", "logit_normal"]


class Objective(pydantic.BaseModel):
    """Noise schedule, prediction type and loss weights of a training run.

    With zero terminal SNR, the last level is pure noise, as at the start of sampling. The network then learns the mean
    level of the images (Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023). Epsilon is
    not a valid target at pure noise, because epsilon equals the input of the network there. A flow always has zero
    terminal SNR.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    prediction_type: PredictionType = "v_prediction"
    zero_terminal_snr: bool = pydantic.Field(
        default_factory=lambda data: data.get("prediction_type") != "epsilon",
        description="whether the last level is pure noise",
    )
    num_train_timesteps: int = pydantic.Field(
        1_000, ge=2, description="number of noise levels; for a flow, the timestep of pure noise"
    )
    beta_schedule: BetaSchedule = pydantic.Field(
        "linear", description="growth of the noise from level to level: linear, scaled_linear or squaredcos_cap_v2"
    )
    beta_start: float = pydantic.Field(
        0.0001, gt=0, lt=1, description="noise variance added by the first level (linear, scaled_linear)"
    )
    beta_end: float = pydantic.Field(
        0.02, gt=0, lt=1, description="noise variance added by the last level (linear, scaled_linear)"
    )
    clip_sample: bool = pydantic.Field(
        default_factory=lambda data: data.get("prediction_type") != "flow",
        description="whether sampling clips predicted images to [-1, 1]; off for latents",
    )
    min_snr_gamma: float | None = pydantic.Field(
        None, gt=0, description="signal-to-noise ratio at which min-SNR weights are clipped; none: equal weights"
    )
    timestep_sampling: TimestepSampling = pydantic.Field(
        default_factory=lambda data: (
            "logit_normal" if data.get("prediction_type") in ("v_prediction", "flow") else "uniform"
        ),
        description="distribution of the timesteps in training: uniform, or logit_normal, which favors the middle",
    )
    conditioning_dropout: float = pydantic.Field(
        0.0, ge=0, lt=1, description="fraction of samples trained without their encoding; guidance needs some"
    )

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.prediction_type == "epsilon" and self.zero_terminal_snr:
            raise ValueError(
                "prediction_type epsilon cannot have zero_terminal_snr: "
                "pure noise holds no information about the image; use v_prediction"
            )
        if self.prediction_type == "flow":
            fixed = {"zero_terminal_snr": True, "beta_schedule": "linear", "clip_sample": False, "min_snr_gamma": None}
            for name, expected in fixed.items():
                if (value := getattr(self, name)) != expected:
                    raise ValueError(f"prediction_type flow cannot have {name} {value}: omit it, or use v_prediction")
        return self

    @classmethod
    def of(cls, scheduler: Any) -> Self:
        """Recover a model's objective from its scheduler.

        A scheduler does not record `min_snr_gamma`, `timestep_sampling` and `conditioning_dropout`. These fields get
        their default values.

        Args:
            scheduler: The diffusers scheduler that was saved with the model.

        Raises:
            ValueError: If training does not support the scheduler's noise schedule.
        """
        config = scheduler.config
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            if config.shift != 1 or config.use_dynamic_shifting:
                raise ValueError(
                    f"shift {config.shift} of the model's {type(scheduler).__name__} would be lost: "
                    "use a flow model without a shift"
                )
            return cls(prediction_type="flow", num_train_timesteps=config.num_train_timesteps)
        if config.get("trained_betas") is not None or config.get("beta_schedule") not in get_args(BetaSchedule):
            supported = ", ".join(get_args(BetaSchedule))
            raise ValueError(
                f"beta_schedule {config.get('beta_schedule')} of the model's {type(scheduler).__name__} "
                f"is not supported in training: use a model with one of {supported}"
            )
        return cls(
            prediction_type=config.get("prediction_type", "epsilon"),
            zero_terminal_snr=config.get("rescale_betas_zero_snr", False),
            num_train_timesteps=config.num_train_timesteps,
            beta_schedule=config.beta_schedule,
            beta_start=config.beta_start,
            beta_end=config.beta_end,
            clip_sample=config.get("clip_sample", True),
        )

    def scheduler(self, name: SavedScheduler | None = None) -> Any:
        """Build the diffusers scheduler that is saved with a model of this objective.

        Args:
            name: The sampling method. None selects `flow_euler` for a flow and `ddim` otherwise.

        Raises:
            ValueError: If the method cannot sample this prediction type.
        """
        flow = self.prediction_type == "flow"
        name = name or ("flow_euler" if flow else "ddim")
        if (name == "flow_euler") != flow:
            raise ValueError(
                f"scheduler {name} does not fit prediction_type {self.prediction_type}: "
                f"use {'flow_euler' if flow else 'ddim or ddpm'}"
            )
        if name == "flow_euler":
            return FlowMatchEulerDiscreteScheduler(num_train_timesteps=self.num_train_timesteps)
        return SCHEDULERS[name](
            num_train_timesteps=self.num_train_timesteps,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            beta_schedule=self.beta_schedule,
            clip_sample=self.clip_sample,
            prediction_type=self.prediction_type,
            rescale_betas_zero_snr=self.zero_terminal_snr,
            timestep_spacing="trailing" if self.zero_terminal_snr else "leading",
        )

    def timesteps_from(self, words: torch.Tensor) -> torch.Tensor:
        """Convert random words to the timesteps of training samples.

        Logit-normal timesteps have location 0 and scale 1 (Esser et al., "Scaling Rectified Flow Transformers for
        High-Resolution Image Synthesis", 2024, section 3.1).

        Args:
            words: Random 32-bit words (batch, 2), int64.

        Returns:
            Timesteps (batch,): int64 in [0, num_train_timesteps), or for a flow float32 in (0, num_train_timesteps).
        """
        is_flow = self.prediction_type == "flow"
        if self.timestep_sampling == "logit_normal":
            timesteps = box_muller(words[:, 0], words[:, 1])[0].sigmoid() * self.num_train_timesteps
            return timesteps if is_flow else timesteps.long()
        if is_flow:
            return ((words[:, 0] >> 9).float() + 0.5) / 2**23 * self.num_train_timesteps
        return (words[:, 0] * self.num_train_timesteps) >> 32

    def timesteps_at(self, fractions: np.ndarray[Any, Any]) -> torch.Tensor:
        """Convert fractions of the noise schedule to timesteps.

        Args:
            fractions: Fractions (batch,) in [0, 1), where 0 is the least noise.

        Returns:
            Timesteps (batch,): int64, or float32 for a flow.
        """
        timesteps = torch.from_numpy(np.asarray(fractions, np.float64) * self.num_train_timesteps)
        return timesteps.float() if self.prediction_type == "flow" else timesteps.long()


def scales(objective: Objective, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the coefficients of x_t = signal * x0 + noise_scale * noise.

    Args:
        objective: The training objective.
        timesteps: Timesteps (batch,).

    Returns:
        (signal, noise_scale), each float32 (batch,).
    """
    if objective.prediction_type == "flow":
        sigma = timesteps.float() / objective.num_train_timesteps
        return 1 - sigma, sigma
    signal, noise_scale = _scale_table(objective, timesteps.device)[:, timesteps]
    return signal, noise_scale


@lru_cache(maxsize=16)
def _scale_table(objective: Objective, device: torch.device) -> torch.Tensor:
    """Return signal and noise_scale of all levels (2, num_train_timesteps)."""
    alphas_cumprod = objective.scheduler("ddpm").alphas_cumprod.double()
    return torch.stack([alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()]).float().to(device)


def target(objective: Objective, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Compute the prediction target.

    Args:
        objective: The training objective.
        clean: Clean samples (batch, channels, height, width).
        noise: Noise of the same shape.
        timesteps: Timesteps (batch,).

    Returns:
        The target, in the shape of `clean`.
    """
    match objective.prediction_type:
        case "epsilon":
            return noise
        case "v_prediction":
            signal, noise_scale = (scale.reshape(-1, 1, 1, 1) for scale in scales(objective, timesteps))
            return signal * noise - noise_scale * clean
        case "sample":
            return clean
        case "flow":
            return noise - clean


def weights(objective: Objective, timesteps: torch.Tensor) -> torch.Tensor:
    """Return the loss weight of each sample.

    Without `min_snr_gamma`, every weight is 1. With `min_snr_gamma`, an error of x0 has the weight min(SNR, gamma)
    (Hang et al., "Efficient Diffusion Training via Min-SNR Weighting", 2023).

    The weight min(SNR, gamma) is 0 at pure noise, where sampling starts. With zero terminal SNR, the weight of an error
    of x0 is therefore at least min(1, gamma), similar to truncated SNR (Salimans and Ho, "Progressive Distillation for
    Fast Sampling of Diffusion Models", 2022).

    Args:
        objective: The training objective.
        timesteps: Timesteps (batch,).

    Returns:
        Weights (batch,) of the squared errors of the prediction.
    """
    if objective.min_snr_gamma is None:
        return torch.ones(len(timesteps), device=timesteps.device)
    signal, noise_scale = scales(objective, timesteps)
    snr = (signal / noise_scale).square()
    min_weight = min(1.0, objective.min_snr_gamma) if objective.zero_terminal_snr else 0.0
    x0_weight = snr.clamp(min_weight, objective.min_snr_gamma)
    # The squared error of epsilon is SNR times the squared error of x0. The squared error of v is SNR + 1 times the
    # squared error of x0.
    return {"epsilon": x0_weight / snr, "v_prediction": x0_weight / (snr + 1), "sample": x0_weight}[
        objective.prediction_type
    ]


def losses(
    network: Any,
    objective: Objective,
    clean: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    *,
    encodings: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the unweighted loss of each sample.

    Args:
        network: The denoising network.
        objective: The training objective.
        clean: Clean samples (batch, channels, height, width): images in [-1, 1], or latents of unit variance.
        noise: Standard normal noise of the same shape.
        timesteps: Timesteps (batch,): integers, or floats for a flow.
        encodings: Encodings (batch, dim) of a conditional network. Zeros make a sample unconditional.

    Returns:
        Mean squared errors (batch,) of the predictions.
    """
    signal, noise_scale = (scale.reshape(-1, 1, 1, 1) for scale in scales(objective, timesteps))
    noisy = signal * clean + noise_scale * noise
    condition = {} if encodings is None else {"encoder_hidden_states": encodings.unsqueeze(1)}
    prediction = network(noisy, timesteps, **condition, return_dict=False)[0]
    errors: torch.Tensor = prediction.float() - target(objective, clean, noise, timesteps)
    return errors.square().mean(dim=(1, 2, 3))
