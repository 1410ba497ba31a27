"""Sharded jobs whose workers, nodes and drivers are killed: the output equals an undisturbed run.

All files are compared byte for byte.
"""

import hashlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audiodiff_platform.encode.job import EncodeOptions, encode
from audiodiff_platform.generate.job import generate
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.prepare.job import PrepareOptions, prepare
from audiodiff_platform.storage import Folder
from tests.servers.stores import Stores
from tests.simulated import DEADLINE_S, Driver, SimulatedCluster, run_with_kills, work_goes_on

PARTS = {
    "prepare": ("data", "quarantine"),
    "encode": ("data",),
    "generate": ("audio", "manifest"),
    "generate, gated": ("audio", "manifest", "_candidates/measured"),
}


@pytest.fixture
def cluster(stores: Stores) -> Iterator[SimulatedCluster]:
    made = SimulatedCluster()
    yield made
    made.cluster.shutdown()


def _contents(folder: Folder, verb: str) -> dict[str, str]:
    return {
        name: hashlib.sha256(content).hexdigest()
        for part in PARTS[verb]
        for name, content in folder.read_all(f"{part}/*").items()
    }


def _music(loops: Path, folder: Path, copies: int) -> Path:
    """Return a folder of links to the loops and of a file that is not audio."""
    folder.mkdir()
    for copy in range(copies):
        for loop in loops.glob("*.flac"):
            (folder / f"{copy}-{loop.name}").symlink_to(loop)
    (folder / "broken.wav").write_bytes(b"no audio")
    return folder


PREPARE: dict[str, Any] = {"resolution": "64", "hop_length": 256, "overlap": 0.99, "shard_minutes": 0.001}


@pytest.mark.soak_short
def test_nothing_of_prepare_is_lost_or_doubled(
    local_ray: None, loops: Path, tmp_path: Path, cluster: SimulatedCluster
) -> None:
    flags = {**PREPARE, "input_dir": str(_music(loops, tmp_path / "in", copies=1)), "num_workers": 2}
    whole, out = tmp_path / "whole", tmp_path / "out"
    prepare(PrepareOptions(output_dir=str(whole), **flags))
    chance = random.Random(3)
    kinds = ["worker", "node", "driver"]
    chance.shuffle(kinds)
    summary = run_with_kills(cluster, "prepare", {**flags, "output_dir": str(out)}, kinds, chance, tmp_path / "log")
    assert _contents(Folder(str(out)), "prepare") == _contents(Folder(str(whole)), "prepare")
    assert (out / "_SUCCESS").read_bytes() == (whole / "_SUCCESS").read_bytes()
    assert summary["quarantined"] == 1
    assert not (out / "_tmp").exists()
    assert not (out / "_attempts").exists()


@pytest.fixture(scope="module")
def undisturbed(
    local_ray: None, loops: Path, model: Path, vae: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[dict[str, Any], Folder]]:
    """Return each verb's flags and the output folder of an undisturbed run."""
    root = tmp_path_factory.mktemp("undisturbed")
    music = _music(loops, root / "in", copies=2)
    flags: dict[str, dict[str, Any]] = {
        "prepare": {**PREPARE, "input_dir": str(music)},
        "encode": {"dataset_name": str(root / "prepare"), "latents": True, "vae": str(vae)},
        "generate": {"model": str(model), "count": 120, "steps": 8},
        "generate, gated": {"model": str(model), "count": 60, "steps": 8, "reject": "seam", "max_seam_score": 1.1},
    }
    prepare(PrepareOptions(output_dir=str(root / "prepare"), num_workers=4, **flags["prepare"]))
    encode(EncodeOptions(output_dir=str(root / "encode"), num_workers=4, **flags["encode"]))
    for verb, reject in {"generate": (), "generate, gated": ("seam",)}.items():
        options = {**flags[verb], "reject": reject, "output_dir": str(root / verb)}
        summary = generate(GenerateOptions(num_workers=4, **options))
    assert summary["rejected"], "the gate rejects loops"
    return {verb: (verb_flags, Folder(str(root / verb))) for verb, verb_flags in flags.items()}


