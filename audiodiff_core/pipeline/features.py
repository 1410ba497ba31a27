"""Encoding of the features that a request states, for a model that is conditioned on measured features."""

from collections.abc import Mapping

from audiodiff_core.embeddings.measured import ConditionName, Feature, MeasuredConditions, Weights
from audiodiff_core.sampling import SamplingParameters

CONDITION_OF_FIELD: Mapping[str, ConditionName] = {
    "bpm": "tempo",
    "key": "key",
    "loudness": "loudness",
    "brightness": "brightness",
}
"""Conditions by the field of requests that states the feature."""


def requested_encoding(parameters: SamplingParameters, conditions: MeasuredConditions | None) -> Weights | None:
    """Return the encoding (dim,) of the features that a request states, or None if it states none.

    With bars, the tempo is a length for every model. It is a feature too if the model is conditioned on it.

    Args:
        parameters: The request.
        conditions: The conditions of the model, or None for a model without measured conditions.

    Raises:
        ValueError: If the model has no such condition, or if a value is out of its range.
    """
    names = () if conditions is None else conditions.names
    features: dict[str, Feature] = {}
    for field, value in parameters.features.items():
        name = CONDITION_OF_FIELD[field]
        shown = f"{field} {value:g}" if isinstance(value, float) else f"{field} {value}"
        is_length = field == "bpm" and parameters.bars is not None
        if conditions is not None and name in names:
            try:
                conditions.require_range(name, value)
            except ValueError as error:
                if is_length:
                    continue
                raise ValueError(f"{shown}: {error}: use a value of this range, or omit {field}") from error
            features[name] = value
        elif not is_length:
            without = " without bars" if field == "bpm" else ""
            known = f"only on {', '.join(names)}" if names else "and has no measured conditions"
            remedy = "set bars, or omit bpm" if field == "bpm" else "omit it"
            raise ValueError(f"{shown}{without}: the model is not conditioned on {name}, {known}: {remedy}")
    return conditions.encoding(features) if conditions is not None and features else None
