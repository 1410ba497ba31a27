"""Stopped jobs: by Ctrl-C and by force, at a moment when some of the work is committed; run again, they end as if undisturbed."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from audiodiff_platform.generate import GenerateOptions, generate
from audiodiff_platform.prepare import PrepareOptions, prepare

ROOT = Path(__file__).parents[2]


def _stop_after_a_commit(command: list[str], output: Path, number: signal.Signals) -> subprocess.CompletedProcess[str]:
    """Runs a job in a process group of its own and sends it a signal once its first shard is committed."""
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 180
    while not any((output / "_commits").glob("*.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if number is signal.SIGKILL:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _data(folder: Path, kind: str) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (folder / kind).iterdir()}


def test_ctrl_c_ends_a_job_in_one_line_and_a_rerun_completes_it(local_ray: None, model: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    arguments = {"model": str(model), "count": 48, "steps": 20, "num_workers": 1}
    flags = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    ended = _stop_after_a_commit(["jobs/generate.py", *flags, "--output_dir", str(out)], out, signal.SIGINT)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "interrupted: run the same command again" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (out / "_SUCCESS").exists()
    generate(GenerateOptions(output_dir=str(out), **{**arguments, "num_workers": 3}))
    generate(GenerateOptions(output_dir=str(whole), **{**arguments, "num_workers": 3}))
    assert _data(out, "audio") == _data(whole, "audio")
    assert _data(out, "manifest") == _data(whole, "manifest")


def test_a_killed_driver_costs_nothing_but_time(local_ray: None, loops: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    flags = ["--input_dir", str(loops), "--resolution", "64", "--hop_length", "256", "--overlap", "0.8", "--shard_minutes", "0.001", "--num_workers", "1"]
    _stop_after_a_commit(["jobs/prepare.py", *flags, "--output_dir", str(out)], out, signal.SIGKILL)
    assert not (out / "_SUCCESS").exists()
    for folder in (out, whole):
        prepare(PrepareOptions(input_dir=str(loops), output_dir=str(folder), resolution="64", hop_length=256, overlap=0.8, shard_minutes=0.001))
    assert _data(out, "data") == _data(whole, "data")
    assert (out / "_SUCCESS").read_bytes() == (whole / "_SUCCESS").read_bytes()
    assert not (out / "_tmp").exists()


