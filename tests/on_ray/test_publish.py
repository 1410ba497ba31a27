"""Publishing uploads the current dataset and removes the files of an earlier dataset."""

import os
import subprocess
import sys
from pathlib import Path

from tests.servers.hub import Hub

PUBLISH_TWICE = """
import sys

from audiodiff_platform.mel_data.hub import claim_repository, publish
from audiodiff_platform.storage import Folder

first, second = (Folder(uri) for uri in sys.argv[1:])
for name in ("mel_config.json", "prepare.json", "README.md"):
    first.write(name, b"first")
    second.write(name, b"second")
for shard in range(40):
    first.write(f"data/train-{shard:06d}.parquet", b"first")
second.write("data/train-000000.parquet", b"second")
second.write("data/validation-000000.parquet", b"second")
claim_repository("tester/mel")
publish(first, "tester/mel")
publish(second, "tester/mel")
"""


def test_shards_of_an_earlier_dataset_are_removed(hub: Hub, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PUBLISH_TWICE, str(tmp_path / "first"), str(tmp_path / "second")]
    done = subprocess.run(
        command, env=os.environ | hub.environment(tmp_path / "cache"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    published = hub.files("datasets", "tester/mel")
    named = {
        "mel_config.json",
        "prepare.json",
        "README.md",
        "data/train-000000.parquet",
        "data/validation-000000.parquet",
    }
    assert published.keys() == {".gitattributes", *named}
    assert {published[name] for name in named} == {b"second"}
    # The initial commit, two commits of the first dataset and one of the second.
    assert len(hub.commit_titles("datasets", "tester/mel")) == 4
