"""The original's API against its copy in diffusers, over the same networks.

Golden values of the original are in tests/journey/test_golden_results.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import AudioDiffusionPipeline as ReferencePipeline
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from diffusers import Mel as ReferenceMel

from audiodiff_core.audio import decode_audio
from audiodiff_core.compat import AudioDiffusion, AudioDiffusionPipeline, AudioEncoder, Mel
from audiodiff_core.embeddings.audio_encoder import AudioEncoder as CoreEncoder
from tests.rare import rare

CROSS_ATTENTION_DIM = 10


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


Pair = tuple[Any, Any]


@pytest.fixture(scope="module")
def pairs(make_unet: Callable[[int], Any]) -> Callable[[str, Any], Pair]:
    """Return a builder of our pipeline and diffusers' pipeline, over the same networks."""
    torch.manual_seed(3)
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        sample_size=(32, 32),
    ).eval()
    conditional = UNet2DConditionModel(
        sample_size=(16, 16),
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=CROSS_ATTENTION_DIM,
    ).eval()
    with torch.no_grad():
        conditional.conv_out.weight.mul_(0.1)
    networks = {
        "pixel": (None, make_unet(0), 16),
        "latent": (vae, make_unet(0), 32),
        "conditional": (vae, conditional, 32),
    }

    def make(kind: str, scheduler: Any) -> Pair:
        network_vae, unet, side = networks[kind]
        settings = {"x_res": side, "y_res": side, "n_fft": 512, "hop_length": 256}
        ours = quiet(AudioDiffusionPipeline(network_vae, unet, Mel(**settings), scheduler()))
        return ours, quiet(ReferencePipeline(network_vae, unet, ReferenceMel(**settings), scheduler()))

    return make


