"""What the platform adds to a training step, beside a bare PyTorch loop: `python -m tests.benchmarks.train_overhead`.

Both are timed in one worker of Ray Train, in turn, step by step, so that both see the same machine: a step by the platform (data order,
reading, draws by sample number, the clock that all agree on, logging, TensorBoard) and a step of the bare loop on a copy of the network
(images in memory, torch's own random numbers, the same losses, AdamW, clipping and moving average). Seconds of the wall clock say what a
step takes, seconds of the processor also what the thread that reads ahead does meanwhile.
"""

from __future__ import annotations  # or those in the class below would be looked up in the worker, which is sent only what code refers to

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from audiodiff_core.mel import to_model
from audiodiff_core.objectives import losses
from audiodiff_core.training import TrainBatch, TrainState
from audiodiff_core.weight_average import WeightAverage
from audiodiff_platform.cluster import WORKER_ENVIRONMENT
from audiodiff_platform.ray_training import run_workers
from audiodiff_platform.starting_point import starting_point
from audiodiff_platform.train_options import TrainOptions
from audiodiff_platform.train_worker import DiffusionLearner, join_workers
from audiodiff_platform.training_loop import learn
from tests.benchmarks.train_data import simulate

WARM_UP = 5


def measured(options: TrainOptions, result: Path) -> None:
    """Trains for the options' steps, each followed by one of the bare loop; writes seconds of each."""

    def worker(config: dict[str, Any]) -> None:
        del config
        accelerator = join_workers(options)
        start = starting_point(options)
        bare = copy.deepcopy(start.network).to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(bare.parameters(), lr=options.learning_rate, fused=True)
        average = WeightAverage(list(bare.parameters()), options.ema_decay)
        images = np.random.default_rng(0).integers(0, 256, (options.train_batch_size, start.mel.y_res, start.mel.x_res), np.uint8)

        def bare_step() -> None:
            clean = to_model(torch.from_numpy(images).unsqueeze(1))
            timesteps = torch.randint(0, start.objective.num_train_timesteps, (len(clean),))
            losses(bare, start.objective, clean, torch.randn_like(clean), timesteps).mean().backward()
            torch.nn.utils.clip_grad_norm_(bare.parameters(), options.max_gradient_norm)
            optimizer.step()
            optimizer.zero_grad()
            average.update(list(bare.parameters()))

        class Paired(DiffusionLearner):
            """The learner, with a step of the bare loop after each of its own."""

            def __init__(self, *parts: Any) -> None:
                super().__init__(*parts)
                self.bare_seconds: list[tuple[float, float]] = []
                self.ended: list[tuple[float, float]] = []

            def learn(self, micro_batches: Sequence[TrainBatch], progress: float) -> dict[str, float]:
                logged = super().learn(micro_batches, progress)
                wall, processor = time.perf_counter(), time.process_time()
                bare_step()
                self.bare_seconds.append((time.perf_counter() - wall, time.process_time() - processor))
                self.ended.append((time.perf_counter(), time.process_time()))
                return logged

        state = TrainState(accelerator, start.network, start.objective, options.learning_rate, options.seed)
        learner = Paired(options, accelerator, state)
        learn(options, accelerator, learner, start.order(options.seed))
        steps = np.diff(np.array(learner.ended), axis=0)[WARM_UP:]
        theirs = np.array(learner.bare_seconds)[1 + WARM_UP :]
        result.write_text(json.dumps({"platform": (steps - theirs).tolist(), "bare": theirs.tolist()}))

    run_workers(worker, options, 1, gpu=False)


def summary(seconds: Mapping[str, list[list[float]]]) -> str:
    ours, theirs = (np.array(seconds[name]) for name in ("platform", "bare"))
    wall, processor = ours.sum(axis=0) / theirs.sum(axis=0) - 1
    middle = statistics.median(ours[:, 0] / theirs[:, 0]) - 1
    return (
        f"{len(ours)} pairs: bare {np.median(theirs[:, 0]) * 1e3:.1f} ms a step, platform {np.median(ours[:, 0]) * 1e3:.1f} ms; "
        f"overhead {wall:+.1%} in all, {middle:+.1%} in the median pair, {processor:+.1%} of processor time"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    steps = parser.parse_args().steps
    ray.init(address="local", num_cpus=2, runtime_env={"env_vars": WORKER_ENVIRONMENT}, logging_level="ERROR", include_dashboard=False)
    with tempfile.TemporaryDirectory(prefix="audiodiff-") as scratch:
        folder = Path(scratch)
        simulate(folder / "mel", 10_000)
        told: dict[str, Any] = {"max_train_steps": steps, "train_batch_size": 16, "learning_rate": 1e-3, "preview_count": 0}
        options = TrainOptions(dataset_name=str(folder / "mel"), output_dir=str(folder / "run"), **told)
        measured(options, folder / "seconds.json")
        print(f"tiny, 64x64, batch 16, one thread, {summary(json.loads((folder / 'seconds.json').read_text()))}")
    ray.shutdown()


if __name__ == "__main__":
    main()
