"""A node with an edge of its own, for tests of the proxy role, and what it tells of itself."""

import json
from pathlib import Path
from typing import Any

from tests.lab.agent import Agent, run
from tests.lab.etcd import Etcd


def edge_node(directory: Path, etcd: Etcd) -> Agent:
    """An agent of the roles proxy and status. Not started yet: a test adds what it needs."""
    return Agent(
        directory / "agent",
        etcd.url(3),
        "--address=127.0.0.1",
        "--bind-address=127.0.0.1",
        roles="proxy,status",
    )


def answers(agent: Agent, name: str = "web") -> bool:
    return agent.get("/", f"{name}.x")[0] == 200


def proxy(agent: Agent) -> dict[str, Any]:
    """What /proxy tells."""
    status, body = agent.status("/proxy")
    assert status == 200, body
    document: dict[str, Any] = json.loads(body)
    return document


def reloads(agent: Agent) -> dict[str, int]:
    """How often HAProxy was reloaded by reason; a start is none."""
    found: dict[str, int] = proxy(agent)["reloads"]
    return {reason: count for reason, count in found.items() if reason != "start"}


def reasons(agent: Agent, *name: str) -> dict[str, str]:
    """By subject, what `discovery services` tells of what is not as written."""
    document = json.loads(services_of(agent, *name, "--json"))
    assert document["agent"]["error"] is None
    return {each["subject"]: each["reason"] for each in document["quarantined"]}


def services_of(agent: Agent, *more: str) -> str:
    """What `discovery services` prints on this node."""
    store = next(each for each in agent.arguments if each.startswith("--store="))
    done = run("services", store, f"--status=127.0.0.1:{agent.status_port}", *more)
    assert done.returncode == 0, done.stderr
    return done.stdout
