"""prepare with the music, the dataset or both on object stores and the Hub.

The servers throttle, break connections and lose answers.
"""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest

from audiodiff_platform.prepare.job import PrepareOptions, prepare
from audiodiff_platform.storage import Folder
from tests.rare import rare
from tests.servers.hub import HUB_TOKEN, Hub
from tests.servers.stores import SECRETS, Store

ROOT = Path(__file__).parents[2]


def _files(folder: Folder) -> dict[str, bytes]:
    return {entry.name: folder.read(entry.name) for entry in folder.walk()}


def _upload(local: Path, uri: str) -> None:
    for file in local.rglob("*"):
        if file.is_file():
            Folder(uri).write(str(file.relative_to(local)), file.read_bytes())


@pytest.mark.soak_short
@pytest.mark.workers
def test_nothing_is_lost_to_faults(
    local_ray: None, store: Store, dataset: Path, few_loops: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bucket = store.make_bucket()
    source, out = f"{bucket}/music", f"{bucket}/made/mel"
    _upload(few_loops, source)
    faults = [
        store.fail_listing("throttle", source),
        store.fail_read("throttle", f"{source}/loop_mika.flac"),
        store.fail_read("cut", f"{source}/loop_tabla.flac"),
        store.fail_read("drop", f"{source}/sub/ambi_piano.flac"),
        store.fail_write("drop", f"{out}/data/train-000001.parquet"),
        store.fail_write("lose", f"{out}/_commits/000002.json"),
        store.fail_write("unavailable", f"{out}/_SUCCESS"),
    ]
    options = PrepareOptions(
        input_dir=source,
        output_dir=out,
        overlap=0.5,
        shard_minutes=0.001,
        resolution="32",
        hop_length=1024,
        num_workers=2,
        drop_duplicates=False,
        verify=True,
    )
    summary = prepare(options)
    assert [fault.fired for fault in faults] == [1] * len(faults)
    made, local = _files(Folder(out)), _files(Folder(str(dataset)))
    assert {name: content for name, content in made.items() if not name.startswith("_plan/")} == {
        name: content for name, content in local.items() if not name.startswith("_plan/")
    }
    assert (summary["files"], summary["quarantined"], summary["others"]) == (4, 0, 1)
    printed = capfd.readouterr()
    held = b"".join(made.values()).decode(errors="replace")
    assert not [secret for secret in SECRETS if secret in printed.out + printed.err + held]


@pytest.mark.parametrize("store", ["s3", rare("gs")], indirect=True)
def test_a_changed_object_is_an_error_and_a_new_one_a_new_shard(
    local_ray: None, store: Store, few_loops: Path, loops: Path
) -> None:
    bucket = store.make_bucket()
    _upload(few_loops, f"{bucket}/music")
    options = PrepareOptions(
        input_dir=f"{bucket}/music",
        output_dir=f"{bucket}/mel",
        shard_minutes=0.001,
        resolution="32",
        hop_length=1024,
        num_workers=1,
        drop_duplicates=True,
    )
    prepare(options)
    before = _files(Folder(f"{bucket}/mel"))
    Folder(f"{bucket}/music").write("copy.flac", (loops / "loop_mika.flac").read_bytes())
    Folder(f"{bucket}/music").write("new.flac", (loops / "loop_compus.flac").read_bytes())
    summary = prepare(options)
    after = _files(Folder(f"{bucket}/mel"))
    assert (summary["files"], summary["duplicates"]) == (5, 1)
    assert {name: after[name] for name in before if name.startswith(("data/", "_plan/"))} == {
        name: content for name, content in before.items() if name.startswith(("data/", "_plan/"))
    }
    Folder(f"{bucket}/music").write("new.flac", b"other")
    with pytest.raises(ValueError, match=r"new\.flac has changed since it was planned"):
        prepare(options)


@pytest.mark.parametrize("store", ["s3", rare("gs")], indirect=True)
def test_a_list_of_objects_into_a_local_folder(local_ray: None, store: Store, few_loops: Path, tmp_path: Path) -> None:
    bucket = store.make_bucket()
    _upload(few_loops, f"{bucket}/music")
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        archive.add(few_loops / "bass_hit_c.flac", "bass.flac")
    Folder(bucket).write("shards/0.tar", (tmp_path / "0.tar").read_bytes())
    (tmp_path / "list.txt").write_text(f"{bucket}/music/loop_mika.flac\n{bucket}/none.flac\n{bucket}/shards/0.tar\n")
    options = PrepareOptions(
        input_dir=str(tmp_path / "list.txt"),
        output_dir=str(tmp_path / "mel"),
        resolution="32",
        hop_length=1024,
        num_workers=1,
    )
    summary = prepare(options)
    (made,) = (tmp_path / "mel" / "data").iterdir()
    assert set(pq.read_table(made)["audio_file"].to_pylist()) == {
        f"{bucket}/music/loop_mika.flac",
        f"{bucket}/shards/0.tar/bass.flac",
    }
    (quarantined,) = pq.read_table(tmp_path / "mel" / "quarantine").to_pylist()
    assert (quarantined["audio_file"], quarantined["reason"]) == (f"{bucket}/none.flac", "no such file")
    assert summary["files"] == 3


def test_from_the_hub_to_the_hub(hub: Hub, few_loops: Path, tmp_path: Path) -> None:
    songs = [
        {"bytes": (few_loops / f"{name}.flac").read_bytes(), "path": f"{name}.flac"}
        for name in ("loop_mika", "loop_tabla")
    ]
    rows = datasets.Dataset.from_dict({"song": songs}).cast_column("song", datasets.Audio(decode=False))
    rows.to_parquet(tmp_path / "songs.parquet")
    publish = (
        "from huggingface_hub import HfApi\nimport sys\napi = HfApi()\n"
        "name = api.create_repo('songs', repo_type='dataset').repo_id\n"
        "api.upload_file(path_or_fileobj=sys.argv[1], path_in_repo='data/train.parquet', "
        "repo_id=name, repo_type='dataset')\n"
    )
    environment = os.environ | hub.environment(tmp_path / "cache")
    subprocess.run(
        [sys.executable, "-c", publish, tmp_path / "songs.parquet"], env=environment, check=True, timeout=120
    )
    flags = [
        "--input_dir",
        "hf://datasets/tester/songs",
        "--output_dir",
        str(tmp_path / "mel"),
        "--push_to_hub",
        "tester/mel",
    ]
    size = ["--resolution", "32", "--hop_length", "1024", "--num_workers", "1"]
    done = subprocess.run(
        [sys.executable, "jobs/prepare.py", *flags, *size],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["files"] == 2
    published = hub.files("datasets", "tester/mel")
    assert published["data/train-000000.parquet"] == (tmp_path / "mel" / "data" / "train-000000.parquet").read_bytes()
    assert {"README.md", "mel_config.json", "prepare.json"} <= published.keys()
    read = (
        "import datasets\nrows = datasets.load_dataset('tester/mel', split='train')\n"
        "print(sorted(set(rows['audio_file'])), rows[0]['image'].size)\n"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", read], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert loaded.stdout == "['data/train.parquet/0-loop_mika.flac', 'data/train.parquet/1-loop_tabla.flac'] (32, 32)\n"
    assert HUB_TOKEN not in done.stdout + done.stderr
