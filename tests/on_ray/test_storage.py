"""Folders on S3 and Google Cloud Storage over real HTTP: the same results as on disk.

The data stays whole under throttling and broken connections, and no secret is shown.
"""

import errno
import logging
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray

from audiodiff_platform.storage import Folder, objects
from tests.servers.faults import Action
from tests.servers.stores import PAGE, SECRETS, Store

CONTENT = random.Random(0).randbytes(200_000)
READ_FAULTS: tuple[Action, ...] = ("throttle", "unavailable", "drop", "cut")
WRITE_FAULTS: tuple[Action, ...] = ("throttle", "unavailable", "drop", "lose")
ENDINGS = (b"", b"\r", b"ends in a carriage return\r", b"\r\n\n", bytes(range(256)))


@pytest.fixture
def uri(store: Store) -> str:
    """The URI of a folder in a new bucket, usually without objects."""
    return f"{store.make_bucket()}/some/folder"


def test_what_is_written_is_read(uri: str) -> None:
    folder = Folder(uri)
    for number, content in enumerate(ENDINGS):
        folder.write(f"{number}.bin", content)
    assert [folder.read(f"{number}.bin") for number in range(len(ENDINGS))] == list(ENDINGS)
    folder.write("0.bin", b"other")
    assert folder.read("0.bin") == b"other"
    folder.write_json("deep/er/settings.json", {"a": [1, None]})
    assert folder.read_json("deep/er/settings.json") == {"a": [1, None]}


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_a_disk_without_hard_links_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", fail)
    folder = Folder(str(tmp_path / "out"))
    with pytest.raises(
        ValueError, match=f"^{tmp_path}/out: this disk does not support hard links .* on another disk or on a store$"
    ):
        folder.create("a.json", b"{}")
    assert not any((tmp_path / "out").iterdir())


def test_names_of_more_objects_than_a_listing_gives_at_once(uri: str) -> None:
    folder = Folder(uri)
    written = sorted(
        [f"data/train-{number:06d}.parquet" for number in range(2 * PAGE + 3)]
        + ["data/notes.txt", "data/old/train-000000.parquet"]
    )
    for name in written:
        folder.write(name, name.encode())
    assert folder.names("data/train-*.parquet") == [name for name in written if name.startswith("data/train")]
    assert folder.names("none/*") == []
    assert sorted(entry.name for entry in folder.walk()) == written
    assert folder.read_all("data/*.*") == {name: name.encode() for name in written if name.count("/") == 1}


def test_exists_and_remove(uri: str) -> None:
    folder = Folder(uri)
    folder.remove("data")
    assert not folder.exists()
    for name in ("data/a", "data/b", "data/sub/c", "database"):
        folder.write(name, b"x")
    assert [folder.exists(name) for name in ("", "data", "data/a", "data/sub", "dat")] == [
        True,
        True,
        True,
        True,
        False,
    ]
    folder.remove("data/a")
    assert (folder.exists("data/a"), folder.exists("data/b")) == (False, True)
    folder.remove("data")
    assert (folder.exists("data"), folder.exists("database")) == (False, True)


def test_an_entry_changes_with_its_content(uri: str) -> None:
    folder = Folder(uri)
    folder.write("a", b"one")
    before = folder.entry("a")
    assert (before.name, before.size) == ("a", 3)
    assert [before] == list(folder.walk())
    folder.write("a", b"two")
    assert folder.entry("a").version != before.version
    with pytest.raises(FileNotFoundError):
        folder.entry("b")


def test_a_file_is_created_once(uri: str) -> None:
    Folder(uri).create_json("commit.json", {"first": True})
    with pytest.raises(FileExistsError):
        Folder(uri).create_json("commit.json", {"first": False})
    assert Folder(uri).read_json("commit.json") == {"first": True}


# Google's client uploads files of more than 5 MB in a different way.
@pytest.mark.parametrize("size", [200_000, 6_000_000])
def test_a_local_file_moves_in_and_is_fetched(uri: str, size: int, tmp_path: Path) -> None:
    content = random.Random(size).randbytes(size)
    (tmp_path / "local").write_bytes(content)
    Folder(uri).move_in(tmp_path / "local", "data/x.parquet")
    assert not (tmp_path / "local").exists()
    assert Folder(uri).read("data/x.parquet") == content
    assert Folder(uri).fetch("data/x.parquet", tmp_path).read_bytes() == content


def test_reads_survive(store: Store, uri: str, tmp_path: Path) -> None:
    folder = Folder(uri)
    wanted: dict[str, Action] = {f"{action}-{way}": action for action in READ_FAULTS for way in ("read", "fetch")}
    for name in wanted:
        folder.write(name, CONTENT)
    faults = {name: store.fail_read(action, f"{uri}/{name}") for name, action in wanted.items()}

    def get(name: str) -> bytes:
        return folder.read(name) if name.endswith("read") else folder.fetch(name, tmp_path).read_bytes()

    with ThreadPoolExecutor() as pool:  # in parallel, because a client waits a second or two before it retries
        whole = [content == CONTENT for content in pool.map(get, wanted)]
    assert {name: fault.fired for name, fault in faults.items()} == dict.fromkeys(wanted, 1)
    assert dict(zip(wanted, whole, strict=True)) == dict.fromkeys(wanted, True)


