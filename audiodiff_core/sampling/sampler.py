"""The sampler: the walks of many items, gathered into calls of one network.

1. Items wait; as many as the batch has places are under way, those that can share a call in a pool (same width, same padding).
2. Each pool's samples go through the network together, a timestep per sample; empty places are padding.
3. Each item makes its own step by its own scheduler; finished ones leave, waiting ones take their places.

An item gives the same bytes alone or in company, since every call has the shape that the ExecutionProfile states.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from audiodiff_core.models import image_sides
from audiodiff_core.sampling.denoising import Denoising, Item, Trajectory
from audiodiff_core.sampling.inversion import Inverting
from audiodiff_core.sampling.network import ModelInput, Network
from audiodiff_core.sampling.profile import ExecutionProfile


class Sampler:
    """Denoises with `unet`, whose noise schedule is `scheduler`'s configuration; `profile` fixes the batch shape and the arithmetic."""

    def __init__(self, unet: Any, scheduler: Any, profile: ExecutionProfile) -> None:
        self.profile = profile
        self.scheduler = scheduler
        self.network = Network(unet, profile)
        self.sides = image_sides(unet)

    def shape(self, width: int) -> tuple[int, int, int]:
        """(channels, height, width) of a sample."""
        return self.network.channels, self.sides[0], width

    def sample(self, items: Iterable[Item]) -> Iterator[tuple[Item, torch.Tensor]]:
        """Yields each item with its clean sample (channels, height, width), float32 on the CPU, in the order in which they finish.

        Items are taken only as places come free. Raises ValueError for an encoding of another shape than the network takes, and FloatingPointError
        for a sample that is not finite.
        """
        return self._walked(
            items,
            lambda item: Denoising(self._checked(item), self.scheduler, self.shape(item.width), self.profile.device),
        )

    def invert(self, items: Iterable[Item]) -> Iterator[tuple[Item, torch.Tensor]]:
        """Yields each item with the noise that `sample` makes its clean content from, as `sample` yields."""
        return self._walked(items, lambda item: Inverting(self._checked(item), self.scheduler, self.profile.device))

    def _checked(self, item: Item) -> Item:
        """Raises ValueError for an encoding that the network does not take."""
        expected = () if self.network.encoding_dim is None else (self.network.encoding_dim,)
        if item.encoding is not None and tuple(item.encoding.shape) != expected:
            taken = f"{expected}" if expected else "none, it is not conditional"
            raise ValueError(
                f"encoding of shape {tuple(item.encoding.shape)} for seed {item.request.seed}: the network takes {taken}"
            )
        return item

    @torch.inference_mode()
    def _walked(
        self, items: Iterable[Item], begin: Callable[[Item], Trajectory]
    ) -> Iterator[tuple[Item, torch.Tensor]]:
        waiting = iter(items)
        pools: dict[tuple[int, bool], list[Trajectory]] = {}
        held: Item | None = None
        while True:
            while held is not None or not pools or any(self._free(pool) for pool in pools.values()):
                if held is None and (held := next(waiting, None)) is None:
                    break
                pool = pools.setdefault(held.pool, [])
                if pool and self._free(pool) < held.places:
                    break
                pool.append(begin(held))
                held = None
            if not pools:
                return
            for pool in pools.values():
                self._step(pool)
                yield from ((walk.item, _finite(walk)) for walk in pool if walk.finished)
            pools = {key: left for key, pool in pools.items() if (left := [walk for walk in pool if not walk.finished])}

    def _free(self, pool: list[Trajectory]) -> int:
        return self.profile.batch_size - sum(walk.item.places for walk in pool)

    def _step(self, pool: list[Trajectory]) -> None:
        """One call of the network for each sample of the pool; more calls than one only where a guided item alone outgrows the batch."""
        places, circular = self.profile.batch_size, pool[0].item.request.seamless
        queries = [walk.queries() for walk in pool]
        flat: list[ModelInput] = [query for asked in queries for query in asked]
        answers = [
            answer
            for start in range(0, len(flat), places)
            for answer in self.network(flat[start : start + places], circular)
        ]
        for walk, asked in zip(pool, queries, strict=True):
            walk.advance(answers[: len(asked)])
            del answers[: len(asked)]


def _finite(walk: Trajectory) -> torch.Tensor:
    """A finished walk's sample on the CPU. Raises FloatingPointError where it is not finite: an image cannot show that."""
    sample: torch.Tensor = walk.sample[0].cpu()
    if not bool(torch.isfinite(sample).all()):
        raise FloatingPointError(
            f"seed {walk.item.request.seed}: the network's sample is not finite: use precision bf16 or fp32, or another model"
        )
    return sample
