"""Place of the tempo in the encodings of measured features, for networks that take its beats."""

from audiodiff_core.embeddings.measured import MeasuredConditions, NumberCondition
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import Beats


def beats_for(conditions: MeasuredConditions | None, mel: MelConfig) -> Beats | None:
    """Return the beats of mel images at the tempo of measured conditions.

    Args:
        conditions: Conditions of the model. None for encodings of another kind.
        mel: Parameters of the mel images.

    Returns:
        The beats, or None if the encodings state no tempo.
    """
    if conditions is None or "tempo" not in conditions.names:
        return None
    place = conditions.names.index("tempo")
    tempo = conditions.root[place]
    assert isinstance(tempo, NumberCondition), "a tempo is a number"
    return Beats(
        first=sum(conditions.sizes[:place]),
        anchors=tempo.anchors,
        low=tempo.low,
        high=tempo.high,
        columns_per_minute=60 * mel.sample_rate / mel.hop_length,
    )
