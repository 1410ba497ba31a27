"""How close generated audio is to real audio: figures with intervals and sample sizes, and what real audio itself scores.

1. Each side is a folder of audio, what generate wrote, or a mel dataset; it becomes portions of work (`evaluate_worker.py`).
2. Workers cut audio into slices of one mel configuration and embed them; some of the reference's images also go through the vocoder and back.
3. Statistics of all features and the features of a sample come together here (`gathering.py`), one portion at a time.
4. `comparison.py` says what they show.
"""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from audiodiff_core.checkpoint import load_model, record_metrics
from audiodiff_core.evaluation import MAX_SAMPLE_ITEMS, MIN_ITEMS, Gathered, Gathering, closest, compare
from audiodiff_core.evaluation.embedders import load_embedder
from audiodiff_core.evaluation.features import EMBEDDER, Features
from audiodiff_core.evaluation.frechet import FeatureStatistics, frechet_distance
from audiodiff_core.evaluation.kernel import kernel_distance
from audiodiff_core.mel import MelConfig
from audiodiff_platform.audio_files import Inputs, Source, described, in_parts, shortened
from audiodiff_platform.cluster import encoder_source, require_shared, usable_encoder, usable_path
from audiodiff_platform.cluster.capacity import Device
from audiodiff_platform.entry.options import OutputOptions
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.evaluate.result import Result
from audiodiff_platform.evaluate.worker import EvaluateWorker, Method, Portion, embedded_slices, result_of
from audiodiff_platform.mel_data import loops_folder
from audiodiff_platform.mel_data.mel_dataset import (
    DATASET_SETTINGS,
    TRAIN_SPLIT,
    VALIDATION_SPLIT,
    MelDataset,
    data_file,
)
from audiodiff_platform.mel_data.original_datasets import given_mel
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.lease import owned
from audiodiff_platform.work.engine import ShardWork, engine
from audiodiff_platform.work.plan import ShardSize, assign_shards
from audiodiff_platform.work.sharded_job import FixedPlan, ShardedJob

REPORT = "report.json"
WORK, PORTIONS = "_evaluate", "portions.json"
PORTION_SECONDS = 300  # of audio
CLOSEST_PAIRS = 10
REFERENCE, CANDIDATE, HELD_OUT = "reference", "candidate", "held_out"


class EvaluateOptions(OutputOptions):
    """What to compare with what."""

    reference: str = pydantic.Field(
        description="real audio, best what the model was trained on: a mel dataset, or audio as prepare takes it (path, s3://, gs://)"
    )
    candidate: str = pydantic.Field(
        description="generated audio: what generate wrote, a folder of audio, or a mel dataset"
    )
    held_out: str | None = pydantic.Field(
        None,
        description="real audio that was not trained on, as measure of how near new audio comes to the reference; of a mel dataset, its validation split "
        "where it has one; none: the reference's validation split",
    )
    embedder: str = pydantic.Field(
        EMBEDDER, description=f"what stands for a slice: {EMBEDDER}, or an encoder as for encode"
    )
    mel_config: str | None = pydantic.Field(
        None,
        description="mel_config.json by which audio is cut and analysed; none: that of a mel dataset compared, or of the model",
    )
    model: str | None = pydantic.Field(
        None,
        description="model folder (path, s3://, gs://) that made the candidate: its record and card are given the figures",
    )
    output_dir: str | None = pydantic.Field(
        None, description=f"folder for {REPORT}, which also names the closest pairs of the samples; none: not written"
    )
    round_trips: int = pydantic.Field(
        128,
        ge=0,
        le=10_000,
        description="reference slices that go through the vocoder and back, as the floor that it sets",
    )
    num_workers: int | None = pydantic.Field(
        None, ge=1, description="parallel workers, a CPU or GPU each; none: all that nothing else has reserved"
    )
    device: Device = pydantic.Field(
        "auto", description="what workers run on: cpu, gpu, or auto for GPUs if the cluster has any now"
    )


@dataclass
class Side:
    """One side of the comparison, as it is found and as its portions are embedded."""

    portions: list[Portion]
    mel: MelConfig | None = None
    gathering: Gathering = field(default_factory=lambda: Gathering(MAX_SAMPLE_ITEMS))
    round_trips: dict[int, tuple[Features, Features]] = field(default_factory=dict)
    """Features of items, and of the same after their round trips, by portion."""
    unusable: int = 0
    silent: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def add(self, number: int, result: Result) -> None:
        """Add the result of a portion of this side."""
        self.gathering.add(number, result.part)
        self.unusable += len(result.unusable)
        self.silent += result.silent
        self.skipped += result.skipped
        for reason in result.unusable:
            say(f"left out: {reason}")
        if len(result.after):
            self.round_trips[number] = result.before, result.after

    def gathered(self, option: str, uri: str) -> Gathered:
        """Return the statistics and the sample; raises ValueError if there are none."""
        if (gathered := self.gathering.gathered()) is None:
            raise ValueError(
                f"{option} {uri}: holds no slice that could be used ({self.unusable} unusable files, {self.silent} silent ones)"
            )
        return gathered


