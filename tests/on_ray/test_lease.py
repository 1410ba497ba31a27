"""One owner of an output folder: a live owner is named, a dead owner is succeeded.

A former owner that still runs commits nothing.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from audiodiff_platform.entry.errors import LeaseLostError
from audiodiff_platform.storage import Folder, commits, conditional
from audiodiff_platform.storage.lease import LEASE, LOCK, owned, require_token
from audiodiff_platform.work.attempts import Attempts, CommittedError
from tests.servers.stores import Store

OWNER = """
import sys, time
from audiodiff_platform.storage import Folder
from audiodiff_platform.storage.lease import owned

with owned(Folder(sys.argv[1]), term_s=float(sys.argv[2])) as lease:
    print("owned", lease.generation, flush=True)
    sys.stdin.read()
"""


def start_owner(uri: str, term_s: float = 2.0) -> subprocess.Popen[str]:
    """Start a process that owns a folder until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, uri, str(term_s)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "owned 1\n"
    return process


def test_a_live_owner_of_a_local_folder_is_named(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "out"))
    with start_owner(folder.uri) as process:
        with (
            pytest.raises(
                ValueError, match=rf"is owned by a live job \(process {process.pid} on .*, since .* UTC\): wait for it"
            ),
            owned(folder),
        ):
            pass
        process.communicate("")
    with owned(folder) as lease:
        assert lease.generation == 1
        require_token(folder, lease.token)
    assert not folder.exists(LEASE)
    assert not folder.exists(LOCK)
    assert not folder.exists(), "a folder in which nothing was written is removed"


def test_a_local_folder_of_a_killed_owner_is_taken_at_once(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "out"))
    with start_owner(folder.uri) as process:
        process.send_signal(signal.SIGKILL)
    zombie = folder.read_json(LEASE)["token"]
    with owned(folder) as lease:
        assert lease.generation == 2
        with pytest.raises(LeaseLostError, match=f"is now owned by process {os.getpid()} on"):
            commits.commit(folder, 0, {"rows": 1}, zombie)
        assert not folder.exists("_commits")
        commits.commit(folder, 0, {"rows": 1}, lease.token)
        with pytest.raises(CommittedError):
            Attempts(folder, 0, "another process", lease.token).require_ownership()
        with pytest.raises(LeaseLostError):
            Attempts(folder, 1, "the zombie", zombie).require_ownership()
    assert commits.committed(folder)[0]["rows"] == 1


def test_a_live_owner_on_a_store_is_named(store: Store) -> None:
    folder = Folder(f"{store.make_bucket()}/out")
    with start_owner(folder.uri) as process:
        with pytest.raises(ValueError, match=rf"is owned by a live job \(process {process.pid} on "), owned(folder):
            pass
        process.communicate("")
    with owned(folder) as lease:
        assert lease.generation == 1
    assert not folder.exists(LEASE)


