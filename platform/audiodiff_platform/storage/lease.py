"""Lease of an output folder, so that only one job at a time writes to the folder.

The job that holds the lease is the owner of the folder. `_lease.json` names the owner and the generation of the lease,
which counts the owners.

On an object store, the owner renews the lease with conditional writes. Another job that wants the folder watches the
lease for one term of its own clock. If the lease is renewed during the term, its owner is alive. Otherwise, the lease
has expired, and the other job takes it over with the next generation.

On a local disk, the owner also holds an operating-system lock on `_lease.lock`, which ends with the process.

A worker compares the token of its job with the token of the lease before it commits a shard. A worker of an earlier
owner therefore cannot commit.
"""

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from audiodiff_platform.entry.errors import LeaseLostError
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.storage import conditional
from audiodiff_platform.storage.folder import Folder

LEASE, LOCK = "_lease.json", "_lease.lock"
TERM_S = 60.0
RENEWALS_PER_TERM = 4
CHECKS_PER_TERM = 12  # of a job that waits for the lease to expire


@dataclass
class Lease:
    """A lease that this process holds.

    Attributes:
        folder: The output folder.
        owner: The host and id of this process, as text for messages.
        generation: The generation of the previous lease plus 1.
        token: A unique name of this lease.
        since: The time of the start of the lease, as UTC text.
        term_s: The time in seconds after which the lease expires if it is not renewed.
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
        """Raise LeaseLostError if another job took over the lease, or the lease was not renewed in time."""
        if self._lost:
            raise LeaseLostError(f"{self.folder.uri}: {self._lost}: run the same command again to continue")

    def content(self) -> bytes:
        """Return the content of the lease file."""
        content = {
            "owner": self.owner,
            "generation": self.generation,
            "token": self.token,
            "since": self.since,
            "term_s": self.term_s,
            "renewals": self._renewals,
        }
        return json.dumps(content, indent=2).encode()

    def renew(self) -> None:
        """Renew the lease on the store, or mark the lease as lost if another job took it over."""
        current = conditional.read_version(self.folder, LEASE)
        if current is None:
            self._lost = "another job took over and has ended"
            return
        stored = json.loads(current[0])
        if stored["token"] != self.token:
            self._lost = f"another job took over ({_description(stored)})"
            return
        self._renewals += 1
        if not conditional.replace(self.folder, LEASE, self.content(), current[1]):
            self._lost = "another job took over"

    def keep(self, stopped: threading.Event) -> None:
        """Renew the lease until `stopped` is set or the lease is lost.

        The lease is lost if the store cannot be reached for one term.
        """
        renewed_at = time.monotonic()
        while not stopped.wait(self.term_s / RENEWALS_PER_TERM) and not self._lost:
            try:
                self.renew()
                renewed_at = time.monotonic()
            except OSError as error:
                if time.monotonic() - renewed_at > self.term_s:
                    self._lost = f"the lease could not be renewed for {self.term_s:.0f} s ({error})"


@contextmanager
def owned(folder: Folder, take_over: bool = False, term_s: float = TERM_S) -> Iterator[Lease]:
    """Hold the lease of an output folder for the duration of the context.

    Args:
        folder: The output folder, which need not exist.
        take_over: On an object store, take over the lease of another job at once, without waiting for it to expire.
        term_s: The time in seconds after which a lease expires if it is not renewed.

    Yields:
        The lease.

    Raises:
        ValueError: A live job owns the folder, or the store of the folder ignores conditional writes.
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
    """Require that a folder is leased under `token`.

    Raises:
        LeaseLostError: The folder has no lease, or a lease with another token.
    """
    try:
        stored = folder.read_json(LEASE)
    except FileNotFoundError:
        stored = {"token": None, "owner": "no process"}
    if stored["token"] != token:
        raise LeaseLostError(f"{folder.uri} is now owned by {stored['owner']}: this worker's job has ended")


@contextmanager
def _locked(folder: Folder) -> Iterator[IO[str]]:
    """Hold the operating-system lock of a local folder.

    A missing folder is created. At the end, this folder is removed if it is still empty.
    """
    path = Path(folder.path(LOCK))
    is_new = not path.parent.exists()
    while True:
        lock = _opened(path)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise ValueError(
                f"{folder.uri} is owned by a live job ({_local_owner(folder)}): wait for it, or stop it"
            ) from None
        if _is_at(path, lock):  # if not, the previous owner removed the file before it was locked
            break
        lock.close()
    try:
        yield lock
    finally:
        path.unlink(missing_ok=True)
        lock.close()
        if is_new:
            with suppress(OSError):  # the folder is not empty
                path.parent.rmdir()


def _opened(path: Path) -> IO[str]:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another owner removed the empty folder
            return path.open("a")


def _is_at(path: Path, lock: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _next_local(folder: Folder, term_s: float) -> Lease:
    generation = folder.read_json(LEASE)["generation"] + 1 if folder.exists(LEASE) else 1
    lease = Lease(folder, _this_process(), generation, term_s=term_s)
    folder.write(LEASE, lease.content())
    return lease


def _acquired(folder: Folder, take_over: bool, term_s: float) -> Lease:
    """Create the lease of a folder on an object store, or take over the lease of a dead owner."""
    current = conditional.read_version(folder, LEASE)
    while True:
        if current is not None and not take_over:
            current = _unrenewed(folder, current)
        generation = 1 if current is None else json.loads(current[0])["generation"] + 1
        lease = Lease(folder, _this_process(), generation, term_s=term_s)
        if current is None:
            written = conditional.create(folder, LEASE, lease.content())
        else:
            written = conditional.replace(folder, LEASE, lease.content(), current[1])
        if written:
            return lease
        current = conditional.read_version(folder, LEASE)


def _unrenewed(folder: Folder, current: tuple[bytes, str]) -> tuple[bytes, str] | None:
    """Wait for one term. Return the lease if it was not renewed, or None if its owner removed it.

    Raises:
        ValueError: The owner renewed the lease.
    """
    stored = json.loads(current[0])
    term_s = stored["term_s"]
    say(
        f"{folder.uri} is leased by {_description(stored)}: taking over in {term_s:.0f} s if the lease is not renewed "
        "(use --take_over to take over at once)"
    )
    deadline = time.monotonic() + term_s
    while (remaining_s := deadline - time.monotonic()) > 0:
        time.sleep(min(term_s / CHECKS_PER_TERM, remaining_s))
        latest = conditional.read_version(folder, LEASE)
        if latest is None:
            return None
        if latest[1] != current[1]:
            owner = _description(json.loads(latest[0]))
            raise ValueError(f"{folder.uri} is owned by a live job ({owner}): wait for it, or stop it")
    return current


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
        except OSError as error:  # the result of the job is valid, and the lease expires
            say(f"warning: the lease of {lease.folder.uri} could not be removed ({error})")


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _description(stored: Mapping[str, Any]) -> str:
    return f"{stored['owner']}, since {stored['since']}"


def _local_owner(folder: Folder) -> str:
    try:
        return _description(folder.read_json(LEASE))
    except FileNotFoundError:
        return "just started"
