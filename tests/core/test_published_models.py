"""The seven models that the original published load from each layout that they were published in, to the bit, as diffusers loads the newest one."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import AudioDiffusionPipeline as OraclePipeline

from audiodiff_core.checkpoint import Model, load_model, load_pipeline, load_vae
from audiodiff_core.mel import MelConfig
from tests import published
from tests.published import BY_NAME, MODELS, Networks, Published

EVERY_LAYOUT = [pytest.param(model, layout, id=f"{model.name}-{layout}") for model in MODELS for layout in model.layouts]
ONE_OF_EACH_KIND = ["audio-diffusion-256", "latent-audio-diffusion-256", "conditional-latent-audio-diffusion-512"]


@cache
def networks(name: str) -> Networks:
    return Networks.build(BY_NAME[name])


def assert_weights(loaded: Any, original: Any) -> None:
    ours, theirs = loaded.state_dict(), original.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == torch.float32 for name in ours)


def assert_is(loaded: Model, model: Published, built: Networks) -> None:
    """Every weight and every setting of the published model."""
    assert type(loaded.unet) is model.unet_class
    assert_weights(loaded.unet, built.unet)
    assert {key: json.loads(json.dumps(loaded.unet.config[key])) for key in model.unet_config(built.divisor)} == model.unet_config(built.divisor)
    assert loaded.unet.config.get("cross_attention_dim") == (published.ENCODING_DIM if model.kind == "conditional" else None)
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
        sizes[name] = [(folder / file).stat().st_size for file in ("scheduler/scheduler_config.json", "mel/mel_config.json")]
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
@pytest.mark.parametrize("no_autoencoder", [True, False], ids=["vqvae null", "no vqvae"])
def test_layouts_of_the_community_load(name: str, no_autoencoder: bool, tmp_path: Path) -> None:
    """Layout E of a pixel model says `vqvae: [null, null]`; F names a Mel of a package that need not be installed; paths of others' machines stay."""
    model = BY_NAME[name]
    folder = published.write(tmp_path / "model", model, "F", networks(name))
    index = model.index("F") | {"_name_or_path": "/home/nobody/model"}
    if no_autoencoder and model.kind == "pixel":
        index["vqvae"] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index))
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/nobody/unet"}))
    assert_is(load_model(folder), model, networks(name))


def test_an_autoencoder_under_the_key_of_other_tools_loads(tmp_path: Path) -> None:
    model = BY_NAME["latent-audio-diffusion-256"]
    folder = published.write(tmp_path / "model", model, "D", networks(model.name))
    digest = load_model(folder).digest
    (folder / "vqvae").rename(folder / "vae")
    index = model.index("D")
    index["vae"] = index.pop("vqvae")
    (folder / "model_index.json").write_text(json.dumps(index))
    loaded = load_model(folder)
    assert_is(loaded, model, networks(model.name))
    assert loaded.digest == digest
    assert_weights(load_vae(folder), loaded.vae)


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_sample_size_is_a_side_or_a_pair_and_weights_are_of_either_kind(name: str, tmp_path: Path) -> None:
    model = BY_NAME[name]
    folder = published.write(tmp_path / "model", model, "D", networks(name))
    config = json.loads((folder / "unet" / "config.json").read_text())
    config["sample_size"] = [config["sample_size"]] * 2
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    (folder / "unet" / published.WEIGHTS).unlink()
    safetensors.torch.save_file(published.old_names(networks(name).unet), folder / "unet" / "diffusion_pytorch_model.safetensors")
    loaded = load_model(folder)
    assert_weights(loaded.unet, networks(name).unet)
    assert loaded.mel == MelConfig(**model.mel)


def test_without_a_mel_configuration_images_are_as_large_as_the_decoder_makes_them(tmp_path: Path) -> None:
    """Whatever the autoencoder says it was trained at, or whether it says so: eight times the latent."""
    model = BY_NAME["latent-audio-diffusion-256"]
    folder = published.write(tmp_path / "model", model, "B", networks(model.name))
    for sample_size in (None, 32):
        config = json.loads((folder / "vqvae" / "config.json").read_text()) | {"sample_size": sample_size}
        (folder / "vqvae" / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
        assert load_model(folder).mel == MelConfig(x_res=256, y_res=256)
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "sample_size": [16, 64]}))
    assert load_model(folder).mel == MelConfig(x_res=512, y_res=128)


def test_a_scaling_factor_that_is_stated_is_kept(tmp_path: Path) -> None:
    model = BY_NAME["latent-audio-diffusion-256"]
    folder = published.write(tmp_path / "model", model, "D", networks(model.name))
    config = json.loads((folder / "vqvae" / "config.json").read_text())
    (folder / "vqvae" / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.25, "force_upcast": True}))
    assert load_model(folder).vae.config.scaling_factor == 0.25


def test_the_digest_covers_the_autoencoder_and_pickled_weights(tmp_path: Path) -> None:
    model = BY_NAME["latent-audio-diffusion-256"]
    folder = published.write(tmp_path / "model", model, "B", networks(model.name))
    digests = {load_model(folder).digest}
    for part in ("unet", "vqvae"):
        weights = torch.load(folder / part / published.WEIGHTS, weights_only=True)
        name = next(iter(weights))
        torch.save({**weights, name: weights[name] + 1}, folder / part / published.WEIGHTS)
        digests.add(load_model(folder).digest)
    config = json.loads((folder / "vqvae" / "config.json").read_text())
    (folder / "vqvae" / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.5}))
    digests.add(load_model(folder).digest)
    assert len(digests) == 4


def test_a_pipeline_is_ready_to_generate(tmp_path: Path) -> None:
    model = BY_NAME["audio-diffusion-256"]
    folder = published.write(tmp_path / "model", model, "A-0.2.4", networks(model.name))
    pipeline = load_pipeline(folder)
    assert pipeline.mel == MelConfig(x_res=256, y_res=256)
    assert_weights(pipeline.sampler.unet, networks(model.name).unet)


@pytest.mark.parametrize(
    ("name", "layout", "unet_parameters", "vae_parameters"),
    [
        pytest.param("audio-diffusion-256", "A-0.2.2", 113_668_609, 0, id="pixel"),
        pytest.param("latent-audio-diffusion-256", "B", 113_668_609, 83_607_691, id="latent", marks=pytest.mark.soak),
        pytest.param("conditional-latent-audio-diffusion-512", "C", 135_559_809, 83_607_691, id="conditional", marks=pytest.mark.soak),
    ],
)
def test_a_published_model_of_full_size_loads(name: str, layout: str, unet_parameters: int, vae_parameters: int, tmp_path: Path) -> None:
    model, built = BY_NAME[name], Networks.build(BY_NAME[name], divisor=1)
    loaded = load_model(published.write(tmp_path / "model", model, layout, built))
    assert_is(loaded, model, built)
    assert sum(parameter.numel() for parameter in loaded.unet.parameters()) == unet_parameters
    assert sum(parameter.numel() for parameter in (loaded.vae.parameters() if loaded.vae else [])) == vae_parameters
