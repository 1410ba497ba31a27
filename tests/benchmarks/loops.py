"""Seams of loops: made in circular time, made in ordinary time, cut by `cut_loop`, cut by `loop_it`.

    python -m tests.benchmarks.loops [--count 32] [--training-steps 300]

A tiny network learns the corpus for a few minutes. The same seeds are then generated twice: as seamless requests
(network and phases in circular time) and as ordinary requests. The original's `loop_it` also loops the circular audio.
The seam at the wrap is printed relative to interior points: the score of the audio is divided by the median score of
the same audio rolled to other positions. A ratio of 1 means that the wrap is like any other point.
"""

import argparse
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audiodiff_core.audio import Samples, decode_audio
from audiodiff_core.checkpoint import Model
from audiodiff_core.loops import cut_loop, seam_score
from audiodiff_core.mel import Mel, MelConfig, to_model
from audiodiff_core.mel.slices import mel_slices
from audiodiff_core.models import PRESETS, build_network
from audiodiff_core.pipeline import LoopPipeline
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest

ROOT = Path(__file__).parents[2]
LOOPS = ROOT / "tests" / "data" / "loops"
ORIGINAL = ROOT / ".venv-original" / "bin" / "python"
MEL = MelConfig(x_res=64, y_res=64, n_fft=1_024, hop_length=512)
BATCH, STEPS, PLACES = 8, 50, 15


def trained(steps: int) -> tuple[Any, Any]:
    """Train the preset `tiny` for `steps` steps on the corpus; return the network and its scheduler."""
    torch.manual_seed(0)
    unet, scheduler = build_network("tiny", MEL), PRESETS["tiny"].objective.scheduler("ddim")
    mel = Mel(MEL)
    images = torch.from_numpy(
        to_model(np.stack([piece.image for file in sorted(LOOPS.glob("*.flac")) for piece in mel_slices(file, mel)]))
    )[:, None]
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    for step in range(steps):
        clean = images[torch.randint(len(images), (BATCH,))]
        noise, timesteps = torch.randn_like(clean), torch.randint(scheduler.config.num_train_timesteps, (BATCH,))
        prediction = unet(scheduler.add_noise(clean, noise, timesteps), timesteps, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(prediction, scheduler.get_velocity(clean, noise, timesteps))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    return unet.eval(), scheduler


def generated(pipeline: LoopPipeline, count: int, seamless: bool) -> list[Samples]:
    """Return the audio of the seeds 0 to `count` - 1."""
    requests = [GenerateRequest(seed=seed, steps=STEPS, seamless=seamless) for seed in range(count)]
    return [loop.audio for loop in sorted(pipeline.generate(requests), key=lambda loop: loop.request.seed)]


def wrap_beside_interior(loop: Samples) -> float:
    """Return the seam score of `loop` divided by the median score of evenly spaced interior points."""
    interior = [
        seam_score(np.roll(loop, -len(loop) * place // (PLACES + 1)), MEL.sample_rate) for place in range(1, PLACES + 1)
    ]
    return seam_score(loop, MEL.sample_rate) / float(np.median(interior))


def looped_by_the_original(audios: Sequence[Samples]) -> list[Samples]:
    """Return one period of each audio in which the original's `loop_it` finds a loop."""
    with tempfile.TemporaryDirectory() as folder:
        for index, audio in enumerate(audios):
            np.save(Path(folder) / f"{index:04d}.npy", audio)
        subprocess.run(
            [ORIGINAL, ROOT / "tests/benchmarks/original/loop_it.py", folder, str(MEL.sample_rate)],
            check=True,
            capture_output=True,
        )
        return [np.load(file) for file in sorted((Path(folder) / "looped").glob("*.npy"))]


def cut(audios: Sequence[Samples]) -> list[Samples]:
    loops = []
    for audio in audios:
        try:
            loops.append(cut_loop(audio, MEL.sample_rate)[0])
        except ValueError:  # the audio holds no whole bar
            continue
    return loops


def report(name: str, loops: Sequence[Samples], among: int) -> None:
    long_enough = [loop for loop in loops if len(loop) >= 0.2 * MEL.sample_rate and loop.any()]
    if not long_enough:
        print(f"{name:44}   0 of {among:3}", flush=True)
        return
    ratios = [wrap_beside_interior(loop) for loop in long_enough]
    scores = [seam_score(loop, MEL.sample_rate) for loop in long_enough]
    quarters = ", ".join(f"{value:.2f}" for value in np.percentile(ratios, [25, 50, 75]))
    print(
        f"{name:44} {len(long_enough):3} of {among:3}   wrap / interior (quartiles) {quarters}   "
        f"seam score (median) {np.median(scores):.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=32, help="loops to generate")
    parser.add_argument("--training-steps", type=int, default=300, help="of the tiny network; 0: random weights")
    given = parser.parse_args()
    torch.set_num_threads(1)
    unet, scheduler = trained(given.training_steps)
    pipeline = LoopPipeline.of(Model(unet, scheduler, MEL, digest=""), ExecutionProfile(batch_size=BATCH))
    circular, ordinary = (generated(pipeline, given.count, seamless) for seamless in (True, False))
    corpus = [decode_audio(file, MEL.sample_rate) for file in sorted(LOOPS.glob("*.flac"))]
    print(
        f"torch {torch.__version__}; {STEPS} steps of DDIM, {MEL.x_res}x{MEL.y_res}, {MEL.slice_duration_s:.2f} s; "
        "loops found and among how many:"
    )
    report("generated in circular time", circular, given.count)
    report("the same, looped by the original", looped_by_the_original(circular), given.count)
    report("generated in the ordinary way", ordinary, given.count)
    report("corpus, as it is", corpus, len(corpus))
    report("corpus, cut by cut_loop", cut(corpus), len(corpus))
    report("corpus, looped by the original", looped_by_the_original(corpus), len(corpus))


if __name__ == "__main__":
    main()
