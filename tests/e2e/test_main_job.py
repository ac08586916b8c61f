"""The main job on real parts: a container is reached by Host, path, port and name."""

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.containers import TTL_SECONDS, Containers
from tests.lab.agent import Agent, free_port
from tests.lab.dockerd import DockerEngine
from tests.lab.etcd import Etcd
from tests.lab.load import Load
from tests.lab.wait import until

ROLES = "registrator,proxy,dns,status"


@pytest.fixture
def agent(tmp_path: Path, engine: DockerEngine, etcd: Etcd, version: int) -> Iterator[Agent]:
    gateway = engine.gateway
    with Agent(
        tmp_path / "agent",
        etcd.url(version),
        f"--docker={engine.url}",
        "--node=node1",
        f"--address={gateway}",
        f"--ttl={TTL_SECONDS}",
        f"--bind-address={gateway}",
        roles=ROLES,
        http=[f"{gateway}:80"],
        dns=f"{gateway}:53",
    ) as running:
        yield running


def serves(agent: Agent, name: str, text: str) -> None:
    agent.wait(lambda: agent.get("/", f"{name}.any.domain") == (200, text), f"{name} serves {text!r}")


def test_a_container_is_reached_by_host_path_port_and_name(
    agent: Agent, engine: DockerEngine, containers: Containers
) -> None:
    gateway, http_port, tcp_port = engine.gateway, free_port(), free_port()
    containers.http("web1", "web", f"-eSERVICE_HOST_PORT={http_port}")
    containers.run(
        "echo1",
        "-p9",
        "-lSERVICE_NAME=echo",
        "-lSERVICE_SCHEME=tcp",
        f"-lSERVICE_HOST_PORT={tcp_port}",
        command="while true; do echo hello from tcp | nc -l -p 9; done",
    )
    serves(agent, "web", "web1\n")
    # By Host, whatever the domain and the case; by path, which is taken off.
    assert agent.get("/a/b", "WEB.other.example:8080") == (200, "web1\n")
    assert agent.get("/web/a/b", "any.domain") == (200, "web1\n")
    assert agent.get("/web", "any.domain") == (200, "web1\n")
    assert agent.get("/namesake/", "any.domain")[0] == 404
    # By host_port, http and tcp.
    until(lambda: read_line(gateway, tcp_port) == b"hello from tcp\n", "tcp by host_port")
    until(lambda: b"web1" in read_http(gateway, http_port), "http by host_port")
    # From inside a container that has nothing but --dns.
    inside = containers.docker(
        "run", "--rm", f"--dns={gateway}", "busybox:local", "/bin/sh", "-c",
        "nslookup web.local && wget -qO- http://web.local/a/b",
    )  # fmt: skip
    assert gateway in inside
    assert inside.endswith("web1")


def test_a_stopped_container_is_withdrawn(agent: Agent, containers: Containers) -> None:
    containers.http("web1", "web")
    serves(agent, "web", "web1\n")
    containers.docker("rm", "-f", "web1")
    agent.wait(lambda: agent.get("/", "web.any.domain")[0] in (404, 503), "web is withdrawn")


def test_one_of_two_instances_is_stopped_under_load(agent: Agent, containers: Containers) -> None:
    containers.http("web1", "web")
    containers.http("web2", "web")
    agent.wait(lambda: {agent.get("/", "web.x")[1] for _ in range(4)} == {"web1\n", "web2\n"}, "both serve")
    with Load(agent.http_port, "web.any.domain") as load:
        until(lambda: load.total > 100, "load runs")
        # busybox's httpd is deaf to SIGTERM as process 1: it goes on serving until SIGKILL, 2 s later.
        containers.docker("stop", "-t", "2", "web1")
        until(lambda: len(instances(agent, "web")) == 1, "one instance is left")
        after = load.total
        until(lambda: load.total > after + 200, "load goes on")
    assert load.failures == []


def test_the_store_is_down_for_longer_than_the_ttl_under_load(
    agent: Agent, etcd: Etcd, containers: Containers
) -> None:
    containers.http("web1", "web")
    serves(agent, "web", "web1\n")
    with Load(agent.http_port, "web.any.domain") as load:
        etcd.kill()
        down_until = time.monotonic() + 2 * TTL_SECONDS
        # DNS and HAProxy go on, and nothing is withdrawn.
        until(lambda: time.monotonic() > down_until and load.total > 100, "outage lasts longer than the TTL")
        assert dig(agent.dns_server, "web.local") == agent.dns_server
        etcd.start()
        agent.wait(lambda: agent.metric("discovery_store_connected") == 1, "store is back")
        # Longer than removals are held back after an outage: what is served then is what the store says.
        settled = time.monotonic() + 2 * TTL_SECONDS
        until(lambda: time.monotonic() > settled, "the outage is over")
        assert len(instances(agent, "web")) == 1
        containers.http("web2", "web")
        agent.wait(lambda: "web2\n" in {agent.get("/", "web.x")[1] for _ in range(4)}, "changes arrive again")
    assert load.failures == []


def test_the_agent_is_killed_and_restarted_under_load(agent: Agent, containers: Containers) -> None:
    containers.http("web1", "web")
    serves(agent, "web", "web1\n")
    with Load(agent.http_port, "web.any.domain") as load:
        until(lambda: load.total > 50, "load runs")
        agent.kill()
        before = load.total
        until(lambda: load.total > before + 100, "HAProxy goes on without the agent")
        agent.start()
        containers.http("web2", "web")
        agent.wait(lambda: "web2\n" in {agent.get("/", "web.x")[1] for _ in range(4)}, "the new agent works")
        containers.docker("stop", "-t", "2", "web1")
        until(lambda: len(instances(agent, "web")) == 1, "one instance is left")
    assert load.failures == []


def test_a_stopped_agent_withdraws_its_keys(
    agent: Agent, etcd: Etcd, version: int, containers: Containers
) -> None:
    containers.http("web1", "web")
    serves(agent, "web", "web1\n")
    assert "/services/web/hosts/" in etcd.keys(version)
    assert agent.stop() == 0
    assert "/services/web/hosts/" not in etcd.keys(version)
    assert agent.get("/", "web.any.domain")[0] == 0, "HAProxy outlived its agent"


def instances(agent: Agent, name: str) -> list[object]:
    for service in agent.services()["services"]:  # type: ignore[attr-defined]
        if service["name"] == name:
            found: list[object] = service["instances"]
            return found
    return []


def dig(server: str, name: str) -> str:
    done = subprocess.run(
        ["dig", f"@{server}", "+short", "+time=2", "+tries=1", name],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def read_line(host: str, port: int) -> bytes:
    try:
        with socket.create_connection((host, port), timeout=5) as connection:
            return connection.makefile("rb").readline()
    except OSError:
        return b""


def read_http(host: str, port: int) -> bytes:
    try:
        with socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return connection.makefile("rb").read()
    except OSError:
        return b""
