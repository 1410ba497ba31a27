"""Shards of work on actors: only shard numbers and what little is said of each travel through Ray.

Ray's actors are used as they are. Ray Data would place them too, but starts three more actors of its own for each run, and so takes
two seconds more for what a laptop does in one.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

import ray
from ray.exceptions import RayActorError

from audiodiff_platform.job import JobError, cause_of

LOSSES_IN_A_ROW_AT_MOST = 8  # for each worker; a shard that is finished in between says that the work goes on


DoneT_co = TypeVar("DoneT_co", covariant=True)


class ShardWorker(Protocol[DoneT_co]):
    """An actor that does whole shards: heavy things are loaded when it is made, `shard` commits one and says what was done, mostly counts."""

    def shard(self, shard: int) -> DoneT_co: ...


def run_shards(worker: type[ShardWorker[DoneT_co]], arguments: Sequence[Any], shards: Sequence[int], num_workers: int, gpus: int = 0) -> Iterator[DoneT_co]:
    """Does `shards` on at most `num_workers` actors made by `worker(*arguments)`; yields what each says as it finishes.

    A shard is given to an actor that has started, so one that waits for a node holds up nothing; that of an actor which dies, with its
    node or alone, is given to another. Raises a worker's own error, and JobError where workers die and none finishes anything.
    """
    actor_class = ray.remote(num_cpus=1, num_gpus=gpus)(worker)
    waiting = deque(shards)
    actors: dict[Any, Any] = {}  # by what is awaited of them: to be ready, or a shard
    held: dict[Any, int] = {}  # the shard that is awaited

    def start() -> None:
        actor = actor_class.remote(*arguments)
        actors[actor.__ray_ready__.remote()] = actor

    losses = 0
    try:
        for _ in range(min(num_workers, len(shards))):
            start()
        while waiting or held:
            (done,), _ = ray.wait(list(actors))
            actor, shard = actors.pop(done), held.pop(done, None)
            try:
                said = ray.get(done)
            except RayActorError as death:
                losses += 1
                if death.actor_init_failed:
                    raise
                if losses > LOSSES_IN_A_ROW_AT_MOST * num_workers:
                    raise JobError(f"{losses} workers died in a row: {cause_of(death)}") from death
                if shard is not None:
                    waiting.appendleft(shard)
                start()
                continue
            if shard is not None:
                losses = 0
                yield said
            if waiting:
                shard = waiting.popleft()
                actors[result := actor.shard.remote(shard)] = actor
                held[result] = shard
            else:
                ray.kill(actor)
    finally:
        for actor in actors.values():
            ray.kill(actor)
