"""Items to sample, and the trajectory of one item from noise to image.

A trajectory alternates between two calls until it is `finished`. `model_inputs` returns the next inputs of the network.
`advance` receives the outputs of the network and moves the sample to the next noise level. All random numbers come from
generators of the item's own seed.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from audiodiff_core.diffusion import seeds as streams
from audiodiff_core.diffusion.noise_schedule import Schedule
from audiodiff_core.sampling.network import ModelInput
from audiodiff_core.sampling.requests import GenerateRequest


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
        encoding: Encoding (dim,) of a conditional network.
        window: Index of a window in a long image. Each window draws its own noise.
        refinements: Fixed-point iterations per step of an inversion.
    """

    request: GenerateRequest
    width: int
    noise: torch.Tensor | None = None
    clean: torch.Tensor | None = None
    start_step: int = 0
    keep: torch.Tensor | None = None
    encoding: torch.Tensor | None = None
    window: int = 0
    refinements: int = 0

    @property
    def pool(self) -> tuple[int, bool]:
        """Key of the pool: items with equal keys can share a network call."""
        return self.width, self.request.seamless

    @property
    def batch_slots(self) -> int:
        """Batch slots per network call: 2 with guidance (conditional and unconditional), otherwise 1."""
        return 1 if self.request.guidance_scale == 1 else 2


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


class Trajectory(Protocol):
    """An item in progress, as seen by the sampler."""

    item: Item
    sample: torch.Tensor

    @property
    def finished(self) -> bool: ...
    def model_inputs(self) -> list[ModelInput]: ...
    def advance(self, outputs: list[torch.Tensor]) -> None: ...


def guidance_inputs(item: Item, sample: torch.Tensor, timestep: float) -> list[ModelInput]:
    """Return the network inputs of an item for one timestep.

    Args:
        item: The item.
        sample: The scaled sample (1, channels, height, width).
        timestep: The timestep of the call.

    Returns:
        The conditional input and, with guidance, the unconditional input.
    """
    conditional = ModelInput(sample, timestep, item.encoding)
    return [conditional] if item.batch_slots == 1 else [conditional, replace(conditional, encoding=None)]


def guided_prediction(item: Item, outputs: list[torch.Tensor]) -> torch.Tensor:
    """Combine the predictions for `guidance_inputs` by classifier-free guidance.

    Args:
        item: The item.
        outputs: Predictions (1, channels, height, width), one per input.

    Returns:
        The guided prediction (1, channels, height, width).
    """
    if item.batch_slots == 1:
        return outputs[0]
    conditional, unconditional = outputs
    # Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022
    return unconditional + item.request.guidance_scale * (conditional - unconditional)


class Denoising:
    """Trajectory of one item from noise, or from noised content, to an image.

    Args:
        item: The item.
        model_scheduler: The scheduler that is saved with the model.
        shape: (channels, height, width) of the sample.
        device: Device of the sample.
    """

    def __init__(self, item: Item, model_scheduler: Any, shape: tuple[int, ...], device: str) -> None:
        self.item = item
        self._schedule = Schedule(model_scheduler, item.request)
        self._call = self._schedule.begin(item.start_step)
        self._step_noise = streams.derived(item.request.seed, f"step {item.window}" if item.window else "step")
        noise = initial_noise(item.request.seed, shape, item.window) if item.noise is None else item.noise
        self._noise = noise[None].to(device)
        self._clean = None if item.clean is None else item.clean[None].to(device)
        self._keep = None if item.keep is None else item.keep.to(device)
        if self._clean is None or (self._keep is not None and item.start_step == 0):
            self.sample = self._noise * self._schedule.init_noise_sigma
        else:
            self.sample = self._schedule.add_noise(self._clean, self._noise, self._call)
        self._restore_kept()

    @property
    def finished(self) -> bool:
        """True once `sample` is the clean sample."""
        return self._call == self._schedule.calls

    def model_inputs(self) -> list[ModelInput]:
        """Return the network inputs of the next call."""
        return guidance_inputs(
            self.item, self._schedule.network_input(self.sample, self._call), self._schedule.timesteps[self._call]
        )

    def advance(self, outputs: list[torch.Tensor]) -> None:
        """Move the sample to the next noise level.

        Args:
            outputs: Predictions (1, channels, height, width) for `model_inputs`, in the same order.
        """
        self.sample = self._schedule.step(
            guided_prediction(self.item, outputs), self.sample, self._call, self._step_noise
        )
        self._call += 1
        self._restore_kept()

    def _restore_kept(self) -> None:
        """Overwrite the kept part with the clean content, with noise of the current level added."""
        if self._keep is not None and self._clean is not None:
            self.sample = torch.where(
                self._keep, self._schedule.add_noise(self._clean, self._noise, self._call), self.sample
            )
