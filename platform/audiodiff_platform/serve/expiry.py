"""Removal of results that have expired, and of what ended processes left.

A task that ended is removed at its `expires_at`. A task that never ended is removed `unfinished_s` after its creation,
unless a live process holds it. Files without a readable request.json are removed when they are found again an hour
later: their process died while it created or deleted a task.
"""

from collections import defaultdict

from audiodiff_platform.serve.results import DAY_S
from audiodiff_platform.serve.task_folder import TaskFolder

ORPHAN_S = 3_600.0
TASK_PARTS = 3  # jobs/<owner>/<id>


class Expiry:
    """The removal of expired results, by a process that sweeps the folder every few minutes.

    Args:
        tasks: The folder of results.
        unfinished_s: The time in seconds for which a task that never ends is kept after its creation.
    """

    def __init__(self, tasks: TaskFolder, unfinished_s: float = DAY_S) -> None:
        self._tasks, self._unfinished_s = tasks, unfinished_s
        self._expires_at: dict[str, float] = {}  # of ended tasks, whose end.json never changes
        self._orphan_since: dict[str, float] = {}

    def sweep(self) -> int:
        """Remove what has expired, and count the size of what remains.

        Returns:
            The number of removed tasks.
        """
        sizes: dict[str, int] = defaultdict(int)
        files: dict[str, list[str]] = defaultdict(list)
        for entry in self._tasks.folder.walk():
            task = "/".join(entry.name.split("/")[:TASK_PARTS])
            sizes[task] += entry.size
            if entry.name.endswith(".json"):
                files[task].append(entry.name)
        expired = [task for task in sizes if self._is_expired(task, files[task])]
        for task in expired:
            self._tasks.delete(task)
        self._tasks.recount(sum(sizes.values()) - sum(sizes[task] for task in expired))
        kept = sizes.keys() - set(expired)
        self._expires_at = {task: at for task, at in self._expires_at.items() if task in kept}
        self._orphan_since = {task: at for task, at in self._orphan_since.items() if task in kept}
        return len(expired)

    def _is_expired(self, task: str, files: list[str]) -> bool:
        now = self._tasks.now()
        if task in self._expires_at:
            return now >= self._expires_at[task]
        state = self._tasks.state_of(task, files)
        if state is None or not state.request:
            return now - self._orphan_since.setdefault(task, now) >= ORPHAN_S
        if state.is_held(now):
            return False
        expires_at = float(state.request["created_at"]) + self._unfinished_s
        if state.end is None:
            return now >= expires_at
        self._expires_at[task] = float(state.end.get("expires_at", expires_at))
        return now >= self._expires_at[task]
