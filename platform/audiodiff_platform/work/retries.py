"""Retries of shards after storage failures."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.work.outcomes import Outcome

MAX_ATTEMPTS = 4


def with_retries(
    attempt: Callable[[Sequence[int]], Generator[Outcome, None, None]], shards: Sequence[int]
) -> Generator[Mapping[str, Any], None, None]:
    """Run `shards`, and rerun the shards whose storage failed until `MAX_ATTEMPTS` is reached.

    Args:
        attempt: Function that runs shards and yields the outcome of each shard.
        shards: Numbers of the shards.

    Yields:
        The counts of each finished shard, with its number as `shard`.

    Raises:
        JobError: A worker failed, storage failed in the last attempt, or a shard killed too many processes.
    """
    pending, lost = list(shards), list[str]()
    if not pending:
        return
    for retries_left in reversed(range(MAX_ATTEMPTS)):
        failures: dict[int, str] = {}
        with closing(attempt(pending)) as outcomes:
            for outcome in outcomes:
                match outcome.kind:
                    case "done":
                        yield {"shard": outcome.shard, **outcome.counts}
                    case "storage":
                        failures[outcome.shard] = outcome.failure
                    case "lost":
                        lost.append(outcome.failure)
                    case "error":
                        raise JobError(f"a worker failed: {outcome.failure}")
        if not failures:
            break
        shard, failure = next(iter(failures.items()))
        report = f"storage failed at {len(failures)} of {len(pending)} shards, such as {shard} ({failure})"
        if not retries_left:
            raise JobError(f"{report}: run the same command again to continue")
        say(f"{report}: retrying")
        pending = sorted(failures)
    if lost:
        raise JobError(f"{'; '.join(lost)}: see the logs of the workers, then run the same command again")
