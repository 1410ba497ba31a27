"""Published neural vocoders, loaded from a folder or from the Hugging Face Hub.

Each vocoder needs an extra: `pip install audiodiff[vocos]` or `pip install audiodiff[bigvgan]`. The sample rate, n_fft
and hop_length of a checkpoint must equal those of the mel configuration. The filterbanks may differ (`LogMagnitude`).

Checkpoints are untrusted. No code in a weight file is executed (`audiodiff_core.files.weights`). The network is built
without memory for its weights and takes over the tensors of the file. The size of the file therefore limits the memory.
Settings that could still take much memory or time (layers, samples per frame, dilation) are checked first.
"""

import contextlib
import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml
from huggingface_hub import hf_hub_download

from audiodiff_core.files.hub_names import repository_name
from audiodiff_core.mel import MelConfig
from audiodiff_core.vocoder.neural import LogMagnitude, NeuralVocoder

VOCOS_MIN_MAGNITUDE = 1e-7
"""Lower limit of magnitudes before the logarithm in vocos 0.1.0 (modules.safe_log)."""

BIGVGAN_MIN_MAGNITUDE = 1e-5
"""Lower limit of magnitudes before the logarithm in bigvgan 2.4.1 (meldataset)."""

MAX_SETTINGS_BYTES = 1 << 20

MAX_DILATION = 64
"""Largest accepted dilation of BigVGAN. The published networks use up to 5.

Each convolution pads its input by a multiple of the dilation, so that a large dilation takes much memory.
"""

VOCOS_PARTS = {
    "feature_extractor": "vocos.feature_extractors.MelSpectrogramFeatures",
    "backbone": "vocos.models.VocosBackbone",
    "head": "vocos.heads.ISTFTHead",
}


class _Vocos(torch.nn.Module):
    def __init__(self, backbone: torch.nn.Module, head: torch.nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, features: torch.Tensor) -> Any:
        return self.head(self.backbone(features))


def vocos(source: str | Path, mel: MelConfig, device: torch.device | str = "cpu") -> NeuralVocoder:
    """Load a Vocos network (Siuzdak 2023) for mel spectra.

    Args:
        source: Folder or Hub repository, such as charactr/vocos-mel-24khz (24 kHz, n_fft 1024, hop_length 256).
        mel: The mel configuration of the images.
        device: Device of the network.

    Raises:
        ValueError: If the checkpoint does not fit the mel configuration, has other parts or is damaged, or if the extra
            is not installed.
    """
    with _reading(source):
        settings = _settings(source, "config.yaml", yaml.safe_load)
        for part, path in VOCOS_PARTS.items():
            if (class_path := settings[part]["class_path"]) != path:
                raise ValueError(f"its {part} is {class_path}, only {path} is supported")
        extractor = settings["feature_extractor"]["init_args"]
        lead = 0 if extractor["padding"] == "center" else mel.hop_length // 2
        head = settings["head"]["init_args"]
        _require(mel, extractor["sample_rate"], extractor["n_fft"], extractor["hop_length"])
        _require(mel, extractor["sample_rate"], head["n_fft"], head["hop_length"])
    models, heads = _package("vocos.models", "vocos"), _package("vocos.heads", "vocos")
    with _reading(source):
        weights = _weights(source, "pytorch_model.bin")
        _require_layers(settings["backbone"]["init_args"]["num_layers"], weights)
        with torch.device("meta"):
            network = _Vocos(models.VocosBackbone(**settings["backbone"]["init_args"]), heads.ISTFTHead(**head))
        basis = weights["feature_extractor.mel_spec.mel_scale.fb"].mT
        network.load_state_dict(
            {key: value for key, value in weights.items() if not key.startswith("feature_extractor.")}, assign=True
        )
        return NeuralVocoder(network, mel, LogMagnitude(mel, basis, VOCOS_MIN_MAGNITUDE, device), lead, device)


