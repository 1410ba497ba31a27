"""What all tests share: the real loops, a tiny model, one Ray for the whole run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

LOOPS = Path(__file__).parent / "data" / "loops"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run only the long fault and quality runs")


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
def local_ray() -> Iterator[None]:
    """One Ray cluster for all tests that need one: four logical CPUs, so that several workers fit on any machine."""
    import ray

    from audiodiff_platform.cluster import WORKER_ENVIRONMENT

    ray.init(address="local", num_cpus=4, runtime_env={"env_vars": WORKER_ENVIRONMENT}, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()
