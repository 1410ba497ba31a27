"""Fixtures of all tests: the real loops, a tiny model, and one Ray cluster for the whole run."""

import gc
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from tests.servers.stores import Stores

READING_S = 5.0
LOOPS = Path(__file__).parent / "data" / "loops"

CPU_CLOCK = pytest.StashKey["CpuClock"]()

pytest_plugins = ["tests.servers.fixtures", "tests.browser"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run only the long fault and quality runs")
    parser.addoption("--soak-short", action="store_true", help="run only the fault and quality runs that take minutes")
    parser.addoption("--max-cpu-seconds", type=float, help="fail a test that uses more CPU time")


def pytest_configure(config: pytest.Config) -> None:
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # numba crashes if two processes fill one cache
        os.environ["NUMBA_CACHE_DIR"] = str(config.rootpath / ".pytest_cache" / f"numba-{worker}")
    # Read at the import of gcsfs, which by default queries the kind of each bucket over gRPC.
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Exempt the modules and the tests from garbage collection: they last as long as the process."""
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = [item for item in items if _is_chosen(config, item) and _can_run(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def _is_chosen(config: pytest.Config, item: pytest.Item) -> bool:
    asked = config.getoption("markexpr")
    if any(item.get_closest_marker(device) and device not in asked for device in ("gpu", "browser")):
        return False
    markers = {marker.name for marker in item.iter_markers()} & {"soak", "soak_short"}
    if config.getoption("--soak"):
        return bool(markers)
    return markers == {"soak_short"} if config.getoption("--soak-short") else not markers


def _can_run(item: pytest.Item) -> bool:
    """Return whether this machine meets the requirements that the markers of a test name."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        return False
    if item.get_closest_marker("gpu") and not _has_gpu():
        return False
    return all(find_spec(marker.args[0]) for marker in item.iter_markers("package"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _bounded_cpu_time(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test whose processes use more CPU time than `--max-cpu-seconds`."""
    limit = request.config.getoption("--max-cpu-seconds")
    if limit is None:
        yield
        return
    clock = request.config.stash.setdefault(CPU_CLOCK, CpuClock())
    clock.start()
    yield
    used = clock.used_s()
    assert used <= limit, f"the test used {used:.0f} s of CPU time: at most {limit:g} s"


class CpuClock:
    """CPU seconds of this process and its descendants, including the processes of Ray.

    A reading takes milliseconds, so all tests of the next seconds share the reading.
    """

    def __init__(self) -> None:
        self.read_at = self.at_start = 0.0

    def start(self) -> None:
        """Start a measurement with a reading that is at most a few seconds old."""
        if time.monotonic() - self.read_at > READING_S:
            self.read_at, self.at_start = time.monotonic(), _cpu_seconds()

    def used_s(self) -> float:
        """Return the CPU seconds since the reading before the start."""
        return _cpu_seconds() - self.at_start if time.monotonic() - self.read_at > READING_S else 0.0


def _cpu_seconds() -> float:
    total = 0.0
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


@pytest.fixture(scope="session")
def loops() -> Path:
    """Return the folder of the 14 CC0 loops."""
    return LOOPS


@pytest.fixture(scope="session")
def ray_logs(stores: Stores) -> Iterator[Path]:
    """Start one Ray cluster for all tests that need a cluster, and return the folder of its logs.

    Four logical CPUs let several workers run on any machine. The workers have access to the object stores.
    """
    import ray

    from audiodiff_platform.cluster import WORKER_ENVIRONMENT

    started = ray.init(
        address="local",
        num_cpus=4,
        runtime_env={"env_vars": WORKER_ENVIRONMENT},
        logging_level="ERROR",
        log_to_driver=False,
    )
    yield Path(started.address_info["session_dir"]) / "logs"
    ray.shutdown()


@pytest.fixture(scope="session")
def local_ray(ray_logs: Path) -> None:
    """Start the Ray cluster."""


@pytest.fixture(scope="session")
def few_loops(loops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of four loops, one of them in a subfolder, and a file that is not audio."""
    folder = tmp_path_factory.mktemp("few")
    (folder / "sub").mkdir()
    for name in ("loop_tabla", "loop_mika", "bass_hit_c"):
        shutil.copy(loops / f"{name}.flac", folder)
    shutil.copy(loops / "ambi_piano.flac", folder / "sub")
    (folder / "notes.txt").write_text("not audio")
    return folder


@pytest.fixture(scope="session")
def dataset(local_ray: None, few_loops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished dataset of 32x32 images in several shards."""
    from audiodiff_platform.prepare.job import PrepareOptions, prepare
    from tests.in_process import in_process

    folder = tmp_path_factory.mktemp("dataset") / "mel"
    with in_process():
        prepare(
            PrepareOptions(
                input_dir=str(few_loops),
                output_dir=str(folder),
                overlap=0.5,
                shard_minutes=0.001,
                resolution="32",
                hop_length=1024,
            )
        )
    return folder


@pytest.fixture(scope="session")
def held_out(local_ray: None, few_loops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished dataset of 32x32 images with held-out tracks.

    Each shard holds one file, so the shard of a held-out track has no training part.
    """
    from audiodiff_platform.prepare.job import PrepareOptions, prepare
    from tests.in_process import in_process

    folder = tmp_path_factory.mktemp("held-out") / "mel"
    options = {"resolution": "32", "hop_length": 1024, "overlap": 0.5, "shard_minutes": 0.001}
    with in_process():
        summary = prepare(
            PrepareOptions(input_dir=str(few_loops), output_dir=str(folder), validation_fraction=0.5, **options)
        )
    assert 0 < summary["validation_slices"] < summary["slices"]
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model folder with random weights for 32x32 images."""
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
    """Return a folder of a small autoencoder with random weights.

    Its latents have 2 channels and a quarter of the image's height and width.
    """
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
    """Return a folder of an AudioEncoder with random weights."""
    import torch
    from safetensors.torch import save_file

    from audiodiff_core.embeddings.audio_encoder import AudioEncoder

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "config.json").write_text('{"_class_name": "AudioEncoder"}')
    save_file(AudioEncoder().state_dict(), folder / "diffusion_pytorch_model.safetensors")
    return folder
