"""Behind a socket proxy that lets nothing but GET through the registrator does all that it does."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from discovery.errors import SourceError
from discovery.sources.bridge import bridge_addresses
from discovery.sources.docker import Rules
from discovery.sources.docker_engine import ping
from discovery.sources.docker_source import DockerSource
from discovery.sources.engine_client import EngineAddress
from tests.lab.dockerd import DockerEngine
from tests.lab.engine_proxy import GET_ONLY, EngineProxy
from tests.lab.wait import until

RULES = Rules("n1", "192.0.2.7")


@pytest.fixture
def proxy(engine: DockerEngine, tmp_path: Path) -> Iterator[EngineProxy]:
    with EngineProxy(tmp_path, Path(engine.url.removeprefix("unix://"))).running() as started:
        yield started


def test_get_is_all_it_asks_for(engine: DockerEngine, proxy: EngineProxy) -> None:
    engine.run("web", ports={80: 8000})
    network = engine.client.create_network("front")["Id"]
    with closing(DockerSource(proxy.url, RULES, relist_seconds=60)) as source:
        assert [each.instance.port for each in source.registrations()] == [8000]
        for change, registered in (
            (lambda: engine.client.pause("web"), False),
            (lambda: engine.client.unpause("web"), True),
            (lambda: engine.client.connect_container_to_network("web", network), True),
            (lambda: engine.client.rename("web", "web2"), True),
            (lambda: engine.client.kill("web2"), False),
        ):
            change()
            until(
                lambda registered=registered: source.wait(1) and bool(source.registrations()) == registered,
                f"registered: {registered}",
            )
    assert bridge_addresses(EngineAddress(proxy.url))
    assert proxy.refused == []
    assert any("/events" in line for line in proxy.passed)


def test_the_proxy_refuses_what_it_should(proxy: EngineProxy) -> None:
    """Or the test above would prove nothing; and a refusal of ours is told, not taken for emptiness."""
    from docker import APIClient
    from docker.errors import APIError

    with closing(APIClient(base_url=proxy.url, version="auto")) as client:
        for call in (lambda: client.create_network("x"), lambda: client.images(), lambda: client.info()):
            with pytest.raises(APIError, match="403"):
                call()
    assert len(proxy.refused) == 3


def test_one_that_hides_the_containers_is_named(engine: DockerEngine, tmp_path: Path) -> None:
    allowed = [path for path in GET_ONLY if "containers" not in path]
    with EngineProxy(tmp_path, Path(engine.url.removeprefix("unix://")), allowed).running() as proxy:
        ping(proxy.url)
        with (
            closing(DockerSource(proxy.url, RULES)) as source,
            pytest.raises(SourceError, match="a socket proxy must allow"),
        ):
            source.registrations()
