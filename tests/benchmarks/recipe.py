"""Jobs of the tiny recipe, which several benchmarks run: the data set of the shipped loops, and trained models."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RECIPE = "jobs/recipes/tiny.yaml"
UNFOLDED = ("--preset", "tiny", "--train_batch_size", 8, "--learning_rate", 1e-3)
"""Options of the recipe without folding, whose models the original's pipeline can sample."""


def job(verb: str, *arguments: object) -> dict[str, Any]:
    """Run a job to its end and return its summary."""
    command = [sys.executable, f"jobs/{verb}.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def prepare(dataset: Path) -> None:
    """Write the data set of the recipe, unless it is there."""
    job("prepare", "--recipe", RECIPE, "--output_dir", dataset)


def train(dataset: Path, output: Path, seconds: float, seed: int, *options: object) -> dict[str, Any]:
    """Train the network of the recipe and return the summary of the job. The model is `output`/model.

    Args:
        dataset: The data set.
        output: Folder of the training run.
        seconds: Limit of the training time.
        seed: Seed of the training.
        *options: Options of the job that replace those of the recipe.
    """
    given = ("--dataset_name", dataset, "--output_dir", output, "--seed", seed, "--max_train_minutes", seconds / 60)
    return job("train", "--recipe", RECIPE, *given, *options)
