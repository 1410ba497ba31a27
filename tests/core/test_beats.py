"""Networks that take beats: channels, the phase of the content, files that diffusers can run, and bad settings."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel

from audiodiff_core.checkpoint import CheckpointError, ModelRecord, load_model, save_model
from audiodiff_core.embeddings.measured import MeasuredConditions
from audiodiff_core.embeddings.tempo_place import beats_for
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import PLACEMENT, PRESETS, Beats, build_network, folded, image_sides, sample_channels
from audiodiff_core.pipeline import LoopPipeline
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest
from audiodiff_core.sampling.encodings import placed_encoding
from audiodiff_core.sampling.item import Item
from audiodiff_core.sampling.network import Network
from audiodiff_core.training import TrainBatch, TrainState, train_step
from audiodiff_core.training.cost import training_cost
from audiodiff_core.training.step import on_device

PRESET = PRESETS["tiny-conditional-bands"]
MEL = MelConfig(x_res=32, y_res=64, sample_rate=22_050, hop_length=1_024)
CONDITIONS = MeasuredConditions.of(("tempo", "key"))
COLUMNS_PER_MINUTE = 60 * MEL.sample_rate / MEL.hop_length
PLACED = beats_for(CONDITIONS, MEL)
assert PLACED is not None
BEATS: Beats = PLACED
PROFILE = ExecutionProfile(batch_size=2)


def encodings_at(*tempos: float | None) -> torch.Tensor:
    return torch.from_numpy(np.stack([CONDITIONS.encoding({"tempo": tempo}) for tempo in tempos]))


def pulses(bpm: float, first: float, width: int = 64) -> torch.Tensor:
    """Return an image (1, 1, 64, width) whose level rises on each beat, the first at column `first`."""
    image = torch.full((1, 1, 64, width), -1.0)
    for beat in np.arange(first, width, COLUMNS_PER_MINUTE / bpm):
        image[..., round(beat)] = 1.0
    return image


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    return build_network("tiny-conditional-bands", MEL, encoding_dim=CONDITIONS.dim, beats=BEATS).eval()


@pytest.fixture
def folder(tmp_path: Path, network: Any) -> Path:
    record = ModelRecord(recipe={}, data_digest="0123456789abcdef", metrics={}, conditions=CONDITIONS)
    save_model(tmp_path / "model", network, PRESET.objective.scheduler("ddim"), MEL, record)
    return tmp_path / "model"


def test_the_tempo_of_an_encoding_is_exact() -> None:
    rates, stated = BEATS.rates(encodings_at(90.0, 133.7, None, 240.0), 32, torch.zeros(4, dtype=torch.bool))
    assert stated.tolist() == [True, True, False, True]
    np.testing.assert_allclose((rates * COLUMNS_PER_MINUTE)[stated].numpy(), [90.0, 133.7, 240.0], rtol=1e-5)


def test_tracks_return_to_one_on_every_beat() -> None:
    tracks = BEATS.tracks(encodings_at(COLUMNS_PER_MINUTE / 8, None), torch.zeros(2, PLACEMENT), 33)
    assert tracks.shape == (2, 2, 33)
    np.testing.assert_allclose(tracks[0, 0, ::8].numpy(), 1, atol=1e-3)
    np.testing.assert_allclose(tracks[0, 0, 4::8].numpy(), -1, atol=1e-3)
    np.testing.assert_allclose(tracks[0, 1, 2::8].numpy(), 1, atol=1e-3)
    assert not tracks[1].any()


def test_a_seamless_loop_has_a_whole_number_of_beats() -> None:
    width = 32
    tracks = BEATS.tracks(encodings_at(133.7, 40.0), torch.tensor([[0.3, 1.0], [0.0, 1.0]]), width)
    spectrum = torch.fft.rfft(tracks[:, 0])
    assert spectrum.abs().argmax(dim=1).tolist() == [round(133.7 / COLUMNS_PER_MINUTE * width), 1]
    assert torch.count_nonzero(spectrum.abs() > 1e-3).item() == 2


@pytest.mark.parametrize("first", [0, 3, 7])
def test_the_phase_is_that_of_the_onsets(first: int) -> None:
    encodings = encodings_at(90.0)
    image = pulses(90.0, first + COLUMNS_PER_MINUTE / 90 * (first == 0))  # nothing rises on the first column
    tracks = BEATS.tracks(encodings, BEATS.placements(image, encodings), 64)
    beats = np.round(np.arange(first, 64, COLUMNS_PER_MINUTE / 90)).astype(int)
    assert tracks[0, 0, beats].min() > 0.9


def test_only_kept_content_has_a_phase() -> None:
    encodings = encodings_at(120.0)
    mixed = torch.cat([pulses(120.0, 5, 32), pulses(120.0, 2, 32)], dim=-1)
    kept = torch.zeros(1, 64, 64, dtype=torch.bool)
    kept[..., :32] = True
    torch.testing.assert_close(
        BEATS.placements(mixed, encodings, kept), BEATS.placements(pulses(120.0, 5, 32), encodings), atol=1e-5, rtol=0
    )


def test_the_network_takes_the_beats_and_the_encoding(network: Any) -> None:
    assert (network.config.in_channels, network.config.out_channels) == (18, 16)
    assert (image_sides(network), sample_channels(network)) == ((64, 32), 1)
    samples, timesteps, encodings = torch.randn(2, 1, 64, 32), torch.tensor([3.0, 700.0]), encodings_at(90.0, None)
    plain = UNet2DConditionModel.from_config(
        {key: value for key, value in network.config.items() if key not in ("fold", "beats")}
    )
    plain.load_state_dict(network.state_dict())
    placements = torch.tensor([[0.5, 0.0], [0.0, 0.0]])
    with torch.inference_mode():
        predictions = Network(network, PROFILE)(samples, timesteps, torch.cat([encodings, placements], -1).unsqueeze(1))
        tracks = BEATS.tracks(encodings, placements, 32).unsqueeze(2).expand(-1, -1, 4, -1)
        blocks = torch.cat([folded(samples, (16, 1)), tracks], dim=1)
        expected = plain.eval()(blocks, timesteps, encodings.unsqueeze(1), class_labels=encodings).sample
    torch.testing.assert_close(folded(predictions, (16, 1)), expected, atol=1e-5, rtol=0)


def test_the_slot_and_the_other_samples_have_no_effect(network: Any) -> None:
    profile = ExecutionProfile(batch_size=8)
    samples, timesteps = torch.randn(8, 1, 64, 32), torch.linspace(1, 999, 8)
    encodings = encodings_at(*(90.0 + 7 * index for index in range(7)), None)
    given = torch.cat([encodings, torch.linspace(-3, 3, 8).unsqueeze(1), torch.arange(8.0).unsqueeze(1) % 2], dim=1)
    order = torch.tensor([3, 7, 1, 0, 5, 2, 6, 4])
    with torch.inference_mode():
        straight = Network(network, profile)(samples, timesteps, given.unsqueeze(1))
        shuffled = Network(network, profile)(samples[order], timesteps[order], given[order].unsqueeze(1))
    assert torch.equal(shuffled, straight[order])


def test_a_saved_model_loads_here_and_in_diffusers(
    folder: Path, network: Any, caplog: pytest.LogCaptureFixture
) -> None:
    changes: list[str] = []
    model = load_model(folder, changes)
    assert changes == []
    assert not caplog.records
    assert model.unet.beats == BEATS
    assert "as class_labels, and the cosine and sine of the phase of the beat" in (folder / "README.md").read_text()
    requests = [GenerateRequest(seed=1, steps=2, bpm=133.0), GenerateRequest(seed=2, steps=2, key="C minor")]
    loops = [loop.image for loop in LoopPipeline.of(model, PROFILE).generate(requests)]
    arrays = np.stack([CONDITIONS.encoding({"tempo": 133.0}), CONDITIONS.encoding({"key": "C minor"})])
    plain = [request.model_copy(update={"bpm": None, "key": None}) for request in requests]
    before = LoopPipeline(network, model.scheduler, MEL, PROFILE).generate(plain, encodings=arrays)
    assert all(np.array_equal(one, loop.image) for one, loop in zip(loops, before, strict=True))
    theirs = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    assert all(torch.equal(theirs.state_dict()[name], weights) for name, weights in network.state_dict().items())


def test_training_measures_the_phase_of_the_images(network: Any) -> None:
    accelerator = Accelerator(cpu=True)
    state = TrainState(accelerator, copy.deepcopy(network), PRESET.objective, 1e-3, 5, encoding_parts=CONDITIONS.sizes)
    images = ((pulses(100.0, 4, 32)[:, 0] + 1) * 127.5).to(torch.uint8).repeat(4, 1, 1)
    batch = TrainBatch(torch.arange(4), images, encodings_at(100.0, 100.0, 100.0, None))
    clean, _, encodings = on_device(accelerator, state, batch, dropout=False)
    assert clean.shape == (4, 16, 4, 32)
    assert encodings is not None
    assert encodings.shape == (4, CONDITIONS.dim + PLACEMENT)
    tracks = BEATS.tracks(encodings[:, :-PLACEMENT], encodings[:, -PLACEMENT:], 32)
    assert tracks[0, 0, 4] > 0.9
    assert not tracks[3].any()
    loss, norm = train_step(accelerator, state, [batch], 1e-3)
    assert loss > 0
    assert norm > 0
    assert training_cost(network, 2).activation_bytes > 0


def test_the_placement_is_that_of_the_content() -> None:
    (encoding,) = encodings_at(100.0)
    request, clean = GenerateRequest(seed=1), pulses(100.0, 4, 32)[0]
    kept = torch.ones(64, 32, dtype=torch.bool)
    for item in (
        Item(request, 32, clean=clean, encoding=encoding),
        Item(request, 32, clean=clean, encoding=encoding, keep=kept),
    ):
        placed = placed_encoding(item, BEATS)
        assert torch.equal(placed[:-PLACEMENT], encoding)
        assert BEATS.tracks(encoding.unsqueeze(0), placed[None, -PLACEMENT:], 32)[0, 0, 4] > 0.9
    for item in (
        Item(request, 32, encoding=encoding),
        Item(request, 32, clean=clean, encoding=encoding, inverted=True),
    ):
        assert placed_encoding(item, BEATS)[-PLACEMENT:].tolist() == [0.0, 0.0]
    seamless = GenerateRequest(seed=1, seamless=True)
    assert placed_encoding(Item(seamless, 32, encoding=encoding), BEATS)[-PLACEMENT:].tolist() == [0.0, 1.0]


def test_variations_are_sampled_with_the_beat_of_their_source(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = LoopPipeline.of(load_model(folder), PROFILE)
    image = ((pulses(100.0, 4, 32)[0, 0] + 1) * 127.5).numpy().astype(np.uint8)
    request = GenerateRequest(seed=1, steps=4, bpm=100.0)
    (own,) = pipeline.vary([request], [image], strength=0.5)
    monkeypatch.setattr(Beats, "placements", lambda *_: torch.zeros(1, PLACEMENT))
    (first_column,) = pipeline.vary([request], [image], strength=0.5)
    assert not np.array_equal(own.image, first_column.image)


def test_encodings_without_a_tempo_need_no_beats() -> None:
    network = build_network("tiny-conditional-bands", MEL, encoding_dim=5)
    assert network.beats is None
    assert network.config.in_channels == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beats": {"first": 40}}, "Beats columns_per_minute|for Beats"),
        ({"beats": {**BEATS.model_dump(), "first": 40}}, "anchors 40 to 72 are not in 46 values"),
        ({"beats": {**BEATS.model_dump(), "low": 0.0}}, "low"),
        ({"beats": {**BEATS.model_dump(), "columns_per_minute": float("inf")}}, "columns_per_minute"),
        ({"beats": {**BEATS.model_dump(), "anchors": 10**9}}, "anchors"),
        ({"beats": None}, "in_channels 18 and out_channels 16 must be equal"),
        ({"in_channels": 16}, "must differ by the 2 channels of the beats"),
        ({"class_embed_type": None}, "beats needs class_embed_type simple_projection"),
        ({"class_embed_type": "timestep"}, "class_embed_type timestep: must be null or simple_projection"),
        ({"projection_class_embeddings_input_dim": 5}, "must be cross_attention_dim 46"),
        ({"fold": [3, 1]}, "blocks of 3 must divide out_channels 16"),
        ({"fold": [32, 1]}, "from 1 to 16"),
        ({"beats": {**BEATS.model_dump(), "first": 4}}, "must be .first=0 anchors=32"),
        ({"beats": {**BEATS.model_dump(), "columns_per_minute": 600.0}}, "as the mel images and audiodiff.json state"),
    ],
)
def test_damaged_settings_are_refused(folder: Path, settings: dict[str, Any], message: str) -> None:
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **settings}))
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)
