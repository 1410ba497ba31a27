"""Mel power <-> linear power, through the few bins that each band spans."""

import numpy as np
import torch

from audiodiff_core.mel import MelConfig, filterbank

BLOCK_BANDS_CPU = 32
"""Neighbouring bands that are done as one: their triangles span few bins. Other devices do all bands as one."""

UPDATES = 20
TINY = 1e-20


class Bands:
    """The filterbank of one MelConfig on one device, in blocks of neighbouring bands."""

    def __init__(self, config: MelConfig, device: torch.device) -> None:
        basis = filterbank(config)
        self.bins = basis.shape[1]
        size = BLOCK_BANDS_CPU if device.type == "cpu" else config.y_res
        self._blocks = []
        for start in range(0, config.y_res, size):
            bands = slice(start, min(start + size, config.y_res))
            used = np.flatnonzero(basis[bands].any(axis=0))
            bins = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0)
            self._blocks.append((bands, bins, torch.from_numpy(np.ascontiguousarray(basis[bands, bins].T)).to(device)))
        weight = basis.sum(axis=0)
        self._inverse_weight = torch.from_numpy(np.divide(1, weight, out=np.zeros_like(weight), where=weight > 0)).to(
            device
        )

    def gather(self, power: torch.Tensor) -> torch.Tensor:
        """Linear power (..., bins) -> mel power (..., bands)."""
        return torch.cat([power[..., bins] @ weights for _, bins, weights in self._blocks], -1)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Values of bands (..., bands) -> for each bin the mean over its bands, weighted as they weight it (..., bins); 0 for a bin in no band."""
        spread = values.new_zeros(*values.shape[:-1], self.bins)
        for bands, bins, weights in self._blocks:
            spread[..., bins] += values[..., bands] @ weights.mT
        return spread.mul_(self._inverse_weight)

    def invert(self, mel_power: torch.Tensor) -> torch.Tensor:
        """Mel power (..., bands) -> linear power (..., bins) of nearly that mel power: non-negative, by multiplicative updates for the
        Kullback-Leibler divergence (Lee & Seung 2001)."""
        linear = self.spread(mel_power / self.gather(mel_power.new_ones(self.bins)).add_(TINY))
        for _ in range(UPDATES):
            linear *= self.spread(mel_power / self.gather(linear).add_(TINY))
        return linear


def power_of(spectra: torch.Tensor) -> torch.Tensor:
    """Complex spectra -> their power, without the square root and the temporaries of `abs`."""
    parts = torch.view_as_real(spectra)
    return parts[..., 0].square().addcmul_(parts[..., 1], parts[..., 1])
