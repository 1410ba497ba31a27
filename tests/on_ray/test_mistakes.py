"""Users' mistakes: one line that names the mistake, exit status 2, no traceback.

No output looks finished.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from audiodiff_core.checkpoint import ModelRecord, save_model
from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import build_network
from audiodiff_platform.demo.job import DemoOptions, demo
from audiodiff_platform.encode.job import EncodeOptions, encode
from audiodiff_platform.entry import run_verb as job
from audiodiff_platform.entry.options import Options
from audiodiff_platform.evaluate.job import evaluate
from audiodiff_platform.evaluate.options import EvaluateOptions
from audiodiff_platform.generate.job import generate
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.prepare.job import PrepareOptions, prepare
from audiodiff_platform.serve.job import serve
from audiodiff_platform.serve.options import ServeOptions
from audiodiff_platform.train.diffusion import train
from audiodiff_platform.train.options import TrainOptions

ROOT = Path(__file__).parents[2]
VERBS: dict[str, tuple[type[Options], Callable[[Any], Mapping[str, Any]]]] = {
    "demo": (DemoOptions, demo),
    "prepare": (PrepareOptions, prepare),
    "train": (TrainOptions, train),
    "encode": (EncodeOptions, encode),
    "generate": (GenerateOptions, generate),
    "evaluate": (EvaluateOptions, evaluate),
    "serve": (ServeOptions, serve),
}

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a verb like its entry point.

    The function returns the exit status and the line on standard error.
    """

    def call(verb: str, *arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [f"jobs/{verb}.py", *map(str, arguments)])
        options, function = VERBS[verb]
        status = job.run(verb, options, function, "")
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        assert status == 0 or printed.out == ""
        return status, printed.err.strip().splitlines()[-1]

    return call


