"""Batches of training samples, and their random draws: timesteps, noise, and dropout of the conditioning."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch

from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.diffusion.philox import Purpose, normals, words

TIMESTEP_WORDS, DROPOUT_WORD = slice(0, 2), 2
PARTS_WORDS_FROM = 3
"""Random words of a sample: two for its timestep, one for the dropout of its conditioning, and the following words for
the dropout of parts of its conditioning."""

PartT = TypeVar("PartT", "TrainBatch", "Draws")


@dataclass(frozen=True)
class Draws:
    """Random draws of a batch of samples.

    Args:
        timesteps: Timesteps of shape (batch,), int64, or float32 for a flow objective.
        noise: Noise ~ N(0, 1) of shape (batch, channels, height, width) that is added to the clean values.
        kept: Mask of shape (batch,), True for samples whose encodings are used, and False for dropped encodings.
        latent_noise: Noise ~ N(0, 1) of the shape of `noise` with which latents are drawn from their mean and
            standard deviation. None if the network is trained on images.
        kept_values: Mask of shape (batch, dim), True for the values of encodings whose part is used. None if encodings
            have no parts.
    """

    timesteps: torch.Tensor
    noise: torch.Tensor
    kept: torch.Tensor
    latent_noise: torch.Tensor | None
    kept_values: torch.Tensor | None = None


@dataclass(frozen=True)
class TrainBatch:
    """Batch of training samples, either images or encoded latents. All tensors are on one device.

    Args:
        numbers: Numbers of the samples, counted from the start of training, int64 of shape (batch,).
        images: uint8 images of shape (batch, y_res, x_res). None if the batch holds `latents`.
        encodings: Conditioning of shape (batch, dim), float32, for a conditional network only.
        latents: Means and standard deviations of the latents, float32 of shape (batch, 2, channels, height, width). See
            `latents.posteriors`.
        drawn: Random draws of the samples. `with_draws` adds them.
    """

    numbers: torch.Tensor
    images: torch.Tensor | None
    encodings: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    drawn: Draws | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "TrainBatch":
        """Copy the batch to a device. Tensors that are on the device already are not copied.

        Args:
            device: The device.
            non_blocking: Whether the host goes on before a copy between pinned memory and a GPU has ended.
        """
        return _combined([self], lambda tensors: tensors[0].to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "TrainBatch":
        """Copy the batch to pinned memory, as `torch.utils.data.DataLoader` does with `pin_memory`."""
        return _combined([self], lambda tensors: tensors[0].pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of the batch until the work that is queued on `stream` has ended."""

        def recorded(tensors: list[torch.Tensor]) -> torch.Tensor:
            tensors[0].record_stream(stream)
            return tensors[0]

        _combined([self], recorded)

    def split(self, size: int) -> list["TrainBatch"]:
        """Split the batch into parts of at most `size` samples, whose sizes differ by at most 1. Nothing is copied."""
        count = math.ceil(len(self) / size)

        def part(index: int) -> "TrainBatch":
            return _combined([self], lambda tensors: tensors[0].tensor_split(count)[index])

        return [part(index) for index in range(count)]

    @staticmethod
    def joined(batches: Sequence["TrainBatch"]) -> "TrainBatch":
        """Return the samples of all batches as one batch, in the order of their numbers.

        Args:
            batches: Batches of the same kind, on one device.
        """
        order = torch.cat([batch.numbers for batch in batches]).argsort()
        return _combined(batches, lambda tensors: torch.cat(tensors)[order])


def draws(
    seed: int,
    numbers: torch.Tensor,
    objective: Objective,
    shape: tuple[int, ...],
    *,
    latents: bool = False,
    parts: Sequence[int] = (),
    device: torch.device | str,
) -> Draws:
    """Draw the random values of samples, each a function of (seed, sample number).

    Args:
        seed: Seed of the training.
        numbers: Numbers of the samples (batch,), int64, counted from the start of training.
        objective: The training objective: distribution of the timesteps, and rate of the conditioning dropout.
        shape: Shape of the noise of one sample: (channels, height, width).
        latents: Whether to draw `latent_noise` too.
        parts: Numbers of values of the parts of an encoding that are dropped on their own.
        device: Device that draws the values.
    """
    numbers = numbers.to(device, non_blocking=True)
    scalars = words(seed, numbers, Purpose.SCALARS, PARTS_WORDS_FROM + 1 + len(parts), device)
    return Draws(
        timesteps=objective.timesteps_from(scalars[:, TIMESTEP_WORDS]),
        noise=normals(seed, numbers, Purpose.NOISE, shape, device),
        kept=scalars[:, DROPOUT_WORD] >= math.ceil(objective.conditioning_dropout * 2**32),
        latent_noise=normals(seed, numbers, Purpose.LATENT_NOISE, shape, device) if latents else None,
        kept_values=_kept_values(scalars[:, PARTS_WORDS_FROM:], parts) if parts else None,
    )


def _kept_values(scalars: torch.Tensor, parts: Sequence[int]) -> torch.Tensor:
    """Return the mask (batch, sum(parts)) of the values of the parts that are kept.

    The number of kept parts is uniform from 1 to all, and all sets of this number are equally likely. A model thus
    learns each condition alone and any of them together.

    Args:
        scalars: Random words (batch, 1 + len(parts)): the first for the number of parts, the others for their order.
        parts: Numbers of values of the parts.
    """
    kept_parts = 1 + ((scalars[:, :1] * len(parts)) >> 32)
    ranks = scalars[:, 1:].argsort(dim=1, stable=True).argsort(dim=1)
    kept = ranks < kept_parts
    return torch.cat([kept[:, part : part + 1].expand(-1, size) for part, size in enumerate(parts)], dim=1)


def _combined(parts: Sequence[PartT], function: Callable[[list[torch.Tensor]], torch.Tensor]) -> PartT:
    """Return an object whose tensors are the results of `function` for the corresponding tensors of all parts."""
    values: dict[str, Any] = {}
    for field in fields(parts[0]):
        given = [getattr(part, field.name) for part in parts]
        if isinstance(given[0], torch.Tensor):
            values[field.name] = function(given)
        elif isinstance(given[0], Draws):
            values[field.name] = _combined(given, function)
        else:
            assert all(value is None for value in given), f"only some batches have {field.name}"
            values[field.name] = None
    return type(parts[0])(**values)
