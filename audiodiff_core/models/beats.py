"""Beats of a tempo as channels of a network.

A network sees few columns at once, so that it can learn a tempo on average, but not keep it over a loop. Two channels
that state how far each column is from a beat need no memory. They are the cosine and the sine of the phase of the beat,
2 pi (column - first beat) / (columns per beat), and 0 if no tempo is requested.

In training, the phase is that of the onsets of the clean image at the tempo of its encoding. In sampling, it is that of
the content to start from or to keep, or a beat on the first column.
"""

import math
from typing import Any

import pydantic
import torch

TRACKS = 2
"""Channels per column: cosine and sine."""


class Beats(pydantic.BaseModel):
    """Place of the tempo in an encoding, and the scale of the columns. A setting in the configuration of a network.

    The tempo is stated by weights of evenly spaced anchors on a logarithmic scale, see `embeddings.measured`.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    first: int = pydantic.Field(ge=0, description="place of the weight of the first anchor in the encoding")
    anchors: int = pydantic.Field(ge=2, le=1_024, description="number of anchors")
    low: float = pydantic.Field(gt=0, description="tempo of the first anchor in beats per minute")
    high: float = pydantic.Field(gt=0, description="tempo of the last anchor in beats per minute")
    columns_per_minute: float = pydantic.Field(gt=0, description="columns of an image per minute")

    def tempo(self, encodings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Read the tempo from encodings.

        Args:
            encodings: Encodings (batch, dim).

        Returns:
            Beats per column (batch,), and a mask (batch,) that is False where no tempo is stated.
        """
        weights = encodings[:, self.first : self.first + self.anchors].float()
        total = weights.sum(1)
        stated = total > 0
        scale = torch.linspace(math.log(self.low), math.log(self.high), self.anchors, device=encodings.device)
        logarithms = (weights * scale).sum(1) / torch.where(stated, total, 1)
        return logarithms.exp() / self.columns_per_minute, stated

    def tracks(self, encodings: torch.Tensor, phases: torch.Tensor, width: int) -> torch.Tensor:
        """Compute the cosine and the sine of the phase of the beat at each column.

        Args:
            encodings: Encodings (batch, dim).
            phases: Angles (batch,) at the first column.
            width: Number of columns.

        Returns:
            Tracks (batch, TRACKS, width), 0 where no tempo is stated.
        """
        rates, stated = self.tempo(encodings)
        columns = torch.arange(width, device=encodings.device)
        angles = 2 * math.pi * rates.unsqueeze(1) * columns + phases.float().unsqueeze(1)
        return torch.stack([angles.cos(), angles.sin()], dim=1) * stated.reshape(-1, 1, 1)

    def phases(self, images: torch.Tensor, encodings: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Measure the phase of the beat in images: that of their onsets at the tempo of the encodings.

        Args:
            images: Images (batch, channels, height, width). An onset is a rise of the level of a pixel over time.
            encodings: Encodings (batch, dim).
            kept: Mask (batch, height, width), True for the pixels to look at. None looks at all.

        Returns:
            Angles (batch,) at the first column, float32.
        """
        rises = images.float().diff(dim=-1).relu()
        if kept is not None:
            rises = rises * (kept[..., 1:] & kept[..., :-1]).unsqueeze(1)
        onsets = rises.sum(dim=(1, 2))
        rates, _ = self.tempo(encodings)
        angles = 2 * math.pi * rates.unsqueeze(1) * torch.arange(1, images.shape[-1], device=images.device)
        return torch.atan2(-(onsets * angles.sin()).sum(1), (onsets * angles.cos()).sum(1))


def beats_of(network: Any) -> Beats | None:
    """Return the beats that a network takes as channels, or None."""
    beats: Beats | None = getattr(network, "beats", None)
    return beats