def test_inputs_that_are_not_there(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("no audio")
    for source, words in (("missing", "no such folder"), ("empty", "holds no audio files (1 others")):
        status, line = run("prepare", "--input_dir", tmp_path / source, "--output_dir", tmp_path / "out")
        assert (status, words in line, str(tmp_path / source) in line) == (2, True, True)
    status, line = run("train", "--dataset_name", tmp_path / "empty", "--output_dir", tmp_path / "out")
    assert status == 2
    assert "not a finished mel dataset" in line
    for source in ("missing", "empty"):
        status, line = run("generate", "--model", tmp_path / source, "--output_dir", tmp_path / "out", "--count", 1)
        assert (status, str(tmp_path / source) in line) == (2, True)
        status, line = run("serve", "--model", f"m={tmp_path / source}")
        assert (status, str(tmp_path / source) in line) == (2, True)
    assert not (tmp_path / "out").exists()


def test_what_is_encoded_or_evaluated_is_not_there(run: Run, tmp_path: Path) -> None:
    missing, out = tmp_path / "missing", tmp_path / "out"
    for arguments, words in (
        (
            ("encode", "--input_dir", missing, "--encoder", missing, "--output_dir", out),
            "no such folder, and not a Hugging Face id",
        ),
        (
            ("encode", "--dataset_name", missing, "--latents", "--vae", missing, "--output_dir", out),
            "not a finished mel dataset",
        ),
        (("encode", "--dataset_name", missing, "--latents", "--output_dir", out), "latents needs dataset_name and vae"),
        (("evaluate", "--reference", missing, "--candidate", tmp_path), "no such folder"),
        (
            ("evaluate", "--reference", "s3://key@bucket/a", "--candidate", tmp_path),
            "reference holds a query or a password",
        ),
    ):
        status, line = run(*arguments)
        assert (status, words in line) == (2, True), line
    assert not out.exists()


def test_an_output_folder_that_is_the_input_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for out in ("in", "link", "in/../in"):
        for arguments in (("prepare",), ("encode", "--encoder", tmp_path / "missing")):
            line = run(*arguments, "--input_dir", tmp_path / "in", "--output_dir", tmp_path / out)
            assert line == (
                2,
                f"error: output_dir {tmp_path / out} is input_dir: use another folder, whose files are no input",
            )
    assert not any((tmp_path / "in").iterdir())


def test_recipes_with_mistakes(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    for text, words in (
        ("prepare: {hop_lenght: 3}", "hop_lenght is unknown; did you mean hop_length?"),
        ("prepair: {}", "section prepair is unknown; did you mean prepare?"),
        ("prepare: 3", "section prepare is a text: must be a mapping of options"),
        ("a: [", "is not YAML"),
    ):
        recipe.write_text(text)
        status, line = run("prepare", "--recipe", recipe, "--input_dir", tmp_path, "--output_dir", tmp_path / "out")
        assert (status, words in line) == (2, True), line
    status, line = run("prepare", "--recipe", tmp_path / "none.yaml")
    assert (status, "cannot be read" in line) == (2, True)


def test_the_demo_runs_the_recipe_that_it_is_given(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    status, line = run("demo", "--recipe", recipe)
    assert (status, line) == (2, f"error: recipe {recipe}: cannot be read (No such file or directory)")
    recipe.write_text("prepare: {input_dir: in, output_dir: out}")
    status, line = run("demo", "--recipe", recipe)
    assert (status, line) == (2, f"error: {recipe}: must have the sections prepare, train and generate")


def test_flags_override_the_recipe(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"prepare: {{input_dir: {tmp_path / 'one'}, output_dir: out, overlap: 0.5}}")
    assert str(tmp_path / "one") in run("prepare", "--recipe", recipe)[1]
    assert str(tmp_path / "two") in run("prepare", "--recipe", recipe, "--input_dir", tmp_path / "two")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--resolution", "64,64,64"], "resolution is '64,64,64'"),
        (["--resolution", "4"], "x_res is 4"),
        (["--overlap", "1"], "overlap is '1'"),
        (["--hop_length", "many"], "hop_length is 'many'"),
        (["--hop", "3"], "unknown arguments: --hop 3; did you mean --hop_length?"),
        (["--sampel_rate", "8000"], "unknown arguments: --sampel_rate 8000; did you mean --sample_rate?"),
        (["--sample-rate=8000"], "unknown arguments: --sample-rate=8000; did you mean --sample_rate?"),
        (["--hop_length", "3", "--hop_length=4"], "hop_length is repeated, with the values 3, 4: it takes one value"),
        (["--num_workers", "0"], "num_workers is '0'"),
    ],
)
def test_values_out_of_range(run: Run, few_loops: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    status, line = run("prepare", "--input_dir", few_loops, "--output_dir", tmp_path / "out", *arguments)
    assert (status, words in line) == (2, True), line
    assert not (tmp_path / "out").exists()


@pytest.mark.workers
def test_more_workers_than_the_cluster_has(
    local_ray: None, run: Run, few_loops: Path, dataset: Path, model: Path, tmp_path: Path
) -> None:
    for verb, arguments in (
        ("prepare", ["--input_dir", few_loops, "--num_workers", 5]),
        ("train", ["--dataset_name", dataset, "--num_workers", 6, "--train_batch_size", 6]),
        ("generate", ["--model", model, "--count", 1, "--num_workers", 5]),
    ):
        status, line = run(verb, *arguments, "--output_dir", tmp_path / verb)
        assert status == 2
        assert "the cluster has 4: use at most 4" in line
        assert not (tmp_path / verb / "_SUCCESS").exists()
        assert not (tmp_path / verb / "model").exists()


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_a_precision_of_gpus_without_a_gpu(
    local_ray: None, run: Run, dataset: Path, tmp_path: Path, precision: str
) -> None:
    status, line = run(
        "train",
        "--dataset_name",
        dataset,
        "--output_dir",
        tmp_path / "run",
        "--mixed_precision",
        precision,
        "--num_workers",
        1,
    )
    remedy = f"use bf16 or no, in another folder if output_dir holds a run with {precision}"
    assert (status, line) == (
        2,
        f"error: mixed_precision {precision} needs a GPU, and the workers run on CPUs: {remedy}",
    )
    assert not (tmp_path / "run").exists()


def test_a_resolution_that_the_network_cannot_take(local_ray: None, run: Run, few_loops: Path, tmp_path: Path) -> None:
    prepare = ["prepare", "--input_dir", few_loops, "--output_dir", tmp_path / "mel", "--hop_length", 1024]
    status, line = run(*prepare, "--resolution", "36,32")
    assert (status, "resolution 36,32: not supported by any network, both sides must be divisible by 8" in line) == (
        2,
        True,
    )
    assert not (tmp_path / "mel").exists()
    assert run(*prepare, "--resolution", "40,32")[0] == 0
    status, line = run(
        "train",
        "--dataset_name",
        tmp_path / "mel",
        "--output_dir",
        tmp_path / "run",
        "--num_epochs",
        1,
        "--preset",
        "ddpm-64",
    )
    assert status == 2
    assert "resolution 40,32 does not fit preset ddpm-64: both sides must be multiples of 32" in line
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_folder_that_is_none(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(
        json.dumps({"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDIMScheduler"]})
    )
    status, line = run("generate", "--model", tmp_path, "--output_dir", tmp_path / "out", "--count", 1)
    assert (status, "incomplete model folder: unet/" in line) == (2, True)


def test_the_command_itself_prints_one_line_and_ends_with_two(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "jobs/prepare.py",
        "--input_dir",
        str(tmp_path / "none"),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.strip() == f"error: input_dir {tmp_path / 'none'}: no such folder"


def test_more_steps_than_the_model_has_levels(run: Run, tmp_path: Path) -> None:
    mel = MelConfig(x_res=32, y_res=32, hop_length=1024)
    scheduler = Objective(num_train_timesteps=20).scheduler("ddim")
    save_model(
        tmp_path / "model",
        build_network("tiny", mel),
        scheduler,
        mel,
        ModelRecord(recipe={}, data_digest="none", metrics={}),
    )
    status, line = run(
        "generate", "--model", tmp_path / "model", "--output_dir", tmp_path / "out", "--count", 1, "--steps", 21
    )
    assert (status, line) == (2, "error: steps 21: the model has 20 levels of noise, use 1 to 20")
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_too_small_is_known_before_work_starts(run: Run, model: Path, tmp_path: Path) -> None:
    status, line = run("generate", "--model", model, "--output_dir", tmp_path / "out", "--count", 10_000_000)
    assert status == 2
    assert "the audio needs about" in line
    assert "MB are free" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["input_dir", "output_dir"])
@pytest.mark.parametrize(
    "uri", ["s3://AKIDEXAMPLE:hunter2@bucket/folder", "https://host/list.txt?X-Amz-Signature=hunter2"]
)
def test_secrets_in_uris_are_refused_and_not_repeated(
    run: Run, few_loops: Path, tmp_path: Path, option: str, uri: str
) -> None:
    places = {"input_dir": str(few_loops), "output_dir": str(tmp_path / "out"), option: uri}
    status, line = run("prepare", *(part for name, value in places.items() for part in (f"--{name}", value)))
    assert (status, f"{option} holds a query or a password" in line, "hunter2" in line) == (2, True, False)
