"""Inversion of an image to the noise that DDIM generates it from."""

from typing import Any

import torch

from audiodiff_core.diffusion.schedulers import Schedule, prediction_type
from audiodiff_core.sampling.denoising import Item, guided_prediction, model_inputs_of
from audiodiff_core.sampling.network import ModelInput

INVERTIBLE = ("ddim", "flow_euler")


class Inverting:
    """From an image to the noise that DDIM (or Euler's method, for a flow) makes it from: each of its steps solved for where it came from.

    The step from level i to i + 1 is x[i+1] = signal[i+1] * clean(x[i]) + noise[i+1] * eps(x[i]), in which the network's answer at x[i],
    whatever its prediction type, is split into a clean image and eps. Solved for x[i] through eps:

        x[i] = signal[i] * (x[i+1] - noise[i+1] * eps) / signal[i+1] + noise[i] * eps

    with eps asked for at x[i+1] first (Song et al. 2020, the usual DDIM inversion) and then, `refinements` times, at the x[i] found so
    far, a fixed-point iteration whose limit is exact. At pure noise (zero terminal SNR) x[i] holds no clean image to split off, so
    there the answer is the clean image and eps is what remains of x[i+1].
    """

    def __init__(self, item: Item, model_scheduler: Any, device: str) -> None:
        self.item = item
        self._schedule = Schedule(model_scheduler, item.request)
        if self._schedule.name not in INVERTIBLE or item.request.eta:
            raise ValueError(
                f"scheduler {self._schedule.name} with eta {item.request.eta} cannot be inverted: {' and '.join(INVERTIBLE)} with eta 0 can"
            )
        if self._schedule.calls == 1 and self._schedule.levels[0][0] == 0:
            raise ValueError(
                "steps 1: one step from pure noise holds no trace of the noise that it began with, use 2 or more to invert"
            )
        assert item.clean is not None
        self._predicts = prediction_type(model_scheduler)
        self._level = self._schedule.calls - 1
        self._tries = 0
        self._source = item.clean[None].to(device)
        self.sample = self._source

    @property
    def finished(self) -> bool:
        return self._level < 0

    def queries(self) -> list[ModelInput]:
        return model_inputs_of(self.item, self.sample, self._schedule.timesteps[self._level])

    def advance(self, answers: list[torch.Tensor]) -> None:
        signal, share = self._schedule.levels[self._level]
        next_signal, next_share = self._schedule.levels[self._level + 1]
        clean, eps = self._split(guided_prediction(self.item, answers), signal, share)
        if signal == 0:
            eps = (self._source - next_signal * clean) / next_share
            self.sample = share * eps
        else:
            self.sample = signal * ((self._source - next_share * eps) / next_signal) + share * eps
        self._tries += 1
        if self._tries > self.item.refinements:
            self._source, self._tries, self._level = self.sample, 0, self._level - 1

    def _split(
        self, answer: torch.Tensor, signal: torch.Tensor, share: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(clean, eps) of an answer to the present sample; clean is not used, and not finite, where epsilon is predicted of pure noise."""
        match self._predicts:
            case "epsilon":
                return (self.sample - share * answer) / signal, answer
            case "v_prediction":
                return signal * self.sample - share * answer, signal * answer + share * self.sample
            case "sample":
                return answer, (self.sample - signal * answer) / share
            case "flow":
                return self.sample - share * answer, self.sample + signal * answer
