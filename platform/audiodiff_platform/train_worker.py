"""What each process of a training run does; Ray Train has joined them to one process group, accelerate synchronises gradients."""

import json
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.train
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, reduce

from audiodiff_core.checkpoint import ModelRecord, save_model, upload_model
from audiodiff_core.models import build_network
from audiodiff_core.training import TrainState, learning_rate, train_step
from audiodiff_platform.cluster import say
from audiodiff_platform.data_order import DataOrder
from audiodiff_platform.dataset import TrainingImages
from audiodiff_platform.imported import open_dataset
from audiodiff_platform.storage import Folder
from audiodiff_platform.train_options import TrainOptions
from audiodiff_platform.training_state import load_state, newest_checkpoint, save_state

LOG_STEPS = 10
FLUSH_S = 10.0
METRICS = "metrics.jsonl"


def train_worker(config: dict[str, Any]) -> str | None:
    """Trains from the last checkpoint (or the start) to the stopping point, then writes the model.

    Gives the reason where training cannot get there from its data and options: Ray Train would answer an error with another attempt.
    """
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # or each request to the Hub would be a line of progress
    options = TrainOptions.model_validate(config["options"])
    accelerator = join_workers(options)
    dataset = open_dataset(options.dataset_name, options.mel_config)
    try:
        state, last = trained(options, accelerator, dataset)
    except FloatingPointError as reason:
        return str(reason)
    if accelerator.is_main_process:
        write_model(options, state, dataset, last)
    accelerator.wait_for_everyone()
    return None


def join_workers(options: TrainOptions) -> Accelerator:
    """This process's accelerate, joined to the process group that Ray Train made."""
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        torch.set_num_threads(1)
    # Without cpu=True, accelerate passes over Ray's gloo group and each worker would train alone.
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=options.mixed_precision)
    world = ray.train.get_context().get_world_size()
    assert accelerator.num_processes == world, f"accelerate sees {accelerator.num_processes} of {world} workers"
    return accelerator


def trained(options: TrainOptions, accelerator: Accelerator, dataset: TrainingImages) -> tuple[TrainState, dict[str, float]]:
    """The state at the stopping point and the last metrics."""
    torch.manual_seed(options.seed)
    network = build_network(options.preset, dataset.mel)
    state = TrainState(accelerator, network, options.objective(), options.learning_rate, options.seed)
    output = Folder(options.output_dir)
    (checkpoint,) = broadcast_object_list([newest_checkpoint(output) if accelerator.is_main_process else None])
    if checkpoint is not None:
        with ray.train.Checkpoint(f"{output.uri}/{checkpoint}").as_directory() as folder:
            load_state(state, Path(folder))
    log = MetricsLog(output, state.step, accelerator.is_main_process)
    _train(options, accelerator, state, dataset, log)
    log.flush()
    return state, log.last


def _train(options: TrainOptions, accelerator: Accelerator, state: TrainState, dataset: TrainingImages, log: "MetricsLog") -> None:
    steps_at_most = options.steps_at_most(dataset.rows)
    seconds_at_most = None if options.max_train_minutes is None else options.max_train_minutes * 60
    order = DataOrder(dataset, state.seed)
    rank, world = accelerator.process_index, accelerator.num_processes
    earlier, began = state.seconds, time.monotonic()
    saved_at, losses, norms = began, list[float](), list[float]()
    while True:
        # The clock of rank 0 decides for all, or one would stop while another waits for its gradient.
        state.seconds, due = _agreed(accelerator, earlier + time.monotonic() - began, time.monotonic() - saved_at > options.checkpoint_minutes * 60)
        progress = max(
            0.0 if steps_at_most is None else state.step / max(1, steps_at_most), 0.0 if seconds_at_most is None else state.seconds / seconds_at_most
        )
        finished = progress >= 1 or steps_at_most == 0
        if finished or (due and not losses):
            _report(accelerator, state, log)
            saved_at = time.monotonic()
        if finished:
            return
        rate = learning_rate(options.learning_rate, state.step, options.lr_warmup_steps, progress)
        batches = []
        for _ in range(options.gradient_accumulation_steps):
            numbers = range(state.samples, state.samples + options.train_batch_size)
            batches.append(order.batch([number for number in numbers if number % world == rank]))
            state.samples += options.train_batch_size
        loss, norm = train_step(accelerator, state, batches, rate)
        losses.append(loss)
        if math.isfinite(norm):  # with fp16, not all are
            norms.append(norm)
        if state.step % LOG_STEPS == 0:
            shared = reduce(torch.tensor(statistics.fmean(losses), device=accelerator.device), reduction="mean")
            log.add(state, loss=float(shared), gradient_norm=statistics.fmean(norms or [0.0]), learning_rate=rate, progress=progress)
            losses, norms = [], []