def test_writes_survive(store: Store, uri: str, tmp_path: Path) -> None:
    folder = Folder(uri)
    wanted: dict[str, Action] = {f"{action}-{way}": action for action in WRITE_FAULTS for way in ("write", "move")}
    contents = {name: CONTENT if name.endswith("write") else CONTENT * 30 for name in wanted}
    faults = {name: store.fail_write(action, f"{uri}/{name}") for name, action in wanted.items()}

    def put(name: str) -> None:
        if name.endswith("write"):
            folder.write(name, contents[name])
        else:
            (tmp_path / name).write_bytes(contents[name])
            folder.move_in(tmp_path / name, name)

    with ThreadPoolExecutor() as pool:
        list(pool.map(put, wanted))
    assert {name: fault.fired for name, fault in faults.items()} == dict.fromkeys(wanted, 1)
    assert sorted(entry.name for entry in folder.walk()) == sorted(wanted)
    assert {name: folder.read(name) == content for name, content in contents.items()} == dict.fromkeys(wanted, True)


@pytest.mark.parametrize("action", ["throttle", "cut"])
def test_listings_survive(action: Action, store: Store, uri: str) -> None:
    folder = Folder(uri)
    written = [f"{number:02d}" for number in range(PAGE + 1)]
    for name in written:
        folder.write(name, b"x")
    fault = store.fail_listing(action, uri)
    assert folder.names("*") == written
    assert fault.fired == 1
    fault = store.fail_listing(action, uri)
    assert sorted(entry.name for entry in folder.walk()) == written
    assert fault.fired == 1


def test_many_folders_are_listed_at_a_time_in_the_order_of_their_names(store: Store, uri: str) -> None:
    folder = Folder(uri)
    names = [f"music/album-{number:02d}/{track}.wav" for number in range(12) for track in "ab"]
    names += [
        "music/album.txt",
        "music/b.txt",
        "music/Z/deep/er/x.wav",
        "other/\U0001f3b5.wav",
        "other.txt",
        *(f"music/Z/{c}" for c in "abc"),
    ]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: folder.write(name, name.encode()), names))
    gathered = store.proxy.inject("gather", "GET", f"{uri.rpartition('/')[2]}/music/album-", times=12)
    entries = list(folder.walk())
    assert [entry.name for entry in entries] == sorted(names)
    assert [entry.size for entry in entries] == [len(name.encode()) for name in sorted(names)]
    assert gathered.fired == 12


def test_a_level_of_very_many_folders_is_listed_page_by_page_behind_the_first(
    store: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "MAX_FOLDERS", PAGE)
    folder = Folder(uri)
    names = sorted([f"{number:02d}/{track}" for number in range(2 * PAGE) for track in "ab"] + ["05", "14 1", "99"])
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: folder.write(name, b"x"), names))
    count = store.proxy.inject("drop", "GET", "/", times=1, every=1 << 30)
    assert [entry.name for entry in folder.walk()] == names
    assert count.seen < 3 * PAGE


def test_removal_survives(store: Store, uri: str) -> None:
    folder = Folder(uri)
    for name in ("data/a", "data/b"):
        folder.write(name, b"x")
    fault = (
        store.proxy.inject("throttle", "POST", "?delete")
        if store.scheme == "s3"
        else store.proxy.inject("throttle", "DELETE", "data/a")
    )
    folder.remove("data")
    assert fault.fired == 1
    assert not folder.exists("data")


def test_errors_and_logs_are_silent_about_secrets(store: Store, uri: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = Folder(uri)
    fault = store.fail_write("throttle", f"{uri}/a")
    folder.write("a", b"x")
    assert fault.fired == 1
    errors = []
    for missing in (folder, Folder(f"{store.scheme}://no-such-bucket/folder")):
        with pytest.raises(FileNotFoundError) as error:
            missing.read("no-such-object")
        errors.append(repr(error.value))
    text = "\n".join([*errors, repr(folder), repr(vars(folder)), caplog.text])
    assert [secret for secret in SECRETS if secret in text] == []


def test_workers_find_the_stores(local_ray: None, uri: str) -> None:
    Folder(uri).write("a.bin", CONTENT)
    assert ray.get(ray.remote(num_cpus=0)(lambda: Folder(uri).read("a.bin")).remote()) == CONTENT


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_an_object_that_s3fs_reads_in_several_requests_survives(store: Store, uri: str, tmp_path: Path) -> None:
    content = random.Random(0).randbytes(60_000_000)
    Folder(uri).write("large", content)
    fault = store.fail_read("cut", f"{uri}/large", times=2)
    assert Folder(uri).read("large") == content
    assert fault.fired == 2


def test_a_file_is_created_though_the_answer_is_lost(store: Store, uri: str) -> None:
    fault = store.fail_write("lose", f"{uri}/commit.json")
    Folder(uri).create_json("commit.json", {"mine": True})
    assert fault.fired == 1
    with pytest.raises(FileExistsError):
        Folder(uri).create_json("commit.json", {"mine": False})
