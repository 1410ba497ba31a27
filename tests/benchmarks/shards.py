"""Memory, time and requests to open a folder of many shards on an object store.

    python -m tests.benchmarks.shards [--shards 40000] [--sources 50]

No audio is read. The plan, the commit records and the index are simulated on a local S3 server behind a proxy that
counts requests. Requests to a real store take longer (tens of milliseconds, many in parallel), so only the counts apply
to real stores. Each part runs in a separate process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from audiodiff_core.mel import MelConfig
from audiodiff_platform.audio_files import Source
from audiodiff_platform.mel_data.mel_dataset import (
    DATASET_FORMAT_VERSION,
    MEL_CONFIG,
    VALIDATION_SPLIT,
    MelDataset,
    data_file,
)
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.work.plan import append_plan, new_sources, read_shard
from tests.benchmarks.processes import ROOT, peak_bytes
from tests.servers.stores import Stores

KEYS_A_LISTING = "1000"  # as on real stores


def record(shard: int) -> dict[str, Any]:
    """Return a commit record as large as a real record: ten files, two of them unusable."""
    parts = {data_file(shard): f"{shard:064x}", f"quarantine/{shard:06d}.parquet": f"{shard:064x}"}
    failures = [
        {"audio_file": f"album {shard}/track {number}.mp3", "reason": "not audio that can be read"}
        for number in range(2)
    ]
    splits = {"rows": 300, "row_groups": [256, 44], VALIDATION_SPLIT: {"rows": 0, "row_groups": []}}
    return {
        **splits,
        "files": 10,
        "duplicates": 0,
        "failures": failures,
        "skipped": {},
        "parts": parts,
        "sizes": dict.fromkeys(parts, 10_000),
        "generation": 1,
    }


def sources(shards: int, per_shard: int) -> list[Source]:
    names = (
        f"an artist/an album of some name {shard:05d}/{number:02d} a track.mp3"
        for shard in range(shards)
        for number in range(per_shard)
    )
    return [Source(name, 4_000_000, "1") for name in names]


def opened(part: str, uri: str, shards: int, per_shard: int) -> None:
    """Run one part, and print its seconds and the peak memory of its process."""
    planned = sources(shards, per_shard) if part == "plan" else []
    began = time.perf_counter()
    folder = Folder(uri)
    match part:
        case "plan":
            planned_shards, new = new_sources(folder, planned)
            assert (len(planned_shards), new) == (shards, [])
        case "shard":
            assert len(read_shard(folder, shards // 2)) == per_shard
        case "records" | "packed records":
            assert len(commits.committed(folder)) == shards
        case "finish":
            commits.succeed(
                folder, {"format_version": DATASET_FORMAT_VERSION, "digest": "simulated"}, commits.committed(folder)
            )
        case "dataset":
            assert len(MelDataset(uri).shards) == shards
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "mb": peak_bytes() / 2**20}))


def measured(what: str, stores: Stores, work: Callable[[], dict[str, float]]) -> None:
    counted = stores.s3.proxy.inject("unavailable", "*", "", times=10**9, every=10**9)
    figures = work()
    stores.s3.proxy.clear()
    print(f"  {what}: {counted.seen:,} requests, {figures['seconds']:.1f} s, {figures['mb']:.0f} MB", flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--shards", type=int, default=40_000)
    arguments.add_argument("--sources", type=int, default=50, help="of each shard")
    arguments.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.part:
        part, uri = given.part
        opened(part, uri, given.shards, given.sources)
        return
    stores = Stores.create()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.update(stores.environment(Path(scratch)))
        uri = f"{stores.s3.make_bucket()}/mel"
        os.environ["MOTO_S3_DEFAULT_MAX_KEYS"] = KEYS_A_LISTING
        folder = Folder(uri)
        print(f"{given.shards:,} shards of {given.sources} sources on a local S3 server, {os.cpu_count()} cores")
        append_plan(
            folder,
            [(number // given.sources, source) for number, source in enumerate(sources(given.shards, given.sources))],
            {},
        )
        folder.write(MEL_CONFIG, MelConfig(x_res=32, y_res=32).to_json().encode())
        with ThreadPoolExecutor(16) as pool:
            list(
                pool.map(
                    lambda shard: folder.write_json(commits.commit_name(shard), record(shard)), range(given.shards)
                )
            )

        def part(name: str) -> Callable[[], dict[str, float]]:
            command = [
                sys.executable,
                "-m",
                "tests.benchmarks.shards",
                "--shards",
                given.shards,
                "--sources",
                given.sources,
                "--part",
                name,
                uri,
            ]
            return lambda: dict(
                json.loads(
                    subprocess.run([str(word) for word in command], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
                )
            )

        measured("a driver reads the plan", stores, part("plan"))
        measured("a worker reads its shard of the plan", stores, part("shard"))
        measured("a driver reads the records of an unfinished job", stores, part("records"))
        measured("a driver finishes the job: records, index, packs", stores, part("finish"))
        measured("a driver reads the records of a finished job", stores, part("packed records"))
        measured("a reader opens the finished dataset", stores, part("dataset"))
    stores.close()


if __name__ == "__main__":
    main()
