"""The local Hub, used by the real clients: they read what they publish.

The clients run in a process that finds the Hub by the usual variables alone.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.servers.hub import HUB_TOKEN, Hub

PUBLISH_AND_READ = """
import io, json, sys
from pathlib import Path

import datasets, pyarrow, pyarrow.parquet
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError


def refused(kind, call, *arguments, **options):
    try:
        call(*arguments, **options)
    except kind as error:
        return str(error)
    raise AssertionError(f"{call} was not refused")


folder = Path(sys.argv[1])
api = HfApi()
name = api.create_repo("mel", repo_type="dataset", private=True).repo_id
assert api.create_repo(name, repo_type="dataset", exist_ok=True).repo_id == name == api.whoami()["name"] + "/mel"
api.upload_folder(repo_id=name, repo_type="dataset", folder_path=folder, commit_message="Data")
api.delete_file("old.txt", name, repo_type="dataset", commit_message="Remove")

system = HfFileSystem()
root = f"datasets/{name}"
assert system.glob(f"{root}/data/*.parquet") == [f"{root}/data/train-{i}.parquet" for i in range(2)]
files = (".gitattributes", "README.md", "data/train-0.parquet", "data/train-1.parquet")
assert sorted(system.find(root)) == [f"{root}/{path}" for path in files]
content = (folder / "data/train-0.parquet").read_bytes()
assert HfFileSystem(skip_instance_cache=True).info(f"{root}/data/train-0.parquet")["size"] == len(content)
assert system.cat_file(f"{root}/README.md", start=4, end=11) == b"configs"
with system.open(f"{root}/data/train-1.parquet") as file:
    assert pyarrow.parquet.read_table(file)["slice"].to_pylist() == [3, 4, 5]
assert Path(hf_hub_download(name, "data/train-0.parquet", repo_type="dataset")).read_bytes() == content
assert datasets.load_dataset(name, split="train")["slice"][:] == [0, 1, 2, 3, 4, 5]

songs = datasets.Dataset.from_dict({"audio": [{"bytes": b"RIFF", "path": "a.wav"}]})
songs.cast_column("audio", datasets.Audio(decode=False)).push_to_hub("songs")
assert datasets.load_dataset(f"{api.whoami()['name']}/songs", split="train")[0]["audio"]["bytes"] == b"RIFF"

model = api.create_repo("net").repo_id
api.upload_file(path_or_fileobj=b"weights", path_in_repo="unet/model.safetensors", repo_id=model)
assert (Path(snapshot_download(model)) / "unet/model.safetensors").read_bytes() == b"weights"

assert "401" in refused(HfHubHTTPError, api.create_repo, "other", token="hf_wrong")
refused(HfHubHTTPError, api.dataset_info, name, token=False)
refused(RepositoryNotFoundError, snapshot_download, "tester/none")
refused(EntryNotFoundError, hf_hub_download, model, "none")
"""


def test_what_is_published_is_read_in_spite_of_faults(hub: Hub, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "mel" / "data").mkdir(parents=True)
    for number in range(2):
        rows = pyarrow.table({"slice": pyarrow.array(range(3 * number, 3 * number + 3), pyarrow.int32())})
        pyarrow.parquet.write_table(rows, tmp_path / "mel" / "data" / f"train-{number}.parquet")
    (tmp_path / "mel" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: data/train-*.parquet\n---\n# Mel\n"
    )
    (tmp_path / "mel" / "old.txt").write_text("old")
    faults = [
        hub.proxy.inject("throttle", "PUT", "/lfs/"),
        hub.proxy.inject("unavailable", "GET", "/tree/"),
        hub.proxy.inject("cut", "GET", "data/train-0.parquet"),
    ]

    command = [sys.executable, "-c", PUBLISH_AND_READ, str(tmp_path / "mel")]
    done = subprocess.run(
        command, env=os.environ | hub.environment(tmp_path / "cache"), capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert [fault.fired for fault in faults] == [1, 1, 1]
    assert HUB_TOKEN not in done.stdout + done.stderr
    assert hub.commit_titles("datasets", "tester/mel") == ["initial commit", "Data", "Remove"]
    published = hub.files("datasets", "tester/mel")
    assert set(published) == {".gitattributes", "README.md", "data/train-0.parquet", "data/train-1.parquet"}
    assert published["data/train-0.parquet"] == (tmp_path / "mel" / "data" / "train-0.parquet").read_bytes()
