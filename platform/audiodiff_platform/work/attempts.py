"""Records of the worker processes that died at a shard, so that items that kill workers are skipped.

An item is one input of a shard, such as an audio file. `_attempts/<shard>.json` holds the mark of the process that
works on the shard, with the item in progress. A process that starts the shard and finds the mark of another process of
the same job counts one death against the marked item. If the node of the other process is gone, no death is counted,
because no item causes the loss of a node, such as a reclaimed spot instance.

On an object store, items are marked from the second attempt on, which saves one request per item.
"""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray

from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.lease import require_token

FOLDER = "_attempts"
MAX_ITEM_DEATHS = 2
MAX_UNEXPLAINED_DEATHS = 8  # per shard, beyond the deaths blamed on skipped items
LEASE_CHECK_INTERVAL_S = 2.0


class CommittedError(Exception):
    """Another process has committed the shard."""


@dataclass
class Attempts:
    """The record of process deaths of one shard, which outlives the process that works on the shard.

    Args:
        output: Folder that holds the record.
        shard: Number of the shard.
        process: Unique name of this process.
        token: Token of the job's lease, or None if the job holds no lease.
        stage: Suffix of the name of the record in the second stage of a job. The first stage may run the shard again
            while the second has it in progress.
    """

    output: Folder
    shard: int
    process: str
    token: str | None = None
    stage: str = ""
    deaths: list[str] = field(default_factory=list)
    """The item in progress at each death, or "" if no item was marked."""
    checked: float = field(default_factory=time.monotonic)
    """Time of the last lease check, in seconds of the monotonic clock."""

    def __post_init__(self) -> None:
        record = self._record()
        if record is None or record["token"] != self.token:
            return
        self.deaths = list(record["deaths"])
        if record["process"] not in ("", self.process) and _is_alive(record["node"]):
            self.deaths.append(record["item"])

    def start(self, item: str = "") -> None:
        """Mark `item`, or the shard if `item` is empty, as in progress in this process.

        Raises:
            LeaseLostError: The job was stopped, or another job owns the folder.
        """
        self.require_running()
        if not item or self.deaths or self.output.is_local:
            self._write(self.process, item)

    def stop(self) -> None:
        """Clear the mark of this process, so that no death is counted after an error that it survives."""
        record = self._record()
        if record is None or record["process"] != self.process:
            return  # the mark belongs to a process that has replaced this one
        if self.deaths:
            self._write("", "")
        else:
            self.output.remove(self._name)

    def require_running(self) -> None:
        """Check that the job still holds its lease, at most once per `LEASE_CHECK_INTERVAL_S`.

        Call this method between two items: Ray does not interrupt a running actor method when its job ends.

        Raises:
            LeaseLostError: The job was stopped, or another job owns the folder.
        """
        if self.token is not None and time.monotonic() - self.checked > LEASE_CHECK_INTERVAL_S:
            with suppress(OSError):  # the store is unreachable: continue, the commit checks the lease again
                require_token(self.output, self.token)
            self.checked = time.monotonic()

    def require_ownership(self) -> None:
        """Check, before the files of the shard are written, that this process may still write them.

        Raises:
            LeaseLostError: Another job owns the folder.
            CommittedError: The shard is already committed.
        """
        if self.token is not None:
            require_token(self.output, self.token)
            if commits.committed_one(self.output, self.shard) is not None:
                raise CommittedError

    def gives_up(self, item: str) -> bool:
        """Return True if `item` has killed `MAX_ITEM_DEATHS` processes and must be skipped.

        The first attempt on an object store marks no items. A death in this attempt counts against every item that was
        in progress at a later death.
        """
        unmarked = 0 if self.output.is_local else self.deaths.count("")
        return item in self.deaths and self.deaths.count(item) + unmarked >= MAX_ITEM_DEATHS

    @property
    def exhausted(self) -> bool:
        """True if the shard has killed more processes than its skipped items explain."""
        skipped_items = sum(map(self.gives_up, set(self.deaths) - {""}))
        return len(self.deaths) >= MAX_UNEXPLAINED_DEATHS + MAX_ITEM_DEATHS * skipped_items

    @property
    def reason(self) -> str:
        """The reason reported for a skipped item."""
        return f"killed {MAX_ITEM_DEATHS} worker processes"

    @property
    def _name(self) -> str:
        return f"{FOLDER}/{self.shard:06d}{self.stage}.json"

    def _record(self) -> dict[str, Any] | None:
        try:
            return self.output.read_json(self._name)
        except FileNotFoundError:
            return None

    def _write(self, process: str, item: str) -> None:
        record = {"deaths": self.deaths, "process": process, "node": _node(), "item": item, "token": self.token}
        self.output.write_json(self._name, record)


def driver_died_without_ray(output: Folder) -> bool:
    """Return True if an earlier process died while it ran a shard without Ray.

    The mark of such a process has no node. The shards must then run in worker processes, so that a death does not end
    the job.
    """
    marks = output.read_all(f"{FOLDER}/*.json").values()
    return any(b'"node": ""' in mark and b'"process": ""' not in mark for mark in marks)


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def _is_alive(node_id: str) -> bool:
    return ray.is_initialized() and any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())