def evaluate(options: EvaluateOptions) -> dict[str, Any]:
    """Runs the job; gives all figures."""
    began = time.monotonic()
    names = [name for name in (REFERENCE, CANDIDATE, HELD_OUT, "model", "output_dir") if getattr(options, name)]
    places = {name: usable_path(name, getattr(options, name)) for name in names}
    if options.embedder != EMBEDDER:
        places["embedder"] = usable_encoder(options.embedder)
    options = options.model_copy(update=places)
    model = load_model(options.model) if options.model else None
    if model is not None and model.record is None:
        raise ValueError(f"model {options.model}: has no record to write figures into: convert it first")
    sides = _sides(options)
    mel = _agreed_mel(options, sides, model.mel if model else None)
    embedder = load_embedder(options.embedder, mel.sample_rate)
    for name, side in sides.items():
        if embedder.needs_audio and side.mel is not None:
            uri = getattr(options, name) or options.reference
            raise ValueError(
                f"{name} {uri}: a mel dataset holds no audio, which {options.embedder} listens to: name what it was prepared from"
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
        _warn(figures)
        if options.output_dir:
            pairs = closest(gathered[REFERENCE].sample, gathered[CANDIDATE].sample, CLOSEST_PAIRS)
            named: list[dict[str, Any]] = [
                {"candidate": candidate, "reference": reference, "distance": distance}
                for candidate, reference, distance in pairs
            ]
            compared: dict[str, Any] = {
                "reference": options.reference,
                "candidate": options.candidate,
                "held_out": options.held_out,
                "mel": mel.model_dump(),
            }
            Folder(options.output_dir).write_json(REPORT, {**summary, **compared, "closest": named})
            Folder(options.output_dir).remove(WORK)
    if options.model:
        record_metrics(
            options.model, {f"{_public_name(options.embedder)} {name}": value for name, value in figures.items()}
        )
    return {**summary, "seconds": round(time.monotonic() - began, 1)}


def _public_name(embedder: str) -> str:
    """An embedder's name as a model's record and card have it, which may be published: of a local folder not the path to it."""
    source = encoder_source(embedder)
    return embedder.removesuffix(source) + Path(source).name if Path(source).is_absolute() else embedder


def _sides(options: EvaluateOptions) -> dict[str, Side]:
    sides = {name: _side(name, uri) for name in (REFERENCE, CANDIDATE) if (uri := getattr(options, name))}
    if options.held_out:
        sides[HELD_OUT] = _held_out(options.held_out, options.reference)
    elif (
        sides[REFERENCE].mel is not None
        and (held_out := _side(REFERENCE, options.reference, VALIDATION_SPLIT)).portions
    ):
        sides[HELD_OUT] = replace(held_out, portions=[replace(portion, side=HELD_OUT) for portion in held_out.portions])
    portions = sides[REFERENCE].portions
    each, more = divmod(options.round_trips, len(portions))
    sides[REFERENCE].portions = [
        replace(portion, round_trips=each + (place < more)) for place, portion in enumerate(portions)
    ]
    return sides


def _held_out(uri: str, reference: str) -> Side:
    """The held-out tracks of a mel dataset that has such, or all that lies at a URI; raises ValueError where that is the reference."""
    side = _side(HELD_OUT, uri, VALIDATION_SPLIT)
    if side.portions:
        return side
    if Folder(uri).root == Folder(reference).root:
        raise ValueError(
            f"held_out {uri}: is the reference, and has no held-out tracks: name audio that was not trained on, or leave held_out out"
        )
    return _side(HELD_OUT, uri)


def _side(name: str, uri: str, split: str = TRAIN_SPLIT) -> Side:
    """What lies at a URI; raises ValueError where it is nothing that can be compared."""
    folder = Folder(uri)
    if folder.exists(DATASET_SETTINGS):
        dataset = _dataset(name, uri, split)
        return Side([Portion(name, uri, part=data_file(shard, split)) for shard in dataset.shards], dataset.mel)
    if folder.exists(loops_folder.LOOPS_SETTINGS):
        if not folder.exists(commits.SUCCESS):
            raise ValueError(
                f"{name} {uri}: generation is not finished (no {commits.SUCCESS}): run jobs/generate.py to its end"
            )
        uri = f"{folder.uri}/audio"
    inputs = Inputs(uri)
    try:
        sources = in_parts(list(inputs.sources()), inputs)
    except ValueError as error:
        raise ValueError(str(error).replace("input_dir", name, 1)) from error
    if not sources:
        raise ValueError(f"{name} {uri}: holds no audio files ({described(inputs.skipped)})")
    for line in inputs.describe():
        say(f"{name}: {line}")
    by_shard: dict[int, list[Source]] = {}
    for shard, source in assign_shards(sources, PORTION_SECONDS, first=0):
        by_shard.setdefault(shard, []).append(source)
    portions = [Portion(name, uri, tuple(shard_sources)) for shard_sources in by_shard.values()]
    return Side(portions, skipped=inputs.skipped)


def _dataset(name: str, uri: str, split: str) -> MelDataset:
    try:
        dataset = MelDataset(uri, split)
    except ValueError as error:
        raise ValueError(str(error).replace("dataset_name", name, 1)) from error
    if dataset.folder.read_json(DATASET_SETTINGS).get("reference") == "track":
        say(
            f"warning: {name} {uri} has images relative to their tracks' maxima; audio is analysed here relative to each slice's own, which is another thing"
        )
    return dataset


def _agreed_mel(options: EvaluateOptions, sides: dict[str, Side], of_model: MelConfig | None) -> MelConfig:
    """The one mel configuration that is stated, by whichever means; raises ValueError where there is none, or where two differ."""
    stated = {
        f"{name} {getattr(options, name) or options.reference}": side.mel for name, side in sides.items() if side.mel
    }
    if options.mel_config:
        stated[f"mel_config {options.mel_config}"] = given_mel(options.mel_config)
    if of_model:
        stated[f"model {options.model}"] = of_model
    if not stated:
        raise ValueError(
            "neither side is a mel dataset: name the mel_config.json by which audio is cut and analysed, as mel_config, or the model"
        )
    (first, mel), *others = stated.items()
    for other, its_mel in others:
        if its_mel != mel:
            raise ValueError(f"{first} and {other} have different mel configurations: {mel.difference(its_mel)}")
    return mel


def _require_shared(options: EvaluateOptions) -> None:
    if options.embedder != EMBEDDER:
        require_shared("embedder", encoder_source(options.embedder), "config.json")
    for name in (REFERENCE, CANDIDATE, HELD_OUT):
        if uri := getattr(options, name):
            require_shared(name, uri, commits.SUCCESS if Folder(uri).exists(commits.SUCCESS) else "")


def _embed(
    options: EvaluateOptions, portions: list[Portion], method: Method, on_result: Callable[[int, Result], None]
) -> None:
    """Embed all portions, and call `on_result` with the number and the result of each.

    With `output_dir`, finished portions are kept there until the report is written, so that an interrupted job continues.
    """
    inputs = {
        "portions": [asdict(portion) for portion in portions],
        "embedder_digest": method.embedder_digest,
        "mel": method.mel.model_dump(),
        "sampled_at_most": method.sampled_at_most,
    }
    uri = f"{options.output_dir}/{WORK}/{commits.settings_digest(inputs)}" if options.output_dir else None
    work = ShardWork(
        "audiodiff evaluate", EvaluateWorker, (portions, uri, method), uri, dict if uri is None else embedded_slices
    )
    if uri is None:
        with engine(len(portions), options.num_workers, options.device) as running:
            _require_shared(options)
            for done, record in enumerate(running.run(work, range(len(portions))), start=1):
                on_result(record["shard"], result_of(None, record))
                say(f"{done:,} of {len(portions):,} portions embedded")
        return
    plan = FixedPlan({shard: ShardSize(sources=1, seconds=PORTION_SECONDS) for shard in range(len(portions))})
    with owned(Folder(uri), take_over=True) as lease:  # the owner of output_dir owns its subfolders
        job = ShardedJob(work, lease, (PORTIONS, {"digest_of": "portions"}), plan, ("portions",), "portions")
        if job.pending:
            with engine(len(job.pending), options.num_workers, options.device, isolated=job.needs_isolation) as running:
                _require_shared(options)
                job.run(running)
        for shard, record in job.records().items():
            on_result(shard, result_of(job.output, record))


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


def _warn(figures: dict[str, float]) -> None:
    fewest = min(figures["n_candidate"], figures["n_reference"])
    if fewest < MIN_ITEMS:
        say(f"warning: {fewest:,.0f} items on a side: distances of fewer than {MIN_ITEMS} say little")
    if fewest <= figures["n_features"]:
        say(
            f"warning: {fewest:,.0f} items of {figures['n_features']:.0f} features: Fréchet distances of so few are far too large, go by kernel distances"
        )
    if figures["n_candidate_silent"]:
        say(f"warning: {figures['n_candidate_silent']:,.0f} candidate files are silent, and count as nothing")
    if "nearer_share" not in figures:
        of = "sample" if figures["n_reference_tracks"] > 1 else "reference"
        say(
            f"warning: the {of} is one track and there is nothing held out: whether the candidate copies it cannot be told"
        )
