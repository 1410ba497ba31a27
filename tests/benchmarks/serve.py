"""The server beside the core and the bulk jobs: overhead, rate, and load above its capacity.

    python -m tests.benchmarks.serve [--requests 100] [--loops 192] [--files 512] [--seconds 60] [--queue-batches 4]
        [--tables overhead rate load crowd]

The model is the preset `tiny` for 64x64 images with random weights, with the default method and number of steps. The
server runs in this process' Ray, with one generation replica of one thread; client and proxy use the other core.

Overhead: the time of an HTTP request without that of the audio file (the stage `encode`), beside the call of
`LoopPipeline.generate` with the same request in this process. Both take turns. With them, requests to the smallest
application of two deployments: the part of the overhead that is Ray Serve's.

Rate: loops per minute of 16 clients that always wait for a loop, beside the rate of jobs/generate.py with one worker
from the start of its first shard. Files per minute of `/v1/encode`, 4 clients with 16 files per request, beside those
of jobs/encode.py: the difference between a run with all files and one with half of them.

Load: requests at random times, 0.8 and 5 times as many as the server can answer. The table shows the 99th percentile of
the time of answers with audio, of all requests and of those sent after the first quarter, in which the queue of a burst
is worked off, the time of refusals, and the growth of the replicas' memory.

Crowd: the time of 20 requests, one after the other, before and after 200 clients disconnected from long requests after
0.2 s, three times.
"""

import argparse
import asyncio
import contextlib
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import ray
import torch
from ray import serve as ray_serve

from audiodiff_core.embeddings.audio_encoder import AudioEncoder
from audiodiff_core.pipeline import LoopPipeline
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest
from audiodiff_platform.cluster import WORKER_ENVIRONMENT
from tests.benchmarks.bare_server import bare_application
from tests.benchmarks.generate_job import run_job, save_tiny_model
from tests.benchmarks.processes import ONE_THREAD, ROOT
from tests.serving import sampled, server

TABLES = ("overhead", "rate", "load", "crowd")
CLIENTS, ENCODING_CLIENTS, FILES_PER_REQUEST = 16, 4, 16
SHARES = (0.8, 5.0)
CROWD = 200
OVERHEAD_STEPS = 2
"""Steps of the requests whose overhead is measured. The noise of a timing grows with its duration."""
MIB = 1 << 20


@dataclass(frozen=True)
class Answer:
    """Status and duration of a request in seconds."""

    status: int
    seconds: float
    sent_at: float


def stage_seconds(response: httpx.Response, stage: str) -> float:
    """Return the duration of a stage that the response states."""
    (milliseconds,) = re.findall(rf"{stage};dur=([0-9.]+)", response.headers["server-timing"])
    return float(milliseconds) / 1_000


def overhead(client: httpx.Client, model: Path, count: int) -> None:
    """Print the overhead of a request over the direct call."""
    profile = ExecutionProfile.here()
    profile.prepare_process()
    pipeline = LoopPipeline.from_pretrained(model, profile)
    ray_serve.run(bare_application(), name="bare", route_prefix="/bare")
    over_http, direct, bare = list[float](), list[float](), list[float]()
    for seed in range(count + 5):
        began = time.perf_counter()
        response = client.post("/v1/generate", json={"seed": seed, "steps": OVERHEAD_STEPS})
        over_http.append(time.perf_counter() - began - stage_seconds(response.raise_for_status(), "encode"))
        began = time.perf_counter()
        list(pipeline.generate([GenerateRequest(seed=seed, steps=OVERHEAD_STEPS)]))
        direct.append(time.perf_counter() - began)
        began = time.perf_counter()
        client.post("/bare/", json={"seed": seed}).raise_for_status()
        bare.append(time.perf_counter() - began)
    ray_serve.delete("bare")
    pairs = [1_000 * (one - other) for one, other in zip(over_http[5:], direct[5:], strict=True)]
    quartiles = statistics.quantiles(pairs, n=4)
    print("\n| request | direct call | overhead, median | quartiles | bare application |\n|---|---|---|---|---|")
    request, call, floor = (1_000 * statistics.median(times[5:]) for times in (over_http, direct, bare))
    spread = f"{quartiles[0]:.1f} to {quartiles[2]:.1f} ms"
    print(f"| {request:.1f} ms | {call:.1f} ms | {quartiles[1]:.1f} ms | {spread} | {floor:.1f} ms |", flush=True)


