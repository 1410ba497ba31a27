"""Vocoders, which turn mel images into waveforms.

`GriffinLim` needs no training and supports every mel configuration. `NeuralVocoder` (`audiodiff_core.vocoder.neural`)
wraps a trained network. Each `Vocoder` states the mel configuration that it supports, and can keep samples of a source
(`Kept`).
"""

from collections.abc import Sequence
from typing import Protocol

from audiodiff_core.audio import Samples
from audiodiff_core.mel import Images, MelConfig
from audiodiff_core.vocoder.griffin_lim import QUALITIES, GriffinLim, Quality
from audiodiff_core.vocoder.kept import Kept, kept_samples

__all__ = ["QUALITIES", "GriffinLim", "Kept", "Quality", "Vocoder", "kept_samples", "require_mel"]


class Vocoder(Protocol):
    """Vocoder for the images of one mel configuration.

    Attributes:
        config: The mel configuration. `require_mel` compares it with the mel configuration of a model.
    """

    config: MelConfig

    def __call__(
        self,
        images: Images,
        seeds: Sequence[int],
        circular: bool = False,
        *,
        kept: Sequence[Kept | None] | None = None,
    ) -> Samples:
        """Synthesize the audio of mel images.

        The audio of an image does not depend on the other images.

        Args:
            images: uint8 images (batch, y_res, width).
            seeds: One seed per image.
            circular: Whether each image is one period of a loop, so that its first frame follows its last frame.
            kept: Per image, the samples that its audio keeps, or None. Regenerated samples are the vocoder's. Kept
                samples further than 40 ms from all regenerated samples equal the source. The audio of an image that
                keeps samples has the scale of the kept samples.

        Returns:
            float32 audio (batch, (width - 1) * hop_length), or (batch, width * hop_length) if circular.
        """
        ...


def require_mel(vocoder: Vocoder, mel: MelConfig) -> None:
    """Check that a vocoder supports a mel configuration.

    Args:
        vocoder: The vocoder.
        mel: The mel configuration of the images.

    Raises:
        ValueError: If the configurations differ. The message shows both values of each field that differs.
    """
    if vocoder.config.digest != mel.digest:
        raise ValueError(f"vocoder does not fit the model's mel: {vocoder.config.difference(mel)}")
