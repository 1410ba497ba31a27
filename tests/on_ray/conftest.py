"""Fixtures that run jobs in the test process, unless a test is marked `workers`, and a tiny CLAP."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny CLAP."""
    from tests import tiny_clap  # needs transformers

    folder = tmp_path_factory.mktemp("clap")
    tiny_clap.write(folder, fused=False)
    return folder
