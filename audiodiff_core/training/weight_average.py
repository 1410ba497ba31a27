"""The moving average of a network's weights: what is saved as the model, while training goes on from the live weights."""

import math
from collections.abc import Sequence

import torch

EMA_DECAY = 0.9999
EMA_POWER = 0.75
"""Of the warm-up: the decay is 0.968 after 100 steps, 0.994 after 1,000, 0.999 after 10,000."""


class WeightAverage:
    """The exponential moving average of weights, in tensors of its own: the live weights are read, never written.

    Its decay warms up, 1 - steps^-EMA_POWER up to `decay`, so that short runs average too (Crowson's schedule in k-diffusion). Sharded
    weights are averaged shard by shard.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], decay: float) -> None:
        self.weights = [parameter.detach().clone() for parameter in parameters]
        self.decay = decay
        self.steps = 0

    def decay_at(self, step: int) -> float:
        """How much of the average the step counted `step` (from 1) keeps: nothing of it at the first."""
        return min(self.decay, 1 - math.pow(step, -EMA_POWER))

    @torch.no_grad()
    def update(self, parameters: Sequence[torch.Tensor]) -> None:
        """Takes an optimizer step's weights in: average = decay * average + (1 - decay) * weights."""
        self.steps += 1
        torch._foreach_lerp_(self.weights, list(parameters), 1 - self.decay_at(self.steps))
