"""Fréchet distances after a fixed training time: the tiny recipe, without folding, and the original's training.

    python -m tests.benchmarks.learning [--seconds 300] [--seed 0]

All contenders have the same data, time and cores, and networks of the same size. An untrained network is measured too.
The original's way uses the defaults of its trainer: epsilon prediction over linear betas, learning rate 1e-4 after 500
steps of warm-up, batches of 16. Distances are measured from audio to audio by `logmel-stats` on 128 loops per
contender. The results include the distance between real tracks and other real tracks.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.recipe import UNFOLDED, job, prepare, train

COUNT = 128
STEPS = (50, 10, 4)

WAYS: dict[str, Sequence[object]] = {
    "untrained": [],
    "the tiny recipe": [],
    "without folding": UNFOLDED,
    "without folding, uniform timesteps": [*UNFOLDED, "--timestep_sampling", "uniform"],
    "the tiny recipe as a flow": ["--prediction_type", "flow"],
    "the original's way": [
        "--preset",
        "tiny",
        "--prediction_type",
        "epsilon",
        "--learning_rate",
        "1e-4",
        "--lr_warmup_steps",
        "500",
        "--train_batch_size",
        "16",
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    given = parser.parse_args()
    distances: dict[tuple[str, int], float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        dataset = Path(scratch) / "dataset"
        prepare(dataset)
        for way in given.ways:
            folder = Path(scratch) / way.replace(" ", "-").replace("'", "")
            length = ["--max_train_steps", 0] if way == "untrained" else []
            trained = train(dataset, folder / "train", given.seconds, given.seed, *length, *WAYS[way])
            print(
                f"{way}: {trained['steps']:.0f} steps, {trained['samples']:.0f} samples, {trained['seconds']:.0f} s",
                flush=True,
            )
            for steps in STEPS[:1] if way == "untrained" else STEPS:
                loops = folder / f"loops-{steps}"
                scheduler = "flow_euler" if "flow" in WAYS[way] else "unipc" if way == "the tiny recipe" else "ddim"
                job(
                    "generate",
                    "--model",
                    folder / "train/model",
                    "--output_dir",
                    loops,
                    "--count",
                    COUNT,
                    "--steps",
                    steps,
                    "--scheduler",
                    scheduler,
                )
                seen = job("evaluate", "--reference", dataset, "--candidate", loops)
                distances[way, steps] = seen["frechet"]
                print(f"  {steps} steps: {json.dumps(seen)}", flush=True)
    columns = " | ".join(f"Fréchet distance at {steps} steps" for steps in STEPS)
    print(f"| way | {columns} |\n{'|---' * (1 + len(STEPS))}|")
    for way in given.ways:
        values = " | ".join(f"{distances.get((way, steps), float('nan')):.4f}" for steps in STEPS)
        print(f"| {way} | {values} |")
    ours = [way for way in given.ways if way.startswith("the tiny")]
    for way in ours:
        for other in (name for name in given.ways if name not in ours):
            print(f"{way}, 50 steps: {distances[other, 50] / distances[way, 50]:.1f} times below {other} at 50 steps")
            print(f"{way}, 10 steps: {distances[other, 50] / distances[way, 10]:.1f} times below {other} at 50 steps")


if __name__ == "__main__":
    main()