def bigvgan(source: str | Path, mel: MelConfig, device: torch.device | str = "cpu") -> NeuralVocoder:
    """Load a BigVGAN network (Lee et al. 2023).

    Args:
        source: Folder or Hub repository, such as nvidia/bigvgan_v2_44khz_128band_512x (44.1 kHz, n_fft 2048,
            hop_length 512).
        mel: The mel configuration of the images.
        device: Device of the network.

    Raises:
        ValueError: If the checkpoint does not fit the mel configuration or is damaged, or if the extra is not
            installed.
    """
    from librosa.filters import mel as filterbank

    with _reading(source):
        settings = _settings(source, "config.json", json.loads)
        _require(mel, settings["sampling_rate"], settings["n_fft"], settings["hop_size"])
        rates, dilations = settings["upsample_rates"], settings["resblock_dilation_sizes"]
        if (frame_samples := math.prod(rates)) != settings["hop_size"]:
            raise ValueError(
                f"upsample_rates {rates} make {frame_samples} samples per frame, hop_size is {settings['hop_size']}"
            )
        if (dilation := max(max(block) for block in dilations)) > MAX_DILATION:
            raise ValueError(f"resblock_dilation_sizes reach {dilation}, the limit is {MAX_DILATION}")
    package = _package("bigvgan.bigvgan", "bigvgan")
    with _reading(source):
        weights = _weights(source, "bigvgan_generator.pt", inside="generator")
        _require_layers(len(rates) * sum(len(block) for block in dilations), weights)
        with torch.device("meta"):
            network = package.BigVGAN(package.AttrDict(settings), use_cuda_kernel=False)
        network.load_state_dict(weights, assign=True)
        with contextlib.redirect_stdout(None):  # remove_weight_norm prints
            network.remove_weight_norm()
        basis = filterbank(
            sr=mel.sample_rate,
            n_fft=mel.n_fft,
            n_mels=settings["num_mels"],
            fmin=settings["fmin"],
            fmax=settings["fmax"],
        )
        return NeuralVocoder(
            network,
            mel,
            LogMagnitude(mel, torch.from_numpy(basis), BIGVGAN_MIN_MAGNITUDE, device),
            mel.hop_length // 2,
            device,
        )


def _file(source: str | Path, name: str) -> Path:
    """Return the path of a file in a local folder, or download the file from a repository of the Hub."""
    if (folder := Path(source)).is_dir():
        return folder / name
    return Path(hf_hub_download(repository_name(str(source)), name))


def _settings(source: str | Path, name: str, parse: Callable[[str], Any]) -> dict[str, Any]:
    """Read a file of settings and convert its text with `parse`."""
    file = _file(source, name)
    if (size := file.stat().st_size) > MAX_SETTINGS_BYTES:
        raise ValueError(f"{name} has {size:,} bytes, the limit is {MAX_SETTINGS_BYTES:,}")
    try:
        settings = parse(file.read_text())
    except Exception as error:  # each parser raises its own exceptions
        raise ValueError(f"{name} cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{name} is not a table of settings")
    return settings


def _weights(source: str | Path, name: str, inside: str = "state_dict") -> dict[str, torch.Tensor]:
    """Read the tensors of a file, or of the table `inside` in the file."""
    from audiodiff_core.files.weights import read_weights

    return {key: weight.clone() for key, weight in read_weights(_file(source, name), inside).items()}


@contextlib.contextmanager
def _reading(source: str | Path) -> Iterator[None]:
    """Convert exceptions for a damaged or unsupported checkpoint to a ValueError that names the source."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        match error:
            case KeyError():
                reason = f"lacks {reason}"
            case ValueError():
                pass
            case _:
                reason = f"cannot be loaded ({type(error).__name__}: {reason})"
        raise ValueError(f"vocoder {source}: {reason}") from error


def _require(mel: MelConfig, sample_rate: int, n_fft: int, hop_length: int) -> None:
    needed = mel.model_copy(update={"sample_rate": sample_rate, "n_fft": n_fft, "hop_length": hop_length})
    if difference := needed.difference(mel):
        raise ValueError(f"does not fit the model's mel: {difference}")


def _require_layers(stated: int, weights: Mapping[str, torch.Tensor]) -> None:
    """Check that the weights have at least one tensor for each layer that the settings state."""
    if stated > len(weights):
        raise ValueError(f"its settings state {stated:,} layers, its weights have {len(weights):,} tensors")


def _package(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"vocoder {extra} is not installed ({error}): pip install 'audiodiff[{extra}]'") from error
