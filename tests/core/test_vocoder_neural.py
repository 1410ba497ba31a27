"""Networks as vocoders: their input, the start of their audio, and refused models.

Tiny networks stand in for Vocos and BigVGAN.
"""

import io
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml

from audiodiff_core.mel import Mel, MelConfig, filterbank
from audiodiff_core.vocoder import Kept, kept_samples, require_mel
from audiodiff_core.vocoder.batches import MelPower
from audiodiff_core.vocoder.frames import Frames
from audiodiff_core.vocoder.neural import LEVEL_DB, LogMagnitude, NeuralVocoder
from audiodiff_core.vocoder.published import bigvgan, vocos

CONFIG = MelConfig(x_res=64, y_res=32, n_fft=512, hop_length=128)
Bytes = npt.NDArray[np.uint8]


class Upsample(torch.nn.Module):
    """A convolution over frames, followed by hop_length samples for each frame.

    The input has the shape (batch, channels, frames), the output (batch, 1, frames * hop_length).
    """

    def __init__(self, channels: int = CONFIG.y_res) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv1d(channels, CONFIG.hop_length, 5, padding=2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        audio: torch.Tensor = self.convolution(features).mT.flatten(1)[:, None]
        return audio

    def remove_weight_norm(self) -> None:
        pass


def log_power(mel_power: torch.Tensor) -> torch.Tensor:
    return (mel_power + 1e-8).log().mT


def mel_power(config: MelConfig, images: Bytes) -> torch.Tensor:
    return MelPower(config, torch.device("cpu"))(torch.from_numpy(images))


@pytest.fixture(scope="module")
def network() -> Upsample:
    torch.manual_seed(0)
    return Upsample()


@pytest.fixture(scope="module")
def images() -> Bytes:
    return np.random.default_rng(0).integers(0, 256, (3, 32, 40), dtype=np.uint8)


@pytest.mark.parametrize("lead", [0, 64])
def test_audio_begins_at_the_first_frames_middle(network: Upsample, images: Bytes, lead: int) -> None:
    audio = NeuralVocoder(network, CONFIG, log_power, lead)(images, [0, 1, 2])
    with torch.inference_mode():
        whole = network(log_power(mel_power(CONFIG, images)))[:, 0]
    assert audio.shape == (3, 39 * 128)
    np.testing.assert_allclose(audio, whole[:, lead : lead + 39 * 128].numpy(), rtol=1e-4, atol=1e-5)


def test_same_bytes_alone_in_company_and_with_any_seed(network: Upsample, images: Bytes) -> None:
    vocoder = NeuralVocoder(network, CONFIG, log_power)
    audio = vocoder(images, [0, 1, 2])
    np.testing.assert_array_equal(vocoder(images[[2, 1]], [5, 6]), audio[[2, 1]])
    with pytest.raises(ValueError, match="3 images with 1 seeds"):
        vocoder(images, [0])


def test_a_rolled_loop_is_the_same_loop(network: Upsample, images: Bytes) -> None:
    vocoder = NeuralVocoder(network, CONFIG, log_power, lead=64)
    audio = vocoder(images, range(3), circular=True)
    assert audio.shape == (3, 40 * 128)
    rolled = vocoder(np.roll(images, 7, axis=2), range(3), circular=True)
    np.testing.assert_allclose(rolled, np.roll(audio, 7 * 128, axis=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        vocoder(images, range(3))[:, 512:-512], audio[:, 512 : 39 * 128 - 512], rtol=1e-4, atol=1e-5
    )


class Louder(torch.nn.Module):
    def __init__(self, network: torch.nn.Module, gain: float) -> None:
        super().__init__()
        self.network, self.gain = network, gain

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        audio: torch.Tensor = self.network(features) * self.gain
        return audio


@pytest.mark.parametrize("circular", [False, True])
def test_kept_samples_are_spliced_into_audio_of_the_images_level(
    network: Upsample, images: Bytes, circular: bool
) -> None:
    vocoder = NeuralVocoder(network, CONFIG, log_power)
    plain = vocoder(images, range(3), circular)
    source = np.random.default_rng(0).standard_normal((plain.shape[1],), np.float32)
    columns_kept = np.ones(40, np.bool_)
    columns_kept[15:25] = False
    mask = kept_samples(columns_kept, CONFIG, len(source))
    audio = vocoder(images, range(3), circular, kept=[None, Kept(source, mask), None])
    np.testing.assert_array_equal(audio[[0, 2]], plain[[0, 2]])
    np.testing.assert_array_equal(vocoder(images[1:2], [1], circular, kept=[Kept(source, mask)])[0], audio[1])

    regenerated, fade = slice(15 * 128, 25 * 128), round(0.04 * CONFIG.sample_rate)
    exact = np.r_[0 : 15 * 128 - fade, 25 * 128 + fade : len(source)]
    np.testing.assert_array_equal(audio[1, exact], source[exact])
    gain = audio[1, regenerated.start] / plain[1, regenerated.start]
    np.testing.assert_allclose(audio[1, regenerated], plain[1, regenerated] * gain, rtol=1e-5)
    frames = Frames.of(CONFIG, 40, vocoder.device, circular)
    spectra = frames.analyze(frames.signal(torch.from_numpy(plain[1:2] * gain)), slice(0, 40))
    heard = torch.tensor(filterbank(CONFIG)) @ spectra.abs().square().mT
    assert float(heard.sum()) == pytest.approx(float(mel_power(CONFIG, images[1:2]).sum()), rel=1e-3)
    louder = NeuralVocoder(Louder(network, 100), CONFIG, log_power)
    np.testing.assert_allclose(
        louder(images[1:2], [1], circular, kept=[Kept(source, mask)])[0], audio[1], rtol=1e-4, atol=1e-6
    )


def test_kept_samples_of_another_length_are_refused(network: Upsample, images: Bytes) -> None:
    kept = Kept(np.zeros(39 * 128, np.float32), np.ones(39 * 128, np.bool_))
    with pytest.raises(ValueError, match="kept of 4992 samples: the audio of the image has 5120"):
        NeuralVocoder(network, CONFIG, log_power)(images[:1], [0], circular=True, kept=[kept])


def test_another_mel_is_refused(network: Upsample) -> None:
    vocoder = NeuralVocoder(network, CONFIG, log_power)
    require_mel(vocoder, CONFIG)
    with pytest.raises(ValueError, match="y_res 32 against 64, n_fft 512 against 1024"):
        require_mel(vocoder, CONFIG.model_copy(update={"y_res": 64, "n_fft": 1_024}))


def test_too_little_audio_and_broken_weights_are_refused(images: Bytes) -> None:
    with pytest.raises(ValueError, match="the network made 1280 samples from 40 frames: hop_length 128 needs 4992"):
        NeuralVocoder(torch.nn.Identity(), CONFIG, log_power)(images, range(3))
    broken = Upsample()
    torch.nn.init.constant_(broken.convolution.weight, torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        NeuralVocoder(broken, CONFIG, log_power)(images, range(3))


def test_features_are_those_of_the_audio_at_the_level_of_training() -> None:
    """Check the features of noise at the training level.

    The reference is an analysis of the audio with the bands of the network.
    """
    config = MelConfig(x_res=128, y_res=64, n_fft=512, hop_length=128)
    audio = np.random.default_rng(0).standard_normal((1, config.slice_size)).astype(np.float32) * np.float32(
        10 ** (LEVEL_DB / 20)
    )
    basis = torch.tensor(filterbank(MelConfig(y_res=24, n_fft=512)))
    spectra = torch.stft(
        torch.from_numpy(audio), 512, 128, window=torch.hann_window(512), pad_mode="constant", return_complex=True
    )
    expected = (basis @ spectra.abs()).log()
    image, _ = Mel(config).images(audio * 7)
    features = LogMagnitude(config, basis, 1e-5)(mel_power(config, image))
    assert features.shape == (1, 24, 128)
    # The mean is 0.056 too high, because power that is even within a band has the largest magnitudes.
    assert float((features - expected).abs().mean()) < 0.1


def test_features_of_silence_are_the_least() -> None:
    features = LogMagnitude(CONFIG, torch.tensor(filterbank(CONFIG)), 1e-5)(torch.zeros(1, 8, 32))
    torch.testing.assert_close(features, torch.full((1, 32, 8), 1e-5).log())


def test_a_filterbank_of_another_n_fft_is_refused() -> None:
    with pytest.raises(ValueError, match="filterbank has 1025 bins, n_fft 512 has 257"):
        LogMagnitude(CONFIG, torch.tensor(filterbank(MelConfig())), 1e-5)


@pytest.fixture
def bigvgan_folder(tmp_path: Path) -> Path:
    settings: dict[str, Any] = {
        "sampling_rate": 22_050,
        "n_fft": 512,
        "hop_size": 128,
        "num_mels": 20,
        "fmin": 0,
        "fmax": None,
    }
    settings |= {"upsample_rates": [16, 8], "resblock_dilation_sizes": [[1]]}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    torch.save({"generator": Upsample(20).state_dict()}, tmp_path / "bigvgan_generator.pt")
    return tmp_path


@pytest.fixture
def vocos_folder(tmp_path: Path) -> Path:
    settings = {
        "feature_extractor": {
            "class_path": "vocos.feature_extractors.MelSpectrogramFeatures",
            "init_args": {"sample_rate": 22_050, "n_fft": 512, "hop_length": 128, "n_mels": 20, "padding": "same"},
        },
        "backbone": {"class_path": "vocos.models.VocosBackbone", "init_args": {"channels": 20, "num_layers": 1}},
        "head": {"class_path": "vocos.heads.ISTFTHead", "init_args": {"n_fft": 512, "hop_length": 128}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    weights = {f"backbone.{key}": value for key, value in Upsample(20).state_dict().items()}
    basis = torch.tensor(filterbank(MelConfig(y_res=20, n_fft=512)))
    torch.save(
        weights | {"feature_extractor.mel_spec.mel_scale.fb": basis.T.contiguous()}, tmp_path / "pytorch_model.bin"
    )
    return tmp_path


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes modules of the given names and contents importable.

    None stands for a module that is not installed.
    """

    def put(**modules: dict[str, Any] | None) -> None:
        for name, content in modules.items():
            module = None
            if content is not None:
                module = ModuleType(name.replace("__", "."))
                module.__dict__.update(content)
            monkeypatch.setitem(sys.modules, name.replace("__", "."), module)

    return put


def bigvgan_package() -> dict[str, Any]:
    return {"BigVGAN": lambda settings, use_cuda_kernel: Upsample(settings["num_mels"]), "AttrDict": dict}


def vocos_package() -> dict[str, dict[str, Any]]:
    return {
        "vocos": {},
        "vocos__models": {"VocosBackbone": lambda channels, num_layers: Upsample(channels)},
        "vocos__heads": {"ISTFTHead": torch.nn.Identity},
    }


@pytest.mark.parametrize("load", [bigvgan, vocos])
def test_published_weights_make_audio(
    load: Callable[..., NeuralVocoder],
    bigvgan_folder: Path,
    vocos_folder: Path,
    install: Callable[..., None],
    images: Bytes,
) -> None:
    install(bigvgan={}, bigvgan__bigvgan=bigvgan_package())
    install(**vocos_package())
    vocoder = load(bigvgan_folder, CONFIG)
    assert vocoder.config == CONFIG
    assert vocoder(images, range(3)).shape == (3, 39 * 128)
    with pytest.raises(ValueError, match="hop_length 128 against 256"):
        load(bigvgan_folder, CONFIG.model_copy(update={"hop_length": 256}))


def test_an_extra_that_is_not_installed_is_named(
    bigvgan_folder: Path, vocos_folder: Path, install: Callable[..., None]
) -> None:
    install(bigvgan=None, bigvgan__bigvgan=None, vocos=None, vocos__models=None)
    with pytest.raises(ValueError, match=r"pip install 'audiodiff\[bigvgan\]'"):
        bigvgan(bigvgan_folder, CONFIG)
    with pytest.raises(ValueError, match=r"pip install 'audiodiff\[vocos\]'"):
        vocos(vocos_folder, CONFIG)


def test_classes_that_a_file_names_are_not_called(vocos_folder: Path) -> None:
    settings = yaml.safe_load((vocos_folder / "config.yaml").read_text())
    settings["head"] = {"class_path": "os.system", "init_args": {"command": "false"}}
    (vocos_folder / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match=r"its head is os.system, only vocos.heads.ISTFTHead is supported"):
        vocos(vocos_folder, CONFIG)


@pytest.mark.parametrize(
    ("part", "key", "value", "reason"),
    [
        ("backbone", "num_layers", 10**9, "state 1,000,000,000 layers, its weights have 3 tensors"),
        ("head", "hop_length", 10**9, "hop_length 1000000000 against 128"),
        ("head", "n_fft", 10**9, "n_fft 1000000000 against 512"),
    ],
)
def test_settings_of_vocos_take_no_memory(
    part: str, key: str, value: int, reason: str, vocos_folder: Path, install: Callable[..., None]
) -> None:
    """Check that settings are refused before the package builds anything: its classes are missing here."""
    install(vocos={}, vocos__models={"VocosBackbone": None}, vocos__heads={"ISTFTHead": None})
    settings = yaml.safe_load((vocos_folder / "config.yaml").read_text())
    settings[part]["init_args"][key] = value
    (vocos_folder / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match=reason):
        vocos(vocos_folder, CONFIG)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("upsample_rates", [10**6, 8], "make 8000000 samples per frame, hop_size is 128"),
        ("resblock_dilation_sizes", [[1, 10**9]], "reach 1000000000, the limit is 64"),
        ("resblock_dilation_sizes", [[1, 3, 5]] * 1_000, "state 6,000 layers, its weights have 2 tensors"),
    ],
)
def test_settings_of_bigvgan_take_no_memory(
    key: str, value: list[Any], reason: str, bigvgan_folder: Path, install: Callable[..., None]
) -> None:
    install(bigvgan={}, bigvgan__bigvgan={"BigVGAN": None, "AttrDict": None})
    settings = json.loads((bigvgan_folder / "config.json").read_text())
    (bigvgan_folder / "config.json").write_text(json.dumps(settings | {key: value}))
    with pytest.raises(ValueError, match=reason):
        bigvgan(bigvgan_folder, CONFIG)


class Intruder:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return Path.touch, (Path("intruded"),)  # type: ignore[return-value]


def test_weights_that_are_code_are_refused(
    bigvgan_folder: Path, install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(bigvgan={}, bigvgan__bigvgan=bigvgan_package())
    monkeypatch.chdir(bigvgan_folder)
    torch.save({"generator": Intruder()}, bigvgan_folder / "bigvgan_generator.pt")
    with pytest.raises(
        ValueError, match=r"bigvgan_generator.pt contains [\w.]+, which is not a tensor and is never run"
    ):
        bigvgan(bigvgan_folder, CONFIG)
    assert not Path("intruded").exists()


def test_compressed_weights_do_not_fill_the_memory(
    bigvgan_folder: Path, vocos_folder: Path, install: Callable[..., None]
) -> None:
    install(bigvgan={}, bigvgan__bigvgan=bigvgan_package())
    install(**vocos_package())
    for load, file in ((bigvgan, bigvgan_folder / "bigvgan_generator.pt"), (vocos, vocos_folder / "pytorch_model.bin")):
        with (
            zipfile.ZipFile(io.BytesIO(file.read_bytes())) as whole,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed,
        ):
            for record in whole.infolist():
                packed.writestr(record.filename, whole.read(record))
        with pytest.raises(ValueError, match=f"^vocoder {file.parent}: {file.name} contains compressed records"):
            load(file.parent, CONFIG)


@pytest.mark.parametrize("load", [bigvgan, vocos])
@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "{}",
        "[]",
        "{",
        "\0",
        '{"feature_extractor": []}',
        '{"sampling_rate": "many", "n_fft": 512}',
        "x" * (2 << 20),
    ],
)
def test_what_is_no_vocoder_is_named(load: Callable[..., NeuralVocoder], content: str | None, tmp_path: Path) -> None:
    for name in () if content is None else ("config.yaml", "config.json"):
        (tmp_path / name).write_text(content or "")
    with pytest.raises(ValueError, match=f"^vocoder {tmp_path}: ") as raised:
        load(tmp_path, CONFIG)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("lost", ["feature_extractor.mel_spec.mel_scale.fb", "backbone.convolution.bias"])
def test_weights_of_another_network_are_named(vocos_folder: Path, lost: str, install: Callable[..., None]) -> None:
    install(**vocos_package())
    weights = torch.load(vocos_folder / "pytorch_model.bin", weights_only=True)
    del weights[lost]
    torch.save(weights, vocos_folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"^vocoder {vocos_folder}: .*{lost}"):
        vocos(vocos_folder, CONFIG)
