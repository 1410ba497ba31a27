"""Batch engine: items join and leave between network calls.

    batch = Batch(network, scheduler)
    batch.add(item)                 # joins at the next step
    for outcome in batch.step():    # one network call per pool
        ...                         # Finished or Failed

Items with equal width and padding form a pool, which takes one network call per step. Every call has the batch shape of
the execution profile. An item therefore yields the same bytes alone or together with other items.
"""

import warnings
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch

from audiodiff_core.diffusion.step_tables import StepTable, step_table
from audiodiff_core.sampling.inversion import inversion_table
from audiodiff_core.sampling.item import Item, Outcome
from audiodiff_core.sampling.network import Network
from audiodiff_core.sampling.pool import Member, Pool

MAX_POOLS = 8
"""Largest number of widths and padding modes in one batch, each of which takes its own network call per step."""

MAX_STEPS_AHEAD = 2
"""Largest number of steps that wait on a GPU."""


class Batch:
    """Items in progress with one network.

    Args:
        network: The network on the device of its execution profile.
        scheduler: The diffusers scheduler that is saved with the model. Its configuration is the noise schedule.
        sides: (height, width) of the samples that the network was built for.
        batch_size: Slots of a network call. None selects the batch size of the network's profile.
    """

    def __init__(self, network: Network, scheduler: Any, sides: tuple[int, int], batch_size: int | None = None) -> None:
        self._network, self._scheduler, self._height = network, scheduler, sides[0]
        self._batch_size = batch_size or network.profile.batch_size
        config = scheduler.config
        self._clip = float(config.get("clip_sample_range") or 1) if config.get("clip_sample") else None
        self._pools: dict[tuple[int, bool], Pool] = {}
        self._steps_on_gpu: deque[torch.cuda.Event] = deque()
        self._members: dict[Item, tuple[Pool, Member]] = {}

    @property
    def free(self) -> int:
        """Number of slots that items of the widths in progress can take. In an empty batch, all slots."""
        return sum(pool.free for pool in self._pools.values()) if self._pools else self._batch_size

    def has_room(self, item: Item) -> bool:
        """Return whether `add` accepts another item of this width, padding and number of slots."""
        pool = self._pools.get(item.pool)
        return pool.has_room(item) if pool else len(self._pools) < MAX_POOLS

    def __len__(self) -> int:
        return len(self._members)

    @torch.inference_mode()
    def add(self, item: Item) -> None:
        """Add an item, which joins at the next step.

        Args:
            item: The item.

        Raises:
            ValueError: If the network or its scheduler does not support the item, or if the batch has no room for it.
        """
        table = self._table(item)
        if item in self._members:
            raise ValueError(f"seed {item.request.seed}: the item is in the batch already")
        if not self.has_room(item):
            raise ValueError(
                f"seed {item.request.seed}: the batch has {self._batch_size} slots and {MAX_POOLS} widths, "
                "wait for an outcome of `step`"
            )
        if item.pool not in self._pools:
            self._pools[item.pool] = Pool(
                self._network, self.shape(item.width), item.request.seamless, self._batch_size, self._clip
            )
        if table.warning:
            warnings.warn(table.warning, stacklevel=3)
        pool = self._pools[item.pool]
        self._members[item] = pool, pool.join(item, table)

    @torch.inference_mode()
    def cancel(self, item: Item) -> bool:
        """Remove an item before the next step.

        Returns:
            True if the item was in the batch.
        """
        if item not in self._members:
            return False
        pool, member = self._members.pop(item)
        pool.leave(member)
        self._drop_empty_pools()
        return True

    @torch.inference_mode()
    def step(self) -> list[Outcome]:
        """Move every item to its next noise level, by one network call per pool.

        Returns:
            The outcomes of the items that finished in this step. A sample that is not finite fails alone.
        """
        with self._network.profile.applied():
            outcomes = [outcome for pool in self._pools.values() for outcome in pool.step()]
            if self._network.profile.on_gpu:
                self._limit_queue()
        for outcome in outcomes:
            del self._members[outcome.item]
        self._drop_empty_pools()
        return outcomes

    @property
    def progress(self) -> Mapping[Item, tuple[int, int]]:
        """(steps made, steps in all) of each item in progress."""
        return {
            item: (member.call // member.table.calls_per_step, -(-member.table.calls // member.table.calls_per_step))
            for item, (_, member) in self._members.items()
        }

    @torch.inference_mode()
    def preview(self, item: Item) -> torch.Tensor:
        """Return the clean sample that the last step predicted for an item in progress.

        Returns:
            The sample (channels, height, width), float32 on the CPU.
        """
        pool, member = self._members[item]
        return pool.preview(member)

    def shape(self, width: int) -> tuple[int, int, int]:
        """Return (channels, height, width) of a sample."""
        return self._network.channels, self._height, width

    def check(self, item: Item) -> None:
        """Raise ValueError if the network or its scheduler does not support an item."""
        self._table(item)

    def _table(self, item: Item) -> StepTable:
        request, dim = item.request, self._network.encoding_dim
        expected = () if dim is None else (dim,)
        if item.encoding is not None and tuple(item.encoding.shape) != expected:
            supported = f"takes {expected}" if expected else "is not conditional, omit the encoding"
            raise ValueError(
                f"encoding of shape {tuple(item.encoding.shape)} for seed {request.seed}: the network {supported}"
            )
        shape = self.shape(item.width)
        for name, tensor in (("noise", item.noise), ("clean", item.clean)):
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ValueError(
                    f"{name} of shape {tuple(tensor.shape)} for seed {request.seed}: the network takes {shape}"
                )
        if item.keep is not None and (tuple(item.keep.shape) != shape[1:] or item.clean is None):
            raise ValueError(
                f"keep of shape {tuple(item.keep.shape)} for seed {request.seed}: "
                f"pass a mask {shape[1:]} and the clean content"
            )
        if item.inverted:
            if item.clean is None:
                raise ValueError(f"seed {request.seed}: an inversion needs the clean content")
            return inversion_table(self._scheduler, request, item.refinements)
        return step_table(self._scheduler, request, item.start_step)

    def _limit_queue(self) -> None:
        """Wait until the GPU has at most MAX_STEPS_AHEAD steps to do, so that items join and leave in time."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._network.profile.device))
        self._steps_on_gpu.append(event)
        if len(self._steps_on_gpu) > MAX_STEPS_AHEAD:
            self._steps_on_gpu.popleft().synchronize()

    def _drop_empty_pools(self) -> None:
        self._pools = {key: pool for key, pool in self._pools.items() if pool.members}
