"""Loading of CLAP checkpoints, with checks that they are complete and of limited size.

transformers initializes missing weights at random, with a warning in the log. It replaces a missing vocabulary without
a warning. This module raises an error in both cases.
"""

from pathlib import Path
from typing import Any

import torch

from audiodiff_core.audio.formats import SAMPLE_RATES_HZ
from audiodiff_core.files.model_files import CONFIG, CheckpointError, read_json
from audiodiff_core.files.weight_files import TRANSFORMERS, summarize_names, weight_files
from audiodiff_core.files.weights import float32_copy, read_weight_files, require_match

MAX_CLAP_BYTES = 4 << 30
"""Maximum size of the weights, in bytes. The published models have up to 0.8 GB."""

MAX_VOCABULARY_BYTES = 64 << 20

# Limits for configurations, which are untrusted.
MAX_NUMBER = 1 << 20
MAX_LAYERS = 256
MAX_WINDOW_S = 600

_FEATURE_BOUNDS = {
    "sampling_rate": SAMPLE_RATES_HZ,
    "feature_size": range(1, 1_025),
    "fft_window_size": range(16, 16_385),
    "hop_length": range(1, 16_385),
    "max_length_s": range(1, MAX_WINDOW_S + 1),
}
_FEATURE_FILES = ("preprocessor_config.json", "processor_config.json")
_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_CONSTANTS = ("position_ids", "token_type_ids", "relative_position_index")
"""Buffers that the configuration determines. Some versions of transformers do not store them."""


def load_clap(transformers: Any, folder: Path) -> tuple[Any, Any, Any]:
    """Load a CLAP checkpoint.

    Args:
        transformers: The imported package.
        folder: A folder that transformers wrote.

    Returns:
        The model in float32 on the CPU, the feature extractor and the tokenizer.

    Raises:
        CheckpointError: If weights are missing, unexpected or of the wrong shape, the vocabulary is missing, or a
            number or file exceeds its limit. For damaged files, transformers raises errors of its own.
    """
    model = _model(transformers, folder)
    _check_features(folder)
    features = transformers.ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
    if not any(all((folder / name).is_file() for name in names) for names in _VOCABULARIES):
        raise CheckpointError("the vocabulary is missing: must be tokenizer.json, or vocab.json with merges.txt")
    for file in [*folder.glob("*.json"), *folder.glob("*.txt")]:
        if (size := file.stat().st_size) > MAX_VOCABULARY_BYTES:
            raise CheckpointError(f"{file.name} has {size:,} bytes: must be at most {MAX_VOCABULARY_BYTES:,}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if len(tokenizer) > (rows := int(model.config.text_config.vocab_size)):
        raise CheckpointError(f"the vocabulary has {len(tokenizer)} tokens: the model supports at most {rows}")
    return model, features, tokenizer


def _model(transformers: Any, folder: Path) -> Any:
    settings = read_json(folder, CONFIG)
    if "quantization_config" in settings:
        raise CheckpointError(f"{CONFIG} has a quantization_config: quantized weights are not supported")
    _check_numbers(settings, CONFIG)
    config = transformers.ClapConfig.from_dict(settings)
    with torch.device("meta"):
        expected = transformers.ClapModel(config).state_dict()
    stored = read_weight_files(weight_files(folder, TRANSFORMERS, MAX_CLAP_BYTES))
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
    if missing := sorted(name for name in report["missing_keys"] if not name.endswith(_CONSTANTS)):
        raise CheckpointError(f"CLAP: missing weights: {summarize_names(missing)}")
    return model.eval()


def _check_numbers(settings: Any, key: str) -> None:
    """Raise CheckpointError for numbers, including numbers of layers, that exceed their limits."""
    match settings:
        case dict():
            for name, value in settings.items():
                _check_numbers(value, name)
        case list():
            for value in settings:
                _check_numbers(value, key)
        case int() | float():
            limit = MAX_LAYERS if "layers" in key or key == "depths" else MAX_NUMBER
            if not abs(settings) <= limit:
                raise CheckpointError(f"{CONFIG}: {key} {settings}: must be at most {limit}")


def _check_features(folder: Path) -> None:
    """Raise CheckpointError for settings that would make the feature extractor allocate too much memory."""
    files = [name for name in _FEATURE_FILES if (folder / name).exists()]
    if not files:
        raise CheckpointError(f"{_FEATURE_FILES[0]} is missing")
    for file in files:
        settings = read_json(folder, file)
        nested = settings.get("feature_extractor")
        for values in (settings, nested if isinstance(nested, dict) else {}):
            for name, bounds in _FEATURE_BOUNDS.items():
                if name in values and values[name] not in bounds:
                    raise CheckpointError(f"{file}: {name} {values[name]}: must be {bounds[0]} to {bounds[-1]}")
