"""What all tests share: the real loops, a tiny model, one Ray for the whole run."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.stores import Stores

LOOPS = Path(__file__).parent / "data" / "loops"

pytest_plugins = ["tests.servers.fixtures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run only the long fault and quality runs")


def pytest_configure() -> None:
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = (
        "false"  # read when gcsfs is imported; by default it asks for each bucket's kind over gRPC
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = bool(config.getoption("--soak"))
    chosen = [item for item in items if (item.get_closest_marker("soak") is not None) == wanted]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


@pytest.fixture(scope="session")
def loops() -> Path:
    """The folder of the 14 CC0 loops."""
    return LOOPS


@pytest.fixture(scope="session")
def local_ray(stores: Stores) -> Iterator[None]:
    """One Ray cluster for all tests that need one: four logical CPUs, so that several workers fit on any machine. Its workers find the object stores."""
    import ray

    from audiodiff_platform.cluster import WORKER_ENVIRONMENT

    ray.init(
        address="local",
        num_cpus=4,
        runtime_env={"env_vars": WORKER_ENVIRONMENT},
        logging_level="ERROR",
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def few_loops(loops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four loops, one of them in a subfolder, with a file that is not audio."""
    folder = tmp_path_factory.mktemp("few")
    (folder / "sub").mkdir()
    for name in ("loop_tabla", "loop_mika", "bass_hit_c"):
        shutil.copy(loops / f"{name}.flac", folder)
    shutil.copy(loops / "ambi_piano.flac", folder / "sub")
    (folder / "notes.txt").write_text("not audio")
    return folder


@pytest.fixture(scope="session")
def dataset(local_ray: None, few_loops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished dataset of 32x32 images in several shards."""
    from audiodiff_platform.prepare.job import PrepareOptions, prepare

    folder = tmp_path_factory.mktemp("dataset") / "mel"
    prepare(
        PrepareOptions(
            input_dir=str(few_loops),
            output_dir=str(folder),
            overlap=0.5,
            shard_minutes=0.001,
            resolution="32",
            hop_length=1024,
            num_workers=2,
        )
    )
    return folder


@pytest.fixture(scope="session")
def held_out(local_ray: None, few_loops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished dataset of 32x32 images, a file in each shard, with tracks held out: their shards have no other part."""
    from audiodiff_platform.prepare.job import PrepareOptions, prepare

    folder = tmp_path_factory.mktemp("held-out") / "mel"
    options = {"resolution": "32", "hop_length": 1024, "overlap": 0.5, "shard_minutes": 0.001, "num_workers": 2}
    summary = prepare(
        PrepareOptions(input_dir=str(few_loops), output_dir=str(folder), validation_fraction=0.5, **options)
    )
    assert 0 < summary["validation_slices"] < summary["slices"]
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights for 32x32 images."""
    import torch

    from audiodiff_core.checkpoint import ModelRecord, save_model
    from audiodiff_core.mel import MelConfig
    from audiodiff_core.models import PRESETS, build_network

    folder = tmp_path_factory.mktemp("model") / "model"
    mel = MelConfig(x_res=32, y_res=32, hop_length=1024)
    torch.manual_seed(0)
    record = ModelRecord(recipe={}, data_digest="none", metrics={})
    save_model(folder, build_network("tiny", mel), PRESETS["tiny"].objective.scheduler("ddim"), mel, record)
    return folder


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a small autoencoder with random weights: latents of 2 channels, a quarter of the image on a side."""
    import torch
    from diffusers import AutoencoderKL

    from audiodiff_core.checkpoint import save_vae

    torch.manual_seed(0)
    network = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=2,
        block_out_channels=(4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        sample_size=32,
    )
    folder = tmp_path_factory.mktemp("vae") / "model"
    save_vae(folder, network)
    return folder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of an AudioEncoder with random weights."""
    import torch
    from safetensors.torch import save_file

    from audiodiff_core.embeddings.audio_encoder import AudioEncoder

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "config.json").write_text('{"_class_name": "AudioEncoder"}')
    save_file(AudioEncoder().state_dict(), folder / "diffusion_pytorch_model.safetensors")
    return folder
