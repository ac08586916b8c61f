"""The proxy role through a real agent: what waits, what is renewed, what outlives the agent."""

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from discovery.stores import open_store
from discovery.stores.base import Store
from tests.e2e.edge_node import answers, edge_node, proxy, reasons, reloads, services_of
from tests.lab.agent import Agent, free_port
from tests.lab.etcd import Etcd, free_ports
from tests.lab.haproxy import echo, haproxy_binary
from tests.lab.load import Load
from tests.lab.tls import Pem, look, make
from tests.lab.unit import Unit
from tests.lab.wait import until

INTERVAL_SECONDS = 2.0
"""Between two reloads, by default."""
EXTERNAL = Path(__file__).parents[2] / "docs" / "external.md"


@pytest.fixture
def store(etcd: Etcd) -> Iterator[Store]:
    opened = open_store(etcd.url(3))
    yield opened
    opened.close()


@pytest.fixture
def agent(tmp_path: Path, etcd: Etcd) -> Agent:
    return edge_node(tmp_path, etcd)


# ---- an HAProxy that somebody else runs --------------------------------------------------------------


@pytest.fixture
def unit(tmp_path: Path, agent: Agent) -> Iterator[Unit]:
    """HAProxy as the documentation has systemd run it, on the agent's configuration."""
    drop_in = re.search(r"```ini\n(.*?)```", EXTERNAL.read_text(), re.DOTALL)
    assert drop_in
    text = drop_in[1].replace("/var/lib/discovery", str(agent.state_dir))
    unit = Unit(haproxy_binary("2.6"), tmp_path, text)
    agent.arguments += [
        "--proxy-mode=external",
        f"--proxy-reload-cmd={unit.bin}/systemctl reload-or-restart haproxy",
    ]
    yield unit
    unit.kill()


def test_an_external_haproxy_is_changed_as_it_runs_and_outlives_the_agent(
    agent: Agent, unit: Unit, store: Store
) -> None:
    with echo("one") as one, echo("two") as two, agent:
        store.put({"/services/web/hosts/0": f"127.0.0.1:{one}"})
        agent.wait(lambda: answers(agent), "web is served")
        master = unit.master
        assert master
        assert reloads(agent) == {}
        with Load(agent.http_port, "web.x") as load:
            changes = proxy(agent)["changes"]
            store.put({"/services/web/hosts/1": f"127.0.0.1:{two}"})
            agent.wait(lambda: sees(load, "two"), "the second instance answers")
            assert proxy(agent)["changes"] > changes
            assert reloads(agent) == {}
            port = free_port()
            store.put({"/services/web/host_port": str(port)})
            agent.wait(lambda: agent.get("/", port=port)[0] == 200, "its port is served after a reload")
            agent.wait(lambda: reloads(agent) == {"listener": 1}, "which is counted")
            followed(agent, f"127.0.0.1:{two}")
            worker = proxy(agent)["pid"]
            assert agent.stop() == 0
            assert agent.get("/", "web.x")[0] == 200, "HAProxy is not the agent's to end"
            agent.start()
            assert reloads(agent) == {}
            assert (unit.master, proxy(agent)["pid"]) == (master, worker)
            store.delete(["/services/web/hosts/0"])
            done = load.answered.copy()
            agent.wait(lambda: load.total > done.total() + 20, "it goes on")
        assert load.failures == []
        assert reloads(agent) == {}


def sees(load: Load, server: str) -> bool:
    return any(f'"server": "{server}"' in body for body in load.answered.copy())


def followed(agent: Agent, text: str) -> None:
    """Wait until the configuration on disk has this in it."""
    config = agent.state_dir / ".agent" / "haproxy" / "good" / "haproxy.cfg"
    agent.wait(lambda: text in config.read_text(), f"{text} is on disk")


# ---- certificates ------------------------------------------------------------------------------------


