"""Conversion between mel power and linear power, restricted to the bins that each band covers."""

import numpy as np
import torch

from audiodiff_core.mel import MelConfig, filterbank

BLOCK_BANDS_CPU = 32
"""Neighboring bands per matrix product on a CPU. Their filters cover few bins. Other devices use one block."""

UPDATES = 20
"""Number of updates of the linear power in `Bands.invert`."""

EPSILON = 1e-20
"""Value added to divisors that can be 0."""


class Bands:
    """Mel filterbank on a device, in blocks of neighboring bands.

    Args:
        config: The mel configuration.
        device: Device of the filterbank.

    Attributes:
        bins: Number of linear frequency bins.
    """

    def __init__(self, config: MelConfig, device: torch.device) -> None:
        basis = filterbank(config)
        self.bins = basis.shape[1]
        size = BLOCK_BANDS_CPU if device.type == "cpu" else config.y_res
        self._blocks = []
        for start in range(0, config.y_res, size):
            bands = slice(start, min(start + size, config.y_res))
            used = np.flatnonzero(basis[bands].any(axis=0))
            bins = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0)
            self._blocks.append((bands, bins, torch.from_numpy(basis[bands, bins].T.copy(order="C")).to(device)))
        weight = basis.sum(axis=0)
        self._inverse_weight = torch.from_numpy(np.divide(1, weight, out=np.zeros_like(weight), where=weight > 0)).to(
            device
        )

    def gather(self, power: torch.Tensor) -> torch.Tensor:
        """Convert linear power (..., bins) to mel power (..., bands)."""
        return torch.cat([power[..., bins] @ weights for _, bins, weights in self._blocks], -1)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Average band values for each bin.

        Args:
            values: Values (..., bands).

        Returns:
            For each bin, the mean over its bands, weighted by the filterbank: (..., bins). A bin without bands gets 0.
        """
        spread = values.new_zeros(*values.shape[:-1], self.bins)
        for bands, bins, weights in self._blocks:
            spread[..., bins] += values[..., bands] @ weights.mT
        return spread.mul_(self._inverse_weight)

    def invert(self, mel_power: torch.Tensor) -> torch.Tensor:
        """Estimate non-negative linear power from mel power.

        Args:
            mel_power: Mel power (..., bands).

        Returns:
            Linear power (..., bins), whose mel power is close to `mel_power`.
        """
        # Multiplicative updates that reduce the Kullback-Leibler divergence (Lee & Seung 2001)
        linear = self.spread(mel_power / self.gather(mel_power.new_ones(self.bins)).add_(EPSILON))
        for _ in range(UPDATES):
            linear *= self.spread(mel_power / self.gather(linear).add_(EPSILON))
        return linear


def power_of(spectra: torch.Tensor) -> torch.Tensor:
    """Return the power of complex spectra, without the square root and the temporary tensors of `abs`."""
    parts = torch.view_as_real(spectra)
    return parts[..., 0].square().addcmul_(parts[..., 1], parts[..., 1])
