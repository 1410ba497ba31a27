"""API keys: hashed at rest, compared whole, revoked while the server runs, never shown."""

import logging
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from audiodiff_platform.serve import key_file
from audiodiff_platform.serve.key_file import HashedKey
from audiodiff_platform.serve.keys import (
    MAX_AUTHORIZATION_CHARACTERS,
    ApiKeys,
    KeysUnavailableError,
    environment_key,
    main,
)
from tests.clocks import Clock
from tests.rare import rare
from tests.servers.stores import Store

SECRET = "only in this test"


def test_the_command_prints_a_key_once_and_stores_its_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys"
    assert main(["add", str(file), "alice"]) == 0
    key = capsys.readouterr().out.strip()
    assert len(key) == len(key_file.PREFIX) + 43
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key not in file.read_text()
    assert main(["add", str(file), "alice"]) == 2
    assert "alice has a key: revoke it" in capsys.readouterr().err
    file.chmod(0o640)
    assert main(["add", str(file), "bob"]) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o640, "a changed file keeps its mode"
    assert len({line.split("$")[1] for line in file.read_text().splitlines()}) == 1, "a request costs one hash"
    other = capsys.readouterr().out.strip()
    keys = ApiKeys(file=str(file))
    assert [keys.name_of(f"Bearer {sent}") for sent in (key, other, key[:-1], "")] == ["alice", "bob", None, None]
    assert main(["revoke", str(file), "alice"]) == 0
    assert main(["list", str(file)]) == 0
    assert capsys.readouterr().out == "bob\n"
    assert main(["revoke", str(file), "alice"]) == 2
    assert main(["list", str(tmp_path / "missing")]) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys"], "no temporary file is left"


def test_keys_that_are_added_at_once_are_all_kept(tmp_path: Path) -> None:
    file = str(tmp_path / "keys")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: key_file.add(file, f"key-{number}"), range(24)))
    keys = ApiKeys(file=file)
    assert [keys.name_of(f"Bearer {key}") for key in made] == [f"key-{number}" for number in range(24)]


@pytest.mark.parametrize("store", ["s3", rare("gs")], indirect=True)
def test_a_file_on_a_store_is_read_again_when_it_changes(store: Store) -> None:
    uri = f"{store.make_bucket()}/secrets/keys"
    alice = key_file.add(uri, "alice")
    keys = ApiKeys(file=uri)
    bob = key_file.add(uri, "bob")
    assert keys.name_of(f"Bearer {bob}") is None
    keys.refresh()
    assert (keys.name_of(f"Bearer {alice}"), keys.name_of(f"Bearer {bob}")) == ("alice", "bob")
    key_file.revoke(uri, "alice")
    keys.refresh()
    assert (keys.name_of(f"Bearer {alice}"), keys.name_of(f"Bearer {bob}")) == (None, "bob")


@pytest.mark.parametrize("broken", ["missing", "invalid", "folder"])
def test_a_broken_file_keeps_its_last_keys_for_a_while(
    tmp_path: Path, broken: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("audiodiff_platform.serve.keys")
    # Whatever other libraries of this process have set up does not count.
    for name, value in (("propagate", False), ("disabled", False), ("handlers", [caplog.handler])):
        monkeypatch.setattr(logger, name, value)
    caplog.set_level(logging.WARNING, logger.name)
    file, clock = tmp_path / "keys", Clock(0)
    key = key_file.add(str(file), "alice")
    keys = ApiKeys(HashedKey.of("environment", SECRET.encode()), str(file), grace_s=60, clock=clock)
    content = file.read_text()
    file.unlink()
    if broken == "invalid":
        file.write_text(f"alice {key}\n")
    elif broken == "folder":
        file.mkdir()
    for clock.now in (1.0, 60.0):
        keys.refresh()
        assert keys.name_of(f"Bearer {key}") == "alice"
    clock.now = 61.0
    with pytest.raises(KeysUnavailableError):
        keys.name_of(f"Bearer {key}")
    assert keys.name_of(f"Bearer {SECRET}") == "environment", "the other source is still known"
    if broken == "folder":
        file.rmdir()
    file.write_text(content)
    keys.refresh()
    assert keys.name_of(f"Bearer {key}") == "alice"
    assert len(caplog.records) == 1, "a failure is logged once"
    assert key not in caplog.text


def test_all_lines_removed_are_all_keys_revoked(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    key = key_file.add(str(file), "alice")
    keys = ApiKeys(file=str(file))
    file.write_text("# none\n")
    keys.refresh()
    assert keys.are_required
    assert keys.name_of(f"Bearer {key}") is None


def test_without_keys_every_request_is_anonymous() -> None:
    keys = ApiKeys()
    assert not keys.are_required
    assert (keys.name_of(None), keys.name_of("Bearer x")) == ("anonymous", "anonymous")


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (f"Bearer {SECRET}", "environment"),
        (f"bearer  {SECRET} ", "environment"),
        (None, None),
        ("", None),
        ("Bearer", None),
        (SECRET, None),
        (f"Basic {SECRET}", None),
        (f"Bearer {SECRET}x", None),
        ("Bearer \u20ac", None),
        ("Bearer " + "x" * MAX_AUTHORIZATION_CHARACTERS, None),
    ],
)
def test_headers(header: str | None, name: str | None) -> None:
    assert ApiKeys(HashedKey.of("environment", SECRET.encode())).name_of(header) == name


def test_a_key_of_the_environment_may_have_any_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIODIFF_API_KEY", "schlüssel")
    keys = ApiKeys(environment_key())
    assert keys.name_of("Bearer schlüssel".encode().decode("latin-1")) == "environment"
    for wrong in ("", " key", "x" * 2_000):
        monkeypatch.setenv("AUDIODIFF_API_KEY", wrong)
        with pytest.raises(ValueError, match="AUDIODIFF_API_KEY: must have 1 to"):
            environment_key()


HASH = f"sha256${'0' * 32}${'0' * 64}"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"alice {SECRET}\n", r"line 1: must be NAME sha256\$SALT\$HASH"),
        (f"# names\n\n../alice {HASH}\n", "line 3: must be NAME"),
        (f"anonymous {HASH}\n", "line 1: anonymous is reserved"),
        (f"alice {HASH}\nalice {HASH}\n", "line 2: alice has two keys"),
        ("".join(f"key{number} {HASH}\n" for number in range(1_001)), "1,001 keys: a key file has at most 1,000"),
        ("#" * (key_file.MAX_FILE_BYTES + 1), "at most 262,144 bytes"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_a_file_that_is_not_valid_ends_the_start(tmp_path: Path, content: str | bytes, words: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=words) as refused:
        ApiKeys(file=str(file))
    assert SECRET not in str(refused.value)
    with pytest.raises(ValueError, match="cannot be read"):
        ApiKeys(file=str(tmp_path / "missing"))


def test_no_key_is_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    file = str(tmp_path / "keys")
    made = [key_file.add(file, "alice")]
    keys = ApiKeys(HashedKey.of("environment", SECRET.encode()), file)
    made.append(key_file.add(file, "bob"))
    os.utime(file)
    keys.refresh()
    shown = repr(keys) + str(vars(keys)) + caplog.text
    assert "alice" in shown
    assert "2 keys read" in shown
    assert not any(secret in shown for secret in (SECRET, *made))
