"""Fixtures: jobs that run in the test process, unless a test is marked `workers`, two simulated nodes, a tiny CLAP."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from audiodiff_platform.cluster import shared_paths
from audiodiff_platform.entry.run_verb import run
from audiodiff_platform.generate.job import generate
from audiodiff_platform.generate.options import GenerateOptions
from tests.in_process import in_process


@pytest.fixture(autouse=True)
def _in_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """Start no worker processes for tests that do not need them."""
    if request.node.get_closest_marker("workers"):
        yield
    else:
        with in_process():
            yield


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Return a function that runs generate with flags, and returns its status and its last line of standard error."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["generate", *map(str, arguments)])
        status = run("generate", GenerateOptions, generate, "")
        return status, capsys.readouterr().err.strip().splitlines()[-1]

    return call


NODES = ("1" * 56, "2" * 56)


@dataclass(frozen=True)
class _Probe:
    """Remote function that looks for files on one of two nodes. The second node lacks the folder `unshared`."""

    exists: Callable[[str], bool]
    unshared: Path
    probed: list[str]
    node: str = ""

    def options(self, scheduling_strategy: Any) -> "_Probe":
        return replace(self, node=scheduling_strategy.node_id)

    def remote(self, file: str) -> bool:
        self.probed.append(file)
        return self.exists(file) and not (self.node == NODES[1] and Path(file).is_relative_to(self.unshared))


@pytest.fixture
def probed() -> list[str]:
    """Return the files that are looked for on the nodes, once for each node."""
    return []


@pytest.fixture
def unshared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probed: list[str]) -> Path:
    """Return a folder that the second of two nodes lacks."""
    folder = tmp_path / "of the first node"
    folder.mkdir()
    ray = SimpleNamespace(
        is_initialized=lambda: True,
        nodes=lambda: [{"NodeID": name, "Alive": True} for name in NODES],
        remote=lambda num_cpus: lambda exists: _Probe(exists, folder, probed),
        get=list,
    )
    monkeypatch.setattr(shared_paths, "ray", ray)
    monkeypatch.setattr(shared_paths, "grows", lambda: False)
    return folder


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny CLAP."""
    from tests import tiny_clap  # needs transformers

    folder = tmp_path_factory.mktemp("clap")
    tiny_clap.write(folder, fused=False)
    return folder
