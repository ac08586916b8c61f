"""Two nodes, each with its own network, engine and agent, around one etcd.

Both bridges have the same address, as on real nodes.
"""

import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.containers import Containers
from tests.lab.agent import Agent, fetch
from tests.lab.dockerd import DockerEngine
from tests.lab.etcd import Etcd
from tests.lab.netns import HUB, Network, inside
from tests.lab.wait import until

BRIDGE = "172.17.42.1"
TTL_SECONDS = 3


@dataclass
class Node:
    """One host. What is asked of it is asked on it."""

    number: int
    namespace: str
    engine: DockerEngine
    containers: Containers
    agent: Agent

    def get(self, url: str, host: str = "any.domain") -> tuple[int, str]:
        with inside(self.namespace):
            return fetch(urllib.request.Request(url, headers={"Host": host}))

    def serves(self, *instances: str) -> None:
        """Wait until its edge answers for web with these instances, and no other."""
        self.wait(lambda: self._web() == set(instances), f"web is served by {instances}")

    def _web(self) -> set[str]:
        return {self.get("http://127.0.0.1/", "web.any.domain")[1].strip() for _ in range(4)}

    def services(self) -> dict[str, object]:
        with inside(self.namespace):
            return self.agent.services()

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        until(condition, f"node {self.number}: {what}", detail=lambda: self.agent.log.read_text()[-4000:])


@dataclass
class Site:
    network: Network
    etcd: Etcd
    nodes: list[Node]

    def key(self, key: str) -> str:
        """The value of a key, empty if there is none."""
        with inside(self.network.hub):
            return self.etcd.ctl(3, "get", "--print-value-only", key).strip()


@pytest.fixture
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        # pytest's own directories are too long for HAProxy's sockets.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="site-")))
        network = stack.enter_context(Network(2))
        etcd = Etcd(directory / "etcd")
        clients = f"http://127.0.0.1:{etcd.port},http://{HUB}:{etcd.port}"
        etcd.extra = (f"--listen-client-urls={clients}",)
        with inside(network.hub):
            stack.enter_context(etcd)
        nodes = []
        for number, namespace in enumerate(network.nodes):
            engine = stack.enter_context(DockerEngine(bip=f"{BRIDGE}/16", netns=namespace))
            containers = stack.enter_context(Containers(engine))
            agent = Agent(
                directory / f"agent{number}",
                f"etcd3://{HUB}:{etcd.port}",
                f"--docker={engine.url}",
                f"--node=node{number}",
                f"--ttl={TTL_SECONDS}",
                roles="registrator,proxy,dns,status",
                http=["*:80"],
                dns=f"{BRIDGE}:53",
            )
            stack.callback(agent.__exit__)
            with inside(namespace):
                agent.start()
            nodes.append(Node(number, namespace, engine, containers, agent))
        yield Site(network, etcd, nodes)


def test_one_node_serves_what_runs_on_the_other_and_survives_it(site: Site) -> None:
    one, two = site.nodes
    one.containers.http("web1", "web", "-eSERVICE_HOST_PORT=8080")

    # By Host, path and port of the other node's edge; by name from inside its containers.
    two.serves("web1")
    assert two.get("http://127.0.0.1/web/a/b") == (200, "web1\n")
    # A listener takes a reload, which is gathered and not at one moment on every node.
    two.wait(lambda: two.get("http://10.99.0.2:8080/a/b") == (200, "web1\n"), "its port is served")
    inside_two = two.containers.docker(
        "run", "--rm", f"--dns={BRIDGE}", "busybox:local", "wget", "-qO-", "http://web.local/a/b"
    )
    assert inside_two == "web1"

    two.containers.http("web2", "web", "-eSERVICE_HOST_PORT=8080")
    for node in site.nodes:
        node.serves("web1", "web2")
    assert site.key("/services/web/host_port") == "8080"

    # The first node loses its network for longer than the TTL: it serves what it has itself.
    site.network.cut(0)
    two.wait(lambda: not site.key("/edges/node0"), "the first node's keys expire")
    cut_until = time.monotonic() + TTL_SECONDS
    while time.monotonic() < cut_until:
        for node in site.nodes:
            assert node.get("http://127.0.0.1/", "web.any.domain")[0] in (200, 0), "nothing is withdrawn"
            assert node.get("http://127.0.0.1:8080/")[0] in (200, 0), "nor the port"
    one.serves("web1")
    site.network.mend(0)
    for node in site.nodes:
        node.serves("web1", "web2")

    # The first node dies: the shared keys, which it wrote, outlive it, and so does the service's port.
    one.agent.kill()
    site.network.cut(0)
    two.wait(lambda: not site.key("/services/web/hosts/node0:web1:80"), "the dead node's instance expires")
    two.serves("web2")
    assert two.get("http://127.0.0.1:8080/") == (200, "web2\n")
    # Each at a moment of its own, so that many nodes do not write it at once.
    for key, value in (("host_port", "8080"), ("scheme", "http")):
        two.wait(lambda key=key, value=value: site.key(f"/services/web/{key}") == value, f"{key} is written")
    assert two.services()["quarantined"] == []