@pytest.mark.soak
@pytest.mark.parametrize("place", ["disk", "s3"])
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("verb", PARTS)
def test_nothing_is_lost_doubled_or_left_behind(
    undisturbed: dict[str, tuple[dict[str, Any], Folder]],
    stores: Stores,
    tmp_path: Path,
    cluster: SimulatedCluster,
    verb: str,
    workers: int,
    place: str,
) -> None:
    """Two kills in each of the 24 runs: one of a driver, one of a worker or a node."""
    flags, whole = undisturbed[verb]
    for _ in range(max(0, workers - len(cluster.nodes))):
        cluster.add_node()
    uri = f"{stores.s3.make_bucket()}/out" if place == "s3" else str(tmp_path / "out")
    chance = random.Random(f"{verb} {workers} {place}")
    kinds = [chance.choice(["worker", "node"]), "driver"]
    chance.shuffle(kinds)
    flags = {**flags, "output_dir": uri, "num_workers": workers}
    run_with_kills(cluster, verb.removesuffix(", gated"), flags, kinds, chance, tmp_path / "log")
    out = Folder(uri)
    assert _contents(out, verb) == _contents(whole, verb)
    assert out.read("_SUCCESS") == whole.read("_SUCCESS")
    for folder in ("", "_candidates/"):
        assert not out.exists(f"{folder}_tmp")
        assert not out.exists(f"{folder}_attempts")
    assert not out.names("_candidates/audio/*")


@pytest.mark.soak_short
def test_a_node_that_goes_for_good_costs_its_shard_once_more(
    local_ray: None, loops: Path, tmp_path: Path, cluster: SimulatedCluster
) -> None:
    """The remaining worker does the shard of the lost node after its own shard."""
    music = _music(loops, tmp_path / "in", copies=1)
    flags = {**PREPARE, "input_dir": str(music), "num_workers": 2}
    whole, out, log = tmp_path / "whole", tmp_path / "out", tmp_path / "log"
    prepare(PrepareOptions(output_dir=str(whole), **flags))
    with Driver(cluster, "prepare", {**flags, "output_dir": str(out)}, log) as driver:
        assert work_goes_on(driver, Folder(str(out)), than=0), log.read_text()[-4_000:]
        cluster.remove_node(cluster.nodes[0])
        driver.process.communicate(timeout=300)
        assert driver.process.returncode == 0, log.read_text()[-4_000:]
    assert _contents(Folder(str(out)), "prepare") == _contents(Folder(str(whole)), "prepare")
    assert (out / "_SUCCESS").read_bytes() == (whole / "_SUCCESS").read_bytes()


@pytest.mark.soak_short
def test_a_job_waits_for_a_cluster_that_has_no_cpu_yet(loops: Path, tmp_path: Path, stores: Stores) -> None:
    cluster = SimulatedCluster(nodes=0)
    try:
        out, log = tmp_path / "out", tmp_path / "log"
        flags = {**PREPARE, "overlap": 0, "input_dir": str(loops), "output_dir": str(out), "num_workers": 2}
        with Driver(cluster, "prepare", flags, log) as driver:
            deadline = time.monotonic() + DEADLINE_S
            while "num_workers 2 needs 2 CPUs, the cluster has 0 now: waiting for it to grow" not in log.read_text():
                assert driver.process.poll() is None, log.read_text()[-4_000:]
                assert time.monotonic() < deadline
                time.sleep(0.05)
            cluster.add_node()
            driver.process.communicate(timeout=300)
            assert driver.process.returncode == 0, log.read_text()[-4_000:]
        assert (out / "_SUCCESS").exists()
    finally:
        cluster.cluster.shutdown()


@pytest.mark.soak_short
def test_a_store_that_fails_every_twentieth_request_costs_nothing(
    local_ray: None, few_loops: Path, stores: Stores, tmp_path: Path
) -> None:
    flags = {
        "input_dir": str(few_loops),
        "resolution": "32",
        "hop_length": 1024,
        "overlap": 0.5,
        "shard_minutes": 0.001,
        "num_workers": 2,
    }
    whole, out = tmp_path / "whole", f"{stores.s3.make_bucket()}/out"
    prepare(PrepareOptions(output_dir=str(whole), **flags))
    fault = stores.s3.proxy.inject("unavailable", "*", "", times=10**9, every=20)
    try:
        prepare(PrepareOptions(output_dir=out, **flags))
    finally:
        stores.s3.proxy.clear()
    assert fault.fired >= 3
    assert _contents(Folder(out), "prepare") == _contents(Folder(str(whole)), "prepare")
    assert Folder(out).read("_SUCCESS") == (whole / "_SUCCESS").read_bytes()
