"""The connection of a job that ends early: what its frames hold is dropped while Ray is still connected."""

import os
import subprocess
import sys

SCRIPT = """
import os, signal
import ray
from audiodiff_platform.cluster import connected

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that SIGINT is ignored

class Held:
    def __init__(self, name):
        self.name = name

    def __del__(self):
        print(self.name, "connected" if ray.is_initialized() else "disconnected")

def work():
    held = Held("of the first error")
    raise ValueError("mistake")

def job():
    try:
        work()
    except ValueError:
        held = Held("of the interruption")
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()

try:
    with connected():
        job()
except BaseException as failure:
    print(type(failure).__name__)
"""


def test_an_interrupted_job_drops_its_objects_before_ray_disconnects() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ended = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    lines = ended.stdout.splitlines()
    assert sorted(lines[:2]) == ["of the first error connected", "of the interruption connected"]
    assert lines[2:] == ["KeyboardInterrupt"]