def pictures(pipe: Any, monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> npt.NDArray[np.uint8]:
    # Only pictures are compared.
    monkeypatch.setattr(type(pipe.mel), "image_to_audio", lambda *_: np.zeros(4, np.float32))
    images, _ = pipe(return_dict=False, **arguments)
    return np.stack([np.asarray(image) for image in images])


CASES: dict[str, dict[str, Any]] = {
    "generate": {"batch_size": 2},
    "variation": {"start_step": 2, "slice": 1},
    "mask": {"mask_start_secs": 0.05, "mask_end_secs": 0.04},
    "variation and mask": {"start_step": 3, "mask_start_secs": 0.05, "mask_end_secs": 0.04},
    "batch of audio": {"batch_size": 3},
}


KINDS = ("pixel", "latent", "conditional")
EVERY_PAIR = [
    (pytest.param if kind == "pixel" or not row else rare)(
        case, kind, (DDPMScheduler, DDIMScheduler)[(row + column) % 2], id=f"{case}-{kind}"
    )
    for row, case in enumerate(CASES)
    for column, kind in enumerate(KINDS)
]
"""Every case with every kind of model, and both with either scheduler."""


@pytest.mark.parametrize(("case", "kind", "scheduler"), EVERY_PAIR)
def test_pictures_are_the_references(
    case: str,
    kind: str,
    scheduler: Any,
    pairs: Callable[[str, Any], Pair],
    hum: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []
    for pipe in pairs(kind, scheduler):
        arguments = dict(
            CASES[case],
            steps=6,
            generator=torch.Generator().manual_seed(5),
            step_generator=torch.Generator().manual_seed(6),
        )
        if case != "generate":
            arguments["raw_audio"] = hum(30_000)
        if kind == "conditional":
            arguments["encoding"] = torch.rand(
                (arguments.get("batch_size", 1), 1, CROSS_ATTENTION_DIM), generator=torch.Generator().manual_seed(7)
            )
        if scheduler is DDIMScheduler:
            arguments["eta"] = 0.5
        made.append(pictures(pipe, monkeypatch, **arguments))
    assert made[0].std() > 1
    assert np.array_equal(made[0], made[1])


def test_given_noise_is_overwritten_as_by_the_reference(
    pairs: Callable[[str, Any], Pair], hum: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = torch.randn((1, 1, 16, 16), generator=torch.Generator().manual_seed(1))
    left = []
    for pipe in pairs("pixel", DDIMScheduler):
        given = noise.clone()
        pictures(pipe, monkeypatch, raw_audio=hum(9_000), start_step=2, steps=4, noise=given)
        left.append(given)
    assert torch.equal(*left)
    assert not torch.equal(left[0], noise)


def test_encode_and_slerp_are_the_references(pairs: Callable[[str, Any], Pair], hum: Callable[..., Any]) -> None:
    ours, reference = pairs("pixel", DDIMScheduler)
    ours.mel.load_audio(raw_audio=hum(20_000))
    images = [ours.mel.audio_slice_to_image(index) for index in range(2)]
    assert torch.equal(ours.encode(images, steps=5), reference.encode(images, steps=5))
    one, other = torch.randn((2, 1, 16, 16), generator=torch.Generator().manual_seed(2))
    assert torch.equal(ours.slerp(one, other, 0.3), reference.slerp(one, other, 0.3))
    assert ours.get_default_steps() == 50
    ddpm, _ = pairs("pixel", DDPMScheduler)
    assert ddpm.get_default_steps() == 1_000
    with pytest.raises(ValueError, match="encode needs DDIMScheduler, but the pipeline has DDPMScheduler"):
        ddpm.encode(images)


@pytest.mark.parametrize("settings", [{}, {"x_res": 64, "y_res": 96, "n_fft": 1_024, "hop_length": 300, "top_db": 60}])
def test_mel_images_are_the_references(settings: dict[str, int], loop_files: list[Path]) -> None:
    ours, reference = Mel(**settings), ReferenceMel(**settings)
    assert dict(ours.config) == dict(reference.config)
    for file in loop_files[:4]:
        audio = decode_audio(file, 22_050)
        for mel in (ours, reference):
            mel.load_audio(raw_audio=audio)
        assert ours.get_number_of_slices() == reference.get_number_of_slices() > 0
        for index in range(min(2, ours.get_number_of_slices())):
            assert ours.audio_slice_to_image(index).tobytes() == reference.audio_slice_to_image(index).tobytes()
    ours.load_audio(loop_files[0])
    reference.load_audio(str(loop_files[0]))
    assert np.array_equal(ours.get_audio_slice(0), reference.get_audio_slice(0))
    assert ours.get_sample_rate() == 22_050


def test_mel_audio_sounds_like_its_image(loop_files: list[Path]) -> None:
    mel = Mel(x_res=64, y_res=64, hop_length=1_024)
    mel.load_audio(loop_files[0])
    image = mel.audio_slice_to_image(0)
    audio = mel.image_to_audio(image)
    assert audio.shape == (63 * 1_024,)
    mel.load_audio(raw_audio=audio)
    again = np.asarray(mel.audio_slice_to_image(0))
    assert np.abs(again.astype(int) - np.asarray(image)).mean() < 6


def test_mel_mistakes_are_named() -> None:
    mel = Mel(x_res=16, y_res=16, n_fft=512, hop_length=256)
    with pytest.raises(ValueError, match="no audio: call load_audio first"):
        mel.get_number_of_slices()
    with pytest.raises(ValueError, match="needs audio_file or raw_audio"):
        mel.load_audio()
    mel.load_audio(raw_audio=np.zeros(5_000))
    with pytest.raises(ValueError, match="slice 7: the audio has 1, counted from 0"):
        mel.audio_slice_to_image(7)
    mel.set_resolution(8, 32)
    assert (mel.slice_size, mel.n_mels) == (8 * 256 - 1, 32)


def test_mel_can_be_assigned(pairs: Callable[[str, Any], Pair]) -> None:
    pipe, _ = pairs("pixel", DDIMScheduler)
    pipe.mel = Mel(x_res=16, y_res=16, n_fft=512, hop_length=128)
    output = pipe(steps=2, generator=torch.Generator().manual_seed(0))
    assert output.audios.shape == (1, 1, 15 * 128)


def test_a_model_on_disk(pairs: Callable[[str, Any], Pair], tmp_path: Path) -> None:
    """Check the class that the original's apps use, and that diffusers loads its saved models."""
    pipe, _ = pairs("pixel", DDIMScheduler)
    pipe.save_pretrained(tmp_path / "model")
    app = AudioDiffusion(str(tmp_path / "model"), cuda=False, progress_bar=None)
    image, (rate, audio) = app.generate_spectrogram_and_audio(steps=3, generator=torch.Generator().manual_seed(8))
    assert (image.size, rate, audio.shape) == ((16, 16), 22_050, (15 * 256,))
    reference = quiet(ReferencePipeline.from_pretrained(tmp_path / "model"))
    other = reference(steps=3, generator=torch.Generator().manual_seed(8)).images[0]
    assert np.array_equal(np.asarray(image), np.asarray(other))
    varied, _ = app.generate_spectrogram_and_audio_from_audio(
        raw_audio=audio, start_step=1, steps=3, generator=torch.Generator().manual_seed(8)
    )
    assert varied.size == (16, 16)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="EulerDiscreteScheduler: cannot be loaded again, must be DDPMScheduler, DDIM"):
        pipe.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.soak_short
def test_loop_it_repeats_whole_bars() -> None:
    rate, beat = 22_050, 22_050 // 2
    burst = np.random.default_rng(0).standard_normal(2_000) * np.exp(-np.arange(2_000) / 300)
    clicks = np.concatenate([np.pad(burst, (0, beat - len(burst)))] * 24).astype(np.float32)
    looped = AudioDiffusion.loop_it(clicks, rate, loops=3)
    assert looped is not None
    assert len(looped) % 3 == 0
    assert np.array_equal(looped[: len(looped) // 3], looped[len(looped) // 3 : 2 * len(looped) // 3])
    bars = len(looped) / 3 / (4 * beat)
    assert round(bars) >= 1
    assert abs(bars - round(bars)) < 0.05
    assert AudioDiffusion.loop_it(clicks[: beat * 2], rate) is None


def test_audio_encoder(loop_files: list[Path], tmp_path: Path) -> None:
    torch.manual_seed(4)
    core = CoreEncoder()
    (tmp_path / "config.json").write_text('{"_class_name": "AudioEncoder", "_diffusers_version": "0.16.1"}')
    torch.save(core.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    encoder = AudioEncoder.from_pretrained(tmp_path)
    by_length = sorted(loop_files, key=lambda file: len(decode_audio(file, core.sample_rate)))
    files = by_length[-2:]
    audios = [decode_audio(file, core.sample_rate) for file in files]
    average, most = encoder.encode(files), encoder.encode([str(file) for file in files], pool="max")
    assert average.shape == most.shape == (2, 100)
    assert torch.allclose(average, torch.from_numpy(core.encode(audios, core.sample_rate)), atol=1e-3), (
        "images may differ by a level"
    )
    assert torch.allclose(most, torch.from_numpy(core.encode(audios, core.sample_rate, pool="max")), atol=1e-3)
    slices = encoder.encode(files[:1], pool=None)
    assert slices.shape == (1, len(audios[0]) // core.mel.slice_size, 100)
    assert torch.allclose(slices[0].mean(dim=0), average[0])
    with pytest.raises(ValueError, match="pool 'sum': must be average, max or None"):
        encoder.encode(files, pool="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"from 1 to \d slices"):
        encoder.encode([by_length[-1], by_length[0]], pool=None)
