"""A self-contained HTML report of a run: training loss, distances, and real and generated loops.

All images and audio are embedded in the page, so that the page needs no other files.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from audiodiff_core.audio import decode_audio, encode_audio
from audiodiff_core.evaluation.features import EMBEDDER, logmel_stats, spread
from audiodiff_core.evaluation.frechet import FeatureStatistics, frechet_distance
from audiodiff_core.mel import Images, Mel
from audiodiff_core.mel.picture import mel_picture
from audiodiff_platform.mel_data.mel_dataset import MelDataset
from audiodiff_platform.mel_data.run_folder import METRICS
from audiodiff_platform.report.card import card
from audiodiff_platform.report.document import data_uri, document, table
from audiodiff_platform.report.tools import gapless_switch

MAX_GENERATED_CLIPS = 16
MAX_REAL_CLIPS = 8
MAX_UNTRAINED_CLIPS = 2


@dataclass(frozen=True)
class Clip:
    """A loop on the page.

    Args:
        name: Caption of the loop.
        image: Mel image (y_res, x_res).
        wav: Content of a WAV file.
    """

    name: str
    image: Images
    wav: bytes


@dataclass(frozen=True)
class Clips:
    """The loops on the page."""

    generated: Sequence[Clip]
    real: Sequence[Clip]
    untrained: Sequence[Clip]


def write_report(
    page: Path, *, dataset_dir: str, input_dir: str, run_dir: Path, loops_dir: Path, untrained_dir: Path
) -> dict[str, float]:
    """Write the page, and return the numbers on it.

    The mel images of generated loops are computed from their audio, with the mel configuration of the dataset. The
    distances therefore compare audio with audio.

    Args:
        page: HTML file to write.
        dataset_dir: Mel dataset of the real audio.
        input_dir: Audio that the dataset was prepared from.
        run_dir: Folder of the training run.
        loops_dir: Loops of the trained model.
        untrained_dir: Loops of the untrained model.

    Returns:
        Distances, spreads and sample sizes by name.
    """
    dataset = MelDataset(dataset_dir)
    mel = Mel(dataset.mel)
    real = dataset.all_images()
    tracks = np.unique(dataset.column("audio_file"), return_inverse=True)[1]
    generated_clips, untrained_clips = list(_clips(loops_dir, mel)), list(_clips(untrained_dir, mel))
    generated, untrained = (np.stack([clip.image for clip in clips]) for clips in (generated_clips, untrained_clips))
    figures = {
        "frechet_trained": _distance(generated, real),
        "frechet_untrained": _distance(untrained, real),
        "frechet_real_to_real": _distance(real[tracks % 2 == 0], real[tracks % 2 == 1]),
        "spread_generated": spread(generated),
        "spread_real": spread(real),
        "n_generated": len(generated),
        "n_untrained": len(untrained),
        "n_real": len(real),
    }
    figures["untrained_over_trained"] = figures["frechet_untrained"] / figures["frechet_trained"]
    losses = [json.loads(line) for line in (run_dir / METRICS).read_text().splitlines()]
    clips = Clips(
        generated_clips[:MAX_GENERATED_CLIPS],
        list(_real_clips(input_dir, dataset, mel, real)),
        untrained_clips[:MAX_UNTRAINED_CLIPS],
    )
    page.write_text(_page(figures, losses, clips, len(set(tracks))))
    return {name: round(value, 4) for name, value in figures.items()}


def _distance(one: Images, other: Images) -> float:
    return frechet_distance(FeatureStatistics.of(logmel_stats(one)), FeatureStatistics.of(logmel_stats(other)))


def _clips(folder: Path, mel: Mel) -> Iterable[Clip]:
    """Yield the loops of a folder written by generate, in the order of their seeds."""
    for row in sorted(pq.read_table(folder / "manifest").to_pylist(), key=lambda row: int(row["seed"])):
        wav = (folder / row["path"]).read_bytes()
        yield Clip(f"seed {row['seed']}", mel.images(decode_audio(wav, mel.config.sample_rate)[np.newaxis])[0][0], wav)


def _real_clips(input_dir: str, dataset: MelDataset, mel: Mel, images: Images) -> Iterable[Clip]:
    """Yield one slice of each of the first files of the dataset, with its audio."""
    names, starts = dataset.column("audio_file"), dataset.column("start_s")
    first_rows = {name: row for row, name in reversed(list(enumerate(names)))}
    for name, row in sorted(first_rows.items())[:MAX_REAL_CLIPS]:
        file = f"{input_dir.rstrip('/')}/{name}"
        audio = decode_audio(file, mel.config.sample_rate, start_s=starts[row], duration_s=mel.config.slice_duration_s)
        yield Clip(name, images[row], encode_audio(audio, mel.config.sample_rate))


def _page(figures: dict[str, float], losses: Sequence[dict[str, Any]], clips: Clips, tracks: int) -> str:
    f = figures
    rows: list[tuple[object, ...]] = [
        (
            "trained model to real audio",
            f"{f['frechet_trained']:.3f}",
            f"{f['n_generated']:.0f} generated, {f['n_real']:.0f} real slices",
        ),
        (
            "untrained model to real audio",
            f"{f['frechet_untrained']:.3f}",
            f"{f['n_untrained']:.0f} generated, {f['n_real']:.0f} real slices",
        ),
        (
            "real to real, split by track",
            f"{f['frechet_real_to_real']:.3f}",
            f"{f['n_real']:.0f} slices of {tracks} tracks in two halves",
        ),
    ]
    last = losses[-1]
    finite = [line for line in losses if "loss" in line]
    body = f"""<header><h1>From audio to loops</h1>
