"""Mel images -> waveforms.

1. `mel_inverse`: mel power -> linear power, by non-negative least squares (multiplicative updates, Lee & Seung 2001, from the
   pseudo-inverse as a start).
2. `griffin_lim`: linear magnitude -> waveform, phases from the item's seed (fast Griffin-Lim, Perraudin, Balazs & Sondergaard 2013).
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from audiodiff_core import seeds as streams
from audiodiff_core.audio import Samples
from audiodiff_core.mel import Images, Mel, MelConfig, filterbank

MOMENTUM = 0.99
NNLS_UPDATES = 10
TINY = 1e-12
LEAST_WEIGHT = 1e-4


class Vocoder(Protocol):
    """Turns images of one mel configuration into audio. A caller compares `config` with its model's before use."""

    config: MelConfig

    def __call__(self, images: Images, seeds: Sequence[int], circular: bool = False) -> Samples:
        """Images (batch, y_res, width), a seed per item -> audio (batch, (width - 1) * hop_length).

        Circular: the image is one period of a loop, whose last frame is followed by its first; so is the audio (batch, width * hop_length).
        """
        ...


class GriffinLim:
    """Phase reconstruction from the mel image alone. Items are done one by one on a CPU, so that none depends on its neighbours."""

    def __init__(self, config: MelConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.device = torch.device(device)
        basis = torch.from_numpy(filterbank(config))
        self._basis = basis.to(self.device)
        self._pseudo_inverse = torch.linalg.pinv(basis.double()).float().to(self.device)
        self._gram = (basis.double().T @ basis.double()).float().to(self.device)
        self._window = torch.hann_window(config.n_fft, device=self.device)

    def __call__(self, images: Images, seeds: Sequence[int], circular: bool = False) -> Samples:
        if len(images) != len(seeds):
            raise ValueError(f"{len(images)} images with {len(seeds)} seeds: each needs one")
        batch = 1 if self.device.type == "cpu" else len(images)
        power = Mel(self.config).power(images)
        parts = [self._reconstruct(power[i : i + batch], seeds[i : i + batch], circular) for i in range(0, len(images), batch)]
        return np.concatenate(parts)

    @torch.inference_mode()
    def _reconstruct(self, power: np.ndarray, seeds: Sequence[int], circular: bool) -> Samples:
        magnitude = self.mel_inverse(torch.from_numpy(power).to(self.device)).sqrt()
        shape = magnitude.shape[1:]
        phase = torch.stack([torch.rand(shape, generator=streams.derived(seed, "phase")) for seed in seeds]).to(self.device)
        return self.griffin_lim(magnitude, phase * (2 * torch.pi), circular).cpu().numpy()

    def mel_inverse(self, mel_power: torch.Tensor) -> torch.Tensor:
        """(batch, y_res, frames) -> non-negative (batch, 1 + n_fft // 2, frames) whose mel power is close to the given one."""
        linear: torch.Tensor = (self._pseudo_inverse @ mel_power).clamp_(min=TINY)
        numerator = self._basis.T @ mel_power
        for _ in range(NNLS_UPDATES):
            linear *= numerator / (self._gram @ linear + TINY)
        return linear

    def griffin_lim(self, magnitude: torch.Tensor, phase: torch.Tensor, circular: bool = False) -> torch.Tensor:
        """Magnitude and first phases (batch, 1 + n_fft // 2, frames) -> audio (batch, (frames - 1) * hop_length), circular: (batch, frames * hop_length)."""
        magnitude, phase = magnitude.mT.contiguous(), phase.mT.contiguous()
        frames = Frames(self.config, magnitude.shape[1], circular, self.device)
        rotation = torch.polar(torch.ones_like(magnitude), phase)
        previous = torch.zeros_like(rotation)
        for _ in range(self.config.n_iter):
            rebuilt = frames.analyse(frames.synthesise(magnitude * rotation))
            rotation = rebuilt - MOMENTUM / (1 + MOMENTUM) * previous
            rotation /= rotation.abs() + TINY
            previous = rebuilt
        return frames.audio(frames.synthesise(magnitude * rotation))


class Frames:
    """Short-time spectra (batch, frames, 1 + n_fft // 2) <-> the signal under them (batch, (frames - 1) * hop_length + n_fft), whose sample 0
    lies n_fft // 2 samples in. Circular: the signal has a period of frames * hop_length samples."""

    def __init__(self, config: MelConfig, frames: int, circular: bool, device: torch.device) -> None:
        self.n_fft, self.hop, self.frames = config.n_fft, config.hop_length, frames
        self.length = frames * self.hop if circular else (frames - 1) * self.hop
        self.span = (frames - 1) * self.hop + self.n_fft
        self.circular = circular
        self._window = torch.hann_window(self.n_fft, device=device)
        weight = self._overlap_add(self._window.square().expand(1, frames, -1))
        weight = 1 / weight.clamp_(min=LEAST_WEIGHT)
        if not circular:
            weight[:, : self.n_fft // 2] = 0
            weight[:, self.n_fft // 2 + self.length :] = 0
        self._weight = weight

    def analyse(self, signal: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft(signal.unfold(-1, self.n_fft, self.hop) * self._window)

    def synthesise(self, spectrum: torch.Tensor) -> torch.Tensor:
        """The signal whose spectra are nearest to the given ones (Griffin & Lim 1984, equation 6)."""
        pieces = torch.fft.irfft(spectrum, self.n_fft)
        pieces *= self._window
        return self._overlap_add(pieces).mul_(self._weight)

    def audio(self, signal: torch.Tensor) -> torch.Tensor:
        """The signal from sample 0 on, without what lies beyond the ends."""
        if self.circular:
            return signal[:, : self.length].roll(-(self.n_fft // 2), -1)
        return signal[:, self.n_fft // 2 : self.n_fft // 2 + self.length]

    def _overlap_add(self, pieces: torch.Tensor) -> torch.Tensor:
        batch = len(pieces)
        parts = -(-self.n_fft // self.hop)
        blocks = pieces.new_zeros(batch, self.frames + parts - 1, self.hop)
        for part in range(parts):
            piece = pieces[:, :, part * self.hop : (part + 1) * self.hop]
            blocks[:, part : part + self.frames, : piece.shape[-1]] += piece
        signal = blocks.view(batch, -1)
        if not self.circular:
            return signal[:, : self.span]
        periods = -(-signal.shape[1] // self.length)
        wrapped = torch.nn.functional.pad(signal, (0, periods * self.length - signal.shape[1])).view(batch, periods, self.length).sum(1)
        return wrapped.repeat(1, periods)[:, : self.span]
