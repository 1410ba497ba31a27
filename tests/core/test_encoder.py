"""Encoders against their networks.

The result of an item does not depend on the other items of a call. Errors name the files and arguments that are
refused.
"""

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from audiodiff_core.audio import decode_audio
from audiodiff_core.embeddings import load_encoder
from audiodiff_core.embeddings.audio_encoder import AudioEncoder
from audiodiff_core.embeddings.clap import ClapEncoder
from audiodiff_core.embeddings.inputs import ENCODER_BATCH_SIZE
from tests import tiny_clap

Audio = npt.NDArray[np.float32]
RATE = 22_050

# Output of the original's AudioEncoder (audiodiffusion 1.5.7, diffusers 0.24.0) with the weights of `by_formula`: the
# first six values of each slice.
TABLA = [
    [-3398.25073, -1173.77161, 1357.31421, 3533.6084, 4786.48779, 4788.68506],
    [-4732.20605, -1548.86414, 2039.08374, 5094.11865, 6818.02881, 6760.49023],
]
# The loop is shorter than a slice. One pixel differs from the original's by one level.
INDUSTRIAL = [
    -1977.93359,
    -807.94739,
    573.06799,
    1804.18713,
    2563.72778,
    2653.31519,
]


def by_formula(network: nn.Module) -> dict[str, torch.Tensor]:
    state = {}
    for number, (key, value) in enumerate(sorted(network.state_dict().items())):
        wave = np.resize(np.sin(np.arange(9_973) * 0.7 + number), value.numel())
        if key.endswith("num_batches_tracked"):
            wave[:] = 7
        elif key.endswith("running_var"):
            wave = 1 + 0.5 * wave
        elif key == "dense_block.dense.weight":
            wave *= 0.02
        state[key] = torch.from_numpy(wave.reshape(tuple(value.shape))).to(value.dtype)
    return state


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        network = AudioEncoder()
    return by_formula(network)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, state: dict[str, torch.Tensor]) -> Path:
    """Write the layout of teticio/audio-encoder: a pickle of tensors."""
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "config.json").write_text('{\n  "_class_name": "AudioEncoder",\n  "_diffusers_version": "0.16.1"\n}\n')
    torch.save(state, folder / "diffusion_pytorch_model.bin")
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> AudioEncoder:
    loaded = load_encoder(folder)
    assert isinstance(loaded, AudioEncoder)
    return loaded


@pytest.fixture(scope="module")
def tabla(loops: Path) -> Audio:
    return decode_audio(loops / "loop_tabla.flac", RATE)


@pytest.fixture(scope="module")
def industrial(loops: Path) -> Audio:
    return decode_audio(loops / "loop_industrial.flac", RATE)


def test_the_originals_numbers(encoder: AudioEncoder, tabla: Audio, industrial: Audio) -> None:
    slices = encoder.encode_slices([tabla, industrial], RATE)
    assert [part.shape for part in slices] == [(2, 100), (1, 100)]
    # A few pixels may differ from the original's by one level, which changes the fourth digit.
    assert slices[0][:, :6] == pytest.approx(np.array(TABLA), rel=1e-3)
    assert slices[1][0, :6] == pytest.approx(np.array(INDUSTRIAL), rel=1e-3)
    average = encoder.encode([tabla, industrial], RATE)
    assert average.shape == (2, 100)
    assert average.dtype == np.float32
    assert average[0] == pytest.approx(slices[0].mean(axis=0))
    assert encoder.encode([tabla], RATE, pool="max")[0] == pytest.approx(slices[0].max(axis=0))


def test_neighbours_do_not_matter(encoder: AudioEncoder, tabla: Audio, industrial: Audio) -> None:
    alone = encoder.encode([industrial], RATE)[0]
    in_company = encoder.encode([tabla[: len(industrial)]] * ENCODER_BATCH_SIZE + [industrial, tabla, industrial], RATE)
    assert np.array_equal(in_company[ENCODER_BATCH_SIZE], alone), "first of the second batch"
    assert np.array_equal(in_company[-1], alone), "after others"
    assert all(np.array_equal(row, in_company[0]) for row in in_company[:ENCODER_BATCH_SIZE])


def test_safetensors_are_the_same_encoder(
    encoder: AudioEncoder, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "AudioEncoder"}')
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    again = load_encoder(f"audio-encoder:{tmp_path}")
    assert again.digest == encoder.digest
    assert (again.name, again.dim, again.sample_rate) == (f"audio-encoder:{tmp_path}", 100, RATE)
    with torch.no_grad():
        assert isinstance(again, AudioEncoder)
        again.embedding.bias[3] += 1e-3
    assert again.digest != encoder.digest


def test_half_precision_and_shards_are_read(
    state: dict[str, torch.Tensor], encoder: AudioEncoder, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "AudioEncoder"}')
    values = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    save_file(values, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    half = load_encoder(tmp_path)
    assert isinstance(half, AudioEncoder)
    assert torch.equal(half.embedding.bias, state["embedding.bias"].half().float())
    parts = {key: f"diffusion_pytorch_model-0000{1 + key.startswith('dense')}-of-00002.safetensors" for key in state}
    for file in set(parts.values()):
        save_file({key: state[key] for key, name in parts.items() if name == file}, tmp_path / file)
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    assert load_encoder(tmp_path).digest == encoder.digest
    (tmp_path / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"names missing files: diffusion_pytorch_model-00002-of-00002\.safetensors"):
        load_encoder(tmp_path)


class _Malicious:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("unpickled"),))


