"""Files that prepare lists in a folder, and counts of the entries that it passes over.

The entries include links, unreadable folders and hidden folders.
"""

import codecs
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audiodiff_core.audio import AudioDecodeError
from audiodiff_platform.audio_files import Inputs
from audiodiff_platform.prepare.job import PrepareOptions, prepare
from audiodiff_platform.storage import Folder
from tests.servers.stores import Store

NOBODY = 65_534


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that any user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="audiodiff-public-"))
    folder.chmod(0o755)
    yield folder
    for path, _, _ in os.walk(folder):
        os.chmod(path, 0o755)
    shutil.rmtree(folder)


@contextmanager
def without_privileges() -> Iterator[None]:
    """Run the `with` block as a user to whom permissions apply."""
    privileged = os.geteuid() == 0
    # Python caches a failed lookup: a codec that this user may not import would stay unknown.
    codecs.lookup("utf-8-sig")
    if privileged:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if privileged:
            os.seteuid(0)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def listed(folder: Path) -> tuple[set[str], dict[str, int]]:
    """Return the sources of a folder, each once, and the counts of skipped entries."""
    inputs = Inputs(str(folder))
    names = [source.uri for source in inputs.sources()]
    assert len(set(names)) == len(names)
    return set(names), dict(inputs.skipped)


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a/x.wav")
    touch(tmp_path / "disk", "y.wav", "deep/z.wav", "deep/deeper/w.wav")
    (tmp_path / "in" / "a" / "more").symlink_to(tmp_path / "disk")
    (tmp_path / "in" / "file.wav").symlink_to(tmp_path / "disk" / "y.wav")
    expected = {"a/x.wav", "file.wav", "a/more/y.wav", "a/more/deep/z.wav", "a/more/deep/deeper/w.wav"}
    assert listed(tmp_path / "in") == (expected, {"links followed": 1})
    inputs = Inputs(str(tmp_path / "in"))
    sources = {source.uri: source for source in inputs.sources()}
    assert inputs.fetch(sources["a/more/deep/z.wav"], tmp_path).read_bytes() == b"x"


def test_the_input_folder_may_be_a_link(tmp_path: Path) -> None:
    touch(tmp_path / "real", "x.wav")
    (tmp_path / "in").symlink_to("real")
    assert listed(tmp_path / "in") == ({"x.wav"}, {})


def test_a_folder_is_entered_once_a_real_path_before_links_and_links_by_their_names(tmp_path: Path) -> None:
    touch(tmp_path / "in", "z/real/x.wav")
    touch(tmp_path / "disk", "y.wav", "part/w.wav")
    for link, target in (("a", "in/z/real"), ("first", "disk/part"), ("second", "disk"), ("third", "disk")):
        (tmp_path / "in" / link).symlink_to(tmp_path / target)
    assert listed(tmp_path / "in") == (
        {"z/real/x.wav", "first/w.wav", "second/y.wav"},
        {"links followed": 2, "links to folders already listed": 2},
    )


@pytest.mark.parametrize("target", [".", "..", "../..", "../../..", "in", "in/a"])
def test_a_link_to_a_folder_that_contains_it_is_a_cycle(tmp_path: Path, target: str) -> None:
    touch(tmp_path / "in", "a/x.wav")
    touch(tmp_path, "outside.wav")
    (tmp_path / "in" / "a" / "link").symlink_to(target if target.startswith(".") else tmp_path / target)
    assert listed(tmp_path / "in") == ({"a/x.wav"}, {"link cycles": 1})


def test_cycles_through_other_folders_end(tmp_path: Path) -> None:
    touch(tmp_path / "in", "x.wav")
    touch(tmp_path / "disk", "y.wav")
    touch(tmp_path / "third", "z.wav")
    (tmp_path / "in" / "out").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "disk" / "on").symlink_to(tmp_path / "third")
    (tmp_path / "third" / "back").symlink_to(tmp_path / "disk")
    (tmp_path / "third" / "up").symlink_to(tmp_path)
    assert listed(tmp_path / "in") == ({"x.wav", "out/y.wav", "out/on/z.wav"}, {"links followed": 2, "link cycles": 3})


def test_links_to_nothing_and_to_themselves_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "x.wav")
    for link, target in (
        ("gone.wav", "none.wav"),
        ("gone", "none/"),
        ("under-a-file.wav", "x.wav/y.wav"),
        ("self.wav", "self.wav"),
        ("a", "b"),
        ("b", "a"),
    ):
        (tmp_path / link).symlink_to(target)
    os.mkfifo(tmp_path / "pipe.wav")
    assert listed(tmp_path) == ({"x.wav"}, {"dangling links": 3, "link cycles": 3, "special files": 1})


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o311], ids=["closed", "listed only", "entered only"])
def test_an_unreadable_folder_is_named_and_passed_over(public: Path, mode: int) -> None:
    touch(public / "in", "x.wav", "lost/y.wav", "a/closed/z.wav", "z/w.wav")
    for name in ("lost", "a/closed"):
        (public / "in" / name).chmod(mode)
        os.chown(public / "in" / name, 0, 0)
    with without_privileges():
        inputs = Inputs(str(public / "in"))
        assert {source.uri for source in inputs.sources()} == {"x.wav", "z/w.wav"}
    assert inputs.skipped == {"unreadable folders": 2}
    text = "\n".join(inputs.describe())
    assert f"{public}/in/lost (Permission denied)" in text
    assert f"{public}/in/a/closed (Permission denied)" in text


