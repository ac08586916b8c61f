"""The status role over real HTTP."""

import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from discovery.catalog import Attributes, Catalog, Instance, Problem, Service
from discovery.dns.stats import LATENCY_SECONDS, Counts, ForwardCounts, Stats, UpstreamCounts
from discovery.errors import AgentUnavailable, ConfigError
from discovery.follow import FollowerStatus
from discovery.haproxy.engine import OldWorker
from discovery.haproxy.massloss import MassLoss
from discovery.haproxy.report import ProxyStatus, Reload, Waiting
from discovery.status.ask import NodeReport, ask_agent, decode
from discovery.status.metrics import Metrics
from discovery.status.server import StatusServer
from discovery.status.view import StatusView
from discovery.views import node_lines
from tests.lab.thread import in_thread

ROOT = Path(__file__).parents[2]


@dataclass
class Node:
    """What a composition root would know."""

    catalog: Catalog | None = None
    problems: tuple[Problem, ...] = ()
    readiness: Mapping[str, bool] = field(default_factory=dict)
    health: Mapping[str, bool] = field(default_factory=dict)
    connected: bool | None = None
    registrations: int | None = None
    appliers: tuple[FollowerStatus, ...] = ()
    proxy: ProxyStatus | None = None
    dns: Counts | None = None

    def view(self) -> StatusView:
        return StatusView(
            catalog=lambda: self.catalog,
            problems=lambda: self.problems,
            readiness=lambda: self.readiness,
            health=lambda: self.health,
            store_connected=lambda: self.connected,
            registrations=lambda: self.registrations,
            appliers=lambda: self.appliers,
            proxy=lambda: self.proxy,
            dns=lambda: self.dns,
            node="node1",
            store="memory:",
        )


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict:
        return json.loads(self.body)


@contextmanager
def serving(node: Node, metrics: Metrics | None = None) -> Iterator[tuple[str, int]]:
    server = StatusServer(("127.0.0.1", 0), node.view(), metrics or Metrics())
    with in_thread(server.run):
        yield server.address


def ask(address: tuple[str, int], path: str, method: str = "GET") -> Answer:
    connection = http.client.HTTPConnection(*address, timeout=20)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return Answer(response.status, dict(response.headers), response.read())
    finally:
        connection.close()


WEB = Service(
    "web",
    host_port=8080,
    instances=(Instance("n:web:80", "::1", 8000, Attributes(node="n", container="c")),),
    options={"path": "keep"},
)
PORT_USED = Problem("web", "/services/web/host_port", "port 80 is used")
EXPIRED = Problem(None, "a.pem", "has expired", "reported")
PROXY = ProxyStatus(
    True,
    42,
    "2.6.12",
    7,
    {"listener": 2, "start": 1},
    0.75,
    (Reload(1000.5, ("start",), 0.5), Reload(1010.0, ("listener", "options"), 0.125)),
    12,
    Waiting(("listener",), ("api", "web"), 1020.0, 1022.25, is_urgent=True),
    (OldWorker(40, 3, (("service:web", 2), ("service:api", 1))), OldWorker(41)),
    MassLoss(1000.0, 1600.0, {"web": ("0", "1")}),
    {"a": 2000.0},
)


def test_services_tells_what_is_served_and_what_is_not() -> None:
    problem = Problem("db", "/services/db/scheme", "unknown scheme 'ftp'")
    catalog = Catalog(7, {"web": WEB, "api": Service("api", "tcp")}, (problem,))
    # What both the store and the node say is said once.
    node = Node(catalog, (problem, PORT_USED))
    with serving(node) as address:
        answer = ask(address, "/services")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "revision": 7,
        "services": [
            {"name": "api", "scheme": "tcp", "host_port": None, "options": {}, "instances": [], "udp": []},
            {
                "name": "web",
                "scheme": "http",
                "host_port": 8080,
                "options": {"path": "keep"},
                "instances": [
                    {
                        "id": "n:web:80",
                        "address": "[::1]:8000",
                        "node": "n",
                        "container": "c",
                        "draining": False,
                    }
                ],
                "udp": [],
            },
        ],
        "quarantined": [
            {
                "service": "db",
                "subject": "/services/db/scheme",
                "reason": "unknown scheme 'ftp'",
                "consequence": "left out",
                "origin": "store",
            },
            {
                "service": "web",
                "subject": "/services/web/host_port",
                "reason": "port 80 is used",
                "consequence": "left out",
                "origin": "node",
            },
        ],
    }