def test_what_is_no_encoder_is_refused(
    folder: Path, state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="not a Hugging Face id"):
        load_encoder("./nowhere")
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ValueError, match=r"config\.json is of kind None: must be audio-encoder or clap"):
        load_encoder(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json is of kind audio-encoder: must be clap"):
        load_encoder(f"clap:{folder}")
    (tmp_path / "config.json").write_text('{"_class_name": "AudioEncoder"}')
    with pytest.raises(ValueError, match=r"contains no diffusion_pytorch_model\.safetensors"):
        load_encoder(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.bin"
    torch.save({key: value for key, value in state.items() if not key.startswith("dense_block")}, weights)
    with pytest.raises(ValueError, match=r"cannot be loaded .*Missing key"):
        load_encoder(tmp_path)
    torch.save({"embedding.bias": _Malicious()}, weights)
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.bin: cannot be loaded"):
        load_encoder(tmp_path)
    assert not (tmp_path / "unpickled").exists()
    torch.save({"zeros": torch.zeros(1 << 22)}, tmp_path / "whole.bin")
    with (
        zipfile.ZipFile(tmp_path / "whole.bin") as whole,
        zipfile.ZipFile(weights, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for record in whole.infolist():
            packed.writestr(record.filename, whole.read(record))
    with pytest.raises(
        ValueError, match=r"diffusion_pytorch_model\.bin: cannot be loaded \(.* contains compressed records"
    ):
        load_encoder(tmp_path)


def check_refusals(encoder: Any, rate: int) -> None:
    second = np.zeros(rate, np.float32)
    for audios, given_rate, message in (
        ([second], rate + 1, f"sample_rate {rate + 1}: must be {rate} Hz"),
        ([], rate, "audios: must contain at least one"),
        ([second, np.zeros((2, rate), np.float32)], rate, r"audios\[1\] of shape \(2, \d+\)"),
        ([np.zeros(0, np.float32)], rate, r"audios\[0\] of shape \(0,\)"),
        ([second, second, np.full(rate, np.inf, np.float32)], rate, r"audios\[2\]: must not contain NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder.encode(audios, given_rate)


def test_wrong_arguments_are_named(encoder: AudioEncoder, tabla: Audio) -> None:
    check_refusals(encoder, RATE)
    with pytest.raises(ValueError, match="pool median"):
        encoder.encode([tabla], RATE, pool="median")  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=[False, True], ids=["rand_trunc", "fusion"])
def clap_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clap")
    tiny_clap.write(folder, fused=request.param)
    return folder


@pytest.fixture(scope="module")
def clap(clap_folder: Path) -> ClapEncoder:
    loaded = load_encoder(clap_folder)
    assert isinstance(loaded, ClapEncoder)
    return loaded


def noise(seconds: float, seed: int) -> Audio:
    return (np.random.default_rng(seed).standard_normal(round(16_000 * seconds)) * 0.1).astype(np.float32)


def test_clap_embeds_a_window_as_transformers_does(clap: ClapEncoder) -> None:
    assert (clap.dim, clap.sample_rate) == (12, 16_000)
    audio = noise(1, 0)
    inputs = clap.features(audio, sampling_rate=16_000, return_tensors="pt")["input_features"]
    with torch.inference_mode():
        expected = (
            clap.model.get_audio_features(input_features=inputs, is_longer=torch.zeros(1, 1, dtype=torch.bool))
            .pooler_output[0]
            .numpy()
        )
    embeddings = clap.encode([audio], 16_000)
    assert embeddings.shape == (1, 12)
    assert embeddings.dtype == np.float32
    assert embeddings[0] == pytest.approx(expected, abs=1e-5)
    assert np.linalg.norm(embeddings[0]) == pytest.approx(1)


def test_clap_takes_any_length_the_same_each_time(clap: ClapEncoder) -> None:
    first, second, tail = noise(1, 1), noise(1, 2), noise(0.4, 3)
    long = np.concatenate([first, second, tail])
    alone = clap.encode([long], 16_000)[0]
    windows = clap.encode([first, second], 16_000)
    mean = windows.mean(axis=0)
    assert alone == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5), "the tail is less than half a window"
    assert np.array_equal(clap.encode([first, tail, long], 16_000)[2], alone)
    assert not np.allclose(clap.encode([tail], 16_000)[0], windows[0])


def test_clap_embeds_text(clap: ClapEncoder) -> None:
    texts = ["slow drum loop", "choir", "slow " * 100]
    embeddings = clap.encode_text(texts)
    assert embeddings.shape == (3, 12)
    assert embeddings.dtype == np.float32
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx(1)
    assert np.array_equal(clap.encode_text(texts[1:2])[0], embeddings[1])
    assert not np.allclose(embeddings[0], embeddings[1], atol=1e-3)
    with pytest.raises(ValueError, match="texts: must contain at least one"):
        clap.encode_text([])


def test_clap_has_a_digest_of_weights_and_settings(clap: ClapEncoder, clap_folder: Path, tmp_path: Path) -> None:
    assert ClapEncoder(clap_folder).digest == clap.digest
    for file in clap_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**settings, "frequency_min": 50}))
    assert ClapEncoder(tmp_path).digest != clap.digest


def test_clap_names_wrong_arguments(clap: ClapEncoder) -> None:
    check_refusals(clap, 16_000)


def test_clap_without_its_packages_or_files_is_refused(
    clap_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_bytes((clap_folder / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"encoder .*: cannot be loaded"):
        load_encoder(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"CLAP needs transformers .*audiodiff\[clap\]"):
        load_encoder(clap_folder)