def test_an_expired_lease_on_a_store_is_taken_over(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder(f"{store.make_bucket()}/out")
    with start_owner(folder.uri) as process:
        process.send_signal(signal.SIGKILL)
    zombie = folder.read_json(LEASE)["token"]
    with owned(folder, term_s=2.0) as lease:
        assert lease.generation == 2
        with pytest.raises(LeaseLostError):
            commits.commit(folder, 0, {"rows": 1}, zombie)
        commits.commit(folder, 0, {"rows": 1}, lease.token)
    assert f"is leased by process {process.pid} on" in capsys.readouterr().err
    assert list(commits.committed(folder)) == [0]


def test_a_lease_on_a_store_is_taken_over_at_once_if_asked(store: Store) -> None:
    folder = Folder(f"{store.make_bucket()}/out")
    with start_owner(folder.uri, term_s=600) as process:
        process.send_signal(signal.SIGKILL)
    with owned(folder, take_over=True) as lease:
        assert lease.generation == 2


def test_an_owner_whose_lease_is_taken_over_learns_it(store: Store) -> None:
    folder = Folder(f"{store.make_bucket()}/out")
    with owned(folder, term_s=600) as first:
        first.renew()
        first.check()
        with owned(folder, take_over=True) as second:
            assert second.generation == first.generation + 1
            first.renew()
            with pytest.raises(LeaseLostError, match="another job took over"):
                first.check()
            second.renew()
            second.check()
    assert not folder.exists(LEASE)


def test_a_renewal_whose_answer_is_lost_is_no_loss(store: Store) -> None:
    folder = Folder(f"{store.make_bucket()}/out")
    with owned(folder, term_s=600) as lease:
        lost = store.fail_write("lose", f"{folder.uri}/{LEASE}")
        lease.renew()
        assert lost.fired == 1
        lease.check()
        assert json.loads(folder.read(LEASE))["renewals"] == 1


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_a_store_that_ignores_conditions_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(f"{store.make_bucket()}/out")
    monkeypatch.setattr(store.proxy, "dropped_headers", {"if-match", "if-none-match"})
    with pytest.raises(ValueError, match="the store ignores conditional writes"), owned(folder):
        pass
    assert not folder.names("*")


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_a_probe_may_be_removed_as_a_leftover(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, created = Folder(f"{store.make_bucket()}/out"), conditional.create
    removed: list[str] = []

    def once_removed(folder: Folder, name: str, content: bytes) -> bool:
        answer = created(folder, name, content)
        if not removed:
            folder.remove(name)
            removed.append(name)
        return answer

    monkeypatch.setattr(conditional, "create", once_removed)
    with owned(folder):
        pass
    assert len(removed) == 1


def test_a_finished_folder_has_no_probe_of_a_killed_job(store: Store) -> None:
    folder = Folder(f"{store.make_bucket()}/out")
    folder.write(f"{conditional.PROBE}-{'0123456789abcdef' * 2}", b"1")
    folder.write(f"{conditional.PROBE}-notes.txt", b"of the user")
    with owned(folder):
        commits.succeed(folder, {}, {})
    assert folder.names("*") == [commits.SUCCESS, f"{conditional.PROBE}-notes.txt", "_index.parquet"]


def test_of_many_claims_of_one_folder_one_succeeds(tmp_path: Path, store: Store) -> None:
    for uri in (str(tmp_path / "out"), f"{store.make_bucket()}/out"):
        outcomes: list[object] = []
        barrier = threading.Barrier(4)

        def claim(
            number: int, uri: str = uri, outcomes: list[object] = outcomes, barrier: threading.Barrier = barrier
        ) -> None:
            barrier.wait()
            try:
                commits.claim(Folder(uri), "settings.json", {"number": number})
                outcomes.append(number)
            except ValueError as error:
                outcomes.append(str(error))

        threads = [threading.Thread(target=claim, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = (outcome for outcome in outcomes if isinstance(outcome, int))
        assert Folder(uri).read_json("settings.json")["number"] == winner
        assert sum("holds work with other settings" in str(outcome) for outcome in outcomes) == 3


def test_on_a_store_an_item_is_given_up_that_was_in_work_at_the_second_death(store: Store) -> None:
    """On stores, items are marked from the second attempt on."""
    folder = Folder(f"{store.make_bucket()}/out")
    mark = {"process": "dead", "node": "", "token": None}
    folder.write_json("_attempts/000003.json", {**mark, "deaths": [""], "item": "poison.wav"})
    attempts = Attempts(folder, 3, "this process")
    attempts.deaths = ["", "poison.wav"]
    assert attempts.gives_up("poison.wav")
    assert not attempts.gives_up("other.wav")
    fresh = Attempts(folder, 4, "this process")
    fresh.start("a.wav")
    assert not folder.exists("_attempts/000004.json")
    fresh.deaths = [""]
    fresh.start("a.wav")
    assert folder.read_json("_attempts/000004.json")["item"] == "a.wav"
    fresh.stop()
    assert folder.read_json("_attempts/000004.json")["process"] == ""
