"""Fixture that runs jobs in the test process, unless a test is marked `workers`."""

from collections.abc import Iterator

import pytest

from tests.in_process import in_process


@pytest.fixture(autouse=True)
def _in_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """Start no worker processes for tests that do not need them."""
    if request.node.get_closest_marker("workers"):
        yield
    else:
        with in_process():
            yield
