"""Real parts that the integration tests share."""

from collections.abc import Iterator

import pytest

from tests.lab.dockerd import DockerEngine


@pytest.fixture(scope="session")
def shared_engine() -> Iterator[DockerEngine]:
    """One engine for all, as starting one takes seconds."""
    with DockerEngine() as engine:
        yield engine


@pytest.fixture
def engine(shared_engine: DockerEngine) -> Iterator[DockerEngine]:
    """The shared engine, without containers before and after."""
    yield shared_engine
    shared_engine.remove_all()
