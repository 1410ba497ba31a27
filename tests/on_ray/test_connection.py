"""The connection of a job that ends early: what its frames hold is dropped while Ray is still connected."""

import os
import subprocess
import sys

SCRIPT = """
import os, signal
import ray
from audiodiff_platform.cluster import connected

class Held:
    def __del__(self):
        print("connected" if ray.is_initialized() else "disconnected")

def work():
    held = Held()
    {end}

def job():
    try:
        work()
    except ValueError:
        cleaned = Held()
        raise KeyboardInterrupt from None

try:
    with connected():
        job()
except BaseException as failure:
    print(type(failure).__name__)
"""


def _printed(end: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(end=end)], env=environment, capture_output=True, text=True, check=True
    )
    return ended.stdout.splitlines()


def test_an_interrupted_job_drops_its_objects_before_ray_disconnects() -> None:
    assert _printed("os.kill(os.getpid(), signal.SIGINT)") == ["connected", "KeyboardInterrupt"]


def test_the_objects_of_an_error_that_was_replaced_are_dropped_too() -> None:
    assert _printed("raise ValueError('mistake')") == ["connected", "connected", "KeyboardInterrupt"]
