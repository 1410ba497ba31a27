"""Which source a worker has in hand, on disk: one that ends its workers in one run, by a fault of a decoder or for lack of memory, is given up."""

from audiodiff_platform.storage import Folder

WORKERS_LOST_AT_MOST = 2
FOLDER = "_in_hand"


class InHand:
    """The record of one shard, which outlives its worker."""

    def __init__(self, output: Folder, shard: int) -> None:
        self._output, self._name = output, f"{FOLDER}/{shard:06d}.json"
        record = output.read_json(self._name) if output.exists(self._name) else {"lost": [], "in_hand": None}
        self._lost: list[str] = [*record["lost"], *([record["in_hand"]] if record["in_hand"] else [])]

    def gives_up(self, uri: str) -> bool:
        """Whether a source was in hand when too many workers ended."""
        return self._lost.count(uri) >= WORKERS_LOST_AT_MOST

    def take(self, uri: str | None) -> None:
        """Says that a source is in hand now, or none."""
        self._output.write_json(self._name, {"lost": self._lost, "in_hand": uri})
