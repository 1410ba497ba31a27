"""Lists of audio files from editors and programs: encodings, blanks, separators, names.

Files that are not lists are covered too.
"""

import codecs
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audiodiff_core.audio import AudioDecodeError
from audiodiff_platform.audio_files import Inputs, items
from audiodiff_platform.audio_files.lists import MAX_LINE_CHARACTERS

NAMES = ["first.wav", "#1 hit.wav", "sub/ü 音.wav"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of three files, each of which holds its own name."""
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def uris(listing: Path) -> list[str]:
    return [source.uri for source in Inputs(str(listing)).sources()]


def contents(listing: Path, scratch: Path) -> list[str]:
    inputs = Inputs(str(listing))
    return [
        item.local.read_text()
        for source in inputs.sources()
        for item in items(source, inputs.fetch(source, scratch), scratch)
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_encodings_and_line_ends(folder: Path, mark: bytes, encoding: str, end: str, last: bool) -> None:
    text = end.join(NAMES) + (end if last else "")
    (folder / "list.txt").write_bytes(mark + text.encode(encoding))
    assert contents(folder / "list.txt", folder) == NAMES


def test_a_list_of_many_buffers_in_utf16(folder: Path) -> None:
    lines = [f"{number:05d} ü 音.wav" for number in range(5_000)]
    (folder / "list.txt").write_bytes("\r\n".join(lines).encode("utf-16"))
    assert uris(folder / "list.txt") == lines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("first.wav\n#1 hit.wav\nCafé.wav\n".encode("latin-1"), "line 3 is not UTF-8: save the list as UTF-8"),
        ("first.wav\n".encode("utf-16-le"), r"line 1 has NUL characters \(UTF-16 without a byte order mark"),
        ("first.wav\n".encode("utf-16-be"), r"line 1 has NUL characters \(UTF-16 without a byte order mark"),
        ("a.wav\nb.wav\n".encode("utf-16")[:-1], "is not UTF-16 after line"),
        (codecs.BOM_UTF16_LE + "a.wav\n".encode("utf-16-le") + b"\x00\xd8\n\x00", "line 2 is not UTF-16"),
        (b"first.wav\n" + b"x" * (MAX_LINE_CHARACTERS + 1), "line 2 has more than 65,536 characters"),
        (b"\x89PNG\r\n\x1a\n\0\0", "line 1 is not UTF-8"),
    ],
)
def test_what_is_no_list_is_refused_with_its_name_and_line(folder: Path, content: bytes, message: str) -> None:
    (folder / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"input_dir {folder}/list\.txt: {message}") as caught:
        uris(folder / "list.txt")
    assert "\n" not in str(caught.value)


def test_blanks_and_marks_belong_to_a_name_only_if_the_file_has_them(folder: Path) -> None:
    (folder / " blank .wav ").write_text(" blank .wav ")
    (folder / "list.txt").write_text(
        "\ufefffirst.wav\n \t\n\n  first.wav\t\n blank .wav \n\ufeff#1 hit.wav \n   absent.wav  \n"
    )
    assert uris(folder / "list.txt") == ["first.wav", " blank .wav ", "#1 hit.wav", "absent.wav"]


@pytest.mark.parametrize("kind", ["txt", "parquet"])
def test_backslashes_separate_if_the_name_exists_only_so(folder: Path, kind: str) -> None:
    (folder / "a\\b.wav").write_text("a name with a backslash")
    (folder / "a").mkdir()
    (folder / "a" / "b.wav").write_text("in a folder")
    entries = ["sub\\ü 音.wav", ".\\first.wav", "a\\b.wav", "a/b.wav", "C:\\Music\\x.wav"]
    if kind == "txt":
        (folder / "list.txt").write_text("\r\n".join(entries), newline="")
    else:
        pq.write_table(pa.table({"path": pa.array(entries).dictionary_encode()}), folder / "list.parquet")
    assert uris(folder / f"list.{kind}") == ["sub/ü 音.wav", "first.wav", "a\\b.wav", "a/b.wav", "C:\\Music\\x.wav"]


def test_a_file_is_one_source_however_it_is_written(folder: Path) -> None:
    (folder / "list.txt").write_text(
        f"first.wav\n./first.wav\nsub/../first.wav\n{folder}/first.wav\nfile://{folder}/first.wav\nfirst.wav\n"
    )
    # `..` stays in the name, because behind a linked folder it leads elsewhere.
    assert uris(folder / "list.txt") == ["first.wav", "sub/../first.wav"]


def test_names_are_relative_to_the_lists_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    (folder / "sub" / "list.txt").write_text("ü 音.wav\n../first.wav\n")
    assert contents(folder / "sub" / "list.txt", folder) == ["sub/ü 音.wav", "first.wav"]


def test_entries_that_are_no_files_have_a_reason(folder: Path) -> None:
    (folder / "album.flac").mkdir()
    os.mkfifo(folder / "pipe.wav")
    (folder / "loop.wav").symlink_to("loop.wav")
    reasons = {
        "sub": "is a folder: list its files",
        "album.flac": "is a folder: list its files",
        "pipe.wav": "is a device, pipe or socket",
        "loop.wav": "no such file",
        "first.wav/a.wav": "no such file",
        "#absent.wav": "no such file",
        f"{'x' * 300}.wav": "no such file",
    }
    (folder / "list.txt").write_text("\n".join([*reasons, "sub/"]))
    inputs = Inputs(str(folder / "list.txt"))
    sources = list(inputs.sources())
    assert [source.uri for source in sources] == list(reasons)
    for source in sources:
        with pytest.raises(AudioDecodeError, match=reasons[source.uri]):
            inputs.fetch(source, folder)


def test_names_in_another_unicode_form_are_found_after_the_exact_name(folder: Path) -> None:
    composed, decomposed = "caf\u00e9.wav", "cafe\u0301.wav"
    (folder / "list.txt").write_text(f"{composed}\n")
    (folder / decomposed).write_text("decomposed")
    assert contents(folder / "list.txt", folder) == ["decomposed"]
    (folder / composed).write_text("composed")
    assert contents(folder / "list.txt", folder) == ["composed"]
    (folder / decomposed).unlink()
    (folder / "list.txt").write_text(f"{decomposed}\n")
    assert contents(folder / "list.txt", folder) == ["composed"]


def test_a_nul_in_a_parquet_list_is_no_such_file(folder: Path) -> None:
    pq.write_table(pa.table({"path": ["a\0.wav", "first.wav"]}), folder / "list.parquet")
    inputs = Inputs(str(folder / "list.parquet"))
    assert [source.version == "missing" for source in inputs.sources()] == [True, False]


def test_what_a_list_names_beside_audio_is_counted_by_its_extension(folder: Path) -> None:
    (folder / "notes.md").write_text("")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "a.wav").write_text("")
    (folder / "list.txt").write_text(
        "first.wav\nnotes.md\nABSENT.MD\nnone\n._first.wav\n.cache/a.wav\n__MACOSX/._first.wav\nx.tar.gz\n"
    )
    inputs = Inputs(str(folder / "list.txt"))
    assert [source.uri for source in inputs.sources()] == ["first.wav"]
    assert inputs.skipped == {".md": 2, "none": 1, "hidden files": 3, ".tar.gz": 1}
    assert inputs.others == 7


def test_absolute_names_in_a_hidden_folder_are_read(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = tmp_path_factory.mktemp("home") / ".cache"
    cache.mkdir()
    for name in ("a.wav", "._a.wav"):
        (cache / name).write_text("")
    (folder / "list.txt").write_text(f"{cache}/a.wav\n{cache}/._a.wav\n")
    assert uris(folder / "list.txt") == [f"{cache}/a.wav"]


def test_a_parquet_list_that_is_not_utf8_is_named(folder: Path) -> None:
    names = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9.wav"]).buffers())
    pq.write_table(pa.table({"path": names}), folder / "list.parquet")
    with pytest.raises(ValueError, match=rf"input_dir {folder}/list\.parquet: cannot read Parquet .*utf-8"):
        uris(folder / "list.parquet")


def test_a_parquet_list_that_is_damaged_is_named(folder: Path) -> None:
    pq.write_table(
        pa.table({"path": ["first.wav"] * 100}), folder / "list.parquet", compression="none", use_dictionary=False
    )
    content = bytearray((folder / "list.parquet").read_bytes())
    content[4:40] = b"\xff" * 36
    (folder / "list.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=rf"input_dir {folder}/list\.parquet: cannot read Parquet"):
        uris(folder / "list.parquet")
