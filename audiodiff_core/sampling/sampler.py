"""Sampling of any number of items with one network: loops over the batch engine."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch

from audiodiff_core.models import image_sides
from audiodiff_core.sampling.batch import Batch
from audiodiff_core.sampling.item import Failed, Item
from audiodiff_core.sampling.network import Network
from audiodiff_core.sampling.profile import ExecutionProfile


class Sampler:
    """Sampler of many items with one network.

    Args:
        unet: The denoising network, which is copied.
        scheduler: The diffusers scheduler that is saved with the model. Its configuration is the noise schedule.
        profile: The execution profile.

    Attributes:
        profile: The execution profile.
        scheduler: The scheduler that is saved with the model.
        network: The network on the device of the profile.
        sides: (height, width) of the samples that the network was built for.
    """

    def __init__(self, unet: Any, scheduler: Any, profile: ExecutionProfile) -> None:
        self.profile = profile
        self.scheduler = scheduler
        self.network = Network(unet, profile)
        self.sides = image_sides(unet)

    def shape(self, width: int) -> tuple[int, int, int]:
        """Return (channels, height, width) of a sample."""
        return self.network.channels, self.sides[0], width

    def batch(self, batch_size: int | None = None) -> Batch:
        """Create an empty batch.

        Args:
            batch_size: Slots of a network call. None selects the batch size of the profile.
        """
        return Batch(self.network, self.scheduler, self.sides, batch_size)

    def sample(self, items: Iterable[Item]) -> Iterator[tuple[Item, torch.Tensor]]:
        """Sample items, and yield each item when it is finished.

        Args:
            items: The items, which may be unlimited in number. An item is consumed only when batch slots are free.

        Yields:
            (item, clean sample), in the order in which the items finish. The sample is float32
            (channels, height, width), on the CPU.

        Raises:
            ValueError: If the network or its scheduler does not support an item.
            FloatingPointError: If a sample is not finite, after all other samples have been yielded.
        """
        batch, waiting = self.batch(), iter(items)
        pending: Item | None = None  # consumed, but not in the batch yet, because its pool is full
        reasons: list[str] = []
        while True:
            while pending is not None or batch.free > 0:
                if pending is None and (pending := next(waiting, None)) is None:
                    break
                if not batch.has_room(pending):
                    break
                batch.add(pending)
                pending = None
            if not len(batch):
                break
            for outcome in batch.step():
                if isinstance(outcome, Failed):
                    reasons.append(outcome.reason)
                else:
                    yield outcome.item, outcome.sample
        if reasons:
            raise FloatingPointError("; ".join(reasons))

    def invert(self, items: Iterable[Item]) -> Iterator[tuple[Item, torch.Tensor]]:
        """Invert the clean content of items to noise, and yield each item when it is finished.

        Args:
            items: The items, each with `clean`.

        Yields:
            (item, noise), as in `sample`. With this noise, `sample` returns the clean content.

        Raises:
            ValueError: As `sample`, and if the sampling method cannot be inverted.
            FloatingPointError: As `sample`.
        """
        originals: dict[Item, Item] = {}

        def inverted() -> Iterator[Item]:
            for item in items:
                inverse = replace(item, inverted=True)
                originals[inverse] = item
                yield inverse

        for inverse, noise in self.sample(inverted()):
            yield originals.pop(inverse), noise
