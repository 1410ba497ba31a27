"""Time for which checkpoints of 1.8 GB stop training, with a run folder on a slow object store.

    python -m tests.benchmarks.checkpoint_stall [--megabytes_per_s 60]

One worker trains the network of 113.7 M parameters on images of 32x32. Its run folder is on an S3 server on this
machine, behind a link of limited speed in the direction of the server. The first checkpoint also shows the copy into
new memory. The alternative writes each checkpoint before training goes on.
"""

import argparse
import json
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ray

from audiodiff_platform.cluster import WORKER_ENVIRONMENT
from audiodiff_platform.storage import Folder
from audiodiff_platform.train import loop as training_loop
from audiodiff_platform.train.checkpoints import whole_checkpoints
from audiodiff_platform.train.diffusion_worker import DiffusionLearner, train_worker
from audiodiff_platform.train.options import TrainOptions
from audiodiff_platform.train.worker_group import Group, run_workers
from tests.benchmarks.train_data import SHARD_ROWS, simulate
from tests.benchmarks.train_feed import loop_images
from tests.servers.stores import Stores

CHUNK = 1 << 18
MINUTES = 1.0


class Link:
    """TCP link to a port of this machine, which carries at most `bytes_per_s` to the server."""

    def __init__(self, port: int, bytes_per_s: float) -> None:
        self.target, self.bytes_per_s = port, bytes_per_s
        self._lock, self._free_at = threading.Lock(), 0.0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(("127.0.0.1", self.target))
            for source, target, limit in ((client, server, self._wait), (server, client, lambda count: None)):
                threading.Thread(target=self._carry, args=(source, target, limit), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, limit: Callable[[int], None]) -> None:
        try:
            while content := source.recv(CHUNK):
                limit(len(content))
                target.sendall(content)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            target.close()

    def _wait(self, count: int) -> None:
        """Wait until the link has carried `count` bytes."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + count / self.bytes_per_s
            free_at = self._free_at
        time.sleep(max(0.0, free_at - time.monotonic()))


def serve(connection: Connection, bytes_per_s: float, folder: str) -> None:
    """Serve S3 behind a slow link until the connection closes, and send the variables that clients need."""
    stores = Stores.create()
    bucket = stores.s3.make_bucket()
    link = Link(stores.s3.proxy.server_port(), bytes_per_s)
    environment = {**stores.environment(Path(folder)), "AWS_ENDPOINT_URL": f"http://127.0.0.1:{link.port}"}
    connection.send((bucket, environment))
    connection.poll(None)


def worker(config: dict[str, Any]) -> str | None:
    """Train, and write the times of steps and checkpoints to a file."""
    stops: list[float] = []
    steps: list[tuple[float, float]] = []
    checkpoint, take_step = training_loop._Loop._checkpoint, DiffusionLearner.learn

    def timed_checkpoint(loop: Any, *, last: bool = False, urgent: bool = False) -> None:
        began = time.monotonic()
        checkpoint(loop, last=last, urgent=urgent or config["waits"])
        if not last:
            stops.append(time.monotonic() - began)

    def timed_step(learner: DiffusionLearner, *arguments: Any) -> Any:
        began = time.monotonic()
        values = take_step(learner, *arguments)
        steps.append((began, time.monotonic()))
        return values

    for owner, name, timed in (
        (training_loop._Loop, "_checkpoint", timed_checkpoint),
        (DiffusionLearner, "learn", timed_step),
    ):
        setattr(owner, name, timed)
    reason = train_worker(config)
    Path(config["figures"]).write_text(json.dumps({"stops": stops, "steps": steps}))
    return reason


def figures(waits: bool, options: Mapping[str, Any], scratch: Path) -> str:
    from tests.benchmarks import checkpoint_stall  # workers can import this name, unlike __main__

    file = scratch / f"{waits}.json"

    def run(config: dict[str, Any]) -> str | None:
        return checkpoint_stall.worker({**config, "waits": waits, "figures": str(file)})

    train_options = TrainOptions(**options)
    run_workers(run, train_options, Group(workers=1, gpu=False))
    output = Folder(train_options.output_dir)
    name = whole_checkpoints(output)[-1]
    size = sum(entry.size for entry in output.files(f"{name}/*"))
    measured = json.loads(file.read_text())
    lengths = [end - begin for begin, end in measured["steps"]]
    return (
        f"{'training waits' if waits else 'beside training'}: checkpoints of {size / 1e9:.2f} GB stop it for "
        f"{', '.join(f'{stop:.2f}' for stop in measured['stops'])} s; {len(lengths)} steps, "
        f"median {statistics.median(lengths):.2f} s, longest {max(lengths):.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes_per_s", type=float, default=60)
    parser.add_argument("--minutes", type=float, default=4, help="training time of each run")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="audiodiff-") as folder:
        ours, theirs = get_context("spawn").Pipe()
        server = get_context("spawn").Process(
            target=serve, args=(theirs, given.megabytes_per_s * 1e6, folder), daemon=True
        )
        server.start()
        bucket, environment = ours.recv()
        os.environ.update(environment)
        ray.init(
            address="local",
            num_cpus=2,
            runtime_env={"env_vars": {**WORKER_ENVIRONMENT, **environment}},
            logging_level="ERROR",
            include_dashboard=False,
        )
        simulate(Path(folder) / "mel", SHARD_ROWS, loop_images(32))
        print(f"S3 behind {given.megabytes_per_s:g} MB/s, a checkpoint every {MINUTES:g} minutes")
        for waits in (False, True):
            options = {
                "dataset_name": str(Path(folder) / "mel"),
                "output_dir": f"{bucket}/run-{waits}",
                "preset": "ddpm-64",
                "train_batch_size": 1,
                "max_train_minutes": given.minutes,
                "checkpoint_minutes": MINUTES,
                "preview_count": 0,
                "report_to": (),
                "mixed_precision": "no",
            }
            print(figures(waits, options, Path(folder)), flush=True)
        ray.shutdown()
        server.kill()


if __name__ == "__main__":
    main()
