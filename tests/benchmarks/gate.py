"""Levels, seams and distances of the shipped loops, by which the thresholds of the quality gate are chosen.

    python -m tests.benchmarks.gate

Slices have the length of a mel image and a peak of -1 dBFS, as generated loops have. Distances are those of
`logmel-stats`. Near slices start a tenth of a slice apart, so that they share 90 % of their audio.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from audiodiff_core.audio import Samples, decode_audio
from audiodiff_core.evaluation.copies import nearest_other_distances
from audiodiff_core.evaluation.features import Features, logmel_stats
from audiodiff_core.loops import clipped_share, level_db, seam_score
from audiodiff_core.loops.key import measure_key
from audiodiff_core.mel import Mel, MelConfig
from audiodiff_core.pipeline.loop import normalize
from audiodiff_platform.generate.decisions import Candidate, Decisions
from audiodiff_platform.generate.gate_options import GateOptions

LOOPS = Path(__file__).parents[1] / "data" / "loops"
RATE = 22_050
CONFIGS = (MelConfig(x_res=64, y_res=64, hop_length=1_024), MelConfig(x_res=256, y_res=256, hop_length=512))
CANDIDATES = (10_000, 20_000)


def slices(audio: Samples, size: int, step: int) -> Iterator[Samples]:
    """Yield the slices of audio that are not silent."""
    for first in range(0, len(audio) - size + 1, step):
        if np.abs(part := audio[first : first + size]).max() > 1e-3:
            yield normalize(part)


def of_slices(loops: dict[str, Samples], config: MelConfig) -> str:
    """Return the row of the table for the slices of one mel configuration."""
    mel, size = Mel(config), config.slice_size

    def features(parts: list[Samples]) -> Features:
        return logmel_stats(mel.images(np.stack(parts))[0])

    parts = [(name, part) for name, audio in loops.items() for part in slices(audio, size, size // 2)]
    levels = [level_db(part) for _, part in parts]
    seams = [seam_score(part, RATE) for _, part in parts]
    tracks = np.unique([name for name, _ in parts], return_inverse=True)[1]
    between = nearest_other_distances(features([part for _, part in parts]), tracks)
    near = [
        np.linalg.norm(np.diff(features(close), axis=0), axis=1)
        for audio in loops.values()
        if len(close := list(slices(audio, size, size // 10))) > 1
    ]
    return (
        f"| {config.x_res}x{config.y_res} | {len(parts)} | {min(levels):.1f} to {max(levels):.1f} | "
        f"{np.median(seams):.1f} | {np.median(np.concatenate(near)):.3f} | {np.quantile(between, 0.01):.2f} | "
        f"{between.min():.2f} |"
    )


def duplicates_s(count: int) -> float:
    """Return the seconds that the decisions about duplicates among `count` random candidates take."""
    vectors = np.random.default_rng(0).standard_normal((count, 48))
    decisions = Decisions(GateOptions(reject=("duplicate",)), None)
    began = time.process_time()
    decisions.add(Candidate(str(number), None, vector, 0.0) for number, vector in enumerate(vectors))
    return time.process_time() - began


def main() -> None:
    loops = {file.stem: decode_audio(file, RATE) for file in sorted(LOOPS.glob("*.flac"))}
    print("| slices | number | level, dB | seam, median | near slices, median distance | other track, 1 % | nearest |")
    print("|---|---|---|---|---|---|---|")
    for config in CONFIGS:
        print(of_slices(loops, config), flush=True)
    seams = sorted(seam_score(audio, RATE) for audio in loops.values())
    shares = [clipped_share(audio) for audio in loops.values()]
    print(f"whole loops: seam {seams[0]:.2f} to {seams[-2]:.2f}, the highest {seams[-1]:.0f}")
    print(f"whole loops: share of samples at full scale at most {max(shares):.4f}")
    began, seconds = time.process_time(), sum(len(audio) for audio in loops.values()) / RATE
    keys = {name: measure_key(audio, RATE).name for name, audio in loops.items()}
    print(f"key: {1_000 * (time.process_time() - began) / seconds:.1f} ms per second of audio; {keys}")
    for count in CANDIDATES:
        print(f"duplicates among {count:,} candidates: {duplicates_s(count):.1f} s of processor time")


if __name__ == "__main__":
    main()
