"""Deaths of processes by shard, kept on disk: a file that ends two processes in turn is given up.

`_attempts/<shard>.json` names the item that a process works on. A process that starts a shard and finds the mark of
another process there counts one death, unless the other's node is gone or its driver was a different one: a node that is
taken away blames no file.
"""

from dataclasses import dataclass, field
from typing import Any

import ray

from audiodiff_platform.storage import Folder

FOLDER = "_attempts"
DEATHS_OF_AN_ITEM = 2
DEATHS_OF_A_SHARD = 8  # that no item explains


@dataclass
class Attempts:
    """The record of one shard, which outlives the process that works on it.

    Args:
        output: The folder of the job, or None if the job keeps no record.
        shard: The number of the shard.
        process: A name of this process, different from those of all others.
    """

    output: Folder | None
    shard: int
    process: str
    deaths: list[str] = field(default_factory=list)
    """The item in work at each death; empty where no item was in work."""

    def __post_init__(self) -> None:
        if self.output is None or not self.output.exists(self._name):
            return
        record: dict[str, Any] = self.output.read_json(self._name)
        self.deaths = list(record["deaths"])
        if record["process"] not in ("", self.process) and _is_alive(record["node"]):
            self.deaths.append(record["item"])

    def start(self, item: str = "") -> None:
        """Mark `item` (or the shard as a whole) as in work by this process."""
        self._write(self.process, item)

    def stop(self) -> None:
        """Mark the shard as in work by no process: an error that the process survives is no death."""
        if self.deaths:
            self._write("", "")
        elif self.output is not None:
            self.output.remove(self._name)

    def gives_up(self, item: str) -> bool:
        """Return True if `item` was in work at two deaths."""
        return self.deaths.count(item) >= DEATHS_OF_AN_ITEM

    @property
    def exhausted(self) -> bool:
        """True if more processes died of the shard than its items explain."""
        return len(self.deaths) >= DEATHS_OF_A_SHARD + DEATHS_OF_AN_ITEM * sum(map(self.gives_up, set(self.deaths) - {""}))

    @property
    def reason(self) -> str:
        """The reason for which an item is given up."""
        return f"ended {DEATHS_OF_AN_ITEM} processes that worked on it"

    @property
    def _name(self) -> str:
        return f"{FOLDER}/{self.shard:06d}.json"

    def _write(self, process: str, item: str) -> None:
        if self.output is not None:
            record = {"deaths": self.deaths, "process": process, "node": _node(), "item": item}
            self.output.write_json(self._name, record)


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def _is_alive(node: str) -> bool:
    return any(known["NodeID"] == node and known["Alive"] for known in ray.nodes()) if ray.is_initialized() else False
