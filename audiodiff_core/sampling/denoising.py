"""One item's way through the levels of noise: `Denoising` from noise to image, `Inverting` from image to noise.

A walk asks the network (`queries`), is told its answers (`advance`), and so on until it is `finished`. All that is random in it comes
from its own request's streams.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from audiodiff_core import seeds as streams
from audiodiff_core.diffusion.schedulers import Schedule
from audiodiff_core.sampling.network import ModelInput
from audiodiff_core.sampling.requests import GenerateRequest


@dataclass(frozen=True, eq=False)
class Item:
    """A request with the tensors that go with it, all float32 on the CPU but for `keep`.

    noise       (channels, height, width)  what it starts from; None: drawn from the seed
    clean       (channels, height, width)  content to start from (noised to the level of `start_step`), to keep, or to invert
    start_step  steps left out at the beginning; with `clean` only
    keep        (height, width) bool       where the content of `clean` is kept
    encoding    (dim,)                     what a conditional network is told
    window      which of a chain's windows it is: each has noise of its own
    refinements how often an inversion's step is corrected by fixed-point iteration
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
        """Items of one pool can share a call of the network."""
        return self.width, self.request.seamless

    @property
    def places(self) -> int:
        """How many samples a step of it is to the network: guidance asks twice, with the encoding and without."""
        return 1 if self.request.guidance_scale == 1 else 2


def initial_noise(seed: int, shape: tuple[int, ...], window: int = 0) -> torch.Tensor:
    """The noise that a seed stands for: that of `torch.Generator().manual_seed(seed)`, in later windows of a chain from other streams."""
    generator = streams.derived(seed, f"initial {window}") if window else streams.initial_noise(seed)
    return torch.randn(shape, generator=generator)


class Trajectory(Protocol):
    """What the sampler needs to know of an item under way."""

    item: Item
    sample: torch.Tensor

    @property
    def finished(self) -> bool: ...
    def queries(self) -> list[ModelInput]: ...
    def advance(self, answers: list[torch.Tensor]) -> None: ...


def model_inputs_of(item: Item, sample: torch.Tensor, timestep: float) -> list[ModelInput]:
    told = ModelInput(sample, timestep, item.encoding)
    return [told] if item.places == 1 else [told, replace(told, encoding=None)]


def guided_prediction(item: Item, answers: list[torch.Tensor]) -> torch.Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): beyond the answer without the encoding, by `guidance_scale` towards that with it."""
    if item.places == 1:
        return answers[0]
    told, untold = answers
    return untold + item.request.guidance_scale * (told - untold)


class Denoising:
    """From noise, or from noised content, to an image."""

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
            self.sample = self._noise * self._schedule.first_scale
        else:
            self.sample = self._schedule.noised(self._clean, self._noise, self._call)
        self._hold()

    @property
    def finished(self) -> bool:
        return self._call == self._schedule.calls

    def queries(self) -> list[ModelInput]:
        return model_inputs_of(
            self.item, self._schedule.network_input(self.sample, self._call), self._schedule.timesteps[self._call]
        )

    def advance(self, answers: list[torch.Tensor]) -> None:
        self.sample = self._schedule.step(
            guided_prediction(self.item, answers), self.sample, self._call, self._step_noise
        )
        self._call += 1
        self._hold()

    def _hold(self) -> None:
        """Puts back what is kept, at the level of noise that the sample has now: at the end, the clean content itself."""
        if self._keep is not None and self._clean is not None:
            self.sample = torch.where(
                self._keep, self._schedule.noised(self._clean, self._noise, self._call), self.sample
            )
