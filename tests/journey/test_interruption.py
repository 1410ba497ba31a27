"""Jobs stopped by Ctrl-C or by force after a commit, and run again.

The second run ends with the result of an undisturbed run.
"""

import hashlib
import os
import signal
import subprocess
import sys
import time
from itertools import dropwhile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from audiodiff_platform.generate.job import generate
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.prepare.job import PrepareOptions, prepare
from audiodiff_platform.train.diffusion import train
from audiodiff_platform.train.options import TrainOptions

ROOT = Path(__file__).parents[2]


def _stop_after_a_commit(
    command: list[str], output: Path, number: signal.Signals, committed: str = "_commits/*.json"
) -> subprocess.CompletedProcess[str]:
    """Run a job in its own process group and send it a signal after its first commit."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job inherits that SIGINT is ignored
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 180
    while not any(output.glob(committed)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if number is signal.SIGKILL:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _tracebacks(text: str) -> str:
    """Return what the job itself printed from its first traceback on; lines of Ray's actors have a prefix."""
    return "\n".join(dropwhile(lambda line: not line.startswith("Traceback"), text.splitlines()))


def _data(folder: Path, kind: str) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (folder / kind).iterdir()}


def _prepare_flags(loops: Path) -> dict[str, Any]:
    return {
        "input_dir": str(loops),
        "resolution": "64",
        "hop_length": 256,
        "overlap": 0.8,
        "shard_minutes": 0.001,
        "num_workers": 1,
    }


def _command(verb: str, values: dict[str, Any], output: Path) -> list[str]:
    return [
        f"jobs/{verb}.py",
        *(part for name, value in values.items() for part in (f"--{name}", str(value))),
        "--output_dir",
        str(output),
    ]


@pytest.fixture(scope="module")
def undisturbed(local_ray: None, loops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "mel"
    prepare(PrepareOptions(output_dir=str(out), **_prepare_flags(loops)))
    return out


@pytest.mark.soak_short
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.soak)])
def test_a_stopped_prepare_goes_on_as_if_undisturbed(
    undisturbed: Path, loops: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    ended = _stop_after_a_commit(_command("prepare", _prepare_flags(loops), out), out, number)
    assert not (out / "_SUCCESS").exists()
    assert ended.stdout == ""
    assert _tracebacks(ended.stderr) == ""
    if number is signal.SIGINT:
        assert ended.returncode == 1
        assert "interrupted: run the same command again" in ended.stderr
    prepare(PrepareOptions(output_dir=str(out), **_prepare_flags(loops)))
    assert _data(out, "data") == _data(undisturbed, "data")
    assert (out / "_SUCCESS").read_bytes() == (undisturbed / "_SUCCESS").read_bytes()
    assert not (out / "_tmp").exists()


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_generate_goes_on_as_if_undisturbed(
    local_ray: None, model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    values: dict[str, Any] = {"model": str(model), "count": 48, "steps": 20, "num_workers": 1}
    ended = _stop_after_a_commit(_command("generate", values, out), out, number)
    assert not (out / "_SUCCESS").exists()
    assert _tracebacks(ended.stderr) == ""
    for folder in (out, whole):
        generate(GenerateOptions(output_dir=str(folder), **values))
    assert _data(out, "audio") == _data(whole, "audio")
    assert _data(out, "manifest") == _data(whole, "manifest")


@pytest.mark.soak
def test_a_stopped_training_goes_on_as_if_undisturbed(local_ray: None, dataset: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    values: dict[str, Any] = {
        "dataset_name": str(dataset),
        "max_train_steps": 40,
        "num_workers": 1,
        "checkpoint_minutes": 0.02,
        "preview_count": 0,
    }
    for number in (signal.SIGINT, signal.SIGKILL):
        ended = _stop_after_a_commit(_command("train", values, out), out, number, "state/step-*/progress.json")
        assert not (out / "model").exists()
        assert _tracebacks(ended.stderr) == ""
        assert "PlacementGroupCleaner" not in ended.stderr
        assert "Reporting training result" not in ended.stderr
    for folder in (out, whole):
        train(TrainOptions(output_dir=str(folder), **values))
    first, second = (
        load_file(folder / "model" / "unet" / "diffusion_pytorch_model.safetensors") for folder in (out, whole)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


BORROWED = """
import signal, sys, threading, time
from pathlib import Path
import ray
from audiodiff_platform.{module} import {options}, {verb}

ray.init(address="local", num_cpus=2, logging_level="ERROR", log_to_driver=False)
output = Path(sys.argv[1])

def interrupt() -> None:
    while not any(output.glob({committed!r})):
        time.sleep(0.02)
    signal.raise_signal(signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
handler = signal.getsignal(signal.SIGINT)
try:
    {verb}({options}(output_dir=str(output), **{values!r}))
except KeyboardInterrupt:
    print("interrupted")
assert signal.getsignal(signal.SIGINT) is handler
deadline = time.monotonic() + 60
while ray.available_resources().get("CPU") != 2:
    assert time.monotonic() < deadline, "the work goes on"
    time.sleep(0.05)
print("free")
"""


@pytest.mark.soak
@pytest.mark.parametrize("verb", ["prepare", "encode", "generate", "train"])
def test_ctrl_c_ends_work_on_a_ray_that_goes_on(
    dataset: Path, loops: Path, model: Path, encoder: Path, tmp_path: Path, verb: str
) -> None:
    """Ctrl-C stops the shards in progress, each of which would take minutes."""
    (tmp_path / "in").mkdir()
    for copy in range(200):
        for loop in loops.glob("*.flac"):
            (tmp_path / "in" / f"{copy}-{loop.name}").symlink_to(loop)
    sharded = {"input_dir": str(tmp_path / "in"), "num_workers": 2}
    training = {
        "dataset_name": str(dataset),
        "max_train_steps": 10_000,
        "num_workers": 1,
        "checkpoint_minutes": 0.01,
        "preview_count": 0,
    }
    mark, sampling = "_attempts/*.json", {"model": str(model), "count": 20_000, "steps": 100, "num_workers": 2}
    parts: dict[str, dict[str, Any]] = {
        "prepare": {
            "options": "PrepareOptions",
            "committed": mark,
            "values": {**sharded, "resolution": "64", "hop_length": 256, "overlap": 0.99},
        },
        "encode": {"options": "EncodeOptions", "committed": mark, "values": {**sharded, "encoder": str(encoder)}},
        "generate": {"options": "GenerateOptions", "committed": mark, "values": sampling},
        "train": {"options": "TrainOptions", "committed": "state/step-*/progress.json", "values": training},
    }
    module = "train.diffusion" if verb == "train" else f"{verb}.job"
    script = BORROWED.format(verb=verb, module=module, **parts[verb])
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.stdout.split() == ["interrupted", "free"], ended.stderr
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert not (tmp_path / "out" / "model").exists()
