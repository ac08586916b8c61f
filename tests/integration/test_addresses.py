"""Every kind of network on a real engine: what is registered is what answers there."""

import contextlib
import http.client
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest

from discovery.builder import CatalogBuilder
from discovery.catalog import Catalog, Instance
from discovery.sources.docker import Rules
from discovery.sources.docker_source import DockerSource
from discovery.stores import open_store
from discovery.stores.base import Store
from tests.integration.test_registrator import registering
from tests.lab.dockerd import DockerEngine
from tests.lab.haproxy import free_port
from tests.lab.need import need
from tests.lab.wait import until

SLEEP = ["sleep", "600"]
ECHO = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind(("", 53))
    while True:
        server.sendto(*server.recvfrom(1000))
"""


@dataclass(frozen=True)
class Scene:
    engine: DockerEngine
    source: DockerSource

    def instances(self) -> dict[str, Instance]:
        return {each.service: each.instance for each in self.source.registrations()}

    def until_registered(self, service: str) -> Instance:
        until(lambda: service in self.instances(), f"{service} is registered")
        return self.instances()[service]


@pytest.fixture
def scene(engine: DockerEngine) -> Iterator[Scene]:
    # The bridge's own address is one of this host, that published ports are reached at.
    with closing(DockerSource(engine.url, Rules("n1", engine.gateway))) as source:
        source.registrations()
        yield Scene(engine, source)


def until_answers(instance: Instance) -> None:
    """That a web server is there; an empty one says 404."""

    def is_answered() -> bool:
        connection = http.client.HTTPConnection(instance.host, instance.port, timeout=2)
        with contextlib.suppress(OSError, http.client.HTTPException), closing(connection):
            connection.request("GET", "/")
            return connection.getresponse().status in (200, 404)
        return False

    until(is_answered, f"{instance.address} answers")


@pytest.fixture
def outside(engine: DockerEngine) -> Iterator[tuple[str, str]]:
    """A network interface for macvlans to have as parent, and a subnet whose other end is this host's."""
    third = engine.gateway.split(".")[2]
    inner, outer, subnet = f"dtm{third}a", f"dtm{third}b", f"10.229.{third}"
    ip = need("ip")
    subprocess.run([ip, *f"link add {inner} type veth peer name {outer}".split()], check=True)
    try:
        for step in (
            f"link set {inner} up",
            f"link set {outer} up",
            f"address add {subnet}.1/24 dev {outer}",
        ):
            subprocess.run([ip, *step.split()], check=True)
        yield inner, subnet
    finally:
        # Before the parent goes.
        engine.remove_all()
        subprocess.run([ip, "link", "del", inner], check=False)


def test_a_macvlan_made_a_moment_ago_is_reached_from_outside(scene: Scene, outside: tuple[str, str]) -> None:
    parent, subnet = outside
    client = scene.engine.client
    pool = {"Driver": "default", "Config": [{"Subnet": f"{subnet}.0/24", "Gateway": f"{subnet}.1"}]}
    client.create_network("mac", driver="macvlan", options={"parent": parent}, ipam=pool)
    scene.engine.run("web", network="mac", env={"SERVICE_80_NAME": "web"})
    instance = scene.until_registered("web")
    assert instance.host.startswith(f"{subnet}.")
    until_answers(instance)


def test_each_of_bridges_host_and_shared_networks_is_reached_where_it_is_registered(scene: Scene) -> None:
    engine = scene.engine
    engine.client.create_network("front")
    engine.run("default", ports={80: free_port()}, env={"SERVICE_NAME": "default"})
    engine.run("user", network="front", ports={80: free_port()}, env={"SERVICE_NAME": "user"})
    engine.run("bound", ports={80: (engine.gateway, free_port())}, env={"SERVICE_NAME": "bound"})
    owner = engine.run("owner", ports={81: free_port()}, env={"SERVICE_IGNORE": "1"}, command=SLEEP)
    engine.run(
        "guest",
        network=f"container:{owner}",
        env={"SERVICE_81_NAME": "guest"},
        command=["httpd", "-f", "-p", "81"],
    )
    with socket.socket() as probe:
        probe.bind((engine.gateway, 0))
        port = probe.getsockname()[1]
    engine.run(
        "host",
        network="host",
        env={f"SERVICE_{port}_NAME": "host"},
        command=["httpd", "-f", "-p", f"{engine.gateway}:{port}"],
    )
    for service in ("default", "user", "bound", "guest", "host"):
        until_answers(scene.until_registered(service))
    assert not scene.source.problems


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def echoing_in(engine: DockerEngine, name: str) -> Iterator[None]:
    """A server of UDP in a container's network: nothing in its image is one."""
    pid = engine.client.inspect_container(name)["State"]["Pid"]
    command = [need("nsenter"), f"--net=/proc/{pid}/ns/net", sys.executable, "-c", ECHO]
    server = subprocess.Popen(command)
    try:
        yield
    finally:
        server.kill()
        server.wait(10)


def echoes(instance: Instance) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, contextlib.suppress(OSError):
        asking.settimeout(0.5)
        asking.sendto(b"hello", (instance.host, instance.port))
        return asking.recv(100) == b"hello"
    return False


@pytest.fixture
def store() -> Iterator[Store]:
    with closing(open_store("memory:")) as opened:
        yield opened


def test_udp_is_offered_and_answers_and_is_no_business_of_an_edge(engine: DockerEngine, store: Store) -> None:
    def catalog() -> Catalog:
        return CatalogBuilder().reset(store.snapshot("/services/"))

    with registering(engine, store, Rules("n1", engine.gateway)) as registrator:
        engine.run("dns", ports={"53/udp": free_udp_port()}, env={"SERVICE_NAME": "dns"})
        until(lambda: "dns" in catalog().services, "it is registered")
        service = catalog().services["dns"]
        assert not service.instances
        assert not service.routed
        (instance,) = service.udp
        assert instance.id == "n1:dns:53:udp"
        with echoing_in(engine, "dns"):
            until(lambda: echoes(instance), "it answers where it is registered")
        assert registrator.status.registered == 1
        keys = set(store.snapshot("/services/").entries)
        assert keys == {"/services/dns/udp/n1:dns:53:udp", "/services/dns/attributes/n1:dns:53:udp"}
        engine.client.kill("dns", "KILL")
        until(lambda: not catalog().services, "it is withdrawn")
