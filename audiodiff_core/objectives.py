"""What training minimises, and the noise schedule that training and sampling share.

The objective lives in the scheduler's configuration, which diffusers stores with the model; nothing else needs to remember it.
"""

from typing import Any, Literal

import pydantic
import torch

from audiodiff_core.schedulers import SCHEDULERS, PredictionType

__all__ = ["Objective", "PredictionType", "SavedScheduler", "loss", "target"]

SavedScheduler = Literal["ddim", "ddpm"]


class Objective(pydantic.BaseModel):
    """A diffusion process over `num_train_timesteps` levels of noise and what the network predicts of it.

    With zero terminal SNR the last level is pure noise, as sampling starts from, so that the network learns the mean level of the
    pictures (Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023). Epsilon cannot be predicted there.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    prediction_type: PredictionType = "v_prediction"
    zero_terminal_snr: bool = True
    num_train_timesteps: int = 1_000

    @pydantic.model_validator(mode="after")
    def _predictable_at_the_last_level(self) -> "Objective":
        if self.prediction_type == "epsilon" and self.zero_terminal_snr:
            raise ValueError("prediction_type epsilon cannot have zero_terminal_snr: pure noise says nothing of the image; use v_prediction")
        return self

    def scheduler(self, name: SavedScheduler) -> Any:
        """diffusers' scheduler with the original's linear betas, carrying this objective in its configuration."""
        return SCHEDULERS[name](
            num_train_timesteps=self.num_train_timesteps,
            prediction_type=self.prediction_type,
            rescale_betas_zero_snr=self.zero_terminal_snr,
            timestep_spacing="trailing" if self.zero_terminal_snr else "leading",
        )


def loss(network: Any, scheduler: Any, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the network's prediction, a scalar.

    clean, noise: (batch, channels, height, width); clean in [-1, 1], noise ~ N(0, 1). timesteps: (batch,) integers.
    """
    noisy = scheduler.add_noise(clean, noise, timesteps)
    prediction = network(noisy, timesteps, return_dict=False)[0]
    return torch.nn.functional.mse_loss(prediction.float(), target(scheduler, clean, noise, timesteps))


def target(scheduler: Any, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """What the network should predict, the shape of `clean`."""
    match scheduler.config.prediction_type:
        case "epsilon":
            return noise
        case "v_prediction":
            velocity: torch.Tensor = scheduler.get_velocity(clean, noise, timesteps)
            return velocity
        case "sample":
            return clean
        case unknown:
            raise ValueError(f"prediction_type {unknown} is not known: epsilon, v_prediction and sample are")
