"""Fixtures of these servers, for tests/conftest.py."""

from collections.abc import Iterator

import pytest
from fsspec.registry import registry

from tests.servers.hub import Hub
from tests.servers.stores import Store, Stores


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    """Both object stores, with variables by which this process, its Ray and its jobs find them.

    No server is started before the first request.
    """
    stores = Stores.create()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stores.environment(tmp_path_factory.mktemp("credentials")).items():
            patch.setenv(name, value)
        for protocol in {"s3", "gs"} & set(registry):  # cached filesystems have other credentials
            registry[protocol].clear_instance_cache()
        yield stores
    stores.close()


@pytest.fixture(params=["s3", "gs"])
def store(request: pytest.FixtureRequest, stores: Stores) -> Iterator[Store]:
    """Each object store in turn, free of faults."""
    store: Store = getattr(stores, request.param)
    yield store
    store.proxy.clear()


@pytest.fixture
def hub() -> Iterator[Hub]:
    """An empty Hugging Face Hub."""
    hub = Hub.create()
    yield hub
    hub.close()
