"""Batching of many trajectories into the calls of one network.

1. The sampler starts items until the slots of a batch are taken. Items with equal width and padding form a pool.
2. The network processes each pool in one call, with one timestep per sample. Empty slots are padded.
3. Each item takes its own step with its own scheduler. Finished items leave, and waiting items take their slots.

Every network call has the batch shape of the execution profile. An item therefore yields the same bytes alone or
together with other items.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from audiodiff_core.models import image_sides
from audiodiff_core.sampling.denoising import Denoising, Item, Trajectory
from audiodiff_core.sampling.inversion import Inversion
from audiodiff_core.sampling.network import ModelInput, Network
from audiodiff_core.sampling.profile import ExecutionProfile


class Sampler:
    """Sampler of many items with one network.

    Args:
        unet: The denoising network.
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

    def sample(self, items: Iterable[Item]) -> Iterator[tuple[Item, torch.Tensor]]:
        """Sample items, and yield each item when it is finished.

        Args:
            items: The items, which may be unlimited in number. An item is consumed only when batch slots are free.

        Yields:
            (item, clean sample), in the order in which the items finish. The sample is float32
            (channels, height, width), on the CPU.

        Raises:
            ValueError: If the network or its scheduler does not support an item.
            FloatingPointError: If a sample is not finite.
        """
        return self._run(
            items,
            lambda item: Denoising(self._checked(item), self.scheduler, self.shape(item.width), self.profile.device),
        )

    def invert(self, items: Iterable[Item]) -> Iterator[tuple[Item, torch.Tensor]]:
        """Invert the clean content of items to noise, and yield each item when it is finished.

        Args:
            items: The items, each with `clean`.

        Yields:
            (item, noise), as in `sample`. With this noise, `sample` returns the clean content.

        Raises:
            ValueError: As `sample`, and if the sampling method cannot be inverted.
            FloatingPointError: If the noise is not finite.
        """
        return self._run(items, lambda item: Inversion(self._checked(item), self.scheduler, self.profile.device))

    def _checked(self, item: Item) -> Item:
        """Return the item, or raise ValueError if its encoding does not fit the network."""
        expected = () if self.network.encoding_dim is None else (self.network.encoding_dim,)
        if item.encoding is not None and tuple(item.encoding.shape) != expected:
            supported = f"takes {expected}" if expected else "is not conditional, omit the encoding"
            raise ValueError(
                f"encoding of shape {tuple(item.encoding.shape)} for seed {item.request.seed}: the network {supported}"
            )
        return item

    @torch.inference_mode()
    def _run(self, items: Iterable[Item], start: Callable[[Item], Trajectory]) -> Iterator[tuple[Item, torch.Tensor]]:
        """Run the trajectories of all items, and yield each item with its final sample."""
        waiting = iter(items)
        pools: dict[tuple[int, bool], list[Trajectory]] = {}
        pending: Item | None = None  # consumed, but not started yet, because its pool is full
        while True:
            while pending is not None or not pools or any(self._free_slots(pool) for pool in pools.values()):
                if pending is None and (pending := next(waiting, None)) is None:
                    break
                pool = pools.setdefault(pending.pool, [])
                if pool and self._free_slots(pool) < pending.batch_slots:
                    break
                pool.append(start(pending))
                pending = None
            if not pools:
                return
            for pool in pools.values():
                self._advance(pool)
                yield from ((trajectory.item, _finite_sample(trajectory)) for trajectory in pool if trajectory.finished)
            unfinished = {
                key: [trajectory for trajectory in pool if not trajectory.finished] for key, pool in pools.items()
            }
            pools = {key: pool for key, pool in unfinished.items() if pool}

    def _free_slots(self, pool: list[Trajectory]) -> int:
        return self.profile.batch_size - sum(trajectory.item.batch_slots for trajectory in pool)

    def _advance(self, pool: list[Trajectory]) -> None:
        """Move every trajectory of the pool to its next noise level.

        This takes one network call, or two calls if the batch size is 1 and the pool's only item is guided.
        """
        slots, circular = self.profile.batch_size, pool[0].item.request.seamless
        inputs_of = [trajectory.model_inputs() for trajectory in pool]
        inputs: list[ModelInput] = [model_input for group in inputs_of for model_input in group]
        outputs = [
            output
            for start in range(0, len(inputs), slots)
            for output in self.network(inputs[start : start + slots], circular)
        ]
        for trajectory, group in zip(pool, inputs_of, strict=True):
            trajectory.advance(outputs[: len(group)])
            del outputs[: len(group)]


def _finite_sample(trajectory: Trajectory) -> torch.Tensor:
    """Return the sample (channels, height, width) on the CPU, if all values are finite.

    An image cannot represent NaN and infinity, so that the error would go unnoticed.
    """
    sample: torch.Tensor = trajectory.sample[0].cpu()
    if not bool(torch.isfinite(sample).all()):
        raise FloatingPointError(
            f"seed {trajectory.item.request.seed}: the network's sample is not finite: "
            "use precision bf16 or fp32, or another model"
        )
    return sample
