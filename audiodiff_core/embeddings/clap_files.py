"""Files of a CLAP checkpoint -> transformers' model, feature extractor and tokenizer, complete and within bounds.

transformers initialises missing weights at random and makes up a missing vocabulary, and only logs the former.
Here both are errors.
"""

from pathlib import Path
from typing import Any

import torch

from audiodiff_core.audio.formats import SAMPLE_RATES_HZ
from audiodiff_core.files.model_files import CONFIG, CheckpointError, read_json
from audiodiff_core.files.weight_files import TRANSFORMERS, few, weight_files
from audiodiff_core.files.weights import float32_copy, read_weight_files, require_match

LARGEST_CLAP = 4 << 30
"""Bytes of weights; the published models have up to 0.8 GB."""

LARGEST_VOCABULARY = 64 << 20
"""Bytes of a vocabulary's file."""

LARGEST_NUMBER = 1 << 20
MOST_LAYERS = 256
LONGEST_WINDOW_S = 600

_FEATURE_BOUNDS = {
    "sampling_rate": SAMPLE_RATES_HZ,
    "feature_size": range(1, 1_025),
    "fft_window_size": range(16, 16_385),
    "hop_length": range(1, 16_385),
    "max_length_s": range(1, LONGEST_WINDOW_S + 1),
}
_FEATURE_FILES = ("preprocessor_config.json", "processor_config.json")
_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_CONSTANTS = ("position_ids", "token_type_ids", "relative_position_index")
"""Buffers that follow from the configuration; some versions of transformers do not store them."""


def load_clap(transformers: Any, folder: Path) -> tuple[Any, Any, Any]:
    """Load the model in float32 on the CPU, the feature extractor and the tokenizer of a folder.

    Raises CheckpointError for weights that are missing, unknown or of another shape, for a missing vocabulary, and
    for numbers and files beyond the bounds. transformers' own errors for damaged files pass through.
    """
    model = _model(transformers, folder)
    _check_features(folder)
    features = transformers.ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
    if not any(all((folder / name).is_file() for name in names) for names in _VOCABULARIES):
        raise CheckpointError("holds no vocabulary: neither tokenizer.json nor vocab.json with merges.txt")
    for file in [*folder.glob("*.json"), *folder.glob("*.txt")]:
        if (size := file.stat().st_size) > LARGEST_VOCABULARY:
            raise CheckpointError(f"{file.name} has {size:,} bytes, {LARGEST_VOCABULARY:,} are read")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if len(tokenizer) > (rows := int(model.config.text_config.vocab_size)):
        raise CheckpointError(f"the vocabulary has {len(tokenizer)} tokens, the model has {rows}")
    return model, features, tokenizer


def _model(transformers: Any, folder: Path) -> Any:
    settings = read_json(folder, CONFIG)
    if "quantization_config" in settings:
        raise CheckpointError(f"{CONFIG} has a quantization_config: quantized weights are not read")
    _check_numbers(settings, CONFIG)
    config = transformers.ClapConfig.from_dict(settings)
    with torch.device("meta"):
        expected = transformers.ClapModel(config).state_dict()
    stored = read_weight_files(weight_files(folder, TRANSFORMERS, LARGEST_CLAP))
    learned, needed = (
        {name: weight for name, weight in weights.items() if not name.endswith(_CONSTANTS)}
        for weights in (stored, expected)
    )
    require_match(learned, needed, "CLAP")
    weights = {
        name: float32_copy(name, weight, "CLAP") if needed[name].is_floating_point() else weight.clone()
        for name, weight in learned.items()
    }
    model, report = transformers.ClapModel.from_pretrained(
        None, config=config, state_dict=weights, dtype=torch.float32, output_loading_info=True
    )
    if initialised := sorted(name for name in report["missing_keys"] if not name.endswith(_CONSTANTS)):
        raise CheckpointError(f"the weights of CLAP lack {few(initialised)}")
    return model.eval()


def _check_numbers(settings: Any, key: str) -> None:
    """Raise CheckpointError for numbers, or numbers of layers, that no CLAP has."""
    match settings:
        case dict():
            for name, value in settings.items():
                _check_numbers(value, name)
        case list():
            for value in settings:
                _check_numbers(value, key)
        case int() | float():
            largest = MOST_LAYERS if "layers" in key or key == "depths" else LARGEST_NUMBER
            if not abs(settings) <= largest:
                raise CheckpointError(f"{CONFIG}: {key} {settings} is beyond {largest}")


def _check_features(folder: Path) -> None:
    """Raise CheckpointError for settings of the feature extractor that would take much memory, before it is made."""
    files = [name for name in _FEATURE_FILES if (folder / name).exists()]
    if not files:
        raise CheckpointError(f"holds no {_FEATURE_FILES[0]}")
    for file in files:
        settings = read_json(folder, file)
        inner = settings.get("feature_extractor")
        for stated in (settings, inner if isinstance(inner, dict) else {}):
            for name, bounds in _FEATURE_BOUNDS.items():
                if name in stated and stated[name] not in bounds:
                    raise CheckpointError(f"{file}: {name} {stated[name]} is not from {bounds[0]} to {bounds[-1]}")
