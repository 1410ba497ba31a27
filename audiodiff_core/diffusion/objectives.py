"""What training minimises: how images are noised, what the network predicts of them, and how its errors are weighed.

Two families, both x_t = signal * x0 + noise_scale * noise:
  diffusion  `num_train_timesteps` levels of noise, the integer timesteps; signal^2 + noise_scale^2 = 1
  flow       rectified flow (Liu et al. 2022): any sigma in (0, 1), timestep = num_train_timesteps * sigma; signal = 1 - sigma, noise_scale = sigma

All that sampling needs of it lives in the scheduler's configuration, which diffusers stores with the model.
"""

import math
from functools import lru_cache
from typing import Any, Literal, Self, get_args

import numpy as np
import pydantic
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from audiodiff_core.diffusion.schedulers import SCHEDULERS, PredictionType

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
SavedScheduler = Literal["ddim", "ddpm", "flow_euler"]


class Objective(pydantic.BaseModel):
    """A way of adding noise and what the network predicts of it.

    With zero terminal SNR the last level is pure noise, as sampling starts from, so that the network learns the mean level of the
    pictures (Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023). Epsilon cannot be predicted there. A
    flow always ends in pure noise; its times are drawn logit-normally, location 0 and scale 1, which weighs the middle of the way
    (Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024, section 3.1).
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    prediction_type: PredictionType = "v_prediction"
    zero_terminal_snr: bool = pydantic.Field(
        default_factory=lambda data: data.get("prediction_type") != "epsilon",
        description="whether the last level is pure noise",
    )
    num_train_timesteps: int = pydantic.Field(
        1_000, ge=2, description="levels of noise; for a flow the timestep that means pure noise"
    )
    beta_schedule: BetaSchedule = pydantic.Field(
        "linear", description="how the noise grows from level to level: linear, scaled_linear or squaredcos_cap_v2"
    )
    beta_start: float = pydantic.Field(
        0.0001, gt=0, lt=1, description="noise variance added by the first level (linear, scaled_linear)"
    )
    beta_end: float = pydantic.Field(
        0.02, gt=0, lt=1, description="noise variance added by the last level (linear, scaled_linear)"
    )
    clip_sample: bool = pydantic.Field(
        default_factory=lambda data: data.get("prediction_type") != "flow",
        description="whether sampling clips predicted images to [-1, 1]; not for latents",
    )
    min_snr_gamma: float | None = pydantic.Field(
        None, gt=0, description="signal-to-noise ratio at which min-SNR weights are cut off; none: even weights"
    )
    conditioning_dropout: float = pydantic.Field(
        0.0, ge=0, lt=1, description="share of samples trained without their encoding, which guidance needs"
    )

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.prediction_type == "epsilon" and self.zero_terminal_snr:
            raise ValueError(
                "prediction_type epsilon cannot have zero_terminal_snr: pure noise says nothing of the image; use v_prediction"
            )
        if self.prediction_type == "flow":
            fixed = {"zero_terminal_snr": True, "beta_schedule": "linear", "clip_sample": False, "min_snr_gamma": None}
            for name, only in fixed.items():
                if (value := getattr(self, name)) != only:
                    raise ValueError(
                        f"prediction_type flow cannot have {name} {value}: leave it out, or use v_prediction"
                    )
        return self

    @classmethod
    def of(cls, scheduler: Any) -> Self:
        """The objective that a model was trained for, from the scheduler saved with it; weights and dropout are not known from there.

        Raises ValueError where the scheduler's noise schedule is not one that can be trained on.
        """
        config = scheduler.config
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            if config.shift != 1 or config.use_dynamic_shifting:
                raise ValueError(
                    f"shift {config.shift} of the model's {type(scheduler).__name__} would be lost: only flows without a shift can be trained on"
                )
            return cls(prediction_type="flow", num_train_timesteps=config.num_train_timesteps)
        if config.get("trained_betas") is not None or config.get("beta_schedule") not in get_args(BetaSchedule):
            known = ", ".join(get_args(BetaSchedule))
            raise ValueError(
                f"beta_schedule {config.get('beta_schedule')} of the model's {type(scheduler).__name__} cannot be trained on: {known} can"
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
        """diffusers' scheduler carrying this objective in its configuration, to be saved with the model; none: ddim, or flow_euler for a flow.

        Raises ValueError where that scheduler cannot sample what the network predicts.
        """
        flow = self.prediction_type == "flow"
        name = name or ("flow_euler" if flow else "ddim")
        if (name == "flow_euler") != flow:
            raise ValueError(
                f"scheduler {name} does not go with prediction_type {self.prediction_type}: use {'flow_euler' if flow else 'ddim or ddpm'}"
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

    def draw_timestep(self, stream: np.random.Generator) -> float:
        """A training sample's timestep: an integer in [0, num_train_timesteps), every one as likely; for a flow logit-normal in (0, num_train_timesteps)."""
        if self.prediction_type == "flow":
            return self.num_train_timesteps / (1 + math.exp(-stream.standard_normal()))
        return int(stream.integers(self.num_train_timesteps))

    def timesteps_at(self, fractions: np.ndarray[Any, Any]) -> torch.Tensor:
        """Fractions (batch,) in [0, 1) of the way to pure noise -> the timesteps (batch,) there, as `losses` takes them."""
        times = torch.from_numpy(np.asarray(fractions, np.float64) * self.num_train_timesteps)
        return times.float() if self.prediction_type == "flow" else times.long()


