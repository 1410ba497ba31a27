"""Encodings of slices by their measured features, which `audiodiff_core/embeddings/measured.py` describes."""

from collections.abc import Mapping, Sequence

import numpy as np

from audiodiff_core.embeddings.measured import ConditionName, MeasuredConditions
from audiodiff_core.loops.key import WINDOW_S
from audiodiff_core.loops.loudness import MIN_LOUDNESS_RATE_HZ
from audiodiff_core.loops.tempo import MIN_BEATS, TEMPO_RANGE_BPM
from audiodiff_platform.mel_data.encodings import Vectors
from audiodiff_platform.mel_data.mel_dataset import Place, TrainingImages
from audiodiff_platform.mel_data.slice_schema import MEASURED

NEEDED: Mapping[ConditionName, str] = {
    "tempo": f"a rhythm, in slices of {MIN_BEATS} beats, at least {MIN_BEATS * 60 / TEMPO_RANGE_BPM[1]:g} s",
    "key": f"tones, in slices of about {WINDOW_S} s or more",
    "loudness": f"a sample rate of at least {MIN_LOUDNESS_RATE_HZ} Hz",
    "brightness": "sound",
}
"""Requirements of the measurement of each feature, as text."""


def require_features(name: str, dataset: TrainingImages, conditions: MeasuredConditions) -> str:
    """Check that slices of a dataset have the features of the conditions, and return their values as text.

    Args:
        name: Name of the dataset.
        dataset: The dataset.
        conditions: Conditions of the model.

    Raises:
        ValueError: The dataset was not measured, a column holds other values than features, or no slice has a feature.
    """
    if not dataset.measured:
        raise ValueError(
            f"condition {','.join(conditions.names)}: {name} has no measured features, "
            f"the columns {', '.join(MEASURED)}: prepare it again in another folder"
        )
    found = dataset.feature_values(conditions.names)
    if missing := [feature for feature, values in found.items() if not values.slices]:
        raise ValueError(
            "; ".join(
                f"condition {feature}: no slice of {name} has a {feature}, which needs {NEEDED[feature]}: "
                "omit the condition, or prepare such audio in another folder"
                for feature in missing
            )
        )
    return "; ".join(values.describe(dataset.rows) for values in found.values())


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
