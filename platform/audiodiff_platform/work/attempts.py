"""Deaths of processes by shard, kept on disk: an item that ends two processes is given up.

`_attempts/<shard>.json` names the item that a process works on. A process that starts a shard and finds the mark of
another process of the same job there counts one death, unless the node of the other process is gone: a node that is taken
away blames no item. On an object store, items are marked from the second attempt on, which saves a request for each item.
"""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray

from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.lease import require_token

FOLDER = "_attempts"
DEATHS_OF_AN_ITEM = 2
DEATHS_OF_A_SHARD = 8  # that no item explains
CHECK_S = 2.0


class CommittedError(Exception):
    """Another process committed the shard meanwhile."""


@dataclass
class Attempts:
    """The record of one shard, which outlives the process that works on it.

    Args:
        output: The folder that holds the record.
        shard: The number of the shard.
        process: A name of this process, different from those of all others.
        token: The token of the lease of the job, or None if the job holds none.
    """

    output: Folder
    shard: int
    process: str
    token: str | None = None
    deaths: list[str] = field(default_factory=list)
    """The item in work at each death; empty where no item was marked."""
    checked: float = field(default_factory=time.monotonic)
    """The time at which the lease was last seen, by the monotonic clock."""

    def __post_init__(self) -> None:
        record = self._record()
        if record is None or record["token"] != self.token:
            return
        self.deaths = list(record["deaths"])
        if record["process"] not in ("", self.process) and _is_alive(record["node"]):
            self.deaths.append(record["item"])

    def start(self, item: str = "") -> None:
        """Mark `item` (or the shard as a whole) as in work by this process.

        Raises:
            LeaseLostError: The job has ended.
        """
        self.require_running()
        if not item or self.deaths or self.output.is_local:
            self._write(self.process, item)

    def stop(self) -> None:
        """Mark the shard as in work by no process: an error that the process survives is no death."""
        record = self._record()
        if record is None or record["process"] != self.process:
            return  # of a process that was started in place of this one
        if self.deaths:
            self._write("", "")
        else:
            self.output.remove(self._name)

    def require_running(self) -> None:
        """Check between two items, at most every `CHECK_S` seconds, that the job goes on: Ray ends no method of an actor.

        Raises:
            LeaseLostError: The job was stopped, or the folder has another owner by now.
        """
        if self.token is not None and time.monotonic() - self.checked > CHECK_S:
            with suppress(OSError):  # the shard goes on while the store is out of reach: its commit checks again
                require_token(self.output, self.token)
            self.checked = time.monotonic()

    def require_ownership(self) -> None:
        """Check, before parts are put in place, that the shard is still this process's to make.

        Raises:
            LeaseLostError: The folder has another owner by now.
            CommittedError: The shard is committed by now.
        """
        if self.token is not None:
            require_token(self.output, self.token)
            if commits.committed_one(self.output, self.shard) is not None:
                raise CommittedError

    def gives_up(self, item: str) -> bool:
        """Return True if `item` was in work at two deaths, of which the first need not have been marked on a store."""
        unmarked = 0 if self.output.is_local else self.deaths.count("")
        return item in self.deaths and self.deaths.count(item) + unmarked >= DEATHS_OF_AN_ITEM

    @property
    def exhausted(self) -> bool:
        """True if more processes died of the shard than its items explain."""
        return len(self.deaths) >= DEATHS_OF_A_SHARD + DEATHS_OF_AN_ITEM * sum(
            map(self.gives_up, set(self.deaths) - {""})
        )

    @property
    def reason(self) -> str:
        """The reason for which an item is given up."""
        return f"ended {DEATHS_OF_AN_ITEM} processes that worked on it"

    @property
    def _name(self) -> str:
        return f"{FOLDER}/{self.shard:06d}.json"

    def _record(self) -> dict[str, Any] | None:
        try:
            return self.output.read_json(self._name)
        except FileNotFoundError:
            return None

    def _write(self, process: str, item: str) -> None:
        record = {"deaths": self.deaths, "process": process, "node": _node(), "item": item, "token": self.token}
        self.output.write_json(self._name, record)


def died_in_this_machines_driver(output: Folder) -> bool:
    """Return True if a process that ran shards without Ray left a mark: its successor runs them in workers, which may die."""
    marks = output.read_all(f"{FOLDER}/*.json").values()
    return any(b'"node": ""' in mark and b'"process": ""' not in mark for mark in marks)


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def _is_alive(node: str) -> bool:
    return any(known["NodeID"] == node and known["Alive"] for known in ray.nodes()) if ray.is_initialized() else False