def test_a_certificate_that_is_dropped_in_serves_and_a_renewed_one_takes_no_reload(
    tmp_path: Path, agent: Agent, store: Store
) -> None:
    certs = tmp_path / "certs"
    certs.mkdir()
    port = free_port()
    agent.arguments += [f"--certs={certs}", f"--https=127.0.0.1:{port}"]

    def drop(name: str, pem: Pem) -> None:
        (certs / f".{name}").write_text(pem.whole)
        (certs / f".{name}").rename(certs / f"{name}.pem")

    def shows(pem: Pem, server_name: str) -> bool:
        try:
            return look(port, server_name).fingerprint == pem.fingerprint
        except OSError:
            return False

    with echo("one") as one, agent:
        store.put({"/services/web/hosts/0": f"127.0.0.1:{one}"})
        agent.wait(lambda: answers(agent), "web is served by http")
        assert "there is no HTTPS" in reasons(agent)[str(certs)]
        first, renewed, other = make("web.x", days=20), make("web.x", days=90), make("api.x")
        drop("web", first)
        agent.wait(lambda: shows(first, "web.x"), "https is served")
        agent.wait(lambda: reloads(agent) == {"certificates": 1}, "the first one takes a reload")
        not_after = proxy(agent)["certificates"]
        drop("web", renewed)
        agent.wait(lambda: shows(renewed, "web.x"), "the renewed one is served")
        drop("api", other)
        agent.wait(lambda: shows(other, "api.x"), "an added one is served")
        assert shows(renewed, "web.x")
        assert reloads(agent) == {"certificates": 1}
        agent.wait(lambda: len(proxy(agent)["certificates"]) == 2, "both are told of")
        assert proxy(agent)["certificates"][1]["not_after"] > not_after[0]["not_after"]
        metric = 'discovery_certificate_not_after_timestamp_seconds{certificate="web"}'
        assert metric in agent.status("/metrics")[1]
        drop("web", Pem(renewed.chain, other.key))
        agent.wait(lambda: "web.pem" in reasons(agent), "a broken one is told of")
        assert shows(renewed, "web.x")


# ---- reloads -----------------------------------------------------------------------------------------


def test_a_burst_of_listeners_is_gathered_into_spaced_reloads_and_none_is_dropped(
    agent: Agent, store: Store
) -> None:
    ports = free_ports(20)
    with echo("one") as one, agent:
        store.put({"/services/web/hosts/0": f"127.0.0.1:{one}"})
        agent.wait(lambda: answers(agent), "web is served")
        with Load(agent.http_port, "web.x") as load:
            began = time.monotonic()
            for port in ports:
                keys = f"/services/s{port}/hosts/0", f"/services/s{port}/host_port"
                store.put(dict(zip(keys, (f"127.0.0.1:{one}", str(port)), strict=True)))
            burst_seconds = time.monotonic() - began
            for port in ports:
                agent.wait(lambda port=port: agent.get("/", port=port)[0] == 200, f"{port} is served")  # type: ignore[misc]
        assert load.failures == []
        agent.wait(lambda: proxy(agent)["waiting"] is None, "nothing waits")
        # One for the first of them and one for the rest, unless the machine was too slow for a burst.
        assert sum(reloads(agent).values()) <= 2 + burst_seconds // INTERVAL_SECONDS
        made = [datetime.fromisoformat(each["at"]).timestamp() for each in proxy(agent)["last_reloads"]]
        assert len(made) >= 2
        assert all(later - earlier >= INTERVAL_SECONDS - 0.01 for earlier, later in pairwise(made))
        assert all("listener" in each["reasons"] for each in proxy(agent)["last_reloads"][1:])


