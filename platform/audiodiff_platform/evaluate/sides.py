"""The sides of a comparison: the reference, the candidate, and held-out real audio.

A side is a folder of audio, the output of generate, or a mel dataset. Each side is divided into portions, which are the
units of work.
"""

from collections import Counter
from dataclasses import dataclass, field, replace

from audiodiff_core.evaluation import MAX_SAMPLE_ITEMS, Gathered, Gathering
from audiodiff_core.evaluation.features import Features
from audiodiff_core.mel import MelConfig
from audiodiff_platform.audio_files import Inputs, Source, described, in_parts
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.evaluate.options import CANDIDATE, HELD_OUT, REFERENCE, EvaluateOptions
from audiodiff_platform.evaluate.portions import Portion
from audiodiff_platform.evaluate.result import Result
from audiodiff_platform.mel_data import loops_folder
from audiodiff_platform.mel_data.mel_configs import read_mel_config
from audiodiff_platform.mel_data.mel_dataset import (
    DATASET_SETTINGS,
    TRAIN_SPLIT,
    VALIDATION_SPLIT,
    MelDataset,
    data_file,
)
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.work.plan import assign_shards

PORTION_S = 300  # seconds of audio
MAX_LOOP_PORTIONS = 4_096  # for a folder of loops; a portion holds the loops of one or more shards


@dataclass
class Side:
    """One side of the comparison: its portions, and the sum of their results.

    Args:
        portions: The portions of the side.
        mel: Mel configuration of the dataset, or None for audio.
    """

    portions: list[Portion]
    mel: MelConfig | None = None
    gathering: Gathering = field(default_factory=lambda: Gathering(MAX_SAMPLE_ITEMS))
    round_trips: dict[int, tuple[Features, Features]] = field(default_factory=dict)
    """Features (n, d) of items before and after their round trips through the vocoder, by portion."""
    unusable: int = 0
    silent: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """Counts of files that are not audio, by kind."""

    def add(self, number: int, result: Result) -> None:
        """Add the result of a portion.

        Args:
            number: Index into `portions`.
            result: Result of the portion.
        """
        self.gathering.add(number, result.part)
        self.unusable += len(result.unusable)
        self.silent += result.silent
        self.skipped += result.skipped
        for reason in result.unusable:
            say(f"left out: {reason}")
        if len(result.after):
            self.round_trips[number] = result.before, result.after

    def gathered(self, option: str, uri: str) -> Gathered:
        """Return the statistics and the sample of the side.

        Args:
            option: Option that names the side, for the error message.
            uri: URI of the side, for the error message.

        Raises:
            ValueError: The side holds no usable slices.
        """
        if (gathered := self.gathering.gathered()) is None:
            raise ValueError(
                f"{option} {uri}: holds no usable slices ({self.unusable} unusable files, {self.silent} silent files)"
            )
        return gathered


def open_sides(options: EvaluateOptions) -> dict[str, Side]:
    """List the files of each side and divide them into portions.

    Raises:
        ValueError: A side is missing, empty or unfinished.
    """
    sides = {name: _open_side(name, getattr(options, name)) for name in (REFERENCE, CANDIDATE)}
    if options.held_out:
        sides[HELD_OUT] = _open_held_out(options.held_out, options.reference)
    elif sides[REFERENCE].mel is not None:
        validation = _open_side(REFERENCE, options.reference, VALIDATION_SPLIT)
        if validation.portions:
            portions = [replace(portion, side=HELD_OUT) for portion in validation.portions]
            sides[HELD_OUT] = replace(validation, portions=portions)
    portions = sides[REFERENCE].portions
    per_portion, remainder = divmod(options.round_trips, len(portions))
    sides[REFERENCE].portions = [
        replace(portion, round_trips=per_portion + (number < remainder)) for number, portion in enumerate(portions)
    ]
    return sides


def _open_held_out(uri: str, reference: str) -> Side:
    """Open the validation split of a mel dataset if the split exists, or else the complete input."""
    side = _open_side(HELD_OUT, uri, VALIDATION_SPLIT)
    if side.mel is not None and side.portions:
        return side
    if Folder(uri).root == Folder(reference).root:
        raise ValueError(
            f"held_out {uri}: is the reference, and has no held-out tracks: "
            "name audio that was not used for training, or omit held_out"
        )
    return side if side.mel is None else _open_side(HELD_OUT, uri)


def _open_side(name: str, uri: str, split: str = TRAIN_SPLIT) -> Side:
    folder = Folder(uri)
    if folder.exists(DATASET_SETTINGS):
        dataset = _open_dataset(name, uri, split)
        digests = (dataset.digest,)
        portions = [Portion(name, uri, part=data_file(shard, split), digests=digests) for shard in dataset.shards]
        return Side(portions, dataset.mel)
    if folder.exists(loops_folder.LOOPS_SETTINGS):
        if not folder.exists(commits.SUCCESS):
            raise ValueError(
                f"{name} {uri}: generation is not finished (no {commits.SUCCESS}): run jobs/generate.py to its end"
            )
        return Side(_loop_portions(name, folder))
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
    for shard, source in assign_shards(sources, PORTION_S, first=0):
        by_shard.setdefault(shard, []).append(source)
    portions = [Portion(name, uri, tuple(shard_sources)) for shard_sources in by_shard.values()]
    return Side(portions, skipped=inputs.skipped)


def _loop_portions(name: str, folder: Folder) -> list[Portion]:
    """Divide the manifest of a folder of loops into portions. The loops themselves are not listed."""
    parts = [(part.path, part.sha256) for part in loops_folder.committed_files(folder, "manifest")]
    size = max(1, -(-len(parts) // MAX_LOOP_PORTIONS))
    portions = []
    for first in range(0, len(parts), size):
        manifests, digests = zip(*parts[first : first + size], strict=True)
        portions.append(Portion(name, folder.uri, manifests=manifests, digests=digests))
    return portions


def _open_dataset(name: str, uri: str, split: str) -> MelDataset:
    try:
        dataset = MelDataset(uri, split)
    except ValueError as error:
        raise ValueError(str(error).replace("dataset_name", name, 1)) from error
    if dataset.folder.read_json(DATASET_SETTINGS).get("reference") == "track":
        say(
            f"warning: {name} {uri} has images normalized to the maximum of their track, but audio is analyzed "
            "relative to the maximum of each slice: images and audio are not comparable"
        )
    return dataset


def common_mel(options: EvaluateOptions, sides: dict[str, Side], model_mel: MelConfig | None) -> MelConfig:
    """Return the common mel configuration of the sides, the option `mel_config` and the model.

    Args:
        options: Options of the job.
        sides: The sides.
        model_mel: Mel configuration of the model, or None without a model.

    Raises:
        ValueError: No mel configuration is stated, or two of them differ.
    """
    stated = {
        f"{name} {getattr(options, name) or options.reference}": side.mel for name, side in sides.items() if side.mel
    }
    if options.mel_config:
        stated[f"mel_config {options.mel_config}"] = read_mel_config(options.mel_config)
    if model_mel:
        stated[f"model {options.model}"] = model_mel
    if not stated:
        raise ValueError(
            "neither side is a mel dataset: set mel_config to a mel_config.json with the parameters for the analysis "
            "of audio, or set model"
        )
    (first, mel), *others = stated.items()
    for other, other_mel in others:
        if other_mel != mel:
            raise ValueError(f"{first} and {other} have different mel configurations: {mel.difference(other_mel)}")
    return mel
