"""The evaluate job, which computes distances of generated audio from real audio.

1. Each side of the comparison is divided into portions (`sides.py`).
2. Workers cut audio into slices by one mel configuration, and compute features of the slices (`worker.py`). Some
   reference images are also converted to audio by the vocoder and analyzed again, to measure the distance that the
   vocoder alone causes.
3. The driver adds the result of each portion to the statistics and the sample of its side.
4. The driver computes the figures, with confidence intervals, from the statistics and samples
   (`audiodiff_core.evaluation`).
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np

from audiodiff_core.checkpoint import load_model, record_metrics
from audiodiff_core.evaluation import MAX_SAMPLE_ITEMS, MIN_ITEMS, Gathered, closest, compare
from audiodiff_core.evaluation.embedders import load_embedder
from audiodiff_core.evaluation.features import EMBEDDER, check_bands
from audiodiff_core.evaluation.frechet import FeatureStatistics, frechet_distance
from audiodiff_core.evaluation.kernel import kernel_distance
from audiodiff_core.files.builtin import is_builtin
from audiodiff_platform.audio_files import shortened
from audiodiff_platform.cluster import encoder_source, public_encoder, require_shared, usable_encoder, usable_path
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.evaluate.options import CANDIDATE, HELD_OUT, REFERENCE, REPORT, EvaluateOptions
from audiodiff_platform.evaluate.portions import Portion, Portions, digest
from audiodiff_platform.evaluate.result import Result
from audiodiff_platform.evaluate.sides import PORTION_S, Side, common_mel, open_sides
from audiodiff_platform.evaluate.worker import EvaluateWorker, Method, portion_result, slice_counts
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.lease import owned
from audiodiff_platform.work.engine import ShardWork, engine
from audiodiff_platform.work.plan import ShardSize
from audiodiff_platform.work.sharded_job import FixedPlan, ShardedJob

WORK, PORTIONS = "_evaluate", "portions.json"
CLOSEST_PAIRS = 10


def evaluate(options: EvaluateOptions) -> dict[str, Any]:
    """Compare the candidate with the reference.

    Args:
        options: Options of the job.

    Returns:
        The figures by name, and the embedder, digests and counts of skipped files.

    Raises:
        ValueError: An option is invalid, or a side holds no usable slices.
        JobError: A worker failed.
    """
    began = time.monotonic()
    names = [name for name in (REFERENCE, CANDIDATE, HELD_OUT, "model", "output_dir") if getattr(options, name)]
    paths = {name: usable_path(name, getattr(options, name)) for name in names}
    if options.embedder != EMBEDDER:
        paths["embedder"] = usable_encoder(options.embedder)
    options = options.model_copy(update=paths)
    model = load_model(options.model) if options.model else None
    if model is not None and model.record is None:
        raise ValueError(f"model {options.model}: has no record to write figures into: convert it first")
    sides = open_sides(options)
    mel = common_mel(options, sides, model.mel if model else None)
    if options.embedder == EMBEDDER:
        check_bands(mel.y_res)
    embedder = load_embedder(options.embedder, mel.sample_rate)
    for name, side in sides.items():
        if embedder.needs_audio and side.mel is not None:
            uri = getattr(options, name) or options.reference
            raise ValueError(
                f"{name} {uri}: a mel dataset holds no audio, which the embedder {options.embedder} needs: "
                "name the audio that the dataset was prepared from"
            )
    with owned(Folder(options.output_dir), options.take_over) if options.output_dir else nullcontext():
        portions, first = list[Portion](), dict[str, int]()
        for name, side in sides.items():
            first[name] = len(portions)
            portions += side.portions
        method = Method(options.embedder, embedder.digest, mel, MAX_SAMPLE_ITEMS)
        _embed(
            options, portions, method, lambda shard, result: sides[result.side].add(shard - first[result.side], result)
        )
        gathered = {
            name: side.gathered(name, getattr(options, name) or options.reference) for name, side in sides.items()
        }
        figures = _figures(sides, gathered)
        skipped = {name: shortened(side.skipped) for name, side in sides.items() if side.skipped}
        digests = {"embedder_digest": embedder.digest, "mel_digest": mel.digest}
        summary = {"verb": "evaluate", "embedder": options.embedder, **digests, "skipped": skipped, **figures}
        say(_distances(figures))
        _warn(figures)
        if options.output_dir:
            pairs: list[dict[str, Any]] = [
                {"candidate": candidate, "reference": reference, "distance": distance}
                for candidate, reference, distance in closest(
                    gathered[REFERENCE].sample, gathered[CANDIDATE].sample, CLOSEST_PAIRS
                )
            ]
            compared: dict[str, Any] = {
                "reference": options.reference,
                "candidate": options.candidate,
                "held_out": options.held_out,
                "mel": mel.model_dump(),
            }
            Folder(options.output_dir).write_json(REPORT, {**summary, **compared, "closest": pairs})
            Folder(options.output_dir).remove(WORK)
    if options.model and is_builtin(options.model):
        say(f"model {options.model} belongs to the installation: the figures are not written to its record")
    elif options.model:
        record_metrics(
            options.model, {f"{public_encoder(options.embedder)} {name}": value for name, value in figures.items()}
        )
    return {**summary, "seconds": round(time.monotonic() - began, 1)}


def _require_shared(options: EvaluateOptions) -> None:
    if options.embedder != EMBEDDER:
        require_shared("embedder", encoder_source(options.embedder), "config.json")
    for name in (REFERENCE, CANDIDATE, HELD_OUT):
        if uri := getattr(options, name):
            require_shared(name, uri, commits.SUCCESS if Folder(uri).exists(commits.SUCCESS) else "")


def _embed(
    options: EvaluateOptions, portions: list[Portion], method: Method, on_result: Callable[[int, Result], None]
) -> None:
    """Embed all portions, and call `on_result` with the number and the result of each portion.

    If `output_dir` is set, this folder keeps the results until the report is written. A rerun of an interrupted job
    then continues from the finished portions.
    """
    inputs = {
        "portions": digest(portions),
        "embedder_digest": method.embedder_digest,
        "mel": method.mel.model_dump(),
        "sampled_at_most": method.sample_size,
    }
    uri = f"{options.output_dir}/{WORK}/{commits.settings_digest(inputs)}" if options.output_dir else None

    def work() -> ShardWork:
        arguments = (Portions(portions), uri, method)
        return ShardWork("audiodiff evaluate", EvaluateWorker, arguments, uri, dict if uri is None else slice_counts)

    if uri is None:
        with engine(len(portions), options.num_workers, options.device) as running:
            _require_shared(options)
            for done, record in enumerate(running.run(work(), range(len(portions))), start=1):
                on_result(record["shard"], portion_result(None, record))
                say(f"{done:,} of {len(portions):,} portions embedded")
        return
    plan = FixedPlan({shard: ShardSize(sources=1, seconds=PORTION_S) for shard in range(len(portions))})
    with owned(Folder(uri), take_over=True) as lease:  # the owner of output_dir owns its subfolders
        job = ShardedJob(work(), lease, (PORTIONS, {"digest_of": "portions"}), plan, ("portions",), "portions")
        if job.pending:
            with engine(len(job.pending), options.num_workers, options.device, isolated=job.needs_isolation) as running:
                _require_shared(options)
                job.work = work()  # now that Ray is connected
                job.run(running)
        for shard, record in job.records().items():
            on_result(shard, portion_result(job.output, record))


def _figures(sides: dict[str, Side], gathered: dict[str, Gathered]) -> dict[str, float]:
    figures = compare(gathered[REFERENCE], gathered[CANDIDATE], gathered.get(HELD_OUT))
    figures |= {"n_candidate_unusable": sides[CANDIDATE].unusable, "n_candidate_silent": sides[CANDIDATE].silent}
    if trips := [trips for _, trips in sorted(sides[REFERENCE].round_trips.items())]:
        before, after = (np.concatenate(features) for features in zip(*trips, strict=True))
        figures["n_round_trip"] = len(after)
        if len(after) > 1:
            figures["frechet_round_trip"] = frechet_distance(FeatureStatistics.of(after), FeatureStatistics.of(before))
            figures["kernel_round_trip"] = kernel_distance(after, before)
    return figures


def _distances(figures: dict[str, float]) -> str:
    """Return a line with both distances, their intervals and the numbers of slices."""
    distances = []
    for name, title, paired in (("frechet", "Fréchet", ""), ("kernel", "kernel", "paired_")):
        interval = f"{figures[f'{name}_low']:.4g} to {figures[f'{name}_high']:.4g}" if f"{name}_low" in figures else "?"
        sizes = (f"{figures[f'n_{paired}{side}']:,.0f} {side}" for side in (CANDIDATE, REFERENCE))
        distances.append(f"{title} distance {figures[name]:.4g} (95 %: {interval}) of {' and '.join(sizes)} slices")
    return "; ".join(distances)


def _warn(figures: dict[str, float]) -> None:
    """Print a warning for each property of the sides that makes a figure unreliable."""
    fewest = min(figures["n_candidate"], figures["n_reference"])
    if fewest < MIN_ITEMS:
        say(f"warning: a side has only {fewest:,.0f} items: distances of fewer than {MIN_ITEMS} are unreliable")
    if fewest <= figures["n_features"]:
        say(
            f"warning: a side has {fewest:,.0f} items of {figures['n_features']:.0f} features: Fréchet distances of so "
            "few items are far too large: use the kernel distances"
        )
    if figures["n_candidate_silent"]:
        say(f"warning: {figures['n_candidate_silent']:,.0f} candidate files are silent and are not compared")
    if "nearer_share" not in figures:
        source = "sample" if figures["n_reference_tracks"] > 1 else "reference"
        say(
            f"warning: the {source} is a single track and there is no held-out audio, so copies of training audio "
            "cannot be detected: set held_out"
        )
