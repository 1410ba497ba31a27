"""The reference of the check `copy`: features of training slices, stored beside the candidates.

    _candidates/reference.parquet    features (float32) and track of each slice of the sample, and the smallest distance

The file is written once, so that all workers and all later runs compare candidates with the same features.
"""

import io
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_core.evaluation import Items
from audiodiff_core.evaluation.copies import nearest_distances, nearest_other_distances
from audiodiff_core.evaluation.features import Features, logmel_stats
from audiodiff_core.mel import MelConfig
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.generate.gate_options import GateOptions
from audiodiff_platform.mel_data.mel_dataset import TrainingImages
from audiodiff_platform.mel_data.original_datasets import open_dataset
from audiodiff_platform.storage import Folder

MAX_SLICES = 10_000
"""Number of slices in the sample of a reference: whole row groups, evenly spaced in the dataset."""
REFERENCE = "reference.parquet"
SCHEMA = pa.schema([("features", pa.list_(pa.float32())), ("audio_file", pa.string())])
_DISTANCE = b"audiodiff_min_copy_distance"


@dataclass(frozen=True)
class Reference:
    """The reference of the check `copy`.

    Args:
        items: Features and tracks of the slices.
        min_distance: Smallest accepted distance of a loop from the slices.
    """

    items: Items
    min_distance: float

    @classmethod
    def of(cls, items: Items, options: GateOptions) -> Self:
        """Return the reference with the stated distance, or with the distance between tracks.

        Raises:
            ValueError: There is only one track, and no distance is stated.
        """
        if options.min_copy_distance is not None:
            return cls(items, options.min_copy_distance)
        if len(set(items.tracks)) < 2:
            raise ValueError(
                f"reference {options.reference}: its slices are of one track, so that there is no distance between "
                "tracks: state min_copy_distance"
            )
        between_tracks = nearest_other_distances(items.features, items.numbers)
        return cls(items, float(np.quantile(between_tracks, options.copy_quantile)))

    @classmethod
    def stored(cls, folder: Folder) -> Self:
        """Read the reference that `store` wrote."""
        table = pq.read_table(io.BytesIO(folder.read(REFERENCE)))
        features = np.stack(table["features"].to_numpy()).astype(np.float64)
        return cls(Items(features, table["audio_file"].to_pylist()), float(table.schema.metadata[_DISTANCE]))

    def store(self, folder: Folder) -> None:
        """Write the reference to the folder of the candidates."""
        columns = {"features": list(self.items.features.astype(np.float32)), "audio_file": list(self.items.tracks)}
        schema = SCHEMA.with_metadata({_DISTANCE: repr(self.min_distance)})
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns, schema=schema), buffer, compression="zstd")
        folder.write(REFERENCE, buffer.getvalue())

    def nearest(self, features: Features) -> tuple[float, str]:
        """Return the distance from features (d,) to the nearest slice, and the track of the slice."""
        distances, rows = nearest_distances(features[np.newaxis], self.items.features)
        return float(distances[0]), self.items.tracks[int(rows[0])]


@dataclass(frozen=True)
class ReferenceData:
    """The dataset of a reference.

    Args:
        options: Options of the gate, with a reference.
        mel: Mel configuration of the model.

    Raises:
        ValueError: The dataset cannot be read, or has another mel configuration.
    """

    options: GateOptions
    mel: MelConfig

    def __post_init__(self) -> None:
        if self.images.mel != self.mel:
            raise ValueError(
                f"reference {self.options.reference} has {self.images.mel.to_json()}, the model has "
                f"{self.mel.to_json()}: use the dataset of the training"
            )

    @cached_property
    def images(self) -> TrainingImages:
        """The images of the dataset."""
        assert self.options.reference is not None
        try:
            return open_dataset(self.options.reference)
        except ValueError as error:
            raise ValueError(str(error).replace("dataset_name", "reference", 1)) from error

    def read(self) -> Reference:
        """Compute the features of a sample of the slices.

        Raises:
            ValueError: The dataset is empty, or its slices give no distance between tracks.
        """
        images = self.images
        if not images.rows:
            raise ValueError(f"reference {self.options.reference}: holds no slices")
        every = -(-images.rows // MAX_SLICES)
        places = [
            (group, row) for group in range(0, len(images.groups), every) for row in range(images.groups[group][2])
        ][:MAX_SLICES]
        say(f"reference: {len(places):,} of {images.rows:,} slices")
        features = [logmel_stats(images.image(group, row)[np.newaxis])[0] for group, row in places]
        tracks = [images.audio_file(group, row) for group, row in places]
        rounded = np.array(features, np.float32).astype(np.float64)  # as they are stored
        return Reference.of(Items(rounded, tracks), self.options)
