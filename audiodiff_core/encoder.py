"""Audio -> embeddings: what conditional models are told of a sound, and what sets of sounds are compared by.

`load_encoder` reads a folder or a Hugging Face id and tells by its config.json which of two it is:
- the original's AudioEncoder (teticio/audio-encoder), a small network over mel images, trained on which tracks share playlists;
- a CLAP (Wu et al., "Large-scale contrastive language-audio pretraining", 2023), which embeds text too, in the same space
  (transformers' ClapModel: the extra `clap`).

An item's embedding does not depend on its neighbours: batches have one fixed shape, texts are done one by one. Nothing is unpickled but tensors.
"""

import hashlib
import importlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from audiodiff_core.audio import Samples
from audiodiff_core.embeddings.encoder_folder import encoder_repository, local_folder, read_config
from audiodiff_core.mel import IMAGE_MAX, Images, Mel, MelConfig

Embeddings = npt.NDArray[np.float32]
Pooling = Literal["average", "max"]

BATCH_SIZE = 16
LARGEST_WEIGHTS = 1 << 30
"""Bytes; the published AudioEncoder has 170 million."""


class Encoder(Protocol):
    """Turns audio into vectors. Two encoders with the same digest give the same."""

    name: str
    """As `load_encoder` takes it: `audio-encoder:SOURCE` or `clap:SOURCE`."""

    @property
    def dim(self) -> int: ...

    @property
    def sample_rate(self) -> int:
        """In Hz, of the audio that `encode` takes."""
        ...

    @property
    def digest(self) -> str:
        """Names weights and settings: 16 hex digits."""
        ...

    def encode(self, audios: Sequence[Samples], sample_rate: int) -> Embeddings:
        """Audios (n_i,) of any lengths at `sample_rate` Hz -> (len(audios), dim).

        Raises ValueError for another rate than the encoder's, and for audio that is empty, not mono or not finite.
        """
        ...


