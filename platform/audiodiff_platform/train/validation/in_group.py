"""Validation of a checkpoint by the workers of the training, which pause for it and share its samples.

The averaged weights take the place of the weights while the checkpoint is validated. Rank 0 writes the results.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from audiodiff_core.pipeline import Loop
from audiodiff_core.training import TrainState
from audiodiff_core.training.vae_state import VaeTrainState
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.mel_data.mel_dataset import TrainingImages
from audiodiff_platform.train.inputs import TrainingInputs
from audiodiff_platform.train.options import TrainOptions, TrainVaeOptions
from audiodiff_platform.train.validation.autoencoder import (
    Reconstructions,
    reconstruct_held_out,
    write_vae_results,
)
from audiodiff_platform.train.validation.diffusion import HeldOutLosses, held_out_losses, previews, write_results

GroupValidation = Callable[[int], None]
"""Validates the current state of a training at a step, on all workers together."""


def diffusion_validation(
    options: TrainOptions, accelerator: Accelerator, inputs: TrainingInputs, state: TrainState
) -> GroupValidation:
    """Return the validation of a diffusion network in training."""
    rank, world = accelerator.process_index, accelerator.num_processes

    def validate(step: int) -> None:
        began = time.monotonic()
        with averaged_weights(state):
            own = held_out_losses(options, inputs, accelerator, state, rank=rank, world=world)
            loops = _previews_if_possible(options, inputs, state, rank, world)
        losses, all_loops = gather_object([own]), gather_object(loops)
        if accelerator.is_main_process:
            by_seed = sorted(all_loops, key=lambda loop: loop.request.seed)
            _write(step, began, lambda: write_results(options, inputs, step, HeldOutLosses.joined(losses), by_seed))

    return validate


def autoencoder_validation(
    options: TrainVaeOptions, accelerator: Accelerator, dataset: TrainingImages, state: VaeTrainState
) -> GroupValidation:
    """Return the validation of an autoencoder in training."""
    rank, world = accelerator.process_index, accelerator.num_processes

    def validate(step: int) -> None:
        began = time.monotonic()
        with averaged_weights(state):
            state.bare.eval()
            own = reconstruct_held_out(dataset, state.bare, rank, world)
            state.bare.train()
        parts = gather_object([own])
        if accelerator.is_main_process:
            _write(step, began, lambda: write_vae_results(options, dataset, step, Reconstructions.joined(parts)))

    return validate


@contextmanager
def averaged_weights(state: TrainState | VaeTrainState) -> Iterator[None]:
    """Give the network of a training its averaged weights, and its own weights back at the end."""
    parameters = list(state.bare.parameters())
    with torch.no_grad():
        own = [parameter.detach().clone() for parameter in parameters]
        torch._foreach_copy_(parameters, state.ema.weights)
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(parameters, own)


def _previews_if_possible(
    options: TrainOptions, inputs: TrainingInputs, state: TrainState, rank: int, world: int
) -> list[Loop]:
    """Return the previews of this worker. None, and a line on the terminal, if they cannot be generated."""
    try:
        return previews(options, inputs, state.bare, rank=rank, world=world)
    except (RuntimeError, FloatingPointError) as error:  # no memory is left on the GPU, or the samples diverged
        say(f"step {state.step}: worker {rank} cannot generate previews ({' '.join(str(error).split())})")
        return []


def _write(step: int, began: float, write: Callable[[], object]) -> None:
    """Write the results. If the run folder is unreachable, print a line instead: training continues."""
    try:
        write()
    except OSError as error:
        say(f"step {step}: validation results cannot be written ({error}): training continues without them")
    say(f"step {step}: training paused {time.monotonic() - began:.1f} s for validation")
