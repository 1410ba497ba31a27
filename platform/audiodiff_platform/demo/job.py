"""The whole journey by one recipe: prepare -> train -> generate, the untrained network beside it, and a report of what came out."""

import time
from pathlib import Path
from typing import Any

import pydantic
import torch

from audiodiff_core.checkpoint import ModelRecord, save_model
from audiodiff_core.models import build_network
from audiodiff_platform.cluster import connected
from audiodiff_platform.entry.options import Options, load_recipe
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.generate.job import generate
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.mel_data.mel_dataset import MelDataset
from audiodiff_platform.prepare.job import PrepareOptions, prepare
from audiodiff_platform.report.page import write_report
from audiodiff_platform.train.diffusion import train
from audiodiff_platform.train.options import TrainOptions


class DemoOptions(Options):
    """Which journey to make."""

    recipe: Path = pydantic.Field(
        Path("jobs/recipes/demo.yaml"), description="YAML file whose sections prepare, train and generate are run"
    )


def demo(options: DemoOptions) -> dict[str, Any]:
    """Runs the recipe's verbs on one Ray, the finished ones not again; writes report.html beside the loops."""
    began = time.monotonic()
    recipe = load_recipe(options.recipe)
    preparing, training, generating = (recipe.get(name) for name in ("prepare", "train", "generate"))
    if not (
        isinstance(preparing, PrepareOptions)
        and isinstance(training, TrainOptions)
        and isinstance(generating, GenerateOptions)
    ):
        raise ValueError(f"{options.recipe}: a demo needs the sections prepare, train and generate")
    root = Path(generating.output_dir).parent
    untrained = root / "untrained"
    with connected(dashboard=True):
        prepare(preparing)
        train(training)
        generate(generating)
        _save_untrained(training, untrained / "model")
        generate(
            generating.model_copy(update={"model": str(untrained / "model"), "output_dir": str(untrained / "loops")})
        )
    report = root / "report.html"
    figures = write_report(
        report,
        dataset_dir=preparing.output_dir,
        input_dir=preparing.input_dir,
        run_dir=Path(training.output_dir),
        loops_dir=Path(generating.output_dir),
        untrained_dir=untrained / "loops",
    )
    audio = Path(generating.output_dir) / "audio"
    say(f"\naudio:  {audio}\nreport: {report}\n")
    return {
        "verb": "demo",
        "report": str(report),
        "audio": str(audio),
        "seconds": round(time.monotonic() - began, 1),
        **figures,
    }


def _save_untrained(training: TrainOptions, folder: Path) -> None:
    """The network as training found it, for comparison."""
    dataset = MelDataset(training.dataset_name)
    torch.manual_seed(training.seed)
    unet = build_network(training.network_preset(), dataset.mel)
    record = ModelRecord(recipe=training.recipe(), data_digest=dataset.digest, metrics={"steps": 0})
    save_model(folder, unet, training.objective().scheduler(training.scheduler), dataset.mel, record)