def scales(objective: Objective, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Timesteps (batch,) -> (signal, noise_scale), each (batch,) float32: x_t = signal * x0 + noise_scale * noise."""
    if objective.prediction_type == "flow":
        sigma = timesteps.float() / objective.num_train_timesteps
        return 1 - sigma, sigma
    signal, noise_scale = _table(objective, timesteps.device)[:, timesteps]
    return signal, noise_scale


@lru_cache(maxsize=16)
def _table(objective: Objective, device: torch.device) -> torch.Tensor:
    """signal and noise_scale of every level, (2, num_train_timesteps)."""
    kept = objective.scheduler("ddpm").alphas_cumprod.double()
    return torch.stack([kept.sqrt(), (1 - kept).sqrt()]).float().to(device)


def target(objective: Objective, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """What the network should predict, the shape of `clean` (batch, channels, height, width)."""
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
    """Weight of each sample's squared error (batch,): 1, or min-SNR (Hang et al., "Efficient Diffusion Training via Min-SNR Weighting", 2023).

    The weight of an error in x0 is min(SNR, gamma); a squared error of epsilon is SNR times, one of v is SNR + 1 times that of x0.
    That is 0 at pure noise, where sampling starts, so with zero terminal SNR the weight in x0 is at least 1 (Salimans and Ho,
    "Progressive Distillation for Fast Sampling", 2022: truncated SNR).
    """
    if objective.min_snr_gamma is None:
        return torch.ones(len(timesteps), device=timesteps.device)
    signal, noise_scale = scales(objective, timesteps)
    snr = (signal / noise_scale).square()
    least = min(1.0, objective.min_snr_gamma) if objective.zero_terminal_snr else 0.0
    of_clean = snr.clamp(least, objective.min_snr_gamma)
    return {"epsilon": of_clean / snr, "v_prediction": of_clean / (snr + 1), "sample": of_clean}[
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
    """Mean squared error of the network's prediction for each sample (batch,), not weighed.

    clean, noise: (batch, channels, height, width); clean in [-1, 1] (latents: unit variance), noise ~ N(0, 1). timesteps: (batch,), integers or a
    flow's floats. encodings: (batch, dim) for a conditional network, zeros where a sample is to be unconditional.
    """
    signal, noise_scale = (scale.reshape(-1, 1, 1, 1) for scale in scales(objective, timesteps))
    noisy = signal * clean + noise_scale * noise
    condition = {} if encodings is None else {"encoder_hidden_states": encodings.unsqueeze(1)}
    prediction = network(noisy, timesteps, **condition, return_dict=False)[0]
    errors: torch.Tensor = prediction.float() - target(objective, clean, noise, timesteps)
    return errors.square().mean(dim=(1, 2, 3))
