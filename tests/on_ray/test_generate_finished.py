"""generate on finished folders: lost files are made again, damage and unnamed files are named, leftovers go."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from audiodiff_platform.generate.job import generate
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.index import INDEX
from tests.in_process import in_process
from tests.servers.stores import Stores

PARTS = ("audio/*", "manifest/*", INDEX, commits.SUCCESS)


def _options(model: Path, uri: str) -> GenerateOptions:
    return GenerateOptions(model=str(model), output_dir=uri, count=6, steps=1, batch_size=1, num_workers=1)


def _content(folder: Folder) -> Mapping[str, bytes]:
    return {name: content for part in PARTS for name, content in folder.read_all(part).items()}


@pytest.fixture(scope="module")
def six(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The loops 0 to 5, in two shards."""
    folder = Folder(str(tmp_path_factory.mktemp("six") / "loops"))
    with in_process():
        generate(_options(model, folder.uri))
    return folder


@pytest.mark.parametrize(
    ("place", "loose_at_most"), [("disk", 1_000), ("disk", 0), pytest.param("s3", 0, marks=pytest.mark.soak_short)]
)
def test_lost_files_are_generated_again(
    six: Folder,
    model: Path,
    stores: Stores,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
    loose_at_most: int,
) -> None:
    monkeypatch.setattr(commits, "MAX_LOOSE_RECORDS", loose_at_most)
    folder = Folder(f"{stores.s3.make_bucket()}/loops" if place == "s3" else str(tmp_path / "loops"))
    for entry in six.walk():
        folder.write(entry.name, six.read(entry.name))
    commits.pack(folder, commits.committed(folder))
    records = folder.names("_commits/*")
    assert records == (["_commits/000000.json", "_commits/000001.json"] if loose_at_most else ["_commits/0000.parquet"])
    kept = folder.entry("audio/0000000004.wav").version
    folder.remove("audio/0000000001.wav")
    folder.write("audio/0000000002.wav", six.read("audio/0000000002.wav")[:-2])

    def killed(*_: Any) -> None:
        assert not folder.exists(commits.SUCCESS), "readers see no finished folder without its commits"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(commits, "withdraw", killed)
        with pytest.raises(KeyboardInterrupt):
            generate(_options(model, folder.uri))
    capsys.readouterr()
    generate(_options(model, folder.uri))
    assert (
        "2 committed files are missing or have another size, such as audio/0000000001.wav: "
        "1 of 2 shards are made again" in capsys.readouterr().err
    )
    assert _content(folder) == _content(six)
    assert folder.entry("audio/0000000004.wav").version == kept
    assert folder.names("_commits/*") == records
    generate(_options(model, folder.uri))
    assert "made again" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "damaged", "message"),
    [
        (INDEX, lambda content: content[:-1] + b"0", f"{INDEX} does not match the digest in _SUCCESS"),
        (INDEX, None, f"{INDEX} is missing"),
        (commits.SUCCESS, lambda content: content.replace(b",", b"", 1), "_SUCCESS is not a JSON object (Expecting"),
    ],
)
def test_damage_is_named_and_written_again(
    six: Folder,
    model: Path,
    tmp_path: Path,
    command: Callable[..., tuple[int, str]],
    name: str,
    damaged: Callable[[bytes], bytes] | None,
    message: str,
) -> None:
    folder = Folder(str(tmp_path / "loops"))
    shutil.copytree(six.root, folder.root)
    if damaged is None:
        folder.remove(name)
    else:
        folder.write(name, damaged(folder.read(name)))
    status, line = command("--output_dir", folder.uri, "--verify")
    assert (status, line.startswith(f"error: {folder.uri}")) == (1, True)
    assert message in line
    assert ": run the job again to write " in line
    assert line.endswith(", without verify")
    generate(_options(model, folder.uri))
    assert _content(folder) == _content(six)
    assert command("--output_dir", folder.uri, "--verify")[0] == 0


def test_what_no_commit_names_is_found_and_removed(
    six: Folder, model: Path, tmp_path: Path, command: Callable[..., tuple[int, str]]
) -> None:
    folder = Folder(str(tmp_path / "loops"))
    shutil.copytree(six.root, folder.root)
    before = {entry.name for entry in folder.walk()}
    others = ["audio/extra.wav", "manifest/000000 (copy).parquet"]
    for name in others:
        folder.write(name, six.read("manifest/000000.parquet"))
    for name in (".report.html", "_commits/.000003.json", "_plan/.0001.parquet", "audio/.0000000000.wav"):
        folder.write(f"{name}.{'0123456789abcdef' * 2}", b"of a process that was killed")
    status, line = command("--output_dir", folder.uri, "--verify")
    assert status == 1
    assert "3 files are named by no commit (audio/." in line
    assert f"{', '.join(others)}): move them elsewhere, or run without verify, which removes them" in line
    generate(_options(model, folder.uri))
    assert {entry.name for entry in folder.walk()} == before
    assert command("--output_dir", folder.uri, "--verify")[0] == 0