def _agreed(accelerator: Accelerator, seconds: float, due: bool) -> tuple[float, bool]:
    values = broadcast(torch.tensor([seconds, float(due)], dtype=torch.float64, device=accelerator.device))
    return float(values[0]), bool(values[1])


def _report(accelerator: Accelerator, state: TrainState, log: "MetricsLog") -> None:
    """Hands a checkpoint of the state to Ray Train; all ranks take part, rank 0 writes."""
    metrics = {"step": state.step, "samples": state.samples, "train_seconds": round(state.seconds, 1), **log.last}
    if not accelerator.is_main_process:
        ray.train.report(metrics)
        return
    log.flush()
    with tempfile.TemporaryDirectory(prefix="audiodiff-") as folder:
        save_state(state, Path(folder))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def write_model(options: TrainOptions, state: TrainState, dataset: TrainingImages, metrics: dict[str, float]) -> None:
    """Saves the averaged weights as a model folder in the run folder."""
    unet = build_network(options.preset, dataset.mel)
    unet.load_state_dict(state.ema_state_dict())
    record = ModelRecord(
        recipe=options.recipe(),
        data_digest=dataset.digest,
        metrics={"steps": state.step, "samples": state.samples, "seconds": round(state.seconds, 1), **metrics},
    )
    with _model_folder(options.output_dir) as folder:
        save_model(folder, unet, options.objective().scheduler(options.scheduler), dataset.mel, record)


@contextmanager
def _model_folder(output_dir: str) -> Iterator[Path]:
    """OUTPUT_DIR/model, or for an object store a local folder that is then uploaded to it."""
    if "://" not in output_dir:
        yield Path(output_dir) / "model"
        return
    with tempfile.TemporaryDirectory(prefix="audiodiff-") as scratch:
        yield Path(scratch) / "model"
        upload_model(Path(scratch) / "model", f"{output_dir}/model")


class MetricsLog:
    """`metrics.jsonl` of a run folder, written by rank 0; lines after the step that training resumes from are dropped."""

    def __init__(self, folder: Folder, step: int, writes: bool) -> None:
        self.folder, self.writes = folder, writes
        self.last: dict[str, float] = {}
        self.flushed_at = time.monotonic()
        lines = folder.read(METRICS).decode().splitlines() if writes and folder.exists(METRICS) else []
        self.lines = [line for line in lines if json.loads(line)["step"] <= step]
        if self.lines:
            self.last = {key: json.loads(self.lines[-1])[key] for key in ("loss", "gradient_norm", "learning_rate")}

    def add(self, state: TrainState, progress: float, **values: float) -> None:
        self.last = values
        if not self.writes:
            return
        self.lines.append(json.dumps({"step": state.step, "samples": state.samples, "seconds": round(state.seconds, 2), **values}))
        if time.monotonic() - self.flushed_at > FLUSH_S:
            self.flush()
            say(f"step {state.step}, {progress:.0%}, loss {values['loss']:.4f}, {state.samples / max(state.seconds, 1e-9):.1f} samples/s")

    def flush(self) -> None:
        if self.writes:
            self.folder.write(METRICS, "".join(f"{line}\n" for line in self.lines).encode())
            self.flushed_at = time.monotonic()
