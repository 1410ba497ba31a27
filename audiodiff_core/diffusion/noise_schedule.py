"""Noise schedule of one request: the levels of noise and the steps between them.

    level i   sample = signal_i * clean + noise_i * noise
    call i    the call of the network at timestep i, which moves the sample from level i to level i + 1

Sampling starts at level 0. The last level, `calls`, is the clean sample. Each step of Heun's method makes two calls,
except the last step. The steps of the other methods make one call.
"""

from typing import Any

import torch

from audiodiff_core.diffusion.methods import METHODS
from audiodiff_core.diffusion.schedulers import SchedulerOptions, resolved, scheduler_for

MAX_INITIAL_SIGNAL = 0.1
"""Largest signal at level 0, as a fraction of the norm of the sample, with which level 0 counts as pure noise."""

MAX_ETA_AT_PURE_NOISE = 1 - 1e-6
"""Largest eta of DDIM's first step at zero terminal SNR. With eta 1, rounding can make the radicand 0 negative."""


class Schedule:
    """Noise levels of one request, and the steps between them.

    A schedule keeps the state of multistep methods. `step_tables` measures the coefficients of the steps with it.

    Attributes:
        name: The sampling method.
        steps: Number of steps.
        timesteps: Timestep of each network call.
        levels: (signal, noise) of each level: `calls` + 1 pairs, of which the last is (1, 0).
        warning: Warning that level 0 is not pure noise, or None.

    Args:
        model_scheduler: The scheduler that is saved with the model.
        options: The sampling parameters.
        clip: Whether predicted clean samples are clamped where the model sets `clip_sample`.

    Raises:
        ValueError: As `scheduler_for`.
    """

    def __init__(self, model_scheduler: Any, options: SchedulerOptions, *, clip: bool = True) -> None:
        self.name, self.steps = resolved(model_scheduler, options)
        self._method = METHODS[self.name]
        self._scheduler = scheduler_for(model_scheduler, options)
        if not clip and "clip_sample" in self._scheduler.config:
            self._scheduler.register_to_config(clip_sample=False)
        self._eta = options.eta
        self.timesteps: list[float] = self._scheduler.timesteps.tolist()
        self.levels = self._levels()
        self.warning = self._warning()

    @property
    def calls(self) -> int:
        """Number of network calls."""
        return len(self.timesteps)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the pure noise at level 0."""
        return float(getattr(self._scheduler, "init_noise_sigma", 1.0))

    @property
    def may_draw(self) -> bool:
        """True if the steps can draw noise from a generator."""
        return self._method.takes_generator and not (self._method.takes_eta and self._eta == 0)

    def begin(self, step: int) -> int:
        """Prepare to start at a step other than the first.

        Args:
            step: The first step, in [0, steps).

        Returns:
            The index of the first network call.

        Raises:
            ValueError: If `step` is out of range.
        """
        if not 0 <= step < self.steps:
            raise ValueError(f"start_step {step}: there are {self.steps} steps, use 0 to {self.steps - 1}")
        call = step * self._method.calls_per_step
        if hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(call)
        return call

    def network_input(self, sample: torch.Tensor, call: int) -> torch.Tensor:
        """Scale a sample to unit variance, as the network expects it at call `call`."""
        if not hasattr(self._scheduler, "scale_model_input"):
            return sample
        scaled: torch.Tensor = self._scheduler.scale_model_input(sample, self._scheduler.timesteps[call])
        return scaled

    def step(
        self, prediction: torch.Tensor, sample: torch.Tensor, call: int, generator: torch.Generator
    ) -> torch.Tensor:
        """Move a sample to the next level.

        Args:
            prediction: The network's prediction at call `call`, in the shape of `sample`.
            sample: The sample at level `call`.
            call: Index of the network call. Calls must be in order.
            generator: Source of the noise that the method adds.

        Returns:
            The sample at level `call` + 1.
        """
        options: dict[str, Any] = {"generator": generator} if self._method.takes_generator else {}
        if self._method.takes_eta:
            options["eta"] = min(self._eta, MAX_ETA_AT_PURE_NOISE) if self.levels[call][0] == 0 else self._eta
        if self.name == "ddim":
            self._set_ddim_end(call + 1)
        timestep = self._scheduler.timesteps[call]
        stepped: torch.Tensor = self._scheduler.step(prediction, timestep, sample, **options, return_dict=False)[0]
        return stepped

    def _set_ddim_end(self, level: int) -> None:
        """Make the next DDIM step end at `level`.

        diffusers' DDIM always subtracts num_train_timesteps // num_inference_steps from the timestep. If the division
        has a remainder, the sample would end between the timesteps that the network receives.
        """
        start, end = self.timesteps[level - 1], self.timesteps[level] if level < self.calls else -1
        self._scheduler.num_inference_steps = 1
        self._scheduler.register_to_config(num_train_timesteps=int(start - end))

    def _levels(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        one = torch.ones(())
        if not hasattr(self._scheduler, "sigmas"):
            alphas = self._scheduler.alphas_cumprod[self._scheduler.timesteps.long()]
            return [(alpha**0.5, (1 - alpha) ** 0.5) for alpha in alphas] + [(one, 0 * one)]
        match self._method.space:
            case "preserving":
                return [(1 / (sigma**2 + 1) ** 0.5, sigma / (sigma**2 + 1) ** 0.5) for sigma in self._scheduler.sigmas]
            case "exploding":
                return [(one, sigma) for sigma in self._scheduler.sigmas]
            case "flow":
                return [(1 - sigma, sigma) for sigma in self._scheduler.sigmas]

    @property
    def anchor(self) -> torch.Tensor | None:
        """The corrected sample of UniPC's last step. None for the other methods."""
        anchor: torch.Tensor | None = getattr(self._scheduler, "last_sample", None)
        return anchor

    def set_anchor(self, anchor: torch.Tensor) -> None:
        """Replace the corrected sample of UniPC's last step. Other methods have none."""
        if hasattr(self._scheduler, "last_sample"):
            self._scheduler.last_sample = anchor

    def _warning(self) -> str | None:
        signal, noise = self.levels[0]
        if signal / (signal**2 + noise**2) ** 0.5 <= MAX_INITIAL_SIGNAL:
            return None
        return (
            f"steps {self.steps} with {self.name}: sampling starts from noise at level {self.timesteps[0]:.0f} "
            f"of {self._scheduler.config.num_train_timesteps}, which is not pure noise"
        )