def test_a_store_not_read_yet_is_not_an_empty_one() -> None:
    node = Node()
    with serving(node) as address:
        assert ask(address, "/services").status == 503
        assert b"discovery_services 0" not in ask(address, "/metrics").body
        node.catalog = Catalog()
        assert ask(address, "/services").json()["services"] == []
        assert b"\ndiscovery_services 0.0\n" in ask(address, "/metrics").body


@pytest.mark.parametrize(("path", "part"), [("/healthz", "health"), ("/readyz", "readiness")])
def test_a_part_that_is_not_as_it_should_be_is_named(path: str, part: str) -> None:
    node = Node()
    with serving(node) as address:
        setattr(node, part, {"store": True, "haproxy": True})
        assert (ask(address, path).status, ask(address, path).json()["failing"]) == (200, [])
        setattr(node, part, {"store": True, "haproxy": False})
        answer = ask(address, path)
    assert answer.status == 503
    assert answer.json() == {
        "ok": False,
        "failing": ["haproxy"],
        "parts": {"haproxy": False, "store": True},
    }


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/services", "/problems", "/proxy"])
def test_methods(path: str) -> None:
    with serving(Node(Catalog(), proxy=PROXY)) as address:
        got, head, posted = ask(address, path), ask(address, path, "HEAD"), ask(address, path, "POST")
    assert (got.status, head.status, head.body) == (200, 200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert posted.status == 405
    assert "GET" in posted.headers["allow"]


def test_an_unknown_path_is_not_found() -> None:
    with serving(Node()) as address:
        assert ask(address, "/nothing").status == 404


def test_ten_thousand_services() -> None:
    names = [f"s{number}" for number in range(10_000)]
    services = {name: Service(name, instances=WEB.instances * 3) for name in names}
    with serving(Node(Catalog(1, services))) as address:
        assert len(ask(address, "/services").json()["services"]) == 10_000
        assert b"\ndiscovery_instances 30000.0\n" in ask(address, "/metrics").body


def test_what_happened_is_counted() -> None:
    metrics = Metrics()
    running = FollowerStatus("haproxy", 6)
    metrics.observe_apply(running, 0.02)
    metrics.observe_apply(replace(running, error="refused"), 0.3)
    metrics.observe_apply(replace(running, waits="a reload"), 0.01)
    appliers = (running, FollowerStatus("dns"))
    node = Node(connected=True, registrations=3, readiness={"store": False}, appliers=appliers)
    with serving(node, metrics) as address:
        lines = ask(address, "/metrics").body.decode().splitlines()
    for line in (
        'discovery_apply_total{applier="haproxy",result="ok"} 1.0',
        'discovery_apply_total{applier="haproxy",result="failed"} 1.0',
        'discovery_apply_total{applier="haproxy",result="postponed"} 1.0',
        'discovery_apply_seconds_bucket{applier="haproxy",le="0.025"} 2.0',
        'discovery_apply_seconds_count{applier="haproxy"} 3.0',
        'discovery_applied_revision{applier="haproxy"} 6.0',
        "discovery_store_connected 1.0",
        "discovery_registrations 3.0",
        'discovery_ready{part="store"} 0.0',
    ):
        assert line in lines
    assert not [line for line in lines if line.startswith('discovery_applied_revision{applier="dns"}')]


def test_only_an_attempt_that_ends_well_counts_as_the_last_good_one() -> None:
    metrics, running = Metrics(), FollowerStatus("haproxy", 6)
    metrics.observe_apply(replace(running, error="refused"), 0.3)
    metrics.observe_apply(replace(running, waits="a reload"), 0.3)
    assert b"discovery_applied_timestamp_seconds{" not in metrics.text()
    metrics.observe_apply(running, 0.3)
    assert b'discovery_applied_timestamp_seconds{applier="haproxy"}' in metrics.text()


def test_what_haproxy_does_is_measured() -> None:
    catalog = Catalog(7, {}, (Problem("db", "/services/db/scheme", "unknown scheme 'ftp'"),))
    told = Problem("lone", "/services/lone/scheme", "instances disagree", "reported")
    with serving(Node(catalog, (PORT_USED, EXPIRED, told), proxy=PROXY)) as address:
        lines = ask(address, "/metrics").body.decode().splitlines()
    for line in (
        'discovery_problems{consequence="left out"} 2.0',
        'discovery_problems{consequence="kept at its last good value"} 0.0',
        'discovery_problems{consequence="reported"} 2.0',
        "discovery_quarantined_services 2.0",
        'discovery_haproxy_reloads_total{reason="listener"} 2.0',
        "discovery_haproxy_reload_seconds_count 3.0",
        "discovery_haproxy_reload_seconds_sum 0.75",
        "discovery_haproxy_changes_total 12.0",
        'discovery_haproxy_waiting{reason="listener"} 1.0',
        "discovery_haproxy_old_workers 2.0",
        "discovery_haproxy_old_connections 3.0",
        "discovery_haproxy_held_instances 2.0",
        'discovery_certificate_not_after_timestamp_seconds{certificate="a"} 2000.0',
    ):
        assert line in lines


def test_proxy_tells_what_haproxy_does_and_why_it_could_not_be_changed() -> None:
    node = Node(
        proxy=PROXY, appliers=(FollowerStatus("dns", error="no"), FollowerStatus("haproxy", error="x"))
    )
    with serving(node) as address:
        document = ask(address, "/proxy").json()
    assert document == {
        "running": True,
        "pid": 42,
        "version": "2.6.12",
        "revision": 7,
        "error": "x",
        "waiting": {
            "reasons": ["listener"],
            "services": ["api", "web"],
            "since": "1970-01-01T00:17:00.000Z",
            "due": "1970-01-01T00:17:02.250Z",
            "urgent": True,
        },
        "held": {
            "since": "1970-01-01T00:16:40.000Z",
            "until": "1970-01-01T00:26:40.000Z",
            "instances": {"web": ["0", "1"]},
        },
        "changes": 12,
        "reloads": {"listener": 2, "start": 1},
        "last_reloads": [
            {"at": "1970-01-01T00:16:40.500Z", "reasons": ["start"], "seconds": 0.5},
            {"at": "1970-01-01T00:16:50.000Z", "reasons": ["listener", "options"], "seconds": 0.125},
        ],
        "old_workers": [
            {"pid": 40, "connections": 3, "backends": {"service:web": 2, "service:api": 1}},
            {"pid": 41, "connections": None, "backends": {}},
        ],
        "certificates": [{"name": "a", "not_after": "1970-01-01T00:33:20.000Z"}],
    }


def test_proxy_of_a_node_without_one_is_not_found_and_one_with_nothing_to_tell_says_so() -> None:
    node = Node()
    with serving(node) as address:
        assert ask(address, "/proxy").status == 404
        node.proxy = ProxyStatus(False, None, "")
        document = ask(address, "/proxy").json()
        node.proxy = replace(PROXY, waiting=Waiting(("spares",), (), 1.0, 2.0, is_urgent=False))
        assert ask(address, "/proxy").json()["waiting"]["urgent"] is False
        report = ask_agent(address, "memory:", 20)
    assert (document["waiting"], document["held"], document["error"]) == (None, None, None)
    # Nobody misses anything, so nobody is told of it unasked.
    assert list(node_lines(report, "")) == []
    assert list(node_lines(replace(report, waiting=PROXY.waiting), "")) != []


# ---- asked by the commands ---------------------------------------------------------------------------


def test_a_command_is_told_what_only_this_node_knows() -> None:
    everywhere = Problem("db", "/services/db/scheme", "unknown scheme 'ftp'")
    long = Problem("api", "/services/api", "HAProxy refuses it: " + "x" * 500, "kept at its last good value")
    node = Node(Catalog(7, {}, (everywhere,)), (everywhere, PORT_USED, long, EXPIRED), proxy=PROXY)
    with serving(node) as address:
        report = ask_agent(address, "memory:", 20)
    assert report == NodeReport("node1", "memory:", (PORT_USED, long, EXPIRED), PROXY.waiting, ("web",))
    assert report.of("web").problems == (PORT_USED, EXPIRED)
    assert report.of("web").waiting == PROXY.waiting
    assert report.of("db").waiting is None
    assert (report.knows("web"), report.knows("api"), report.knows("db")) == (True, True, False)


def test_an_agent_of_another_store_is_not_believed() -> None:
    with (
        serving(Node(Catalog())) as address,
        pytest.raises(AgentUnavailable, match="node1 follows another store, memory:"),
    ):
        ask_agent(address, "memory:other", 20)


def test_users_do_not_make_another_store() -> None:
    view = replace(Node().view(), store="etcd3://agent@10.0.0.1:2379,10.0.0.2:2379")
    server = StatusServer(("127.0.0.1", 0), view, Metrics())
    with in_thread(server.run):
        report = ask_agent(server.address, "etcd3://root@10.0.0.1:2379,10.0.0.2:2379", 20)
    assert report.node == "node1"


GOOD: dict[str, Any] = {"node": "n", "store": "memory:", "problems": [], "waiting": None, "held": []}
ROW = {"service": None, "subject": "s", "reason": "r", "consequence": "left out", "origin": "node"}


def test_what_is_told_cannot_write_to_the_terminal() -> None:
    report = decode(GOOD | {"problems": [ROW | {"reason": "a\x1b[2Jb"}]})
    assert report.problems[0].reason == "a\\x1b[2Jb"


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        GOOD | {"node": None},
        GOOD | {"problems": [{}]},
        GOOD | {"problems": [ROW | {"consequence": "fired"}]},
        GOOD | {"waiting": {"reasons": []}},
        GOOD | {"held": None},
    ],
)
def test_what_is_no_answer_of_ours_is_refused(document: Any) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        decode(document)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.0 404 Not Found\r\n\r\n{}",
        b"HTTP/1.0 200 OK\r\n\r\n<html>",
        b"HTTP/1.0 200 OK\r\n\r\n[]",
        b"HTTP/1.0 200 OK\r\n\r\n" + b"[" * 100_000,
    ],
)
def test_whoever_else_listens_there_is_no_agent(answer: bytes) -> None:
    def serve(_stop: threading.Event) -> None:
        client, _ = listener.accept()
        with client:
            client.recv(4096)
            client.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        with in_thread(serve), pytest.raises(AgentUnavailable):
            ask_agent(listener.getsockname(), "memory:", 20)