def test_what_waits_for_a_reload_is_told(agent: Agent, store: Store) -> None:
    agent.arguments += ["--proxy-reload-interval-seconds=1000", "--proxy-reload-spread-seconds=0"]
    first, second = free_ports(2)
    with ExitStack() as stack:
        one = stack.enter_context(echo("one"))
        # What is there at the start is in the first configuration, and waits for nothing.
        store.put({"/services/web/hosts/0": f"127.0.0.1:{one}", "/services/web/host_port": str(first)})
        stack.enter_context(agent)
        agent.wait(lambda: agent.get("/", port=first)[0] == 200, "the first port is served")
        store.put({"/services/web/host_port": str(second), "/services/api/hosts/0": f"127.0.0.1:{one}"})
        agent.wait(lambda: proxy(agent)["waiting"] is not None, "it waits")
        waiting = proxy(agent)["waiting"]
        assert (waiting["reasons"], waiting["services"]) == (["listener"], ["web"])
        assert waiting["since"] < waiting["due"]
        assert 'discovery_haproxy_waiting{reason="listener"} 1.0' in agent.status("/metrics")[1]
        assert "a reload of HAProxy is due at" in services_of(agent, "web")
        assert "a reload of HAProxy" not in services_of(agent, "api")
        assert answers(agent, "api"), "what needs no reload does not wait"
        store.put({"/services/web/host_port": str(first)})
        agent.wait(lambda: proxy(agent)["waiting"] is None, "nobody asks for it any more")
        agent.wait(lambda: agent.get("/", port=first)[0] == 200, "the first port is served as before")
        assert reloads(agent) == {}


def test_what_only_this_node_cannot_do_is_told_by_the_command(agent: Agent, store: Store) -> None:
    with echo("taken") as taken, echo("one") as one, agent:
        web = {"/services/web/hosts/0": f"127.0.0.1:{one}", "/services/web/host_port": str(taken)}
        store.put(web | {"/services/api/hosts/0": f"127.0.0.1:{one}"})
        agent.wait(lambda: answers(agent), "web is served but for its port")
        agent.wait(lambda: "/services/web/host_port" in reasons(agent, "web"), "the reason is told")
        assert agent.metric("discovery_quarantined_services") == 1
        assert reasons(agent, "api") == {}


# ---- an agent that is killed -------------------------------------------------------------------------


def test_an_agent_that_is_killed_and_started_again_reloads_nothing(agent: Agent, store: Store) -> None:
    with echo("one") as one, echo("two") as two, agent:
        port = free_port()
        store.put({"/services/web/hosts/0": f"127.0.0.1:{one}", "/services/web/host_port": str(port)})
        agent.wait(lambda: agent.get("/", port=port)[0] == 200, "web is served")
        store.put({"/services/web/hosts/1": f"127.0.0.1:{two}"})
        followed(agent, f"127.0.0.1:{two}")
        with Load(agent.http_port, "web.x") as load:
            master, worker = agent.haproxy_pids()[:2]
            agent.kill()
            agent.start()
            assert proxy(agent)["reloads"] == {}
            assert agent.haproxy_pids()[:2] == [master, worker]
            store.put({"/services/web/hosts/0": f"127.0.0.1:{two}"})
            followed(agent, f"127.0.0.1:{two} id 1")
        assert load.failures == []
        assert proxy(agent)["reloads"] == {}


@pytest.mark.parametrize("haproxy_dies", [False, True], ids=["haproxy-lives", "haproxy-dies"])
def test_what_was_changed_just_before_the_agent_was_killed_is_not_lost(
    agent: Agent, store: Store, haproxy_dies: bool
) -> None:
    with echo("one") as one, echo("two") as two, agent:
        store.put({"/services/web/hosts/0": f"127.0.0.1:{one}"})
        agent.wait(lambda: answers(agent), "web is served")
        changed = {"/services/web/hosts/0": f"127.0.0.1:{two}", "/services/new/hosts/0": f"127.0.0.1:{one}"}
        store.put(changed)
        agent.wait(lambda: served_by(agent, "web") == "two" and answers(agent, "new"), "the change runs")
        agent.kill()
        assert (served_by(agent, "web"), served_by(agent, "new")) == ("two", "one")
        if haproxy_dies:
            os.kill(agent.haproxy_pids()[0], 9)
            agent.start()
            assert (served_by(agent, "web"), served_by(agent, "new")) == ("two", "one")
            return
        with Load(agent.http_port, "new.x") as load:
            agent.start()
            assert (served_by(agent, "web"), served_by(agent, "new")) == ("two", "one")
            done = load.total
            until(lambda: load.total > done + 20, "it goes on")
        assert load.failures == []
        assert sum(proxy(agent)["reloads"].values()) <= 1


