"""The seven models of the original in every published layout.

The weights are loaded bit for bit. The newest layout gives the same model as in diffusers.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AudioDiffusionPipeline as OraclePipeline

from audiodiff_core.checkpoint import Model, load_model
from audiodiff_core.mel import MelConfig
from tests import published
from tests.published import BY_NAME, MODELS, Networks, Published
from tests.rare import rare

ONE_OF_EACH_KIND = ["audio-diffusion-256", "latent-audio-diffusion-256", "conditional-latent-audio-diffusion-512"]
EVERY_LAYOUT = [
    (pytest.param if model.name in ONE_OF_EACH_KIND[:2] else rare)(model, layout, id=f"{model.name}-{layout}")
    for model in MODELS
    for layout in model.layouts
]


@cache
def networks(name: str) -> Networks:
    return Networks.build(BY_NAME[name])


def assert_weights(loaded: Any, original: Any) -> None:
    ours, theirs = loaded.state_dict(), original.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == torch.float32 for name in ours)


def assert_is(loaded: Model, model: Published, built: Networks) -> None:
    """Assert that every weight and setting equals that of the published model."""
    assert type(loaded.unet) is model.unet_class
    assert_weights(loaded.unet, built.unet)
    assert {
        key: json.loads(json.dumps(loaded.unet.config[key])) for key in model.unet_config(built.divisor)
    } == model.unet_config(built.divisor)
    assert loaded.unet.config.get("cross_attention_dim") == (
        published.ENCODING_DIM if model.kind == "conditional" else None
    )
    assert type(loaded.scheduler).__name__ == model.scheduler
    assert {key: loaded.scheduler.config[key] for key in model.scheduler_config} == model.scheduler_config
    assert (loaded.scheduler.config.prediction_type, loaded.scheduler.config.timestep_spacing) == ("epsilon", "leading")
    if model.kind == "pixel":
        assert loaded.vae is None
    else:
        assert_weights(loaded.vae, built.vae)
        assert loaded.vae.config.scaling_factor == 0.18215
        assert not loaded.vae.training
    assert not loaded.unet.training


@pytest.mark.parametrize(("model", "layout"), EVERY_LAYOUT)
def test_a_published_model_loads(model: Published, layout: str, tmp_path: Path) -> None:
    folder = published.write(tmp_path / "model", model, layout, networks(model.name))
    assert (folder / "model_index.json").stat().st_size == model.layouts[layout]
    loaded = load_model(folder)
    assert_is(loaded, model, networks(model.name))
    assert loaded.mel == (MelConfig(**model.mel) if layout in {"C", "D"} else MelConfig(x_res=256, y_res=256))
    assert loaded.record is None


def test_the_rebuilt_configurations_have_the_size_of_the_published_ones(tmp_path: Path) -> None:
    sizes = {}
    for name in ("audio-diffusion-256", "audio-diffusion-ddim-256", "latent-audio-diffusion-512"):
        folder = published.write(tmp_path / name, BY_NAME[name], "D", networks(name))
        sizes[name] = [
            (folder / file).stat().st_size for file in ("scheduler/scheduler_config.json", "mel/mel_config.json")
        ]
    assert sizes["audio-diffusion-256"] == [261, 191]
    assert sizes["audio-diffusion-ddim-256"] == [276, 191]
    assert sizes["latent-audio-diffusion-512"][1] == 187


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_diffusers_reads_the_same_from_the_newest_layout(name: str, tmp_path: Path) -> None:
    folder = published.write(tmp_path / "model", BY_NAME[name], "D", networks(name))
    oracle, loaded = OraclePipeline.from_pretrained(folder), load_model(folder)
    assert_weights(loaded.unet, oracle.unet)
    stated = {key: value for key, value in oracle.unet.config.items() if not key.startswith("_")}
    assert {key: loaded.unet.config[key] for key in stated} == stated
    noise = {key: value for key, value in oracle.scheduler.config.items() if not key.startswith("_")}
    assert {key: loaded.scheduler.config[key] for key in noise} == noise
    if loaded.vae is not None:
        assert_weights(loaded.vae, oracle.vqvae)
        assert oracle.vqvae.config.scaling_factor == loaded.vae.config.scaling_factor


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_layouts_of_the_community_load(name: str, tmp_path: Path) -> None:
    """Check two layouts of the community.

    Layout E is a pixel model with `vqvae: [null, null]`. Layout F names a Mel of a package that need not be installed.
    Both contain paths of other machines.
    """
    model = BY_NAME[name]
    folder = published.write(tmp_path / "model", model, "F", networks(name))
    index = {"_name_or_path": "/home/nobody/model", "vqvae": [None, None], **model.index("F")}
    (folder / "model_index.json").write_text(json.dumps(index))
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/nobody/unet"}))
    assert_is(load_model(folder), model, networks(name))


@pytest.mark.soak  # at least half a gigabyte of weights per model
@pytest.mark.parametrize(
    ("name", "layout", "unet_parameters", "vae_parameters"),
    [
        pytest.param("audio-diffusion-256", "A-0.2.2", 113_668_609, 0, id="pixel"),
        pytest.param("latent-audio-diffusion-256", "B", 113_668_609, 83_607_691, id="latent"),
        pytest.param("conditional-latent-audio-diffusion-512", "C", 135_559_809, 83_607_691, id="conditional"),
    ],
)
def test_a_published_model_of_full_size_loads(
    name: str, layout: str, unet_parameters: int, vae_parameters: int, tmp_path: Path
) -> None:
    model, built = BY_NAME[name], Networks.build(BY_NAME[name], divisor=1)
    loaded = load_model(published.write(tmp_path / "model", model, layout, built))
    assert_is(loaded, model, built)
    assert sum(parameter.numel() for parameter in loaded.unet.parameters()) == unet_parameters
    assert sum(parameter.numel() for parameter in (loaded.vae.parameters() if loaded.vae else [])) == vae_parameters
