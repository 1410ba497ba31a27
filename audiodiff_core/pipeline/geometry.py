"""Image and sample sizes of a model, and checks of requests against these sizes."""

from dataclasses import dataclass
from typing import Any, TypeVar

from audiodiff_core.diffusion.step_tables import step_table
from audiodiff_core.latents import latent_factor
from audiodiff_core.loops import loop_length
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import image_sides, sample_channels, width_multiple
from audiodiff_core.sampling import SamplingParameters
from audiodiff_core.sampling.conditions import no_guidance

P = TypeVar("P", bound=SamplingParameters)

MIN_WIDTH = 2
"""Minimum width of an image in columns. Audio lies between the columns, so a single column has no audio."""

MAX_WIDTH_FACTOR = 8
"""Maximum width of an image as a multiple of the width that the network was trained for.

Greater widths are untested, and attention over greater widths takes too much memory.
"""


@dataclass(frozen=True)
class Geometry:
    """Sizes of the images and of the samples of a model.

    A sample is the input of the network: an image, or a latent whose sides are `factor` times smaller. Each column of
    an image is one hop of audio.

    Attributes:
        mel: The mel configuration.
        factor: Pixels per side of a latent pixel. 1 for a model without a VAE.
        multiple: Number of columns that must divide the width of an image.
        channels: Channels of a sample.
        encoding_dim: Values per encoding, or None for an unconditional model.
    """

    mel: MelConfig
    factor: int
    multiple: int
    channels: int
    encoding_dim: int | None

    @classmethod
    def of(cls, unet: Any, vae: Any, mel: MelConfig) -> "Geometry":
        """Create the geometry of a model.

        Args:
            unet: The denoising network.
            vae: The AutoencoderKL of a latent model, or None.
            mel: The mel configuration.

        Raises:
            ValueError: If the sizes or channels of the parts differ.
        """
        factor = 1 if vae is None else latent_factor(vae)
        height, width = image_sides(unet)
        if (height * factor, width * factor) != (mel.y_res, mel.x_res):
            in_pixels = "" if vae is None else f", {(height * factor, width * factor)} in pixels,"
            raise ValueError(
                f"network for samples of {(height, width)} (height, width){in_pixels} does not fit mel images of "
                f"{(mel.y_res, mel.x_res)}: use the mel configuration of the model"
            )
        channels = 1 if vae is None else vae.config.latent_channels
        if sample_channels(unet) != channels or (vae is not None and vae.config.in_channels != 1):
            raise ValueError(
                f"network for samples with {sample_channels(unet)} channels does not fit the model: "
                f"samples have {channels} channels, and images have 1"
            )
        return cls(
            mel, factor, factor * width_multiple(unet), channels, getattr(unet.config, "cross_attention_dim", None)
        )

    @property
    def height(self) -> int:
        """Height of a sample."""
        return self.mel.y_res // self.factor

    def width(self, parameters: SamplingParameters) -> int:
        """Return the width of the requested image in columns."""
        return parameters.width or self.mel.x_res

    def duration_s(self, columns: int) -> float:
        """Return the duration of `columns` image columns in seconds."""
        return columns * self.mel.hop_length / self.mel.sample_rate

    def columns(self, duration_s: float) -> int:
        """Return the smallest supported width that lasts at least `duration_s` seconds.

        Args:
            duration_s: Duration in seconds.

        Returns:
            The width in columns.

        Raises:
            ValueError: If the duration is not positive, or too long for the network.
        """
        max_duration_s = self.duration_s(MAX_WIDTH_FACTOR * self.mel.x_res)
        if not 0 < duration_s <= max_duration_s:
            raise ValueError(f"duration {duration_s} s: use up to {max_duration_s:.2f} s, or extend")
        exact = duration_s * self.mel.sample_rate / self.mel.hop_length
        return -int(-max(exact - 1e-9, MIN_WIDTH) // self.multiple) * self.multiple

    def resolved(self, parameters: P, model_scheduler: Any) -> P:
        """Return a copy of the parameters with all defaults filled in.

        Args:
            parameters: The sampling parameters.
            model_scheduler: The scheduler that is saved with the model.

        Raises:
            ValueError: If the model does not support the parameters.
        """
        filled = parameters.resolved(model_scheduler)
        width = self._requested_width(filled)
        if width < MIN_WIDTH:
            raise ValueError(f"width {width}: audio needs at least {MIN_WIDTH} columns")
        max_width = MAX_WIDTH_FACTOR * self.mel.x_res
        if width % self.multiple or width > max_width:
            raise ValueError(
                f"width {width}: the network takes multiples of {self.multiple} columns "
                f"up to {max_width // self.multiple * self.multiple}"
            )
        if reason := no_guidance(filled.guidance_scale, self.encoding_dim):
            raise ValueError(reason)
        step_table(model_scheduler, filled)
        fixed = {} if filled.has_windows else {"duration_s": None}
        return filled.model_copy(update={"width": width, **fixed})

    def samples(self, parameters: SamplingParameters) -> int | None:
        """Return the number of samples that `bars` and `bpm` fix, or None without them."""
        if parameters.bars is None or parameters.bpm is None:
            return None
        return loop_length(parameters.bars, parameters.bpm, self.mel.sample_rate)

    def _requested_width(self, parameters: SamplingParameters) -> int:
        """Return the width that the request states by columns, duration, or bars, or the default width."""
        if parameters.width is not None or parameters.has_windows:
            return self.width(parameters)
        if (samples := self.samples(parameters)) is not None:
            # Audio lies between the columns: a loop that is not circular has one hop less.
            hops = -(-samples // self.mel.hop_length) + (0 if parameters.seamless else 1)
            return self.columns(self.duration_s(hops))
        return self.mel.x_res if parameters.duration_s is None else self.columns(parameters.duration_s)
