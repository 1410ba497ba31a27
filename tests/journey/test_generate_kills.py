"""generate with many kills of workers, nodes and drivers at random moments: the files of an undisturbed run.

The seed of the random choices is printed. AUDIODIFF_KILLS_SEED repeats the choices of a seed.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from audiodiff_platform.generate.job import generate
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.storage import Folder
from tests.servers.stores import Stores
from tests.simulated import SimulatedCluster, run_with_kills

FLAGS: dict[str, Any] = {"steps": 8, "num_workers": 2, "batch_size": 4}
LOOPS_PER_SHARD = 16
SHARDS_PER_KILL = 4
KINDS = ("worker", "node", "driver")
GPU_KINDS = (*KINDS, "finisher")
STATE = ("_commits/", "_lease")
"""Beginnings of the names of files that depend on the history of a folder."""


@pytest.fixture
def cluster(stores: Stores) -> Iterator[SimulatedCluster]:
    made = SimulatedCluster()
    yield made
    made.cluster.shutdown()


@pytest.fixture
def gpu_cluster(stores: Stores) -> Iterator[SimulatedCluster]:
    made = SimulatedCluster(cpus=2, gpus=1)
    yield made
    made.cluster.shutdown()


@pytest.fixture(scope="module")
def undisturbed(local_ray: None, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Folder]:
    """Return a function that returns the output folder of a run of `count` loops without kills."""

    @cache
    def whole(count: int) -> Folder:
        out = tmp_path_factory.mktemp("undisturbed") / "loops"
        generate(GenerateOptions(model=str(model), output_dir=str(out), count=count, **FLAGS))
        return Folder(str(out))

    return whole


def _names(folder: Folder) -> set[str]:
    return {name for entry in folder.walk() if not (name := entry.name).startswith(STATE)}


def _require_equal(out: Folder, whole: Folder, count: int) -> None:
    """Check that two finished folders have the same files, and that every loop is there once."""
    assert out.read("_SUCCESS") == whole.read("_SUCCESS")
    assert _names(out) == _names(whole)
    for part in ("audio", "manifest"):
        made, expected = out.read_all(f"{part}/*"), whole.read_all(f"{part}/*")
        assert sorted(made) == sorted(expected)
        assert [name for name, content in made.items() if content != expected[name]] == []
    tables = [pq.read_table(whole.path(name)) for name in whole.names("manifest/*")]
    paths = sorted(path for table in tables for path in table["path"].to_pylist())
    assert paths == [f"audio/{seed:010d}.wav" for seed in range(count)]
    assert sorted(out.names("audio/*")) == paths


@pytest.mark.parametrize(
    ("place", "kills"),
    [
        pytest.param("disk", 3, marks=pytest.mark.soak),
        pytest.param("disk", 20, marks=pytest.mark.soak),
        pytest.param("s3", 20, marks=pytest.mark.soak),
    ],
)
def test_kills_cost_nothing_but_time(
    undisturbed: Callable[[int], Folder],
    model: Path,
    stores: Stores,
    tmp_path: Path,
    cluster: SimulatedCluster,
    place: str,
    kills: int,
) -> None:
    uri = f"{stores.s3.make_bucket()}/loops" if place == "s3" else str(tmp_path / "loops")
    _generate_with_kills(undisturbed, model, cluster, uri, KINDS, kills, tmp_path / "log")


@pytest.mark.soak
@pytest.mark.parametrize("kills", [4, 16])
def test_kills_on_gpus_cost_nothing_but_time(
    undisturbed: Callable[[int], Folder], model: Path, tmp_path: Path, gpu_cluster: SimulatedCluster, kills: int
) -> None:
    _generate_with_kills(undisturbed, model, gpu_cluster, str(tmp_path / "loops"), GPU_KINDS, kills, tmp_path / "log")


def _generate_with_kills(
    undisturbed: Callable[[int], Folder],
    model: Path,
    cluster: SimulatedCluster,
    uri: str,
    all_kinds: tuple[str, ...],
    kills: int,
    log: Path,
) -> None:
    """Generate loops with kills, each kind at least once, and compare the folder with that of an undisturbed run."""
    count = LOOPS_PER_SHARD * SHARDS_PER_KILL * kills
    seed = os.environ.get("AUDIODIFF_KILLS_SEED") or str(random.SystemRandom().getrandbits(32))
    chance = random.Random(seed)
    kinds = [*all_kinds, *chance.choices(all_kinds, k=kills - len(all_kinds))]
    chance.shuffle(kinds)
    print(f"AUDIODIFF_KILLS_SEED={seed}: {', '.join(kinds)}")
    whole = undisturbed(count)
    began = time.monotonic()
    flags = {**FLAGS, "model": model, "count": count, "output_dir": uri}
    summary = run_with_kills(cluster, "generate", flags, kinds, chance, log)
    print(f"{count} loops with {kills} kills at {uri}: {time.monotonic() - began:.0f} s")
    assert (summary["loops"], summary["failed"]) == (count, 0)
    _require_equal(Folder(uri), whole, count)