def served_by(agent: Agent, name: str) -> str:
    """The instance that answers for a service."""
    status, body = agent.get("/", f"{name}.x")
    return str(json.loads(body)["server"]) if status == 200 else f"{status}: {body}"


def test_an_agent_that_is_told_to_stop_ends_its_haproxy_and_comes_back(agent: Agent, store: Store) -> None:
    with echo("one") as one, agent:
        store.put({"/services/web/hosts/0": f"127.0.0.1:{one}"})
        agent.wait(lambda: answers(agent), "web is served")
        assert agent.stop() == 0
        assert agent.haproxy_pids() == []
        agent.start()
        agent.wait(lambda: answers(agent), "web is served again")
        assert reloads(agent) == {}


# ---- quarantine, and old workers ---------------------------------------------------------------------


def test_a_service_that_haproxy_refuses_has_its_reason_told_and_keeps_nobody_from_changing(
    tmp_path: Path, agent: Agent, store: Store
) -> None:
    packaged = Path(__file__).parents[2] / "templates" / "haproxy" / "backend.cfg.j2"
    templates = tmp_path / "templates"
    templates.mkdir()
    bad = '{% if backend.service and backend.service.name == "bad" %}\n    nonsense\n{% endif %}\n'
    (templates / "backend.cfg.j2").write_text(packaged.read_text() + bad)
    agent.arguments += [f"--templates={templates}", "--proxy-reload-interval-seconds=0"]
    with echo("one") as one, echo("two") as two, agent:
        store.put({f"/services/{name}/hosts/0": f"127.0.0.1:{one}" for name in ("good", "bad")})
        agent.wait(lambda: answers(agent, "good"), "the good one is served")
        agent.wait(lambda: "/services/bad" in reasons(agent, "bad"), "the reason is told")
        assert "HAProxy refuses it" in reasons(agent, "bad")["/services/bad"]
        assert "nonsense" in reasons(agent, "bad")["/services/bad"]
        assert reasons(agent, "good") == {}
        assert agent.metric("discovery_quarantined_services") == 1
        store.put({"/services/good/hosts/0": f"127.0.0.1:{two}"})
        agent.wait(lambda: served_by(agent, "good") == "two", "the good one goes on changing")
        assert agent.get("/", "bad.x")[0] == 404
        (templates / "backend.cfg.j2").write_text(packaged.read_text())
        agent.wait(lambda: answers(agent, "bad"), "it is served once HAProxy takes it")
        agent.wait(lambda: agent.metric("discovery_quarantined_services") == 0, "and it is told")


def test_what_keeps_an_old_worker_is_told(agent: Agent, store: Store) -> None:
    tcp, another = free_ports(2)
    with echo("one") as one, agent:
        address = f"127.0.0.1:{one}"
        db = {
            "/services/db/scheme": "tcp",
            "/services/db/host_port": str(tcp),
            "/services/db/hosts/0": address,
        }
        store.put(db)
        agent.wait(lambda: agent.get("/", port=tcp)[0] == 200, "db is served")
        agent.wait(lambda: proxy(agent)["old_workers"] == [], "no other worker is left")
        before = proxy(agent)["reloads"]
        with socket.create_connection(("127.0.0.1", tcp), timeout=30) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: db\r\n\r\n")
            assert client.recv(4096)
            store.put({"/services/web/hosts/0": address, "/services/web/host_port": str(another)})
            agent.wait(lambda: agent.get("/", port=another)[0] == 200, "a reload for web")
            agent.wait(lambda: proxy(agent)["reloads"] != before, "it is told of")
            agent.wait(lambda: len(proxy(agent)["old_workers"]) == 1, "the old worker is told of")
            (worker,) = proxy(agent)["old_workers"]
            assert worker["pid"] in agent.haproxy_pids()
            assert worker["backends"] == {"service:db": 1}
            assert agent.metric("discovery_haproxy_old_workers") == 1
            assert agent.metric("discovery_haproxy_old_connections") == 1
        agent.wait(lambda: proxy(agent)["old_workers"] == [], "it ends with its last connection")
