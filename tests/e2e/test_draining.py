"""Containers are stopped under load: by `docker stop`, if they serve on for a moment, or `discovery stop`."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.containers import TTL_SECONDS, Containers
from tests.lab.agent import Agent, discovery_command, run
from tests.lab.dockerd import DockerEngine
from tests.lab.etcd import Etcd
from tests.lab.load import Load
from tests.lab.wait import until

SLOW = "/cgi-bin/slow"
SERVE = """
mkdir -p /www/cgi-bin && echo {name} > /www/index.html
cat > /www/cgi-bin/slow <<'END'
#!/bin/sh
printf 'Content-Type: text/plain\\r\\nContent-Length: 5\\r\\n\\r\\n'
sleep 0.3
echo {name}
END
/bin/busybox chmod +x /www/cgi-bin/slow
httpd -f -p 80 -h /www &
"""
"""At /cgi-bin/slow an answer begins at once and ends later: what is cut off there, no proxy can ask again."""
PATIENT = SERVE + "trap 'sleep 3; exit 0' TERM; while :; do wait; done"
"""Goes on serving for a moment after its stop signal, as a server does that is told to end gracefully."""
HASTY = SERVE + "trap 'exit 0' TERM; while :; do wait; done"
"""Ends at once, with every request that is under way."""


@pytest.fixture
def agent(tmp_path: Path, engine: DockerEngine, etcd: Etcd, version: int) -> Iterator[Agent]:
    with Agent(
        tmp_path / "agent",
        etcd.url(version),
        f"--docker={engine.url}",
        "--node=node1",
        f"--address={engine.gateway}",
        f"--ttl={TTL_SECONDS}",
        roles="registrator,proxy,status",
    ) as running:
        yield running


def start_two(agent: Agent, containers: Containers, command: str) -> None:
    for name in ("web1", "web2"):
        containers.run(name, "-eSERVICE_NAME=web", "-p80", command=command.format(name=name))
    agent.wait(lambda: {agent.get("/", "web.x")[1] for _ in range(4)} == {"web1\n", "web2\n"}, "both serve")


def stop_command(agent: Agent, engine: DockerEngine, etcd: Etcd, version: int, *more: str) -> list[str]:
    return [
        "stop",
        f"--store={etcd.url(version)}",
        f"--state={agent.state_dir}",
        f"--docker={engine.url}",
        "--node=node1",
        f"--ttl={TTL_SECONDS}",
        *more,
    ]


def test_docker_stop_of_one_that_serves_on_loses_no_request(agent: Agent, containers: Containers) -> None:
    start_two(agent, containers, PATIENT)
    with Load(agent.http_port, "web.x", SLOW) as load:
        until(lambda: min(load.answered["web1"], load.answered["web2"]) > 10, "load runs on both")
        containers.docker("stop", "web1")
        after = load.answered.copy()
        until(lambda: load.answered["web2"] > after["web2"] + 20, "load goes on")
    assert load.failures == []
    assert load.answered["web1"] == after["web1"]


def test_discovery_stop_of_one_that_ends_at_once_loses_no_request(
    agent: Agent, engine: DockerEngine, etcd: Etcd, version: int, containers: Containers
) -> None:
    start_two(agent, containers, HASTY)
    with Load(agent.http_port, "web.x", SLOW) as load:
        until(lambda: min(load.answered["web1"], load.answered["web2"]) > 10, "load runs on both")
        done = run(*stop_command(agent, engine, etcd, version, "--drain=1", "web1"))
        after = load.answered.copy()
        until(lambda: load.answered["web2"] > after["web2"] + 20, "load goes on")
    assert done.returncode == 0, done.stderr
    assert "web1 is draining: web node1:web1:80" in done.stdout
    assert "every edge has confirmed" in done.stdout
    assert done.stdout.endswith("web1 is stopped\n")
    assert load.failures == []
    assert containers.docker("inspect", "-f", "{{.State.Status}}", "web1") == "exited"
    agent.wait(lambda: "web1" not in agent.status("/services")[1], "it is withdrawn")


@pytest.mark.parametrize("version", [3])
def test_a_stop_that_is_interrupted_takes_nothing_away(
    agent: Agent, engine: DockerEngine, etcd: Etcd, version: int, containers: Containers
) -> None:
    start_two(agent, containers, HASTY)
    command = [*discovery_command(), *stop_command(agent, engine, etcd, version, "--drain=60", "web1")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stopping:
        agent.wait(lambda: '"draining":true' in agent.status("/services")[1], "it is drained")
        stopping.send_signal(signal.SIGINT)
        assert stopping.wait(20) == 130
    agent.wait(lambda: '"draining":true' not in agent.status("/services")[1], "it is served again")
    agent.wait(lambda: {agent.get("/", "web.x")[1] for _ in range(4)} == {"web1\n", "web2\n"}, "both serve")


@pytest.mark.parametrize("version", [3])
def test_a_stop_that_cannot_be_drained_stops_nothing(
    agent: Agent, engine: DockerEngine, etcd: Etcd, version: int, containers: Containers, tmp_path: Path
) -> None:
    start_two(agent, containers, HASTY)
    missing = run(*stop_command(agent, engine, etcd, version, "web3"))
    assert missing.returncode == 2
    assert "there is no container 'web3'" in missing.stderr
    # A state directory that no registrator looks into.
    elsewhere = run(*stop_command(agent, engine, etcd, version, f"--state={tmp_path}/other", "web1"))
    assert elsewhere.returncode == 1
    assert "web1 runs on: no registrator of node node1 has drained it" in elsewhere.stderr
    assert containers.docker("inspect", "-f", "{{.State.Status}}", "web1") == "running"
    # One that is not registered has nothing to be drained.
    unregistered = run(*stop_command(agent, engine, etcd, version, "--node=node2", "web1"))
    assert "is not registered by node node2" in unregistered.stdout
    assert containers.docker("inspect", "-f", "{{.State.Status}}", "web1") == "exited"


def test_a_store_of_files_confirms_as_well(
    tmp_path: Path, engine: DockerEngine, containers: Containers
) -> None:
    store = f"file://{tmp_path}/store"
    with Agent(
        tmp_path / "agent",
        store,
        f"--docker={engine.url}",
        "--node=node1",
        f"--address={engine.gateway}",
        roles="registrator,proxy,status",
    ) as agent:
        start_two(agent, containers, HASTY)
        common = [f"--store={store}", f"--state={agent.state_dir}", f"--docker={engine.url}", "--node=node1"]
        done = run("stop", *common, "--drain=0", "web1")
        assert done.returncode == 0, done.stderr
        assert "every edge has confirmed" in done.stdout
        agent.wait(lambda: "web1" not in agent.status("/services")[1], "it is withdrawn")
