"""AudioEncoder of the original project (teticio/audio-encoder): a small network over mel images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from torch import nn

from audiodiff_core.audio import Samples
from audiodiff_core.embeddings.inputs import Embeddings, batches, check_audios, encoder_digest
from audiodiff_core.mel import IMAGE_MAX, Images, Mel, MelConfig

Pooling = Literal["average", "max"]
MAX_ENCODER_BYTES = 1 << 30
"""Maximum size of the weights, in bytes. The published AudioEncoder has 170 million bytes."""


class AudioEncoder(nn.Module):
    """Encoder over mel images of 5.015 s, with the original project's state-dict keys."""

    mel = MelConfig(x_res=216, y_res=96, sample_rate=22_050, n_fft=2_048, hop_length=512, top_db=80)
    dim = 100
    sample_rate = mel.sample_rate

    def __init__(self, name: str = "audio-encoder") -> None:
        super().__init__()
        self.name = name
        self.conv_blocks = nn.ModuleList([_ConvBlock(1, 32), _ConvBlock(32, 64), _ConvBlock(64, 128)])
        self.dense_block = _DenseBlock(128 * (self.mel.y_res // 8) * (self.mel.x_res // 8), 1_024)
        self.embedding = nn.Linear(1_024, self.dim)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embed images.

        Args:
            x: Mel images of shape (batch, 1, 96, 216), in [0, 1].

        Returns:
            Embeddings of shape (batch, 100).
        """
        for block in self.conv_blocks:
            x = block(x)
        embedding: torch.Tensor = self.embedding(self.dense_block(x))
        return embedding

    @classmethod
    def of(cls, folder: Path, name: str) -> Self:
        """Create an encoder with the weights in a folder.

        Args:
            folder: A folder that diffusers or the original project wrote.
            name: Value of the attribute `name`.

        Raises:
            ValueError: If the weights cannot be read, or do not match this network.
        """
        from audiodiff_core.files.weight_files import DIFFUSERS, weight_files  # slow to import
        from audiodiff_core.files.weights import read_weight_files

        with torch.device("meta"):
            encoder = cls(name)
        files: list[Path] = []
        try:
            tensors = weight_files(folder, DIFFUSERS, MAX_ENCODER_BYTES)
            files = list(tensors)
            encoder.load_state_dict(
                {key: weight.clone() for key, weight in read_weight_files(tensors).items()}, assign=True
            )
        except Exception as error:  # torch raises several kinds of errors for weights that do not match
            path = files[0] if len(files) == 1 else folder
            raise ValueError(f"encoder {path}: cannot be loaded ({' '.join(str(error).split())[:300]})") from error
        return encoder.float()

    @property
    def digest(self) -> str:
        """Digest of weights and settings, as 16 hex digits."""
        return encoder_digest(self, self.mel.digest)

    def encode(self, audios: Sequence[Samples], sample_rate: int, pool: Pooling = "average") -> Embeddings:
        """Embed audio. See `Encoder.encode`.

        Args:
            audios: Mono samples of shape (n,). Lengths may differ.
            sample_rate: Sample rate of `audios`, in Hz.
            pool: Elementwise pooling over the slices of an audio.

        Returns:
            Embeddings of shape (len(audios), 100).

        Raises:
            ValueError: If an argument is invalid.
        """
        if pool not in ("average", "max"):
            raise ValueError(f"pool {pool}: must be average or max; use `encode_slices` for all slices")
        embeddings = self.encode_slices(audios, sample_rate)
        return np.stack([slices.mean(axis=0) if pool == "average" else slices.max(axis=0) for slices in embeddings])

    @torch.inference_mode()
    def encode_slices(self, audios: Sequence[Samples], sample_rate: int) -> list[Embeddings]:
        """Embed each slice of 5.015 s.

        Slices do not overlap. The tail of an audio is dropped. An audio shorter than a slice is padded with silence.

        Args:
            audios: Mono samples of shape (n,). Lengths may differ.
            sample_rate: Sample rate of `audios`, in Hz.

        Returns:
            For each audio, embeddings of shape (slices, 100).

        Raises:
            ValueError: If an argument is invalid. See `Encoder.encode`.
        """
        check_audios(audios, sample_rate, self.sample_rate, self.name)
        assert not self.training
        size, analysis = self.mel.slice_size, Mel(self.mel)
        counts = [max(1, len(audio) // size) for audio in audios]
        slices = (
            audio[index * size : (index + 1) * size]
            for audio, count in zip(audios, counts, strict=True)
            for index in range(count)
        )
        images = (analysis.images(samples[np.newaxis])[0] for samples in slices)
        parts = [self._embed_images(np.stack(batch)) for batch in batches(images)]
        return np.split(np.concatenate(parts)[: sum(counts)], np.cumsum(counts)[:-1])

    def _embed_images(self, images: Images) -> Embeddings:
        """Return embeddings of shape (batch, 100) for images of shape (batch, 1, 96, 216)."""
        x = torch.from_numpy(images.astype(np.float32) / IMAGE_MAX).to(self.embedding.weight.device)
        embedding: Embeddings = self(x).float().cpu().numpy()
        return embedding


class _SeparableConv2d(nn.Module):
    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.pointwise(self.depthwise(x))
        return out


class _ConvBlock(nn.Module):
    """Block that halves height and width.

    The dropout of the original block is omitted, because it has an effect only in training.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.sep_conv = _SeparableConv2d(channels, out_channels)
        self.batch_norm = nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = nn.functional.leaky_relu(self.sep_conv(x), 0.2)
        return nn.functional.max_pool2d(self.batch_norm(activated), 2)


class _DenseBlock(nn.Module):
    """Linear block over flattened images. Channels are the last dimension before flattening."""

    def __init__(self, in_features: int, features: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, features)
        self.batch_norm = nn.BatchNorm1d(features, eps=1e-3, momentum=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.batch_norm(nn.functional.leaky_relu(self.dense(x.permute(0, 2, 3, 1).flatten(1)), 0.2))
        return out
