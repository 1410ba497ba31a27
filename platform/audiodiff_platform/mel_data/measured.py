"""Encodings of slices by their measured features, which `audiodiff_core/embeddings/measured.py` describes."""

from collections.abc import Sequence

import numpy as np

from audiodiff_core.embeddings.measured import MeasuredConditions
from audiodiff_platform.mel_data.encodings import Vectors
from audiodiff_platform.mel_data.mel_dataset import Place, TrainingImages


class MeasuredEncodings:
    """Encodings of slices by their measured features. The dataset must be `measured`.

    Args:
        conditions: Conditions of the model.
    """

    def __init__(self, conditions: MeasuredConditions) -> None:
        self.conditions = conditions

    @property
    def dim(self) -> int:
        """Number of values of an encoding."""
        return self.conditions.dim

    def at(self, dataset: TrainingImages, places: Sequence[Place]) -> Vectors:
        """Return the encodings (n, dim) of slices. See `SliceEncodings.at`."""
        return np.stack([self.conditions.encoding(dataset.features(*place)) for place in places])
