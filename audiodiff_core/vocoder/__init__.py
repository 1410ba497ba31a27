"""Mel images -> waveforms.

A `Vocoder` declares the mel configuration that it was made for. `GriffinLim` is for any configuration and needs no training;
`NeuralVocoder` (`audiodiff_core.vocoder.neural`) takes a trained network.
"""

from collections.abc import Sequence
from typing import Protocol

from audiodiff_core.audio import Samples
from audiodiff_core.mel import Images, MelConfig
from audiodiff_core.vocoder.griffin_lim import QUALITIES, GriffinLim, Quality

__all__ = ["QUALITIES", "GriffinLim", "Quality", "Vocoder", "require_mel"]


class Vocoder(Protocol):
    """Turns images of one mel configuration into audio. `require_mel` compares `config` with a model's before use."""

    config: MelConfig

    def __call__(self, images: Images, seeds: Sequence[int], circular: bool = False) -> Samples:
        """Images (batch, y_res, width), a seed per item -> float32 audio (batch, (width - 1) * hop_length), the same bytes in any company.

        Circular: the image is one period of a loop, whose last frame is followed by its first; so is the audio (batch, width * hop_length).
        """
        ...


def require_mel(vocoder: Vocoder, mel: MelConfig) -> None:
    """Raises a ValueError that shows both values of whatever differs between the vocoder's mel configuration and `mel`."""
    if vocoder.config.digest != mel.digest:
        raise ValueError(f"vocoder does not fit the model's mel: {vocoder.config.difference(mel)}")
