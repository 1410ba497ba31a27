"""Encoding of the features that a request states, for a model that is conditioned on measured features."""

from audiodiff_core.embeddings.measured import Feature, MeasuredConditions, Weights
from audiodiff_core.sampling import SamplingParameters
from audiodiff_core.sampling.conditions import no_feature
from audiodiff_core.sampling.parameters import CONDITION_OF_FIELD


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
        if reason := no_feature(parameters, field, names):
            raise ValueError(reason)
        name = CONDITION_OF_FIELD[field]
        if conditions is None or name not in names:
            continue  # the tempo is a length
        try:
            conditions.require_range(name, value)
        except ValueError as error:
            if field == "bpm" and parameters.bars is not None:
                continue
            shown = f"{field} {value:g}" if isinstance(value, float) else f"{field} {value}"
            raise ValueError(f"{shown}: {error}: use a value of this range, or omit {field}") from error
        features[name] = value
    return conditions.encoding(features) if conditions is not None and features else None
