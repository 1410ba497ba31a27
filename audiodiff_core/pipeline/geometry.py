"""What sizes a model works on, and whether a request suits it."""

from dataclasses import dataclass
from typing import Any, TypeVar

from audiodiff_core.diffusion.schedulers import scheduler_for
from audiodiff_core.latents import latent_factor
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import side_multiple
from audiodiff_core.sampling import SamplingParameters, image_sides

P = TypeVar("P", bound=SamplingParameters)

NARROWEST = 2
"""Audio lies between the columns of an image: one column alone has none."""
WIDEST = 8
"""A network is asked for at most this many times the width that it was trained for: attention over more was never seen to work, and memory ends."""


@dataclass(frozen=True)
class Geometry:
    """Sizes in pixels (a column is a hop of audio) and of what the network sees: the same, or latents `factor` times smaller."""

    mel: MelConfig
    factor: int
    multiple: int
    channels: int
    encoding_dim: int | None

    @classmethod
    def of(cls, unet: Any, vae: Any, mel: MelConfig) -> "Geometry":
        """Raises ValueError where the parts do not fit each other."""
        factor = 1 if vae is None else latent_factor(vae)
        height, width = image_sides(unet)
        if (height * factor, width * factor) != (mel.y_res, mel.x_res):
            latent = "" if vae is None else f", {factor} times that in pixels,"
            raise ValueError(
                f"network for images of {(height, width)} (height, width){latent} with a mel of {(mel.y_res, mel.x_res)}"
            )
        inside = 1 if vae is None else vae.config.latent_channels
        if unet.config.in_channels != inside or (vae is not None and vae.config.in_channels != 1):
            raise ValueError(
                f"network with {unet.config.in_channels} input channels: it would be given {inside}, and images have 1"
            )
        return cls(mel, factor, factor * side_multiple(unet), inside, getattr(unet.config, "cross_attention_dim", None))

    def width(self, parameters: SamplingParameters) -> int:
        """Columns of what is asked for."""
        return parameters.width or self.mel.x_res

    def duration_s(self, columns: int) -> float:
        return columns * self.mel.hop_length / self.mel.sample_rate

    def columns(self, duration_s: float) -> int:
        """The fewest columns that the network can take and that last at least so long."""
        if not 0 < duration_s <= self.duration_s(WIDEST * self.mel.x_res):
            raise ValueError(
                f"duration {duration_s} s: use up to {self.duration_s(WIDEST * self.mel.x_res):.2f} s, or extend"
            )
        exact = duration_s * self.mel.sample_rate / self.mel.hop_length
        return -int(-(exact - 1e-9) // self.multiple) * self.multiple

    def resolved(self, parameters: P, model_scheduler: Any) -> P:
        """`parameters` with all defaults filled in. Raises ValueError, naming it, where the model cannot do what is asked for."""
        filled = parameters.resolved(model_scheduler)
        width = self.width(filled)
        if width < NARROWEST:
            raise ValueError(f"width {width}: audio needs at least {NARROWEST} columns")
        if width % self.multiple or width > WIDEST * self.mel.x_res:
            largest = WIDEST * self.mel.x_res // self.multiple * self.multiple
            raise ValueError(f"width {width}: the network takes multiples of {self.multiple} columns up to {largest}")
        if filled.guidance_scale != 1 and self.encoding_dim is None:
            raise ValueError(
                f"guidance_scale {filled.guidance_scale}: the model is not conditional, nothing guides it (1)"
            )
        scheduler_for(model_scheduler, filled)
        return filled.model_copy(update={"width": width})