def test_one_that_does_not_answer_is_not_waited_for() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(AgentUnavailable, match="no agent answers at 127"),
    ):
        ask_agent(silent.getsockname(), "memory:", 0.1)


def test_the_documentation_lists_exactly_the_metrics() -> None:
    metrics = Metrics()
    metrics.show(Node(Catalog()).view())
    have = {
        (family.name + ("_total" if family.type == "counter" else ""), family.type)
        for family in metrics.registry.collect()
    }
    text = (ROOT / "docs" / "metrics.md").read_text()
    documented = re.findall(r"^\| `(discovery_\w+)` \| (\w+) \|", text, re.MULTILINE)
    assert sorted(documented) == sorted(have)


def test_what_dns_counts_is_summed_over_processes() -> None:
    def counts(is_up: bool) -> Counts:
        stats = Stats()
        stats.cell(1, 0, "local")[0] += 3
        stats.cell(28, 3, "forwarded")[0] += 1
        stats.local.add(40e-6, answers=3)
        stats.forwarded.add(100.0)
        stats.limited += 2
        upstreams = {"192.0.2.1#53": UpstreamCounts(is_up, 5, 4)}
        return stats.counts()._replace(forwarding=ForwardCounts(1, 2, 3, 4, upstreams))

    metrics = Metrics()
    metrics.show(Node(dns=counts(True).plus(counts(False).plus(counts(False).ended()))).view())
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
    }
    assert samples["discovery_dns_queries_total", "A", "NOERROR", "local"] == 9
    assert samples["discovery_dns_queries_total", "AAAA", "NXDOMAIN", "forwarded"] == 3
    below, above = (str(bound) for bound in LATENCY_SECONDS[1:3])
    assert samples["discovery_dns_answer_seconds_bucket", below, "local"] == 0
    assert samples["discovery_dns_answer_seconds_bucket", above, "local"] == 9
    assert samples["discovery_dns_answer_seconds_bucket", str(LATENCY_SECONDS[-1]), "forwarded"] == 0
    assert samples["discovery_dns_answer_seconds_bucket", "+Inf", "forwarded"] == 3
    assert samples["discovery_dns_answer_seconds_sum", "forwarded"] == 300
    assert samples["discovery_dns_unanswered_total", "rate_limit"] == 6
    found = [samples["discovery_dns_cache_total", result] for result in ("hit", "stale", "miss")]
    assert found == [3, 6, 9]
    assert samples[("discovery_dns_cache_entries",)] == 8
    assert samples["discovery_dns_upstream_up", "192.0.2.1#53"] == 0
    assert samples["discovery_dns_upstream_queries_total", "192.0.2.1#53"] == 15


def test_an_address_in_use_is_a_wrong_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"status\.listen: cannot listen on 127\.0\.0\.1 port {port}: "
        ):
            StatusServer(("127.0.0.1", port), Node().view(), Metrics())


def test_the_port_is_free_again_after_the_stop() -> None:
    with serving(Node()) as address:
        assert ask(address, "/healthz").status == 200
    socket.create_server(address).close()


def test_it_stops_although_a_client_keeps_its_connection() -> None:
    with serving(Node()) as address:
        client = http.client.HTTPConnection(*address, timeout=20)
        client.request("GET", "/healthz")
        assert client.getresponse().read()
    client.close()
