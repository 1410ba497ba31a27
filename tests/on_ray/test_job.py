"""Errors and deaths of workers: one line and exit status 1, however deeply wrapped."""

import os
import sys
from collections.abc import Callable
from typing import Any

import pytest
import ray
from ray import cloudpickle

from audiodiff_platform.entry import run_verb as job
from audiodiff_platform.entry.options import Options
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.engine import RayDataEngine, ShardWork

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this module


class NoOptions(Options):
    """Options of a verb that has none."""


def raise_of_another() -> None:
    try:
        {"a": 1}["missing"]
    except KeyError as error:
        raise ValueError("what it was:\n  \x1b[31mred\x1b[0m words") from error


class Fails:
    def shard(self, shard: int, attempts: Attempts) -> dict[str, int]:
        raise_of_another()
        return {"shard": shard}


class FailsWhenMade(Fails):
    def __init__(self) -> None:
        raise ValueError("the model has changed")


task = ray.remote(max_retries=0)
FAILURES: dict[str, tuple[Callable[[], Any], str]] = {
    "task": (lambda: ray.get(task(raise_of_another).remote()), "ValueError: what it was: red words"),
    "task in a task": (
        lambda: ray.get(task(lambda: ray.get(task(raise_of_another).remote())).remote()),
        "ValueError: what it was: red words",
    ),
    "process": (
        lambda: ray.get(task(lambda: os._exit(1)).remote()),
        "The worker died unexpectedly while executing this task.",
    ),
    "actor": (
        lambda: ray.get(ray.remote(FailsWhenMade).remote().shard.remote(0, None)),
        "ValueError: the model has changed",
    ),
    "shard": (
        lambda: list(RayDataEngine(1).run(ShardWork("test", Fails, ()), [3])),
        "ValueError: what it was: red words",
    ),
    "shard worker": (
        lambda: list(RayDataEngine(1).run(ShardWork("test", FailsWhenMade, ()), [3])),
        "ValueError: the model has changed",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_worker_that_fails_is_one_line_and_no_mistake_of_the_users(
    local_ray: None, failure: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work, line = FAILURES[failure]
    monkeypatch.setattr(sys, "argv", ["jobs/none.py"])
    assert job.run("none", NoOptions, lambda _: {"result": work()}, "") == job.FAILED
    printed = capsys.readouterr()
    assert "result" not in printed.out
    (error,) = (printed_line for printed_line in printed.err.splitlines() if printed_line.startswith("error: "))
    assert error.startswith(f"error: a worker failed: {line}")
    assert "\x1b" not in error
    assert "Traceback" not in error
