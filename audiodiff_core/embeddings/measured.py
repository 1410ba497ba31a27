"""Encodings of measured features, by which a model is conditioned on tempo, key, loudness and brightness.

The encoding of a loop is a vector with a part for each condition. A part is all zero if its feature is not known, as in
the zero encoding of conditioning dropout. Otherwise, the part states the feature by weights that sum to 1:

- A number lies between two anchors, which are evenly spaced on its scale. Each gets a weight by its distance. The scale
  of tempo and brightness is logarithmic. Half and double the tempo have other anchors.
- A key has a weight of 1 for its tonic, and a weight of 1 for its mode.

The weights of n anchors are multiplied by sqrt(n), so that the values have a mean square of about 1, as those that
networks are initialized for.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
import pydantic

from audiodiff_core.audio.key_names import MODES, TONICS, key_parts

ConditionName = Literal["tempo", "key", "loudness", "brightness"]
CONDITION_NAMES: tuple[ConditionName, ...] = get_args(ConditionName)
Feature = float | str | None
"""Value of a feature: a number, the name of a key, or None if it is not known."""
Weights = npt.NDArray[np.float32]

LOGARITHMIC = frozenset({"tempo", "brightness"})
UNITS: Mapping[str, str] = {"tempo": "bpm", "loudness": "LUFS", "brightness": "Hz"}


class KeyCondition(pydantic.BaseModel):
    """Condition on the key."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    name: Literal["key"] = "key"

    @property
    def size(self) -> int:
        """Number of values of the part."""
        return len(TONICS) + len(MODES)

    def part(self, value: Feature) -> Weights:
        """Return the part (size,) of the encoding for a key."""
        assert isinstance(value, str), "a key is a text"
        pitch_class, mode = key_parts(value)
        return np.concatenate([_scaled(len(TONICS), {pitch_class: 1.0}), _scaled(len(MODES), {MODES.index(mode): 1.0})])


class NumberCondition(pydantic.BaseModel):
    """Condition on a number. Measured values beyond its range are encoded as the nearest value of the range."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    name: Literal["tempo", "loudness", "brightness"]
    low: float = pydantic.Field(allow_inf_nan=False, description="value of the first anchor")
    high: float = pydantic.Field(allow_inf_nan=False, description="value of the last anchor")
    anchors: int = pydantic.Field(ge=2, le=1_024, description="number of anchors")

    @pydantic.model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if not self.low < self.high or (self.name in LOGARITHMIC and self.low <= 0):
            raise ValueError(f"{self.name} from {self.low:g} to {self.high:g}: must be an ascending range")
        return self

    @property
    def size(self) -> int:
        """Number of values of the part."""
        return self.anchors

    def part(self, value: Feature) -> Weights:
        """Return the part (size,) of the encoding for a number."""
        assert isinstance(value, int | float), "the feature is a number"
        low, high, inside = self.low, self.high, min(max(value, self.low), self.high)
        if self.name in LOGARITHMIC:
            low, high, inside = math.log(low), math.log(high), math.log(inside)
        place = (inside - low) / (high - low) * (self.anchors - 1)
        below = min(int(place), self.anchors - 2)
        return _scaled(self.anchors, {below: 1 - (place - below), below + 1: place - below})


Condition = Annotated[KeyCondition | NumberCondition, pydantic.Field(discriminator="name")]

TRAINED: tuple[Condition, ...] = (
    NumberCondition(name="tempo", low=40.0, high=240.0, anchors=32),
    KeyCondition(),
    NumberCondition(name="loudness", low=-60.0, high=0.0, anchors=16),
    NumberCondition(name="brightness", low=100.0, high=10_000.0, anchors=16),
)
"""Conditions of new models, in their order. A model records its own. The range of tempos is that of `loops.tempo`."""


class MeasuredConditions(pydantic.RootModel[tuple[Condition, ...]]):
    """Conditions of a model on measured features, in the order of their parts in an encoding."""

    model_config = pydantic.ConfigDict(frozen=True)

    @pydantic.model_validator(mode="after")
    def _named_once(self) -> Self:
        if not self.root or len(set(self.names)) != len(self.names):
            raise ValueError(f"conditions {', '.join(self.names) or 'none'}: must be one or several, each once")
        return self

    @classmethod
    def of(cls, names: Sequence[str]) -> Self:
        """Return the conditions of a new model by their names."""
        return cls(tuple(condition for condition in TRAINED if condition.name in names))

    @property
    def names(self) -> tuple[ConditionName, ...]:
        """Names of the conditions."""
        return tuple(condition.name for condition in self.root)

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Smallest and largest values of the conditions on numbers."""
        return {
            condition.name: (condition.low, condition.high)
            for condition in self.root
            if isinstance(condition, NumberCondition)
        }

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of values of the parts of an encoding."""
        return tuple(condition.size for condition in self.root)

    @property
    def dim(self) -> int:
        """Number of values of an encoding."""
        return sum(self.sizes)

    def require_range(self, name: ConditionName, value: Feature) -> None:
        """Raise ValueError if a number is beyond the range of its condition."""
        condition = self.root[self.names.index(name)]
        if isinstance(condition, NumberCondition):
            assert isinstance(value, int | float), "the feature is a number"
            if not condition.low <= value <= condition.high:
                raise ValueError(
                    f"the model is conditioned on a {name} of {condition.low:g} to {condition.high:g} {UNITS[name]}"
                )

    def encoding(self, features: Mapping[str, Feature]) -> Weights:
        """Return the encoding (dim,) of features. Features that are missing or None are not known."""
        return np.concatenate(
            [
                np.zeros(condition.size, np.float32)
                if (value := features.get(condition.name)) is None
                else condition.part(value)
                for condition in self.root
            ]
        )


def _scaled(size: int, weights: Mapping[int, float]) -> Weights:
    """Return weights by their place among `size` values, multiplied by sqrt(size)."""
    values = np.zeros(size, np.float32)
    for place, weight in weights.items():
        values[place] = weight * math.sqrt(size)
    return values
