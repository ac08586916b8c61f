"""A mass loss in a real etcd: what an agent holds, for how long, and what ends it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from discovery.stores import open_store
from discovery.stores.base import Store
from tests.e2e.edge_node import answers, edge_node, proxy, reasons, reloads
from tests.lab.agent import Agent, run
from tests.lab.etcd import Etcd
from tests.lab.haproxy import echo
from tests.lab.load import Load
from tests.lab.wait import until

INSTANCES = 12


@pytest.fixture
def store(etcd: Etcd) -> Iterator[Store]:
    opened = open_store(etcd.url(3))
    yield opened
    opened.close()


@pytest.fixture
def agent(tmp_path: Path, etcd: Etcd) -> Agent:
    return edge_node(tmp_path, etcd)


@contextmanager
def expired(agent: Agent, store: Store) -> Iterator[ExitStack]:
    """Twelve instances that were served, and whose keys have expired all at once; closed, they die."""
    with ExitStack() as backends, agent:
        ports = [backends.enter_context(echo(f"b{number}")) for number in range(INSTANCES)]
        session = store.session(2)
        keys = {f"/services/web/hosts/{port}": f"127.0.0.1:{port}" for port in ports}
        session.put(keys | {"/services/web/scheme": "http"})

        def is_served() -> bool:
            session.keepalive()
            return answers(agent) and agent.metric("discovery_instances") == INSTANCES

        agent.wait(is_served, "web is served")
        # Its owner is no more: nobody renews the lease.
        until(lambda: not store.snapshot("/services/web/").entries, "the keys have expired")
        yield backends


def test_a_mass_loss_is_served_shown_and_ended_by_accept(agent: Agent, store: Store) -> None:
    with expired(agent, store):
        agent.wait(lambda: agent.metric("discovery_haproxy_held_instances") == INSTANCES, "held")
        assert agent.metric("discovery_instances") == 0, "the store knows of none"
        with Load(agent.http_port, "web.x") as load:
            held = proxy(agent)["held"]
            assert len(held["instances"]["web"]) == INSTANCES
            assert held["since"] < held["until"]
            assert "discovery proxy accept" in reasons(agent, "web")["mass loss"]
            until(lambda: load.total > 50, "requests are answered all the while")
        assert load.failures == []
        assert agent.status("/readyz")[0] == 200
        done = run("proxy", "accept", f"--state={agent.state_dir}")
        assert done.returncode == 0, done.stderr
        agent.wait(lambda: agent.get("/", "web.x")[0] == 404, "web is let go")
        agent.wait(lambda: agent.metric("discovery_haproxy_held_instances") == 0, "and it says so")
        assert proxy(agent)["held"] is None
        assert reasons(agent) == {}
        assert reloads(agent) == {}


def test_a_mass_loss_that_is_real_ends_by_the_checks(agent: Agent, store: Store) -> None:
    with expired(agent, store) as backends:
        agent.wait(lambda: agent.metric("discovery_haproxy_held_instances") == INSTANCES, "held")
        backends.close()
        agent.wait(lambda: agent.metric("discovery_haproxy_held_instances") == 0, "the checks find them dead")
        agent.wait(lambda: agent.get("/", "web.x")[0] == 404, "web is let go")
    assert "mass_loss_accepted" not in agent.log.read_text()


def test_a_mass_loss_is_held_for_a_bounded_time(agent: Agent, store: Store) -> None:
    agent.arguments.append("--proxy-mass-loss-seconds=3")
    with expired(agent, store):
        agent.wait(lambda: agent.metric("discovery_haproxy_held_instances") == INSTANCES, "held")
        agent.wait(lambda: agent.get("/", "web.x")[0] == 404, "web is let go although its backends live")
        agent.wait(lambda: agent.metric("discovery_haproxy_held_instances") == 0, "and it says so")


def test_owners_that_come_back_end_a_mass_loss(agent: Agent, store: Store) -> None:
    with expired(agent, store):
        agent.wait(lambda: agent.metric("discovery_haproxy_held_instances") == INSTANCES, "held")
        instances = proxy(agent)["held"]["instances"]["web"]
        with Load(agent.http_port, "web.x") as load:
            store.put({f"/services/web/hosts/{port}": f"127.0.0.1:{port}" for port in instances})
            agent.wait(lambda: agent.metric("discovery_haproxy_held_instances") == 0, "nothing is held")
            until(lambda: load.total > 50, "requests are answered all the while")
        assert load.failures == []
        assert reloads(agent) == {}


def test_a_mass_loss_is_held_by_the_next_agent_as_well(agent: Agent, store: Store) -> None:
    with expired(agent, store):
        agent.wait(lambda: agent.metric("discovery_haproxy_held_instances") == INSTANCES, "held")
        until_text = proxy(agent)["held"]["until"]
        with Load(agent.http_port, "web.x") as load:
            agent.kill()
            agent.start()
            agent.wait(lambda: agent.metric("discovery_haproxy_held_instances") == INSTANCES, "still held")
            assert proxy(agent)["held"]["until"] <= until_text, "not a moment longer"
        assert load.failures == []
        assert run("proxy", "accept", f"--state={agent.state_dir}").returncode == 0
        agent.wait(lambda: agent.get("/", "web.x")[0] == 404, "web is let go")
        agent.kill()
        agent.start()
        assert agent.get("/", "web.x")[0] == 404, "what was accepted does not come back"
