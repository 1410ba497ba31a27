"""Short-time spectra <-> the signal under them, a portion of the frames at a time: the memory beyond the signal is that of a portion."""

from collections.abc import Callable, Iterator

import torch

from audiodiff_core.mel import MelConfig

PORTION_SAMPLES_CPU = 1 << 17
"""So many samples under the frames of a portion stay in a core's cache."""

PORTION_SAMPLES = 1 << 26
"""On other devices a portion is as large as memory allows: few calls keep them busy."""

LEAST_WEIGHT = 1e-4
"""Where the squared windows sum to less (hop_length near n_fft), nearly nothing is known of the signal: it fades instead of being amplified."""


class Frames:
    """Hann-windowed frames of n_fft samples, `count` of them hop_length apart, in a signal (batch, span) whose sample 0 lies n_fft // 2 in.

    The signal ends with the last frame's middle, outside is silence; circular: it has a period of count * hop_length samples, so that the
    first frame follows the last. The span then holds copies of the period's samples.
    """

    def __init__(self, config: MelConfig, count: int, device: torch.device, circular: bool = False) -> None:
        if config.hop_length >= config.n_fft:
            raise ValueError(
                f"hop_length {config.hop_length} is not below n_fft {config.n_fft}: no audio can be made from frames that do not overlap"
            )
        self.n_fft, self.hop, self.count, self.circular = config.n_fft, config.hop_length, count, circular
        self.length = (count if circular else count - 1) * self.hop
        self.span = (count - 1) * self.hop + self.n_fft
        self._portion_samples = PORTION_SAMPLES_CPU if device.type == "cpu" else PORTION_SAMPLES
        self._window = torch.hann_window(self.n_fft, device=device)
        weight = self._gather(
            (self._window.square().expand(1, portion.stop - portion.start, -1), portion)
            for portion in self._portions(1)
        )
        self._weight = weight.clamp_(min=LEAST_WEIGHT).reciprocal_()
        if not circular:
            self._weight[:, : self.n_fft // 2] = 0
            self._weight[:, self.n_fft // 2 + self.length :] = 0

    def analyse(self, signal: torch.Tensor, portion: slice) -> torch.Tensor:
        """Signal (batch, span) -> spectra (batch, frames of the portion, 1 + n_fft // 2)."""
        spectra: torch.Tensor = torch.fft.rfft(signal.unfold(-1, self.n_fft, self.hop)[:, portion] * self._window)
        return spectra

    def synthesise(self, batch: int, spectra: Callable[[slice], torch.Tensor]) -> torch.Tensor:
        """`spectra`, asked for one portion after another -> the signal (batch, span) whose spectra are nearest to them (Griffin & Lim 1984, eq. 6)."""
        pieces = (
            (torch.fft.irfft(spectra(portion), self.n_fft).mul_(self._window), portion)
            for portion in self._portions(batch)
        )
        return self._gather(pieces).mul_(self._weight)

    def audio(self, signal: torch.Tensor) -> torch.Tensor:
        """Signal (batch, span) -> its samples from 0 on (batch, length)."""
        if self.circular:
            return signal[:, : self.length].roll(-(self.n_fft // 2), -1)
        return signal[:, self.n_fft // 2 : self.n_fft // 2 + self.length]

    def signal(self, audio: torch.Tensor) -> torch.Tensor:
        """The inverse of `audio`."""
        before, after = self.n_fft // 2, self.span - self.length - self.n_fft // 2
        if not self.circular:
            return torch.nn.functional.pad(audio, (before, after))
        periods = -(-self.span // self.length)
        return audio.roll(before, -1).repeat(1, periods)[:, : self.span]

    def _portions(self, batch: int) -> Iterator[slice]:
        step = max(1, self._portion_samples // (batch * self.n_fft))
        return (slice(start, min(start + step, self.count)) for start in range(0, self.count, step))

    def _gather(self, pieces: Iterator[tuple[torch.Tensor, slice]]) -> torch.Tensor:
        """Pieces (batch, frames of a portion, n_fft) with their portion -> their sum, each in its place (batch, span)."""
        parts = -(-self.n_fft // self.hop)
        blocks: torch.Tensor | None = None
        for piece, portion in pieces:
            if blocks is None:
                blocks = piece.new_zeros(len(piece), self.count + parts - 1, self.hop)
            for part in range(parts):
                share = piece[:, :, part * self.hop : (part + 1) * self.hop]
                blocks[:, portion.start + part : portion.stop + part, : share.shape[-1]] += share
        assert blocks is not None
        signal = blocks.view(len(blocks), -1)
        if not self.circular:
            return signal[:, : self.span]
        periods = -(-signal.shape[1] // self.length)
        wrapped = (
            torch.nn.functional.pad(signal, (0, periods * self.length - signal.shape[1]))
            .view(len(signal), periods, self.length)
            .sum(1)
        )
        return wrapped.repeat(1, periods)[:, : self.span]
