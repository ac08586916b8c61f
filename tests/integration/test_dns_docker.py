"""What containers see that were started with ``--dns`` and the bridge's address; by glibc and by musl.

On a network of the user's own Docker puts its own resolver, 127.0.0.11, between them and us.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from discovery.dns.server import DnsServer
from discovery.dns.settings import DnsSettings
from tests.lab.dns import EDGE, Upstream, answer, serving
from tests.lab.dockerd import DockerEngine
from tests.lab.libc import MUSL, musl_lookup
from tests.lab.need import need

MANY = tuple(f"172.17.42.{number}" for number in range(1, 61))
COMMANDS = {"glibc": "getent ahosts", "musl": "/lookup/lookup"}


class Container:
    def __init__(self, engine: DockerEngine, id_: str) -> None:
        self._engine = engine
        self._id = id_

    def run(self, command: str) -> tuple[int, str]:
        job = self._engine.client.exec_create(self._id, ["sh", "-c", command])
        output = self._engine.client.exec_start(job["Id"]).decode()
        return self._engine.client.exec_inspect(job["Id"])["ExitCode"], output

    def lookup(self, libc: str, name: str) -> set[str]:
        status, output = self.run(f"{COMMANDS[libc]} {name}")
        return {line.split()[0] for line in output.splitlines()} if status == 0 else set()


@pytest.fixture(params=["default bridge", "user network"])
def container(request: pytest.FixtureRequest, engine: DockerEngine, tmp_path: Path) -> Container:
    """A container that was told of us by ``--dns``, with glibc and musl in it."""
    musl_lookup(tmp_path)
    libraries = Path("/lib/x86_64-linux-gnu").resolve()
    binds = [
        f"{tmp_path}:/lookup:ro",
        f"{MUSL.resolve()}:{MUSL}:ro",
        f"{libraries}:/lib/x86_64-linux-gnu:ro",
        f"{Path('/lib64').resolve()}:/lib64:ro",
        f"{need('getent')}:/bin/getent:ro",
    ]
    network = None
    if request.param == "user network":
        network = "apps"
        engine.client.create_network(network)
    id_ = engine.run("client", network=network, host={"dns": [engine.gateway], "binds": binds})
    made = Container(engine, id_)
    expected = engine.gateway if network is None else "127.0.0.11"
    assert f"nameserver {expected}" in made.run("cat /etc/resolv.conf")[1]
    return made


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream(lambda message: [answer(message)]) as upstream:
        yield upstream


@pytest.mark.parametrize("libc", COMMANDS)
def test_names_are_found_and_denied_and_the_rest_is_forwarded(
    container: Container, engine: DockerEngine, upstream: Upstream, libc: str
) -> None:
    settings = DnsSettings(((engine.gateway, 53),), (EDGE,), upstreams=(upstream.address,))
    with serving(DnsServer(settings)):
        for name in ("web.local", "WEB.local", "idle.local", "web.local."):
            assert container.lookup(libc, name) == {EDGE}
        assert container.lookup(libc, "nosuch.local") == set()
        assert container.lookup(libc, "example.org") == {"192.0.2.1"}
        asked = b"".join(upstream.asked).lower()
        assert b"example" in asked
        assert b"local" not in asked, "our zone stays with us"


def test_many_addresses_reach_glibc_over_tcp(container: Container, engine: DockerEngine) -> None:
    settings = DnsSettings(((engine.gateway, 53),), MANY, upstreams=())
    with serving(DnsServer(settings)):
        assert container.lookup("glibc", "web.local") == set(MANY)
        some = container.lookup("musl", "web.local")
        assert some <= set(MANY)
        assert len(some) >= 20


def test_a_container_of_a_network_that_came_up_after_us(engine: DockerEngine) -> None:
    settings = DnsSettings(((engine.gateway, 53),), (EDGE,), upstreams=())
    with serving(DnsServer(settings)):
        for number in range(2):
            network = f"late{number}"
            engine.client.create_network(network)
            id_ = engine.run(network, network=network, host={"dns": [engine.gateway]})
            assert EDGE in Container(engine, id_).run("nslookup web.local 127.0.0.11")[1]
