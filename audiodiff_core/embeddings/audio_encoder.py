"""The original's AudioEncoder (teticio/audio-encoder): a small network over mel images, trained on playlists."""

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
LARGEST_ENCODER_WEIGHTS = 1 << 30
"""Bytes; the published AudioEncoder has 170 million."""


class AudioEncoder(nn.Module):
    """The original's network, by its state-dict keys: slices of 5.015 s as images (slices, 1, 96, 216) in [0, 1] -> (slices, 100)."""

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
        for block in self.conv_blocks:
            x = block(x)
        embedding: torch.Tensor = self.embedding(self.dense_block(x))
        return embedding

    @classmethod
    def of(cls, folder: Path, name: str) -> Self:
        """Load the weights in a folder that diffusers or the original wrote. Raises ValueError for weights that are not those of this network."""
        from audiodiff_core.files.weight_files import DIFFUSERS, weight_files  # their import takes a while
        from audiodiff_core.files.weights import read_weight_files

        with torch.device("meta"):
            encoder = cls(name)
        files: list[Path] = []
        try:
            tensors = weight_files(folder, DIFFUSERS, LARGEST_ENCODER_WEIGHTS)
            files = list(tensors)
            encoder.load_state_dict(
                {key: weight.clone() for key, weight in read_weight_files(tensors).items()}, assign=True
            )
        except Exception as error:  # what weights that do not fit make torch raise is its own
            place = files[0] if len(files) == 1 else folder
            raise ValueError(f"encoder {place}: cannot be loaded ({' '.join(str(error).split())[:300]})") from error
        return encoder.float()

    @property
    def digest(self) -> str:
        return encoder_digest(self, self.mel.digest)

    def encode(self, audios: Sequence[Samples], sample_rate: int, pool: Pooling = "average") -> Embeddings:
        """As `Encoder.encode`: the average or the maximum, number by number, over an audio's slices."""
        if pool not in ("average", "max"):
            raise ValueError(f"pool {pool}: average and max are known; `encode_slices` gives all")
        each = self.encode_slices(audios, sample_rate)
        return np.stack([slices.mean(axis=0) if pool == "average" else slices.max(axis=0) for slices in each])

    @torch.inference_mode()
    def encode_slices(self, audios: Sequence[Samples], sample_rate: int) -> list[Embeddings]:
        """For each audio (slices, 100): one after the other from its beginning, the tail dropped; one alone, padded with silence, of a shorter audio."""
        check_audios(audios, sample_rate, self.sample_rate, self.name)
        assert not self.training
        size, analysis = self.mel.slice_size, Mel(self.mel)
        counts = [max(1, len(audio) // size) for audio in audios]
        cut = (
            audio[index * size : (index + 1) * size]
            for audio, count in zip(audios, counts, strict=True)
            for index in range(count)
        )
        images = (analysis.images(piece[np.newaxis])[0] for piece in cut)
        parts = [self._embedded(np.stack(batch)) for batch in batches(images)]
        return np.split(np.concatenate(parts)[: sum(counts)], np.cumsum(counts)[:-1])

    def _embedded(self, images: Images) -> Embeddings:
        """(batch, 1, 96, 216) bytes -> (batch, 100)."""
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
    """Halves both sides. (The original's dropout, which matters to its training alone, is left out here and below.)"""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.sep_conv = _SeparableConv2d(channels, out_channels)
        self.batch_norm = nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = nn.functional.leaky_relu(self.sep_conv(x), 0.2)
        return nn.functional.max_pool2d(self.batch_norm(activated), 2)


class _DenseBlock(nn.Module):
    """(batch, channels, height, width) -> (batch, features), the channels being the fastest to vary in what is flattened."""

    def __init__(self, in_features: int, features: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, features)
        self.batch_norm = nn.BatchNorm1d(features, eps=1e-3, momentum=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.batch_norm(nn.functional.leaky_relu(self.dense(x.permute(0, 2, 3, 1).flatten(1)), 0.2))
        return out
