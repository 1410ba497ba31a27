"""A conditional network that takes its encoding in three ways.

Beside cross-attention, the encoding is added to the embedding of the timestep, so that it reaches every layer. If it
states a tempo, the beats of the tempo are two more channels of the sample, see `models.beats`.

The network is a UNet2DConditionModel of diffusers with `class_embed_type="simple_projection"`. Its files name that
class. In diffusers, the encoding is passed as `class_labels` as well, and the channels are appended to the sample.
"""

import json
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from audiodiff_core.models.beats import PLACEMENT, TRACKS, Beats
from audiodiff_core.models.folding import fold_of

EMBEDDING = "simple_projection"
"""Value of `class_embed_type` in the configuration."""


class ConditionedUNet(UNet2DConditionModel):  # type: ignore[misc]  # diffusers has no types
    """A UNet2DConditionModel whose encoding is also embedded with the timestep, and as beats.

    Attributes:
        beats: The beats that the network takes as channels, or None.
    """

    beats: Beats | None = None

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor, **others: Any
    ) -> Any:
        """Compute the predictions for a batch of folded samples.

        Args:
            sample: Samples (batch, channels, height, width) without the channels of the beats.
            timestep: Timesteps (batch,).
            encoder_hidden_states: Encodings (batch, 1, dim), or (batch, 1, dim + PLACEMENT) with the placements of the
                beats. By default, a beat is on the first column.
            **others: Arguments of diffusers.
        """
        dim = self.config.cross_attention_dim
        encodings = encoder_hidden_states[:, 0, :dim]
        if self.beats is not None:
            placements = encoder_hidden_states[:, 0, dim:]
            if not placements.shape[-1]:
                placements = sample.new_zeros(len(sample), PLACEMENT)
            sample = torch.cat([sample, self._tracks(encodings, placements, sample)], dim=1)
        return super().forward(sample, timestep, encoder_hidden_states[..., :dim], class_labels=encodings, **others)

    def _tracks(self, encodings: torch.Tensor, placements: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Compute the channels (batch, TRACKS * columns of a block, height, width) of the beats."""
        assert self.beats is not None
        _, columns = fold_of(self)
        tracks = self.beats.tracks(encodings, placements, sample.shape[-1] * columns)
        folded: torch.Tensor = tracks.unflatten(2, (-1, columns)).transpose(2, 3).flatten(1, 2)
        return folded.unsqueeze(2).expand(-1, -1, sample.shape[2], -1).to(sample.dtype)

    def to_json_string(self) -> str:
        """Return the configuration as JSON, under the name of diffusers' class."""
        settings = {**json.loads(super().to_json_string()), "_class_name": diffusers_class(self)}
        return json.dumps(settings, indent=2, sort_keys=True) + "\n"


def diffusers_class(network: Any) -> str:
    """Return the name of the class of diffusers that a network is, or extends."""
    return UNet2DConditionModel.__name__ if isinstance(network, UNet2DConditionModel) else type(network).__name__


def extra_channels(beats: Beats | None, columns: int) -> int:
    """Return the number of channels that beats add to folded samples with `columns` columns per block."""
    return 0 if beats is None else TRACKS * columns
