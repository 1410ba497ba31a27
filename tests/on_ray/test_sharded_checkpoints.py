"""Sharded checkpoints: written by the workers of an FSDP run, and read by any number of workers, with FSDP or without.

The workers are processes of a gloo group: accelerate offers FSDP on GPUs only, so no job of Ray Train can be tested.
"""

import json
import resource
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn

from audiodiff_core.files.weights import StateDict
from audiodiff_core.training import TrainBatch, TrainState, train_step
from audiodiff_platform.mel_data.run_folder import EMA_WEIGHTS
from audiodiff_platform.storage import Folder
from audiodiff_platform.train import checkpoint_writer
from audiodiff_platform.train.checkpoint_writer import CheckpointWriter, Written
from audiodiff_platform.train.checkpoints import (
    FileRecord,
    checkpoint_name,
    checkpoint_progress,
    damaged_files,
    local_checkpoint,
    newest_checkpoint,
    put_checkpoint,
    whole_checkpoints,
)
from audiodiff_platform.train.diffusion import train
from audiodiff_platform.train.diffusion_worker import DiffusionLearner
from audiodiff_platform.train.learner import OPTIMIZER, WEIGHTS
from audiodiff_platform.train.options import TrainOptions
from audiodiff_platform.train.run_log import RunLog
from audiodiff_platform.train.sharded_checkpoints import averaged_weights, write_shards
from tests.in_process import in_process
from tests.process_group import free_port, joined_with_fsdp, tiny_state
from tests.servers.stores import Stores

WORKERS = 2
WHOLE, SHARDED, RETRIED, FAILED = (checkpoint_name(step, "aaaa") for step in (2, 3, 4, 5))


def _learner(accelerator: Accelerator, output: str, state: TrainState) -> DiffusionLearner:
    options = TrainOptions(
        dataset_name="none",
        output_dir=output,
        train_batch_size=4,
        mixed_precision="no",
        fsdp=state.sharded,
        report_to=(),
    )
    return DiffusionLearner(options, accelerator, state)


def _content(state: TrainState) -> dict[str, torch.Tensor]:
    """Return all tensors of a state, unsharded."""
    return {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()
        for name, tensor in state.tensors().items()
    }


def _loaded(accelerator: Accelerator, output: str, name: str) -> TrainState:
    """Load a checkpoint into a state with other weights."""
    state = tiny_state(accelerator, seed=1)
    with local_checkpoint(Folder(output), name) as (folder, progress):
        assert damaged_files(folder, progress) == []
        _learner(accelerator, output, state).load(folder, progress)
        assert state.ema.steps == progress["ema_step"]
    return state


def _assert_equal(actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in actual.items())


def _written(learner: DiffusionLearner, name: str) -> Written | None:
    """Write a checkpoint as the training loop does, and change the state meanwhile. Return the outcome on rank 0."""
    writes = learner.accelerator.is_main_process
    log = RunLog(learner.options, learner.counts.step, {}, writes)
    writer = CheckpointWriter(learner.options, log, token=None)
    snapshot = learner.snapshot()
    if writes:
        writer.start(name, snapshot, learner.progress(), "never")
    else:
        writer.assist(snapshot)
    for tensor in learner.state.tensors().values():
        tensor.zero_()
    written = writer.wait()
    writer.close()
    return written


def _limit_file_size(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def _write(rank: int, port: int, whole: str, outputs: list[str], results: str) -> None:
    """Load a checkpoint of a run without FSDP, write the state to all run folders, and load it from there."""
    accelerator = joined_with_fsdp(rank, port, WORKERS)
    content = _content(_loaded(accelerator, whole, WHOLE))
    if rank == 0:
        torch.save(content, f"{results}/content.pt")
    for output in outputs:
        state = _loaded(accelerator, whole, WHOLE)
        assert all(isinstance(weight, DTensor) for weight in [*state.network.parameters(), *state.ema.weights])
        assert _written(_learner(accelerator, output, state), SHARDED) == (Written(SHARDED) if rank == 0 else None)
        accelerator.wait_for_everyone()
        _assert_equal(_content(_loaded(accelerator, output, SHARDED)), content)
    _write_on_a_full_disk(accelerator, whole, outputs[0], results)


def _write_on_a_full_disk(accelerator: Accelerator, whole: str, output: str, results: str) -> None:
    """Write two checkpoints. One worker fails at the first attempt to write the first, and at each of the second."""
    rank = accelerator.process_index
    learner = _learner(accelerator, output, _loaded(accelerator, whole, WHOLE))
    assert learner._writers is not None
    put = learner._writers.put
    if rank == 1:
        _limit_file_size(1 << 16)

        def put_once_more(tensors: StateDict, target: str) -> list[dict[str, FileRecord] | str]:
            outcomes = put(tensors, target)
            _limit_file_size(resource.RLIM_INFINITY)
            return outcomes

        vars(learner._writers)["put"] = put_once_more
    vars(checkpoint_writer)["RETRY_PAUSES_S"] = (0.0,)
    assert _written(learner, RETRIED) == (Written(RETRIED) if rank == 0 else None)
    if rank == 1:
        _limit_file_size(1 << 16)
        vars(learner._writers)["put"] = put
    failed = _written(learner, FAILED)
    _limit_file_size(resource.RLIM_INFINITY)
    if failed is not None:
        Path(results, "failed.json").write_text(json.dumps([failed.name, failed.failure]))


def _read(rank: int, port: int, workers: int, output: str, expected: str) -> None:
    accelerator = joined_with_fsdp(rank, port, workers)
    _assert_equal(_content(_loaded(accelerator, output, SHARDED)), torch.load(expected))


pytestmark = pytest.mark.soak_short  # groups of processes are started


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, TrainState]:
    """A run folder with a checkpoint of a run without FSDP, and the state of the run."""
    output = str(tmp_path_factory.mktemp("whole") / "run")
    accelerator = Accelerator(cpu=True)
    state = tiny_state(accelerator)
    images = torch.randint(256, (4, 16, 16), dtype=torch.uint8)
    for _ in range(2):
        train_step(accelerator, state, [TrainBatch(torch.arange(4), images)], 1e-3, samples=4)
    learner = _learner(accelerator, output, state)
    snapshot = learner.snapshot()
    put_checkpoint(Folder(output), WHOLE, lambda folder: snapshot.write(WHOLE, folder), learner.progress())
    return output, state


