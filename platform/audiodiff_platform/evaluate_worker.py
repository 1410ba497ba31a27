"""What each worker of evaluate does: a few audio files, or a shard of a mel dataset -> features of their slices."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from audiodiff_core.audio import AudioDecodeError
from audiodiff_core.embedders import Item, heard, items_of, load_embedder
from audiodiff_core.mel import Images, Mel, MelConfig
from audiodiff_core.metrics import Features
from audiodiff_core.png import decode_png
from audiodiff_core.sampling import ExecutionProfile
from audiodiff_core.vocoder import GriffinLim
from audiodiff_platform.audio_files import Inputs, Source, items
from audiodiff_platform.audio_files import Item as AudioFile
from audiodiff_platform.storage import Folder

ITEMS_AT_ONCE = 16


@dataclass(frozen=True)
class Portion:
    """What a worker does at a time: some sources of an audio folder, or a part of a mel dataset. Of the first `round_trips` items it also
    makes audio from their images, and embeds that."""

    side: str
    uri: str
    sources: tuple[Source, ...] = ()
    part: str = ""
    round_trips: int = 0


@dataclass
class Embedded:
    """What a portion gave: features (n, d) and the track of each item; for the first items, those of their round trips; and what gave nothing."""

    number: int
    side: str
    features: list[Features] = field(default_factory=list)
    tracks: list[str] = field(default_factory=list)
    round_trips: list[Features] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    silent: int = 0


class EvaluateWorker:
    """Embeds portions with one loaded embedder; lives in an actor."""

    def __init__(self, portions: list[Portion], embedder: str, embedder_digest: str, mel: MelConfig) -> None:
        profile = ExecutionProfile.here()
        profile.prepare_process()
        self.portions, self.mel = portions, Mel(mel)
        self.embedder = load_embedder(embedder, mel.sample_rate, profile.device)
        if self.embedder.digest != embedder_digest:
            raise ValueError(f"embedder {embedder} has changed since the job began: digest {self.embedder.digest}, it was {embedder_digest}")

    @cached_property
    def _vocoder(self) -> GriffinLim:
        return GriffinLim(self.mel.config)

    def shard(self, number: int) -> Embedded:
        """The features of a portion; they are few, and so travel as they are."""
        portion = self.portions[number]
        found = Embedded(number, portion.side)
        if portion.part:
            for track, image in _rows(Folder(portion.uri), portion.part, (self.mel.config.y_res, self.mel.config.x_res)):
                self._add(track, iter([Item(image, None)]), portion, found)
            return found
        inputs = Inputs(portion.uri)
        with tempfile.TemporaryDirectory(prefix="audiodiff-") as scratch:
            for source in portion.sources:
                try:
                    local = inputs.fetch(source, Path(scratch))
                    for file in items(source, local, Path(scratch)):
                        self._add(file.name, self._items(file), portion, found)
                    if local.parent == Path(scratch):
                        local.unlink()
                except AudioDecodeError as error:  # it cannot be fetched, or not be read on
                    found.unusable.append(str(error))
        return found

    def _items(self, file: AudioFile) -> Iterator[Item]:
        """The slices of an audio file. Raises AudioDecodeError, also after some slices."""
        yield from items_of(file.local, self.mel)

    def _add(self, track: str, track_items: Iterator[Item], portion: Portion, found: Embedded) -> None:
        """Adds all items of a track or, where it cannot be read to its end, none."""
        features, round_trips, count = [], [], 0
        try:
            while some := list(islice(track_items, ITEMS_AT_ONCE)):
                features.append(self.embedder(some))
                first = len(found.tracks) + count
                if trips := [self._round_trip(item, first + place) for place, item in enumerate(some[: max(0, portion.round_trips - first)])]:
                    round_trips.append(self.embedder(trips))
                count += len(some)
        except AudioDecodeError as error:
            found.unusable.append(f"{track}: {error.reason}")
            return
        found.features += features
        found.round_trips += round_trips
        found.tracks += [track] * count
        found.silent += count == 0

    def _round_trip(self, item: Item, seed: int) -> Item:
        return heard(self._vocoder(item.image[np.newaxis], [seed])[0], self.mel)[0]


def _rows(folder: Folder, part: str, shape: tuple[int, int]) -> Iterator[tuple[str, Images]]:
    """Read the track and the image of `shape` (height, width) of each row of a part of a mel dataset."""
    with folder.filesystem.open(folder.path(part), "rb") as file, pq.ParquetFile(file) as table:
        for group in range(table.num_row_groups):
            for row in table.read_row_group(group, columns=["image", "audio_file"]).to_pylist():
                yield row["audio_file"], decode_png(row["image"]["bytes"], shape)
