"""Items to sample: a request and its tensors."""

from dataclasses import dataclass

import torch

from audiodiff_core.diffusion import seeds as streams
from audiodiff_core.sampling.requests import SeededRequest


@dataclass(frozen=True, eq=False)
class Item:
    """A request and its tensors. The tensors are on the CPU and, except `keep`, in float32.

    Attributes:
        request: The sampling parameters and the seed.
        width: Width of the sample.
        noise: Initial noise (channels, height, width). None draws the noise from the seed.
        clean: Clean content (channels, height, width) to start from, to keep, or to invert.
        start_step: Number of steps to skip. Sampling then starts from `clean` with noise added.
        keep: Boolean mask (height, width), True where the result keeps `clean`.
        encoding: Encoding (dim,) of a conditional network. None makes the prediction unconditional.
        window: Index of a window in a long image. Each window draws its own noise.
        inverted: Whether to compute the noise from which sampling generates `clean`, instead of a sample.
        refinements: Fixed-point iterations per step of an inversion.
    """

    request: SeededRequest
    width: int
    noise: torch.Tensor | None = None
    clean: torch.Tensor | None = None
    start_step: int = 0
    keep: torch.Tensor | None = None
    encoding: torch.Tensor | None = None
    window: int = 0
    inverted: bool = False
    refinements: int = 0

    @property
    def pool(self) -> tuple[int, bool]:
        """Key of the pool: items with equal keys can share a network call."""
        return self.width, self.request.seamless

    @property
    def batch_slots(self) -> int:
        """Batch slots per network call: 2 with guidance (conditional and unconditional), otherwise 1."""
        return 1 if self.request.guidance_scale == 1 else 2


@dataclass(frozen=True, eq=False)
class Finished:
    """A finished item.

    Attributes:
        item: The item.
        sample: The clean sample, or the noise of an inversion: (channels, height, width), float32 on the CPU.
    """

    item: Item
    sample: torch.Tensor


@dataclass(frozen=True, eq=False)
class Failed:
    """An item whose sample is not finite.

    Attributes:
        item: The item.
        reason: The reason, in one line that names the seed.
    """

    item: Item
    reason: str


Outcome = Finished | Failed


def initial_noise(seed: int, shape: tuple[int, ...], window: int = 0) -> torch.Tensor:
    """Draw the initial noise of a seed.

    Args:
        seed: The seed of the request.
        shape: Shape of the noise.
        window: Index of the window in a long image. Window 0 uses `torch.Generator().manual_seed(seed)`, and the other
            windows use streams derived from the seed.

    Returns:
        Standard normal noise of shape `shape`, on the CPU.
    """
    generator = streams.derived(seed, f"initial {window}") if window else streams.initial_noise(seed)
    return torch.randn(shape, generator=generator)
