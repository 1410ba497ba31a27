"""Training: state, optimizer step, random draws, losses of autoencoders, validation, and cost.

Accelerate runs a step on one or many devices. Noise, timesteps, dropout and latents are functions of (seed, sample
number), so they do not depend on the worker or on restarts. The gradient of a step is the gradient of the mean loss
over all samples of the step, for any number of workers and micro-batches.
"""

from audiodiff_core.training.draws import Draws, TrainBatch, draws
from audiodiff_core.training.optimizer import OptimizerName, RateSchedule, learning_rate, make_optimizer
from audiodiff_core.training.state import MAX_GRADIENT_NORM, TrainState, memory_format, sharding
from audiodiff_core.training.step import on_device, train_step, with_draws

__all__ = [
    "MAX_GRADIENT_NORM",
    "Draws",
    "OptimizerName",
    "RateSchedule",
    "TrainBatch",
    "TrainState",
    "draws",
    "learning_rate",
    "make_optimizer",
    "memory_format",
    "on_device",
    "sharding",
    "train_step",
    "with_draws",
]
