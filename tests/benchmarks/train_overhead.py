"""Overhead of the platform on a training step, compared with a bare PyTorch loop.

    python -m tests.benchmarks.train_overhead

Both steps are timed in one worker of Ray Train, in turn, so that both run on the same machine under the same load. The
step of the platform includes the data order, reading, draws by sample number, the clock shared by all workers, logging
and TensorBoard. The bare step trains a copy of the network on images in memory, with torch's random numbers and the
same losses, AdamW, clipping and moving average. Wall time is the duration of a step. Processor time also includes the
thread that reads ahead.
"""

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
from accelerate import Accelerator

from audiodiff_core.diffusion.objectives import losses
from audiodiff_core.mel import to_model
from audiodiff_core.training import TrainBatch, TrainState
from audiodiff_core.training.weight_average import WeightAverage
from audiodiff_platform.cluster import WORKER_ENVIRONMENT
from audiodiff_platform.train.diffusion_worker import DiffusionLearner
from audiodiff_platform.train.inputs import TrainingInputs, load_training_inputs
from audiodiff_platform.train.loop import learn
from audiodiff_platform.train.options import TrainOptions
from audiodiff_platform.train.worker_group import Group, run_workers
from audiodiff_platform.train.worker_process import join_workers
from tests.benchmarks.train_data import simulate

WARM_UP = 5
SECONDS = "seconds.json"


class Bare:
    """A plain PyTorch training loop: a copy of the network and one batch of images."""

    def __init__(self, options: TrainOptions, start: TrainingInputs) -> None:
        self.options, self.objective = options, start.objective
        self.network = copy.deepcopy(start.network)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=options.learning_rate, fused=True)
        self.average = WeightAverage(list(self.network.parameters()), options.ema_decay)
        self.images = np.random.default_rng(0).integers(
            0, 256, (options.batch_size, start.mel.y_res, start.mel.x_res), np.uint8
        )

    def step(self) -> None:
        clean = to_model(torch.from_numpy(self.images).unsqueeze(1))
        timesteps = torch.randint(0, self.objective.num_train_timesteps, (len(clean),))
        losses(self.network, self.objective, clean, torch.randn_like(clean), timesteps).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.options.max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(list(self.network.parameters()))


class Paired(DiffusionLearner):
    """The platform's learner, which runs a step of the bare loop after each of its own steps."""

    def __init__(self, options: TrainOptions, accelerator: Accelerator, state: TrainState, bare: Bare) -> None:
        super().__init__(options, accelerator, state)
        self.bare = bare
        self.bare_seconds: list[tuple[float, float]] = []
        self.ended: list[tuple[float, float]] = []

    def learn(self, micro_batches: Sequence[TrainBatch], progress: float) -> dict[str, torch.Tensor | float]:
        logged = super().learn(micro_batches, progress)
        wall, processor = time.perf_counter(), time.process_time()
        self.bare.step()
        self.bare_seconds.append((time.perf_counter() - wall, time.process_time() - processor))
        self.ended.append((time.perf_counter(), time.process_time()))
        return logged


def worker(config: dict[str, Any]) -> None:
    """Train for the configured steps, each followed by a bare step, and write the seconds of both.

    Each entry is a pair of wall time and processor time.
    """
    options = TrainOptions.model_validate(config["options"])
    accelerator = join_workers(options)
    start = load_training_inputs(options)
    bare = Bare(options, start)
    state = TrainState(accelerator, start.network, start.objective, options.learning_rate, options.seed)
    learner = Paired(options, accelerator, state, bare)
    learn(options, accelerator, learner, start.order(options.seed))
    steps = np.diff(np.array(learner.ended), axis=0)[WARM_UP:]
    theirs = np.array(learner.bare_seconds)[1 + WARM_UP :]
    (Path(options.output_dir) / SECONDS).write_text(
        json.dumps({"platform": (steps - theirs).tolist(), "bare": theirs.tolist()})
    )


def summary(seconds: Mapping[str, list[list[float]]]) -> str:
    ours, theirs = (np.array(seconds[name]) for name in ("platform", "bare"))
    wall, processor = ours.sum(axis=0) / theirs.sum(axis=0) - 1
    middle = statistics.median(ours[:, 0] / theirs[:, 0]) - 1
    return (
        f"{len(ours)} pairs: bare {np.median(theirs[:, 0]) * 1e3:.1f} ms a step, "
        f"platform {np.median(ours[:, 0]) * 1e3:.1f} ms; "
        f"overhead {wall:+.1%} in all, {middle:+.1%} in the median pair, {processor:+.1%} of processor time"
    )


def main() -> None:
    from tests.benchmarks import train_overhead  # workers can import this name, unlike __main__

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    steps = parser.parse_args().steps
    ray.init(
        address="local",
        num_cpus=2,
        runtime_env={"env_vars": WORKER_ENVIRONMENT},
        logging_level="ERROR",
        include_dashboard=False,
    )
    with tempfile.TemporaryDirectory(prefix="audiodiff-") as scratch:
        folder = Path(scratch)
        simulate(folder / "mel", 10_000)
        settings: dict[str, Any] = {
            "max_train_steps": steps,
            "train_batch_size": 16,
            "mixed_precision": "no",
            "learning_rate": 1e-3,
            "preview_count": 0,
        }
        options = TrainOptions(dataset_name=str(folder / "mel"), output_dir=str(folder / "run"), **settings)
        run_workers(train_overhead.worker, options, Group(workers=1, gpu=False))
        print(f"tiny, 64x64, batch 16, one thread, {summary(json.loads((folder / 'run' / SECONDS).read_text()))}")
    ray.shutdown()


if __name__ == "__main__":
    main()
