"""The sampler: many requests through one network, each with its own seed, steps and scheduler, in batches of one fixed shape.

1. Requests wait; as many as the batch has places are under way, each with its own scheduler instance and noise.
2. The network takes one step for all of them at once (a timestep per sample); empty places are padding.
3. Each request's scheduler makes its own step; finished ones leave with their image, waiting ones take their places.

A sample's bits depend on the batch's shape, not on its place in it or its neighbours, so a request gives the same image alone or
in company; the shape is part of the ExecutionProfile.
"""

import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Self

import pydantic
import torch

from audiodiff_core import seeds as streams
from audiodiff_core.mel import Images, to_image
from audiodiff_core.objectives import SCHEDULERS, SchedulerName
from audiodiff_core.seeds import SEEDS

Precision = Literal["fp32", "bf16"]
MAX_STEPS = 1_000
DEFAULT_BATCH_SIZES = {"cpu": 4, "cuda": 32}


class SamplingParameters(pydantic.BaseModel):
    """How a loop is sampled, whichever loop it is."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    steps: int = pydantic.Field(50, ge=1, le=MAX_STEPS, description="denoising steps")
    scheduler: SchedulerName = pydantic.Field("ddim", description=f"sampling method: {', '.join(SCHEDULERS)}")


class GenerateRequest(SamplingParameters):
    """One loop to be made: the same for bulk jobs and for HTTP. The seed names the loop: the same seed, the same bytes."""

    seed: int = pydantic.Field(0, ge=SEEDS[0], le=SEEDS[-1], description="names the loop, 0 to 2^32 - 1")


def scheduler_for(model_scheduler: Any, parameters: SamplingParameters) -> Any:
    """A scheduler of its own for one request, over the noise schedule of a model's scheduler.

    Raises ValueError where the model has fewer levels of noise than steps are asked for; warns where the steps leave a little noise.
    """
    scheduler = SCHEDULERS[parameters.scheduler].from_config(model_scheduler.config)
    levels = scheduler.config.num_train_timesteps
    if parameters.steps > levels:
        raise ValueError(f"steps {parameters.steps}: the model has {levels} levels of noise, use at most that many")
    scheduler.set_timesteps(parameters.steps)
    if int(scheduler.timesteps[-1]) - levels // parameters.steps >= 0:
        warnings.warn(f"steps {parameters.steps} with {parameters.scheduler}: a little noise is left, use a divisor of {levels}", stacklevel=2)
    return scheduler


class ExecutionProfile(pydantic.BaseModel):
    """How a batch is computed. Two runs with the same profile, on the same kind of device, give the same bytes."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    batch_size: int = pydantic.Field(ge=1, le=1_024, description="samples per network call, padded to this shape")
    precision: Precision = pydantic.Field("fp32", description="arithmetic of the network")
    device: Literal["cpu", "cuda"] = pydantic.Field("cpu", description="kind of device")

    @classmethod
    def here(cls, precision: Precision = "fp32", batch_size: int | None = None) -> Self:
        """The profile for this process's device: its GPU if it has one; 4 samples at once on a CPU, 32 on a GPU, unless told otherwise."""
        device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(batch_size=batch_size or DEFAULT_BATCH_SIZES[device], precision=precision, device=device)

    @property
    def threads(self) -> int:
        """Torch threads that `prepare_process` sets on a CPU; on a GPU they do not matter to the result."""
        return 1

    def prepare_process(self) -> None:
        """One torch thread on a CPU: more workers, not more threads, use more cores, and the thread count moves the last bits."""
        if self.device == "cpu":
            torch.set_num_threads(self.threads)


class _Underway:
    """A request between its first noise and its image."""

    def __init__(self, request: GenerateRequest, scheduler: Any, shape: tuple[int, ...], device: str) -> None:
        self.request = request
        self.scheduler = scheduler
        self.timesteps: list[int] = scheduler.timesteps.tolist()
        self.taken = 0
        self.step_noise = streams.derived(request.seed, "step")
        noise = torch.randn((1, *shape), generator=streams.initial_noise(request.seed))
        self.sample = noise.to(device) * scheduler.init_noise_sigma

    @property
    def timestep(self) -> int:
        return self.timesteps[self.taken]

    @property
    def finished(self) -> bool:
        return self.taken == len(self.timesteps)

    def network_input(self) -> torch.Tensor:
        scaled: torch.Tensor = self.scheduler.scale_model_input(self.sample, self.timestep)
        return scaled

    def advance(self, prediction: torch.Tensor) -> None:
        self.sample = self.scheduler.step(prediction, self.timestep, self.sample, generator=self.step_noise, return_dict=False)[0]
        self.taken += 1


class Sampler:
    """Denoises with `unet`, whose noise schedule is `scheduler`'s configuration; `profile` fixes the batch shape and the arithmetic."""

    def __init__(self, unet: Any, scheduler: Any, profile: ExecutionProfile) -> None:
        self.profile = profile
        self.unet = unet.to(profile.device, memory_format=torch.channels_last).eval()
        self.scheduler = scheduler
        self.sample_shape = (unet.config.in_channels, *image_sides(unet))

    @torch.inference_mode()
    def sample(self, requests: Iterable[GenerateRequest]) -> Iterator[tuple[GenerateRequest, Images]]:
        """Yields each request with its image (y_res, x_res), in the order in which they finish. Takes requests as places come free."""
        waiting = iter(requests)
        underway: list[_Underway] = []
        while True:
            while len(underway) < self.profile.batch_size and (request := next(waiting, None)) is not None:
                underway.append(_Underway(request, scheduler_for(self.scheduler, request), self.sample_shape, self.profile.device))
            if not underway:
                return
            self._step(underway)
            for item in underway:
                if item.finished:
                    yield item.request, to_image(item.sample[0, 0].float().cpu().numpy())
            underway = [item for item in underway if not item.finished]

    def _step(self, underway: list[_Underway]) -> None:
        device = self.profile.device
        samples = torch.zeros((self.profile.batch_size, *self.sample_shape), device=device).contiguous(memory_format=torch.channels_last)
        timesteps = torch.zeros(self.profile.batch_size, dtype=torch.int64, device=device)
        for place, item in enumerate(underway):
            samples[place] = item.network_input()[0]
            timesteps[place] = item.timestep
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.profile.precision == "bf16"):
            predictions = self.unet(samples, timesteps, return_dict=False)[0].float()
        for place, item in enumerate(underway):
            item.advance(predictions[place : place + 1])


def image_sides(unet: Any) -> tuple[int, int]:
    """(y_res, x_res) that a network works on; diffusers' `sample_size` is one side of a square or (height, width)."""
    size: int | list[int] | tuple[int, int] = unet.config.sample_size
    return (size, size) if isinstance(size, int) else (size[0], size[1])
