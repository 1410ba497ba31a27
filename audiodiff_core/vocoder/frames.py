"""Short-time Fourier transform and its inverse, in chunks of frames.

Besides the signal itself, only the frames of one chunk are in memory.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import torch

from audiodiff_core.mel import MelConfig

CHUNK_SAMPLES_CPU = 1 << 17
"""Samples in the frames of one chunk on a CPU, so that a chunk stays in the cache of a core."""

CHUNK_SAMPLES = 1 << 26
"""Samples in the frames of one chunk on other devices: as many as memory allows, since few large calls are faster."""

MIN_WEIGHT = 1e-4
"""Minimum of the sum of squared windows, by which the overlap-add is divided.

If hop_length is near n_fft, the windows of all frames are near 0 at some samples. Division by a smaller sum would
amplify errors. With this minimum, the signal fades out at these samples.
"""


class Frames:
    """Hann-windowed frames at regular distances, and the signal that the frames cover.

    A signal (batch, span) covers all frames. Its sample n_fft // 2, the center of the first frame, is sample 0 of the
    audio. The audio ends at the center of the last frame, and the signal is silent outside the audio. Circular audio
    has a period of count * hop_length samples: the first frame follows the last. The signal then repeats the audio.

    Args:
        n_fft: Samples per frame.
        hop: Samples between the starts of frames, less than n_fft.
        count: Number of frames.
        device: Device of the signals.
        circular: Whether the audio is periodic.

    Attributes:
        n_fft: Samples per frame.
        hop: Samples between the starts of frames.
        count: Number of frames.
        circular: Whether the audio is periodic.
        length: Samples of the audio.
        span: Samples of the signal.

    Raises:
        ValueError: If the frames do not overlap.
    """

    def __init__(self, n_fft: int, hop: int, count: int, device: torch.device, circular: bool = False) -> None:
        if hop >= n_fft:
            raise ValueError(
                f"hop_length {hop} is not below n_fft {n_fft}: audio needs overlapping frames, use a smaller hop_length"
            )
        self.n_fft, self.hop, self.count, self.circular = n_fft, hop, count, circular
        self.length = (count if circular else count - 1) * self.hop
        self.span = (count - 1) * self.hop + self.n_fft
        self._chunk_samples = CHUNK_SAMPLES_CPU if device.type == "cpu" else CHUNK_SAMPLES
        self._window = torch.hann_window(self.n_fft, device=device)
        weight = self._overlap_add(
            (self._window.square().expand(1, chunk.stop - chunk.start, -1), chunk) for chunk in self._chunks(1)
        )
        self._weight = weight.clamp_(min=MIN_WEIGHT).reciprocal_()
        if not circular:
            self._weight[:, : self.n_fft // 2] = 0
            self._weight[:, self.n_fft // 2 + self.length :] = 0

    @classmethod
    def of(cls, config: MelConfig, count: int, device: torch.device, circular: bool = False) -> "Frames":
        """Return the frames of a mel configuration. Frames of the same geometry are made once and shared.

        Args:
            config: The mel configuration.
            count: Number of frames.
            device: Device of the signals.
            circular: Whether the audio is periodic.

        Raises:
            ValueError: If the frames do not overlap.
        """
        return _frames(config.n_fft, config.hop_length, count, device, circular)

    def analyze(self, signal: torch.Tensor, chunk: slice) -> torch.Tensor:
        """Compute the spectra of some frames.

        Args:
            signal: The signal (batch, span).
            chunk: The range of frames.

        Returns:
            Complex spectra (batch, frames of the chunk, 1 + n_fft // 2).
        """
        spectra: torch.Tensor = torch.fft.rfft(signal.unfold(-1, self.n_fft, self.hop)[:, chunk] * self._window)
        return spectra

    def synthesize(self, batch: int, spectra: Callable[[slice], torch.Tensor]) -> torch.Tensor:
        """Compute the signal whose spectra are nearest to the given spectra, in the least-squares sense.

        Args:
            batch: Number of signals.
            spectra: Function from a range of frames to their spectra (batch, frames, 1 + n_fft // 2). It is called
                once per chunk, in order.

        Returns:
            The signal (batch, span).
        """
        # Griffin & Lim 1984, eq. 6: overlap-add of the windowed frames over the sum of squared windows
        pieces = (
            (torch.fft.irfft(spectra(chunk), self.n_fft).mul_(self._window), chunk) for chunk in self._chunks(batch)
        )
        return self._overlap_add(pieces).mul_(self._weight)

    def audio(self, signal: torch.Tensor) -> torch.Tensor:
        """Return the audio (batch, length) in a signal (batch, span)."""
        if self.circular:
            return signal[:, : self.length].roll(-(self.n_fft // 2), -1)
        return signal[:, self.n_fft // 2 : self.n_fft // 2 + self.length]

    def signal(self, audio: torch.Tensor) -> torch.Tensor:
        """Extend audio (batch, length) to a signal (batch, span): with silence, or periodically if circular."""
        before, after = self.n_fft // 2, self.span - self.length - self.n_fft // 2
        if not self.circular:
            return torch.nn.functional.pad(audio, (before, after))
        periods = -(-self.span // self.length)
        return audio.roll(before, -1).repeat(1, periods)[:, : self.span]

    def _chunks(self, batch: int) -> Iterator[slice]:
        step = max(1, self._chunk_samples // (batch * self.n_fft))
        return (slice(start, min(start + step, self.count)) for start in range(0, self.count, step))

    def _overlap_add(self, pieces: Iterator[tuple[torch.Tensor, slice]]) -> torch.Tensor:
        """Overlap-add (frames, chunk) pairs to a signal (batch, span). The frames are (batch, chunk, n_fft)."""
        parts = -(-self.n_fft // self.hop)
        blocks: torch.Tensor | None = None
        for piece, chunk in pieces:
            if blocks is None:
                blocks = piece.new_zeros(len(piece), self.count + parts - 1, self.hop)
            for part in range(parts):
                share = piece[:, :, part * self.hop : (part + 1) * self.hop]
                blocks[:, chunk.start + part : chunk.stop + part, : share.shape[-1]] += share
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


@lru_cache(maxsize=4)
def _frames(n_fft: int, hop: int, count: int, device: torch.device, circular: bool) -> Frames:
    return Frames(n_fft, hop, count, device, circular)
