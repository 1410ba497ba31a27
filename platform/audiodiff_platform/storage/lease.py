"""One owner of an output folder.

`_lease.json` names the owner and its generation. On an object store, the owner renews the lease by compare-and-swap. An
observer watches the lease by its own clock: a lease that is renewed meanwhile has a live owner, a lease that is not renewed
for its whole term has expired and is taken over with the next generation. On a local disk, the owner also holds an OS lock
on `_lease.lock`, which disappears with its process. Workers compare the token of the lease before they commit, so a worker
of an earlier owner commits nothing.
"""

import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from audiodiff_platform.entry.errors import LeaseLostError
from audiodiff_platform.storage import conditional
from audiodiff_platform.storage.folder import Folder

LEASE, LOCK = "_lease.json", "_lease.lock"
TERM_S = 60.0
RENEWALS_PER_TERM = 4


@dataclass
class Lease:
    """A lease that this process holds.

    Args:
        folder: The folder.
        owner: The name of this process for people: host and process id.
        generation: One more than that of the lease before.
        token: A name of this lease, different from those of all others.
        since: The time when this process took the lease, as UTC text.
    """

    folder: Folder
    owner: str
    generation: int
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    since: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))
    term_s: float = TERM_S
    _renewals: int = 0
    _lost: str = ""

    def check(self) -> None:
        """Raise LeaseLostError if the lease has another owner or could not be renewed in time."""
        if self._lost:
            raise LeaseLostError(f"{self.folder.uri}: {self._lost}: run the same command again to continue")

    def content(self) -> bytes:
        """Return the content of the lease file."""
        stated = {"owner": self.owner, "generation": self.generation, "token": self.token, "since": self.since}
        return json.dumps({**stated, "term_s": self.term_s, "renewals": self._renewals}, indent=2).encode()

    def renew(self) -> None:
        """Renew the lease on the store, or mark it as lost."""
        current = conditional.read_version(self.folder, LEASE)
        if current is None or json.loads(current[0])["token"] != self.token:
            self._lost = f"another job took over ({_named(current)})"
            return
        self._renewals += 1
        if not conditional.replace(self.folder, LEASE, self.content(), current[1]):
            self._lost = "another job took over"

    def keep(self, stopped: threading.Event) -> None:
        """Renew the lease until `stopped` is set; a store out of reach for a whole term costs the lease."""
        renewed = time.monotonic()
        while not stopped.wait(self.term_s / RENEWALS_PER_TERM) and not self._lost:
            try:
                self.renew()
                renewed = time.monotonic()
            except OSError as error:
                if time.monotonic() - renewed > self.term_s:
                    self._lost = f"the lease could not be renewed for {self.term_s:.0f} s ({error})"


@contextmanager
def owned(folder: Folder, take_over: bool = False, term_s: float = TERM_S) -> Iterator[Lease]:
    """Hold the lease of an output folder.

    Args:
        folder: The folder, which need not exist.
        take_over: Take the lease of another owner of a folder on an object store without waiting until it expires.
        term_s: Seconds after which a lease that is not renewed has expired.

    Raises:
        ValueError: A live process owns the folder, or its store ignores conditional writes.
    """
    if folder.is_local:
        with _locked(folder) as lock, _removed_at_the_end(_next_local(folder, term_s)) as lease:
            assert not lock.closed
            yield lease
        return
    conditional.require_conditional_writes(folder)
    with _removed_at_the_end(_acquired(folder, take_over, term_s)) as lease:
        stopped = threading.Event()
        keeper = threading.Thread(target=lease.keep, args=(stopped,), name="lease", daemon=True)
        keeper.start()
        try:
            yield lease
        finally:
            stopped.set()
            keeper.join()


def require_token(folder: Folder, token: str) -> None:
    """Raise LeaseLostError if the folder's lease is not the lease of this token."""
    try:
        current = folder.read_json(LEASE)
    except FileNotFoundError:
        current = {"token": None, "owner": "no process"}
    if current["token"] != token:
        raise LeaseLostError(f"{folder.uri} is owned by {current['owner']} by now: this worker's job has ended")


@contextmanager
def _locked(folder: Folder) -> Iterator[IO[str]]:
    """Hold the OS lock of a local folder; a folder that is created for the lock and stays empty is removed."""
    path = Path(folder.path(LOCK))
    is_new = not path.parent.exists()
    while True:
        lock = _opened(path)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise ValueError(
                f"{folder.uri} is owned by a live job ({_named_local(folder)}): wait for it, or stop it"
            ) from None
        if _is(lock, path):  # an owner removes the file at its end
            break
        lock.close()
    try:
        yield lock
    finally:
        path.unlink(missing_ok=True)
        lock.close()
        if is_new:
            with suppress(OSError):  # it is not empty
                path.parent.rmdir()


def _opened(path: Path) -> IO[str]:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # an owner removed its empty folder
            return path.open("a")


def _is(lock: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _next_local(folder: Folder, term_s: float) -> Lease:
    generation = folder.read_json(LEASE)["generation"] + 1 if folder.exists(LEASE) else 1
    lease = Lease(folder, _owner(), generation, term_s=term_s)
    folder.write(LEASE, lease.content())
    return lease


def _acquired(folder: Folder, take_over: bool, term_s: float) -> Lease:
    """Create the lease, or take over an expired lease of an object store."""
    from audiodiff_platform.entry.terminal import say

    current = conditional.read_version(folder, LEASE)
    while True:
        generation = 1 if current is None else json.loads(current[0])["generation"] + 1
        lease = Lease(folder, _owner(), generation, term_s=term_s)
        if current is None:
            if conditional.create(folder, LEASE, lease.content()):
                return lease
            current = conditional.read_version(folder, LEASE)
            continue
        stated = json.loads(current[0])
        if not take_over:
            say(
                f"{folder.uri} is leased by {_named(current)}: taking over in {stated['term_s']:.0f} s if the lease is not renewed (--take_over: at once)"
            )
            deadline = time.monotonic() + stated["term_s"]
            clock = threading.Event()
            while time.monotonic() < deadline:
                clock.wait(min(stated["term_s"] / 12, max(0.0, deadline - time.monotonic())))
                now = conditional.read_version(folder, LEASE)
                if now is None:
                    break
                if now[1] != current[1]:
                    raise ValueError(f"{folder.uri} is owned by a live job ({_named(now)}): wait for it, or stop it")
            if now is None:
                current = None
                continue
        if conditional.replace(folder, LEASE, lease.content(), current[1]):
            return lease
        current = conditional.read_version(folder, LEASE)


@contextmanager
def _removed_at_the_end(lease: Lease) -> Iterator[Lease]:
    try:
        yield lease
    finally:
        try:
            if lease.folder.read_json(LEASE)["token"] == lease.token:
                lease.folder.remove(LEASE)
        except FileNotFoundError:
            pass
        except OSError as error:  # the outcome of the job stands; the lease expires
            sys.stderr.write(f"warning: the lease of {lease.folder.uri} could not be removed ({error})\n")


def _owner() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _named(current: tuple[bytes, str] | None) -> str:
    if current is None:
        return "no process"
    stated: dict[str, Any] = json.loads(current[0])
    return f"{stated['owner']}, since {stated['since']}"


def _named_local(folder: Folder) -> str:
    try:
        stated = folder.read_json(LEASE)
    except FileNotFoundError:
        return "just started"
    return f"{stated['owner']}, since {stated['since']}"