<p>Trained for {last["step"]} steps on {last["samples"]:,} samples in {last["seconds"]:.0f} s. The trained model is
{f["untrained_over_trained"]:.1f} times closer to the real audio than the untrained model.</p></header>
{gapless_switch()}
<section><h2>Generated loops</h2>{_cards(clips.generated)}</section>
<section><h2>Real loops</h2>{_cards(clips.real)}</section>
<section><h2>Loops of the untrained network</h2>{_cards(clips.untrained)}</section>
<section><h2>Fréchet distance ({EMBEDDER}, smaller is closer)</h2>
{table(("from, to", "distance", "samples"), rows)}
<p>The real to real distance measures the variety of the collection. It is not a lower bound for the other distances,
because the two halves of a small collection can differ strongly.</p>
<p>Spread between loops (mean difference between pairs of images, in levels from 0 to 255): generated
{f["spread_generated"]:.1f}, real {f["spread_real"]:.1f}. A spread of 0 means that all images are identical.</p>
</section>
<section><h2>Training loss</h2>
{_curve([line["step"] for line in finite], [line["loss"] for line in finite])}
</section>"""
    return document("audiodiff: a run", body)


def _cards(clips: Sequence[Clip]) -> str:
    cards = "".join(card(clip.name, mel_picture(clip.image), data_uri("audio/wav", clip.wav)) for clip in clips)
    return f'<div class="loops">{cards}</div>'


def _curve(steps: Sequence[int], losses: Sequence[float]) -> str:
    """Plot losses on a logarithmic scale, as SVG."""
    width, height, margin = 900, 260, 40
    low, high = np.log10(min(losses)), np.log10(max(losses)) + 1e-9
    x = margin + (np.array(steps) - steps[0]) / max(1, steps[-1] - steps[0]) * (width - 2 * margin)
    y = height - margin - (np.log10(losses) - low) / (high - low) * (height - 2 * margin)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    labels = "".join(
        f'<text x="{a}" y="{b}" font-size="13">{text}</text>'
        for a, b, text in (
            (2, height - margin, f"{min(losses):.3f}"),
            (2, margin + 5, f"{max(losses):.3f}"),
            (margin, height - 12, f"step {steps[0]}"),
            (width - 2 * margin - 20, height - 12, f"step {steps[-1]}"),
        )
    )
    line = f'<polyline fill="none" stroke-width="2" points="{points}"/>'
    return (
        f'<svg class="curve" viewBox="0 0 {width} {height}" role="img" aria-label="training loss">{line}{labels}</svg>'
    )
