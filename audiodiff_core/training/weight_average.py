"""Exponential moving average of the weights of a network.

The averaged weights are saved as the model. Training continues from the live weights.
"""

import math
from collections.abc import Sequence

import torch

EMA_DECAY = 0.9999
EMA_POWER = 0.75
"""Exponent of the decay warmup. The decay is 0.968 at step 100, 0.994 at step 1,000, 0.999 at step 10,000."""


class WeightAverage:
    """Exponential moving average of weights, stored in separate tensors. The live weights are only read.

    The decay increases from 0, so that the average follows the weights in short runs too. If the weights are sharded,
    each worker averages its own shard.

    Args:
        parameters: Live weights, which initialize the average.
        decay: Decay after the warmup, in [0, 1].
    """

    def __init__(self, parameters: Sequence[torch.Tensor], decay: float) -> None:
        self.weights = [parameter.detach().clone() for parameter in parameters]
        self.decay = decay
        self.steps = 0

    def decay_at(self, step: int) -> float:
        """Return the decay at optimizer step `step`, counted from 1. The decay is 0 at the first step."""
        return min(self.decay, 1 - math.pow(step, -EMA_POWER))  # the schedule of EMAWarmup in k-diffusion

    @torch.no_grad()
    def update(self, parameters: Sequence[torch.Tensor]) -> None:
        """Update the average with the weights after an optimizer step."""
        self.steps += 1
        # average = decay * average + (1 - decay) * weights
        torch._foreach_lerp_(self.weights, list(parameters), 1 - self.decay_at(self.steps))
