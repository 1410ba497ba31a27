"""Demo: loops of the shipped model, and then the steps of one recipe: prepare, train, generate and a report.

The report compares the loops of the trained network with loops of the same network before training.
"""

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

SHIPPED_MODEL = "builtin:loops"
SHIPPED_LOOPS = 16


class DemoOptions(Options):
    """Options of demo."""

    recipe: Path = pydantic.Field(
        Path("jobs/recipes/demo.yaml"), description="YAML file with the sections prepare, train and generate"
    )


def demo(options: DemoOptions) -> dict[str, Any]:
    """Generate loops with the shipped model, run the steps of a recipe on one Ray cluster, and write report.html.

    Steps that are already finished are not repeated.

    Args:
        options: Options of the demo.

    Returns:
        The summary as JSON values: report, audio folder, seconds taken, and the figures of the report.

    Raises:
        ValueError: A section of the recipe is missing or invalid.
        JobError: A step failed.
    """
    start = time.monotonic()
    recipe = load_recipe(options.recipe)
    prepare_options, train_options, generate_options = (recipe.get(name) for name in ("prepare", "train", "generate"))
    if not (
        isinstance(prepare_options, PrepareOptions)
        and isinstance(train_options, TrainOptions)
        and isinstance(generate_options, GenerateOptions)
    ):
        raise ValueError(f"{options.recipe}: must have the sections prepare, train and generate")
    loops = Path(generate_options.output_dir)
    root = loops.parent
    untrained = root / "untrained"
    untrained_paths = {"model": str(untrained / "model"), "output_dir": str(untrained / "loops")}
    shipped = root / "shipped"
    with connected(dashboard=True):
        generate(GenerateOptions(model=SHIPPED_MODEL, output_dir=str(shipped), count=SHIPPED_LOOPS))
        say(f"\nloops of the shipped model: {shipped / 'audio'}\n")
        prepare(prepare_options)
        train(train_options)
        generate(generate_options)
        _save_untrained(train_options, untrained / "model")
        generate(generate_options.model_copy(update=untrained_paths))
    report = root / "report.html"
    figures = write_report(
        report,
        dataset_dir=prepare_options.output_dir,
        input_dir=prepare_options.input_dir,
        run_dir=Path(train_options.output_dir),
        loops_dir=loops,
        untrained_dir=untrained / "loops",
    )
    audio = loops / "audio"
    say(f"\naudio:  {audio}\nreport: {report}\n")
    say(f"page:   python jobs/serve.py --model demo={generate_options.model}, then open http://127.0.0.1:8000/\n")
    return {
        "verb": "demo",
        "report": str(report),
        "audio": str(audio),
        "seconds": round(time.monotonic() - start, 1),
        **figures,
    }


def _save_untrained(options: TrainOptions, folder: Path) -> None:
    """Save the network as it is before the first training step."""
    dataset = MelDataset(options.dataset_name)
    torch.manual_seed(options.seed)
    unet = build_network(options.network_preset(), dataset.mel)
    record = ModelRecord(recipe=options.recipe(), data_digest=dataset.digest, metrics={"steps": 0})
    save_model(folder, unet, options.objective().scheduler(options.scheduler), dataset.mel, record)