@pytest.fixture(scope="module")
def sharded(
    whole: tuple[str, TrainState], stores: Stores, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], Path]:
    """Run folders with a checkpoint of two workers with FSDP by kind of storage, and a folder of results."""
    results = tmp_path_factory.mktemp("sharded")
    outputs = {"local": str(results / "run"), "s3": f"{stores.s3.make_bucket()}/run"}
    spawn(_write, (free_port(), whole[0], list(outputs.values()), str(results)), nprocs=WORKERS)
    return outputs, results


def test_a_run_with_fsdp_loads_what_a_run_without_fsdp_wrote(
    whole: tuple[str, TrainState], sharded: tuple[dict[str, str], Path]
) -> None:
    _assert_equal(torch.load(sharded[1] / "content.pt"), _content(whole[1]))


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_a_run_without_fsdp_loads_what_a_run_with_fsdp_wrote(
    whole: tuple[str, TrainState], sharded: tuple[dict[str, str], Path], kind: str
) -> None:
    output = sharded[0][kind]
    _assert_equal(_content(_loaded(Accelerator(cpu=True), output, SHARDED)), _content(whole[1]))
    with local_checkpoint(Folder(output), SHARDED) as (folder, _):
        _assert_equal(averaged_weights(folder), whole[1].ema_state_dict())


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_each_worker_writes_its_share_alone(
    whole: tuple[str, TrainState], sharded: tuple[dict[str, str], Path], kind: str
) -> None:
    output = Folder(sharded[0][kind])
    files = checkpoint_progress(output, SHARDED)["files"]
    assert list(files) == ["shard-00000-of-00002.safetensors", "shard-00001-of-00002.safetensors"]
    content = _content(whole[1])
    size = sum(tensor.nbytes for tensor in content.values())
    assert all(record["bytes"] < 0.55 * size + 100 * len(content) for record in files.values())
    assert not output.names("_tmp/**")


@pytest.mark.soak
@pytest.mark.parametrize("workers", [3])
def test_another_number_of_workers_loads_the_checkpoint(sharded: tuple[dict[str, str], Path], workers: int) -> None:
    outputs, results = sharded
    spawn(_read, (free_port(), workers, outputs["s3"], str(results / "content.pt")), nprocs=workers)


def test_a_worker_that_cannot_write_is_named_and_delays_the_checkpoint(sharded: tuple[dict[str, str], Path]) -> None:
    outputs, results = sharded
    output = Folder(outputs["local"])
    name, failure = json.loads((results / "failed.json").read_text())
    assert name == FAILED
    assert failure.startswith(f"checkpoint {output.uri}/{FAILED} cannot be written (worker 1: OSError: [Errno 27]")
    assert RETRIED in whole_checkpoints(output)
    assert not output.names(f"{FAILED}/*")


def _with_shards(run: Path) -> None:
    """Replace the newest checkpoint of a run by a sharded checkpoint, in one file."""
    output = Folder(str(run))
    name = newest_checkpoint(output)
    assert name is not None
    with local_checkpoint(output, name) as (folder, progress):
        moments = torch.load(folder / OPTIMIZER)["state"]
        tensors = {
            **{f"network.{name}": tensor for name, tensor in load_file(folder / WEIGHTS).items()},
            **{f"average.{name}": tensor for name, tensor in load_file(folder / EMA_WEIGHTS).items()},
            **{f"optimizer.{name}.{kind}": value for name in moments for kind, value in moments[name].items()},
        }
    output.remove(name)
    progress = {name: value for name, value in progress.items() if name not in ("files", "format_version")}

    def save(folder: Path) -> None:
        write_shards(tensors, folder, rank=0, workers=1)

    put_checkpoint(output, name, save, progress)


def test_a_run_goes_on_from_shards_as_from_a_whole_checkpoint(local_ray: None, dataset: Path, tmp_path: Path) -> None:
    def model(folder: str, steps: int) -> dict[str, torch.Tensor]:
        options = TrainOptions(
            dataset_name=str(dataset),
            output_dir=str(tmp_path / folder),
            max_train_steps=steps,
            train_batch_size=4,
            lr_scheduler="constant",
            preview_count=0,
            report_to=(),
        )
        train(options)
        return load_file(tmp_path / folder / "model" / "unet" / "diffusion_pytorch_model.safetensors")

    with in_process():
        first = model("whole", steps=3)
        shutil.copytree(tmp_path / "whole", tmp_path / "sharded", ignore=shutil.ignore_patterns("model"))
        shutil.rmtree(tmp_path / "whole" / "model")
        _with_shards(tmp_path / "sharded")
        _assert_equal(model("sharded", steps=3), first)
        shutil.rmtree(tmp_path / "sharded" / "model")
        _assert_equal(model("sharded", steps=6), model("whole", steps=6))