async def _saturated(url: str, send: Callable[[httpx.AsyncClient, int], object], clients: int, count: int) -> float:
    """Return requests per minute of clients that always wait for an answer."""
    numbers = iter(range(count))

    async def one() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=600) as client:
            for number in numbers:
                response = await send(client, number)  # type: ignore[misc]
                response.raise_for_status()

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return 60 * count / (time.perf_counter() - began)


def loop_rate(url: str, clients: int, count: int) -> float:
    """Return loops per minute of the saturated server."""
    return asyncio.run(
        _saturated(url, lambda client, seed: client.post("/v1/generate", json={"seed": seed}), clients, count)
    )


def encoding_rate(url: str, files: Sequence[bytes], rounds: int) -> float:
    """Return files per minute of the saturated server."""

    def send(client: httpx.AsyncClient, number: int) -> object:
        first = number * FILES_PER_REQUEST
        contents = [files[(first + index) % len(files)] for index in range(FILES_PER_REQUEST)]
        return client.post("/v1/encode", files=[("audio", ("a", content)) for content in contents])

    return FILES_PER_REQUEST * asyncio.run(_saturated(url, send, ENCODING_CLIENTS, rounds))


def encoding_job_rate(folder: Path, encoder: Path, loops: Sequence[Path], count: int) -> float:
    """Return files per minute of jobs/encode.py with one worker, without its start."""

    def seconds(files: int) -> float:
        source = folder / f"in-{files}"
        source.mkdir()
        for number in range(files):
            shutil.copy(loops[number % len(loops)], source / f"{number:05d}.flac")
        command = [sys.executable, "jobs/encode.py", "--input_dir", source, "--encoder", encoder]
        command += ["--output_dir", folder / f"out-{files}", "--num_workers", "1", "--device", "cpu"]
        began = time.perf_counter()
        subprocess.run([str(part) for part in command], cwd=ROOT, env=ONE_THREAD, check=True, capture_output=True)
        return time.perf_counter() - began

    return 60 * (count - count // 2) / (seconds(count) - seconds(count // 2))


async def _open_loop(url: str, per_s: float, seconds: float) -> list[Answer]:
    """Send requests at random times, whether or not the earlier ones were answered."""
    chance = random.Random(0)
    limits = httpx.Limits(max_connections=None)
    answers = list[Answer]()

    async def one(client: httpx.AsyncClient, seed: int) -> None:
        sent = time.perf_counter()
        response = await client.post("/v1/generate", json={"seed": seed})
        answers.append(Answer(response.status_code, time.perf_counter() - sent, sent - began))

    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client, asyncio.TaskGroup() as group:
        began, due, seed = time.perf_counter(), 0.0, 0
        while due < seconds:
            await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
            group.create_task(one(client, seed))
            due, seed = due + chance.expovariate(per_s), seed + 1
    return answers


def load(client: httpx.Client, capacity_per_s: float, seconds: float) -> None:
    """Print the times under load below and above the capacity."""
    print(f"\ncapacity: {60 * capacity_per_s:.0f} loops a minute")
    columns = (
        "load",
        "requests",
        "audio",
        "refused",
        "others",
        "p50, audio",
        "p99, audio",
        "p99, later",
        "p99, refusals",
        "growth",
    )
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for share in SHARES:
        before = sampled(client, "process_resident_memory_bytes")
        answers = asyncio.run(_open_loop(str(client.base_url), share * capacity_per_s, seconds))
        grown = sampled(client, "process_resident_memory_bytes") - before
        audio = sorted(answer.seconds for answer in answers if answer.status == 200)
        later = sorted(one.seconds for one in answers if one.status == 200 and one.sent_at > seconds / 4)
        refused = sorted(answer.seconds for answer in answers if answer.status in (429, 503))
        others = len(answers) - len(audio) - len(refused)
        p99 = f"{1_000 * _quantile(refused, 0.99):.0f} ms" if refused else "-"
        print(
            f"| {share:g}x | {len(answers)} | {len(audio)} | {len(refused)} | {others} | {_quantile(audio, 0.5):.2f} s "
            f"| {_quantile(audio, 0.99):.2f} s | {_quantile(later, 0.99):.2f} s | {p99} | {grown / MIB:.0f} MiB |",
            flush=True,
        )


def crowd(client: httpx.Client) -> None:
    """Print the time of requests before and after a crowd of clients that leave."""

    def seconds() -> list[float]:
        times = list[float]()
        for seed in range(20):
            began = time.perf_counter()
            client.post("/v1/generate", json={"seed": seed}).raise_for_status()
            times.append(time.perf_counter() - began)
        return times

    async def leave(impatient: httpx.AsyncClient, seed: int) -> None:
        body = {"kind": "extend", "duration_s": 500, "steps": 500, "seed": seed}
        with contextlib.suppress(httpx.TimeoutException):
            await impatient.post("/v1/generate", json=body)

    async def come_and_leave() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=client.base_url, timeout=0.2, limits=limits) as impatient:
            await asyncio.gather(*(leave(impatient, seed) for seed in range(CROWD)))

    before = seconds()
    for _ in range(3):
        asyncio.run(come_and_leave())
    after = seconds()
    print("\n| 20 requests | median | slowest |\n|---|---|---|")
    for name, times in (("before the crowd", before), ("after the crowd", after)):
        print(f"| {name} | {statistics.median(times):.2f} s | {max(times):.2f} s |", flush=True)


