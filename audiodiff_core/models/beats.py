"""Beats of a tempo as channels of a network.

A network sees few columns at once, so that it can learn a tempo on average, but not keep it over a loop. Two channels
that state how far each column is from a beat need no memory. They are the cosine and the sine of the phase of the beat,
2 pi (column - first beat) / (columns per beat), and 0 if no tempo is requested.

In training, the phase is that of the onsets of the clean image at the tempo of its encoding. In sampling, it is that of
the content to start from or to keep, or a beat on the first column. A seamless loop has a whole number of beats: the
nearest to its tempo.
"""

import math
from typing import Any

import pydantic
import torch

TRACKS = 2
"""Channels per column: cosine and sine."""

PLACEMENT = 2
"""Values that may follow an encoding: the phase of the beat at the first column, and 1 for a seamless loop or 0."""


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

    def rates(self, encodings: torch.Tensor, width: int, seamless: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Read the tempo from encodings.

        Args:
            encodings: Encodings (batch, dim).
            width: Number of columns.
            seamless: Mask (batch,), True for seamless loops.

        Returns:
            Beats per column (batch,), and a mask (batch,) that is False where no tempo is stated.
        """
        weights = encodings[:, self.first : self.first + self.anchors].float()
        total = weights.sum(1)
        stated = total > 0
        scale = torch.linspace(math.log(self.low), math.log(self.high), self.anchors, device=encodings.device)
        logarithms = (weights * scale).sum(1) / torch.where(stated, total, 1)
        rates = logarithms.exp() / self.columns_per_minute
        return torch.where(seamless, (rates * width).round().clamp(min=1) / width, rates), stated

    def tracks(self, encodings: torch.Tensor, placements: torch.Tensor, width: int) -> torch.Tensor:
        """Compute the cosine and the sine of the phase of the beat at each column.

        Args:
            encodings: Encodings (batch, dim).
            placements: Placements (batch, PLACEMENT).
            width: Number of columns.

        Returns:
            Tracks (batch, TRACKS, width), 0 where no tempo is stated.
        """
        rates, stated = self.rates(encodings, width, placements[:, 1] > 0)
        columns = torch.arange(width, device=encodings.device)
        angles = 2 * math.pi * rates.unsqueeze(1) * columns + placements[:, :1].float()
        return torch.stack([angles.cos(), angles.sin()], dim=1) * stated.reshape(-1, 1, 1)

    def placements(
        self, images: torch.Tensor, encodings: torch.Tensor, kept: torch.Tensor | None = None, seamless: bool = False
    ) -> torch.Tensor:
        """Measure the phase of the beat in images: that of their onsets at the tempo of the encodings.

        Args:
            images: Images (batch, channels, height, width). An onset is a rise of the level of a pixel over time.
            encodings: Encodings (batch, dim).
            kept: Mask (batch, height, width), True for the pixels to look at. None looks at all.
            seamless: Whether the images are seamless loops.

        Returns:
            Placements (batch, PLACEMENT), float32.
        """
        width, loops = images.shape[-1], torch.full((len(images),), seamless, device=images.device)
        rises = images.float().diff(dim=-1).relu()
        if kept is not None:
            rises = rises * (kept[..., 1:] & kept[..., :-1]).unsqueeze(1)
        onsets = rises.sum(dim=(1, 2))
        rates, _ = self.rates(encodings, width, loops)
        angles = 2 * math.pi * rates.unsqueeze(1) * torch.arange(1, width, device=images.device)
        phases = torch.atan2(-(onsets * angles.sin()).sum(1), (onsets * angles.cos()).sum(1))
        return torch.stack([phases, loops.float()], dim=1)


def beats_of(network: Any) -> Beats | None:
    """Return the beats that a network takes as channels, or None."""
    beats: Beats | None = getattr(network, "beats", None)
    return beats
