"""The real parts of the end-to-end tests: an engine and etcd servers for all of them, an agent for each."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.dockerd import DockerEngine
from tests.lab.etcd import Etcd


@pytest.fixture(scope="session")
def engine() -> Iterator[DockerEngine]:
    with DockerEngine() as started:
        yield started


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    with Etcd(tmp_path / "etcd") as started:
        yield started


@pytest.fixture(params=[3, 2], ids=["etcd3", "etcd2"])
def version(request: pytest.FixtureRequest) -> int:
    """The etcd API in use."""
    number: int = request.param
    return number
