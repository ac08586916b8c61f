import contextlib
import itertools
from collections.abc import Iterator

import pytest

from discovery.stores.base import Store
from tests.contract.engines import ENGINES, Engine, Lab

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with contextlib.ExitStack() as stack:
        yield Lab(tmp_path_factory.mktemp("contract"), stack)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, lab: Lab) -> Engine:
    return ENGINES[request.param](lab, f"/t{next(_numbers)}/")


@pytest.fixture
def prefix(engine: Engine) -> str:
    return engine.prefix


@pytest.fixture
def store(engine: Engine) -> Iterator[Store]:
    with contextlib.closing(engine.open()) as store:
        yield store


@pytest.fixture
def other(engine: Engine) -> Iterator[Store]:
    """Another process's view of the same data."""
    with contextlib.closing(engine.open()) as store:
        yield store