def test_links_into_an_unreadable_folder_are_named_and_passed_over(public: Path) -> None:
    touch(public, "in/x.wav", "closed/y.wav", "closed/sub/z.wav", "shut/w.wav")
    for link, target in (("y.wav", "closed/y.wav"), ("sub", "closed/sub"), ("shut", "shut")):
        (public / "in" / link).symlink_to(public / target)
    for name in ("closed", "shut"):
        (public / name).chmod(0o700)
    with without_privileges():
        names, skipped = listed(public / "in")
    assert names == {"x.wav"}
    assert skipped == {"unreadable links": 2, "links followed": 1, "unreadable folders": 1}


@pytest.mark.parametrize("closed", ["in", "."])
def test_an_input_folder_that_cannot_be_read_is_a_mistake_of_the_user(public: Path, closed: str) -> None:
    touch(public / "in", "x.wav")
    (public / closed).chmod(0o700)
    with (
        without_privileges(),
        pytest.raises(ValueError, match=r"input_dir .*/in: cannot be read \(Permission denied\)"),
    ):
        list(Inputs(str(public / "in")).sources())
    with (
        without_privileges(),
        pytest.raises(ValueError, match=r"input_dir .*/in/x\.wav: cannot be read \(Permission denied\)"),
    ):
        list(Inputs(str(public / "in" / "x.wav")).sources())


def test_a_folder_whose_path_is_too_long_is_passed_over(tmp_path: Path) -> None:
    touch(tmp_path / "in", "x.wav")
    here = os.open(tmp_path / "in", os.O_RDONLY)
    for _ in range(17):  # in steps, because no single path can be this long
        os.mkdir("d" * 250, dir_fd=here)
        deeper = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    names, skipped = listed(tmp_path / "in")
    assert (names, skipped) == ({"x.wav"}, {"unreadable folders": 1})


def test_a_file_that_cannot_be_opened_is_quarantined_when_it_is_read(public: Path) -> None:
    pq.write_table(pa.table({"audio": [b"RIFF"]}), public / "z.parquet")
    touch(public, "x.wav", "closed/y.wav")
    (public / "list.txt").write_text("closed/y.wav\n")
    for name in ("x.wav", "z.parquet", "closed"):
        (public / name).chmod(0o700)
    with without_privileges():
        for uri, names in ((public, ["x.wav", "z.parquet"]), (public / "list.txt", ["closed/y.wav"])):
            inputs = Inputs(str(uri))
            sources = sorted(inputs.sources(), key=lambda source: source.uri)
            assert [source.uri for source in sources] == names
            for source in sources:
                with pytest.raises(AudioDecodeError, match=r"cannot be opened \(Permission denied\)"):
                    inputs.fetch(source, public)


HIDDEN = [
    ".Trash-1000/files/a.wav",
    "album/.stversions/a.wav",
    "album/.stversions/older/b.wav",
    "album/@eaDir/a.wav/SYNOAUDIO.wav",
    "__MACOSX/album/._a.wav",
    "lost+found/#1234.wav",
    "$RECYCLE.BIN/S-1-5/b.wav",
    "System Volume Information/a.wav",
    "share/#recycle/a.wav",
    "share/.AppleDouble/a.wav",
    "share/Network Trash Folder/a.wav",
]
READ = ["album/a.wav", "album/lost+found.wav", "...And Justice for All/01.wav", "album/trash/a.wav", "__macosx__/a.wav"]


def test_hidden_and_system_folders_are_passed_over(tmp_path: Path) -> None:
    root = tmp_path / ".cache" / "music"  # the input folder itself may lie in a hidden folder
    touch(root, *HIDDEN, *READ, "album/.hidden.wav", "album/._a.wav")
    (root / "@Recycle").symlink_to(tmp_path)
    assert listed(root) == (set(READ), {"hidden folders": 11, "hidden files": 2})


def test_hidden_and_system_folders_of_stores_are_passed_over(store: Store) -> None:
    uri = f"{store.make_bucket()}/.cache/music"
    folder = Folder(uri)
    for name in (*HIDDEN, *READ, "album/.hidden.wav"):
        folder.write(name, b"x")
    inputs = Inputs(uri)
    assert {source.uri for source in inputs.sources()} == set(READ)
    assert inputs.skipped == {"hidden folders": 10, "hidden files": 1}


def test_prepare_counts_what_it_passes_over(
    local_ray: None, few_loops: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    touch(tmp_path / "in", ".Trash-1000/a.wav")
    (tmp_path / "in" / "linked").symlink_to(few_loops)
    (tmp_path / "in" / "cycle").symlink_to(".")
    options = PrepareOptions(
        input_dir=str(tmp_path / "in"),
        output_dir=str(tmp_path / "mel"),
        resolution="32",
        hop_length=1024,
        num_workers=1,
    )
    summary = prepare(options)
    assert (summary["files"], summary["quarantined"], summary["others"]) == (4, 0, 1)
    assert summary["skipped"] == {".txt": 1, "hidden folders": 1, "link cycles": 1, "links followed": 1}
    assert "1 .txt, 1 hidden folders, 1 link cycles, 1 links followed" in capfd.readouterr().err
    assert prepare(options)["skipped"] == summary["skipped"]
    rows = pq.read_table(tmp_path / "mel" / "data", columns=["audio_file"]).column(0).to_pylist()
    assert "linked/sub/ambi_piano.flac" in rows