def load_encoder(source: str | Path, device: torch.device | str = "cpu") -> Encoder:
    """The encoder at `source`: a local folder or a Hugging Face id, with or without the prefix that says which kind is expected.

    Raises ValueError where there is none, it is of another kind, cannot be read, or needs a package that is not installed.
    """
    expected, name = _parts(str(source))
    name = encoder_repository(name)
    folder = local_folder(name)
    config = read_config(folder, name)
    kind = "audio-encoder" if config.get("_class_name") == "AudioEncoder" else str(config.get("model_type"))
    if kind not in ("audio-encoder", "clap") or expected not in (None, kind):
        raise ValueError(f"encoder {source}: its config.json is of {kind}, {expected or 'audio-encoder or clap'} can be loaded")
    if kind == "clap":
        return ClapEncoder(name, folder, device)
    return AudioEncoder.of(folder, f"audio-encoder:{name}").to(device)


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
        from audiodiff_core.checkpoint.weight_files import DIFFUSERS, weight_files  # their import takes a while
        from audiodiff_core.checkpoint.weights import read_weight_files

        with torch.device("meta"):
            encoder = cls(name)
        files: list[Path] = []
        try:
            tensors = weight_files(folder, DIFFUSERS, LARGEST_WEIGHTS)
            files = list(tensors)
            encoder.load_state_dict({key: weight.clone() for key, weight in read_weight_files(tensors).items()}, assign=True)
        except Exception as error:  # what weights that do not fit make torch raise is its own
            place = files[0] if len(files) == 1 else folder
            raise ValueError(f"encoder {place}: cannot be loaded ({' '.join(str(error).split())[:300]})") from error
        return encoder.float()

    @property
    def digest(self) -> str:
        return _digest_of(self, self.mel.digest)

    def encode(self, audios: Sequence[Samples], sample_rate: int, pool: Pooling = "average") -> Embeddings:
        """As `Encoder.encode`: the average or the maximum, number by number, over an audio's slices."""
        if pool not in ("average", "max"):
            raise ValueError(f"pool {pool}: average and max are known; `encode_slices` gives all")
        each = self.encode_slices(audios, sample_rate)
        return np.stack([slices.mean(axis=0) if pool == "average" else slices.max(axis=0) for slices in each])

    @torch.inference_mode()
    def encode_slices(self, audios: Sequence[Samples], sample_rate: int) -> list[Embeddings]:
        """For each audio (slices, 100): one after the other from its beginning, the tail dropped; one alone, padded with silence, of a shorter audio."""
        _check(audios, sample_rate, self.sample_rate, self.name)
        assert not self.training
        size, analysis = self.mel.slice_size, Mel(self.mel)
        counts = [max(1, len(audio) // size) for audio in audios]
        cut = (audio[index * size : (index + 1) * size] for audio, count in zip(audios, counts, strict=True) for index in range(count))
        images = (analysis.images(piece[np.newaxis])[0] for piece in cut)
        parts = [self._embedded(np.stack(batch)) for batch in _batches(images)]
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


class ClapEncoder:
    """A CLAP model, for audio and for text: unit vectors, alike where sound and words belong together."""

    def __init__(self, source: str | Path, folder: Path | None = None, device: torch.device | str = "cpu") -> None:
        """`source`: a folder of transformers' or a Hugging Face id; `folder`: where its files lie, if that is known."""
        try:
            transformers: Any = importlib.import_module("transformers")
        except ModuleNotFoundError as error:
            raise ValueError(f"encoder {source}: CLAP needs transformers ({error}): pip install 'audiodiff[clap]'") from error
        from audiodiff_core.embeddings.clap_files import load_clap  # its import takes a while

        self.name = f"clap:{source}"
        folder = folder or local_folder(str(source))
        try:
            model, self.features, self.tokenizer = load_clap(transformers, folder)
        except Exception as error:  # what a damaged file makes transformers raise is its own
            raise ValueError(f"encoder {source}: cannot be loaded ({' '.join(str(error).split())[:300]})") from error
        self.model: Any = model.to(device)

    @property
    def dim(self) -> int:
        return int(self.model.config.projection_dim)

    @property
    def sample_rate(self) -> int:
        return int(self.features.sampling_rate)

    @cached_property
    def digest(self) -> str:
        return _digest_of(self.model, json.dumps(self.features.to_dict(), sort_keys=True, default=str))

    @torch.inference_mode()
    def encode(self, audios: Sequence[Samples], sample_rate: int) -> Embeddings:
        """As `Encoder.encode`: the mean direction of an audio's windows (10 s for the published models), the last counted from half a window on.

        (CLAP's own feature extractor takes windows at random from longer audio; these are all of them, so the result is always the same.)
        """
        _check(audios, sample_rate, self.sample_rate, self.name)
        size = int(self.features.nb_max_samples)
        counts = [max(1, (len(audio) + size // 2) // size) for audio in audios]
        cut = (audio[index * size : (index + 1) * size] for audio, count in zip(audios, counts, strict=True) for index in range(count))
        parts = []
        for batch in _batches(self.features(window, sampling_rate=sample_rate, return_tensors="np")["input_features"][0] for window in cut):
            inputs = torch.from_numpy(np.stack(batch).astype(np.float32)).to(self.model.device)
            whole = torch.zeros((len(batch), 1), dtype=torch.bool, device=self.model.device)
            parts.append(self.model.get_audio_features(input_features=inputs, is_longer=whole).pooler_output.float().cpu().numpy())
        windows = np.split(np.concatenate(parts)[: sum(counts)], np.cumsum(counts)[:-1])
        means: Embeddings = np.stack([each.mean(axis=0) for each in windows])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        return means

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> Embeddings:
        """Texts, such as 'a slow drum loop' -> (len(texts), dim); longer ones than the model takes are cut."""
        if not texts:
            raise ValueError("texts: none are given")
        longest = int(self.model.config.text_config.max_position_embeddings) - 2  # RoBERTa's positions begin at 2
        rows = []
        for text in texts:
            tokens = self.tokenizer(text, truncation=True, max_length=longest, return_tensors="pt").to(self.model.device)
            output = self.model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            rows.append(output.pooler_output[0].float().cpu().numpy())
        return np.stack(rows)


def _batches(items: Iterable[npt.NDArray[Any]]) -> Iterator[list[npt.NDArray[Any]]]:
    """The items in lists of BATCH_SIZE, the last filled up with zeros: the shape of a batch moves the last bits of all in it."""
    waiting = iter(items)
    while batch := list(islice(waiting, BATCH_SIZE)):
        yield batch + [np.zeros_like(batch[0])] * (BATCH_SIZE - len(batch))


def _check(audios: Sequence[Samples], sample_rate: int, expected: int, name: str) -> None:
    if sample_rate != expected:
        raise ValueError(f"sample_rate {sample_rate}: encoder {name} takes audio at {expected} Hz")
    if not len(audios):
        raise ValueError("audios: none are given")
    for index, audio in enumerate(audios):
        if audio.ndim != 1 or not len(audio):
            raise ValueError(f"audios[{index}] of shape {audio.shape}: mono samples (n,) are needed")
        if not np.isfinite(audio).all():
            raise ValueError(f"audios[{index}] holds NaN or infinite samples")


def _digest_of(network: nn.Module, settings: str) -> str:
    """The first 16 hex digits of the SHA-256 of settings and weights, whatever file they came from."""
    total = hashlib.sha256(settings.encode())
    for key, value in sorted(network.state_dict().items()):
        total.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()[:16]


def _parts(source: str) -> tuple[str | None, str]:
    """The kind that a prefix states, if one does, and the rest."""
    kind, colon, rest = source.partition(":")
    return (kind, rest) if colon and kind in ("audio-encoder", "clap") else (None, source)
