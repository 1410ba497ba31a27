"""Inversion of an image to the noise from which DDIM or Euler's method generates the image."""

from typing import Any

import torch

from audiodiff_core.diffusion.noise_schedule import Schedule
from audiodiff_core.diffusion.schedulers import prediction_type
from audiodiff_core.sampling.denoising import Item, guidance_inputs, guided_prediction
from audiodiff_core.sampling.network import ModelInput

INVERTIBLE = ("ddim", "flow_euler")


class Inversion:
    """Trajectory of one item from an image to noise, against the direction of sampling.

    The sampling step from level i to i + 1 is x[i+1] = signal[i+1] * clean(x[i]) + noise[i+1] * eps(x[i]). The clean
    image and eps are computed from the prediction at x[i], for every prediction type. Solved for x[i], the step is

        x[i] = signal[i] * (x[i+1] - noise[i+1] * eps) / signal[i+1] + noise[i] * eps

    At first, eps is predicted at x[i+1], as in the usual DDIM inversion (Song et al., "Denoising Diffusion Implicit
    Models", 2020). Then eps is predicted `refinements` times at the latest estimate of x[i]. This fixed-point iteration
    converges to the exact x[i].

    At pure noise (zero terminal SNR), x[i] does not depend on the clean image. The clean image is then predicted, and
    eps is (x[i+1] - signal[i+1] * clean) / noise[i+1].

    Args:
        item: The item, with `clean` as the image to invert.
        model_scheduler: The scheduler that is saved with the model.
        device: Device of the sample.

    Raises:
        ValueError: If the request's sampling method cannot be inverted.
    """

    def __init__(self, item: Item, model_scheduler: Any, device: str) -> None:
        self.item = item
        self._schedule = Schedule(model_scheduler, item.request)
        if self._schedule.name not in INVERTIBLE or item.request.eta:
            raise ValueError(
                f"scheduler {self._schedule.name} with eta {item.request.eta} cannot be inverted: "
                f"use {' or '.join(INVERTIBLE)} with eta 0"
            )
        if self._schedule.calls == 1 and self._schedule.levels[0][0] == 0:
            raise ValueError("steps 1: one step from pure noise keeps no trace of the noise, use 2 or more to invert")
        assert item.clean is not None
        self._predicts = prediction_type(model_scheduler)
        self._level = self._schedule.calls - 1
        self._iterations = 0
        self._source = item.clean[None].to(device)  # x[i+1]
        self.sample = self._source  # estimate of x[i]

    @property
    def finished(self) -> bool:
        """True once `sample` is the noise."""
        return self._level < 0

    def model_inputs(self) -> list[ModelInput]:
        """Return the network inputs of the next call."""
        return guidance_inputs(self.item, self.sample, self._schedule.timesteps[self._level])

    def advance(self, outputs: list[torch.Tensor]) -> None:
        """Improve the estimate of x[i]. After the last refinement, continue with the noisier level i - 1.

        Args:
            outputs: Predictions (1, channels, height, width) for `model_inputs`, in the same order.
        """
        signal, noise_scale = self._schedule.levels[self._level]
        next_signal, next_noise_scale = self._schedule.levels[self._level + 1]
        clean, eps = self._clean_and_eps(guided_prediction(self.item, outputs), signal, noise_scale)
        if signal == 0:
            eps = (self._source - next_signal * clean) / next_noise_scale
            self.sample = noise_scale * eps
        else:
            self.sample = signal * ((self._source - next_noise_scale * eps) / next_signal) + noise_scale * eps
        self._iterations += 1
        if self._iterations > self.item.refinements:
            self._source, self._iterations, self._level = self.sample, 0, self._level - 1

    def _clean_and_eps(
        self, prediction: torch.Tensor, signal: torch.Tensor, noise_scale: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the clean image and eps from the prediction for the current sample.

        If epsilon is predicted from pure noise, the clean image is not finite, and must not be used.
        """
        match self._predicts:
            case "epsilon":
                return (self.sample - noise_scale * prediction) / signal, prediction
            case "v_prediction":
                return signal * self.sample - noise_scale * prediction, signal * prediction + noise_scale * self.sample
            case "sample":
                return prediction, (self.sample - signal * prediction) / noise_scale
            case "flow":
                return self.sample - noise_scale * prediction, self.sample + signal * prediction
