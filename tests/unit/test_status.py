"""The status role over real HTTP."""

import http.client
import json
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from discovery.catalog import Attributes, Catalog, Instance, Problem, Service
from discovery.dns.stats import LATENCY_SECONDS, Counts, ForwardCounts, Stats, UpstreamCounts
from discovery.errors import ConfigError
from discovery.status.metrics import Metrics
from discovery.status.server import StatusServer
from discovery.status.view import StatusView
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
    reloads: Mapping[str, int] = field(default_factory=dict)
    dns: Counts | None = None

    def view(self) -> StatusView:
        return StatusView(
            catalog=lambda: self.catalog,
            problems=lambda: self.problems,
            readiness=lambda: self.readiness,
            health=lambda: self.health,
            store_connected=lambda: self.connected,
            registrations=lambda: self.registrations,
            haproxy_reloads=lambda: self.reloads,
            dns=lambda: self.dns,
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


def test_services_tells_what_is_served_and_what_is_not() -> None:
    problem = Problem("db", "/services/db/scheme", "unknown scheme 'ftp'")
    node = Node(Catalog(7, {"web": WEB, "api": Service("api", "tcp")}), (problem,))
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
            }
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


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/services"])
def test_methods(path: str) -> None:
    with serving(Node(Catalog())) as address:
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
    metrics.observe_apply("haproxy", True, 0.02)
    metrics.observe_apply("haproxy", False, 0.3)
    node = Node(connected=True, registrations=3, readiness={"store": False}, reloads={"services": 1})
    with serving(node, metrics) as address:
        lines = ask(address, "/metrics").body.decode().splitlines()
    for line in (
        'discovery_apply_total{applier="haproxy",result="ok"} 1.0',
        'discovery_apply_total{applier="haproxy",result="failed"} 1.0',
        'discovery_apply_seconds_bucket{applier="haproxy",le="0.025"} 1.0',
        'discovery_apply_seconds_count{applier="haproxy"} 2.0',
        'discovery_haproxy_reloads_total{reason="services"} 1.0',
        "discovery_store_connected 1.0",
        "discovery_registrations 3.0",
        'discovery_ready{part="store"} 0.0',
    ):
        assert line in lines


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
        stats.took("local", 40e-6, answers=3)
        stats.took("forwarded", 100.0)
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
