"""With nothing but etcdctl writing the three seed keys, a service is served; bad keys harm nobody."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.agent import Agent, free_port
from tests.lab.etcd import Etcd


@pytest.fixture
def agent(tmp_path: Path, etcd: Etcd, version: int) -> Iterator[Agent]:
    with Agent(tmp_path / "agent", etcd.url(version), "--bind-address=127.0.0.1", "--ttl=3") as running:
        yield running


def put(etcd: Etcd, version: int, key: str, value: str) -> None:
    if version == 2:
        etcd.ctl(2, "set", key, value)
    else:
        etcd.ctl(3, "put", "--", key, value)


def test_three_keys_are_enough(agent: Agent, etcd: Etcd, version: int, backend: str) -> None:
    port = free_port()
    put(etcd, version, "/services/web/scheme", "http")
    put(etcd, version, "/services/web/hosts/0", backend)
    put(etcd, version, "/services/web/host_port", str(port))
    agent.wait(lambda: agent.get("/x", "web.any.domain") == (200, "hello /x"), "served by Host")
    agent.wait(lambda: agent.get("/x", port=port) == (200, "hello /x"), "served by port")
    assert agent.get("/web/x?y=1") == (200, "hello /x?y=1")
    etcd.ctl(version, *(["rm"] if version == 2 else ["del"]), "/services/web/hosts/0")
    agent.wait(lambda: agent.get("/x", "web.any.domain")[0] == 503, "known, without an instance")


def test_bad_entries_are_quarantined_one_by_one(agent: Agent, etcd: Etcd, version: int, backend: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bad = {
            "/services/good/hosts/bad-address": "example.com:80",
            "/services/good/hosts/bad-port": "127.0.0.1:99999",
            "/services/good/hosts/new\\nline": "127.0.0.1:1\nserver evil 127.0.0.1:2",
            "/services/Upper/hosts/0": backend,
            "/services/" + "x" * 300 + "/hosts/0": backend,
            "/services/quote'd/hosts/0": backend,
            "/services/ftp/scheme": "ftp",
            "/services/ftp/hosts/0": backend,
            "/services/empty/scheme": "http",
            "/services/json/hosts/0": backend,
            "/services/json/attributes/0": "{no json",
            "/services/taken/hosts/0": backend,
            "/services/taken/host_port": str(taken.getsockname()[1]),
            "/services/status/hosts/0": backend,
            "/services/status/host_port": str(agent.http_port),
        }
        put(etcd, version, "/services/good/hosts/0", backend)
        for key, value in bad.items():
            put(etcd, version, key, value)
        put(etcd, version, "/services/last/hosts/0", backend)
        agent.wait(lambda: agent.get("/x", "last.x") == (200, "hello /x"), "the good ones are served")
        assert agent.get("/x", "good.x") == (200, "hello /x")
        assert agent.get("/x", "json.x") == (200, "hello /x")
        assert agent.get("/x", "taken.x") == (200, "hello /x"), "only its port is left out"
        assert agent.get("/x", "empty.x")[0] == 503
        assert agent.get("/x", "ftp.x")[0] == 404
        agent.wait(lambda: len(quarantined(agent)) >= 10, "every bad one is reported")
    reasons = json.dumps(quarantined(agent))
    for word in ("ftp", "no JSON", "99999", "example.com", "Upper", str(agent.http_port)):
        assert word in reasons


def quarantined(agent: Agent) -> list[dict[str, str]]:
    found: list[dict[str, str]] = agent.services()["quarantined"]  # type: ignore[assignment]
    return found