def _quantile(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100, help="requests of the table of the overhead")
    parser.add_argument("--loops", type=int, default=192, help="loops per contender of the table of rates")
    parser.add_argument("--files", type=int, default=512, help="files per contender of the table of rates")
    parser.add_argument("--seconds", type=float, default=60, help="duration of each load")
    parser.add_argument("--queue-batches", type=int, default=4, help="batches that wait in the replica")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} cores")
    loops = sorted((ROOT / "tests/data/loops").glob("*.flac"))
    with tempfile.TemporaryDirectory(prefix="audiodiff-") as name:
        folder = Path(name)
        model, encoder = folder / "model", folder / "encoder"
        save_tiny_model(model)
        save_encoder(encoder)
        if "rate" in options.tables:
            jobs = [
                run_job(model, folder / "loops", options.loops, 1).rate,
                encoding_job_rate(folder, encoder, loops, options.files),
            ]
        ray.init(num_cpus=4, runtime_env={"env_vars": WORKER_ENVIRONMENT}, log_to_driver=False, logging_level="ERROR")
        served = {"model": (f"tiny={model}",), "encoder": (f"small={encoder}",), "queue_batches": options.queue_batches}
        with server(**served, max_replicas=1, device="cpu") as client:
            url = str(client.base_url)
            clients = min(CLIENTS, ExecutionProfile.here().batch_size * options.queue_batches)
            loop_rate(url, clients, clients)
            if "overhead" in options.tables:
                overhead(client, model, options.requests)
            if "rate" in options.tables:
                contents = [file.read_bytes() for file in loops]
                rounds = options.files // FILES_PER_REQUEST
                rates = [loop_rate(url, clients, options.loops), encoding_rate(url, contents, rounds)]
                print("\n| | server | job | server / job |\n|---|---|---|---|")
                for what, rate, of_job in zip(("loops a minute", "files a minute"), rates, jobs, strict=True):
                    print(f"| {what} | {rate:.0f} | {of_job:.0f} | {rate / of_job:.2f} |", flush=True)
            if "load" in options.tables:
                load(client, loop_rate(url, clients, 4 * CLIENTS) / 60, options.seconds)
            if "crowd" in options.tables:
                crowd(client)
        ray.shutdown()


def save_encoder(folder: Path) -> None:
    """Save an encoder with random weights."""
    from safetensors.torch import save_file

    folder.mkdir()
    torch.manual_seed(0)
    (folder / "config.json").write_text('{"_class_name": "AudioEncoder"}')
    save_file(AudioEncoder().state_dict(), folder / "diffusion_pytorch_model.safetensors")


if __name__ == "__main__":
    main()
