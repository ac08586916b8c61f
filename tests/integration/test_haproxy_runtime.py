"""Every change that needs no reload, made in a real HAProxy: seen in its state and by requests."""

import json
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from discovery.catalog import Attributes, Catalog, Instance, Problem, Service
from discovery.haproxy.apply import HAProxy
from discovery.haproxy.settings import HeldPorts, ProxySettings
from tests.lab.haproxy import (
    VERSIONS,
    catalog,
    echo,
    fetch,
    free_port,
    front_port,
    haproxy_binary,
    running,
    settings,
    until,
)
from tests.lab.worker_state import assert_worker_is_as, map_of, tell, up, wanted_servers, worker_pid

HELD_LENGTH = 4


@dataclass(frozen=True)
class Edge:
    """One HAProxy for all tests of a version, with echoes behind it at every address of 127/8 and ::1."""

    proxy: HAProxy
    settings: ProxySettings
    port: int
    port6: int
    tcp: int
    """The first held port for tcp; as many as HELD_LENGTH follow one another."""
    http: int
    """The same for http."""
    own: tuple[int, int]
    """Ports that the services ``pub`` and ``site`` have listeners on since the start."""

    @property
    def front(self) -> int:
        return front_port(self.settings)

    def service(self, name: str, *hosts: str, scheme: Any = "http", **more: Any) -> Service:
        """A service with an instance at each host, which is its id too."""
        instances = tuple(self.instance(host) for host in hosts)
        return Service(name, scheme, more.get("host_port"), instances, more.get("options", {}))

    def instance(self, host: str, id_: str | None = None, **attributes: Any) -> Instance:
        port = self.port6 if ":" in host else self.port
        return Instance(id_ or host.replace("::", "v6-"), host, port, Attributes(**attributes))

    @property
    def first(self) -> tuple[Service, ...]:
        """The services it was started with, so that they have sections and listeners of their own."""
        return (
            self.service("web", "127.0.1.1", "127.0.1.2"),
            self.service("fancy", "127.0.1.3", options={"balance": "leastconn"}),
            self.service("pub", "127.0.1.4", scheme="tcp", host_port=self.own[0]),
            self.service("site", "127.0.1.5", host_port=self.own[1]),
        )

    def change(self, *services: Service, problems: int = 0) -> tuple[Problem, ...]:
        """Apply these services, and see that exactly they are served, by the same worker as before."""
        before, worker = self.proxy.status.reloads, worker_pid(self.settings)
        wanted = catalog(*services)
        found = self.proxy.apply(wanted)
        assert len(found) == problems, found
        assert self.proxy.status.reloads == before
        assert worker_pid(self.settings) == worker
        if not problems:
            assert_worker_is_as(self.settings, wanted)
            for each in services:
                self.ask(each)
        return found

    def ask(self, service: Service) -> None:
        """See by requests that exactly its instances answer, by every way that leads to it."""
        expected = {address for address, weight in wanted_servers(service) if weight}
        if service.scheme == "http":
            name = service.name
            found = self.reached(expected, self.front, host=f"{name}.local")
            # The least busy one is chosen: of idle ones not necessarily each.
            assert found == expected or (found < expected and "balance" in service.options)
            if expected:
                seen = fetch(self.front, f"/{name}/x", "any.domain").seen
                kept = service.options.get("path") == "keep"
                assert seen["path"] == (f"/{name}/x" if kept else "/x")
                assert seen["address"] in expected
            for host in filter(None, service.options.get("hosts", "").split(",")):
                assert self.reached(expected, self.front, host=host.replace("*", "any")) == expected
        if service.host_port is not None and (expected or service.scheme == "http"):
            assert self.reached(expected, service.host_port, host="x") == expected

    def reached(self, expected: set[str], port: int, host: str) -> set[str]:
        """Which addresses answer; none when there is no live instance."""
        if not expected:
            assert fetch(port, host=host).status == 503
            return set()
        found: set[str] = set()
        for _ in range(100):
            found.add(fetch(port, host=host).seen["address"])
            # Of very many not all are waited for. A server that was away may wait for some turns.
            if not found <= expected or len(found) >= min(len(expected), 20):
                break
        return expected if found < expected and len(found) >= 20 else found


@pytest.fixture(scope="module", params=VERSIONS)
def edge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with ExitStack() as stack:
        of = settings(
            tmp_path_factory.mktemp("edge"),
            haproxy_binary(request.param),
            held_ports=(HeldPorts("tcp", *(tcp := free_range())), HeldPorts("http", *(http := free_range()))),
            mass_loss_share=1.0,
        )
        each = Edge(
            stack.enter_context(running(of)),
            of,
            stack.enter_context(echo(host="0.0.0.0")),
            stack.enter_context(echo(host="::1")),
            tcp[0],
            http[0],
            (free_port(), free_port()),
        )
        each.proxy.apply(catalog(*each.first))
        yield each
        assert set(each.proxy.status.reloads) <= {"start", "service", "listener"}


def free_range() -> tuple[int, int]:
    """First and last of HELD_LENGTH ports that nothing listens on now."""

    def found() -> tuple[int, int] | None:
        first = free_port()
        if first + HELD_LENGTH > 65535:
            return None
        with ExitStack() as stack:
            try:
                for port in range(first, first + HELD_LENGTH):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                return None
        return first, first + HELD_LENGTH - 1

    result: tuple[int, int] = until(found, "a range of free ports")
    return result


# ---- instances --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["web", "fancy", "new"])
def test_instances_come_and_go(edge: Edge, name: str) -> None:
    """In a section of its own, in one with options, and in a spare one."""
    rest = [each for each in edge.first if each.name != name]
    options = {"balance": "leastconn"} if name == "fancy" else {}
    for hosts in (
        ["127.0.2.1"],
        ["127.0.2.1", "127.0.2.2"],
        ["127.0.2.1", "127.0.2.2", "127.0.2.3", "127.0.2.4", "127.0.2.5"],
        ["127.0.2.5"],
        [],
        ["127.0.2.6", "127.0.2.7"],
    ):
        edge.change(*rest, edge.service(name, *hosts, options=options))


def test_all_instances_are_replaced_again_and_again_in_the_same_slots(edge: Edge) -> None:
    for number in range(6):
        edge.change(edge.service("web", *(f"127.0.3.{number * 3 + each}" for each in (1, 2, 3))))
    assert len(slots(edge.settings, "service:web")) <= 8, "slots are used again"


def slots(of: ProxySettings, section: str) -> list[str]:
    return tell(of, f"show servers state {section}").splitlines()[2:-1]


def test_one_id_changes_its_address(edge: Edge) -> None:
    for host in ("127.0.4.1", "127.0.4.2", "127.0.4.1", "::1", "127.0.4.3", "::1"):
        edge.change(Service("web", instances=(edge.instance(host, "the-one"),)))


def test_one_id_changes_its_port_alone(edge: Edge) -> None:
    with echo(host="0.0.0.0") as other:
        for port in (edge.port, other, edge.port):
            edge.change(Service("web", instances=(Instance("0", "127.0.4.9", port),)))


def test_an_address_changes_its_id(edge: Edge) -> None:
    for id_ in ("a", "b"):
        edge.change(Service("web", instances=(edge.instance("127.0.4.4", id_),)))


def test_two_ids_have_one_address(edge: Edge) -> None:
    both = tuple(edge.instance("127.0.4.5", id_) for id_ in ("a", "b"))
    edge.change(Service("web", instances=both))
    edge.change(Service("web", instances=both[1:]))
    edge.change(Service("web", instances=both))


def test_instances_of_both_families_in_turn(edge: Edge) -> None:
    for hosts in (["::1"], ["::1", "127.0.5.1"], ["127.0.5.1"], ["127.0.5.2", "::1"]):
        edge.change(edge.service("web", *hosts), edge.service("six", *hosts[::-1]))


def test_draining_and_back(edge: Edge) -> None:
    one, two = edge.instance("127.0.5.3"), edge.instance("127.0.5.4")
    leaving = replace(one, attributes=Attributes(draining=True))
    for instances in ((one, two), (leaving, two), (one, two), (leaving,), (one,)):
        edge.change(Service("web", instances=instances))


def test_weights(edge: Edge) -> None:
    for weights in ((1, 1), (0, 1), (256, 1), (0, 0), (3, 1)):
        both = tuple(edge.instance(f"127.0.6.{n}", weight=weight) for n, weight in enumerate(weights, 1))
        edge.change(Service("web", instances=both))
    counted = Counter(fetch(edge.front, host="web").seen["address"] for _ in range(32))
    assert counted[f"127.0.6.1:{edge.port}"] == pytest.approx(24, abs=3)


def test_the_option_weight(edge: Edge) -> None:
    for options in ({}, {"weight": "9"}, {"weight": "0"}, {}):
        edge.change(edge.service("web", "127.0.6.3", "127.0.6.4", options=options))


def test_five_hundred_at_once(edge: Edge) -> None:
    many = [f"127.1.{number // 250}.{number % 250 + 1}" for number in range(500)]
    edge.change(*edge.first[1:], edge.service("web", *many))
    edge.change(*edge.first[1:], edge.service("web", *many[::2], "127.2.0.1"))
    edge.change(*edge.first)


def test_a_new_instance_is_up_at_once_where_a_dead_one_was(edge: Edge) -> None:
    dead = Instance("dead", "127.0.6.5", free_port())
    for name in ("web", "fresh"):
        edge.proxy.apply(catalog(Service(name, instances=(dead,))))
        until(lambda name=name: up(edge.settings, name) == {dead.address: False}, "found to be down")
        edge.proxy.apply(catalog(Service(name)))
        edge.change(edge.service(name, "127.0.6.6"))


@pytest.mark.parametrize("name", ["web", "fancy", "fresh"])
def test_what_comes_at_runtime_is_checked(edge: Edge, name: str) -> None:
    options = {"balance": "leastconn"} if name == "fancy" else {}
    rest = [edge.instance("127.0.6.7"), edge.instance("127.0.6.8")]
    edge.change(Service(name, instances=tuple(rest), options=options))
    dead = Instance("dead", "127.0.6.9", free_port())
    edge.proxy.apply(catalog(Service(name, instances=(dead, *rest), options=options)))
    until(lambda: up(edge.settings, name)[dead.address] is False, "found to be down")
    assert all(fetch(edge.front, host=name).status == 200 for _ in range(8))


# ---- services ---------------------------------------------------------------------------------------


def test_new_http_services(edge: Edge) -> None:
    edge.change(*edge.first, edge.service("new", "127.0.7.1"))
    edge.change(*edge.first, *(edge.service(f"new{n}", f"127.0.7.{n + 2}") for n in range(5)))
    edge.change(*edge.first)
    assert fetch(edge.front, host="new").status == 404
    assert fetch(edge.front, "/new/x", host="any.domain").status == 404


def test_services_come_and_go(edge: Edge) -> None:
    """More of them, one after the other, than there are spare sections."""
    for number in range(60):
        wanted = [edge.service(f"brief{n}", f"127.0.8.{n % 7 + 1}") for n in (number, number + 1)]
        assert edge.proxy.apply(catalog(*wanted)) == ()
    edge.change(*wanted)
    # All of the first ones go and come back into their own sections.
    edge.change()
    edge.change(*edge.first)
    assert map_of(edge.settings, "backends.map")["fancy"] == "service:fancy"


def test_a_service_keeps_its_section_and_no_other_has_it(edge: Edge) -> None:
    edge.change(edge.service("one", "127.0.8.3"), edge.service("two", "127.0.8.4"))
    edge.change(edge.service("two", "127.0.8.4"), edge.service("three", "127.0.8.5"))
    edge.change(edge.service("one", "127.0.8.6"), edge.service("three", "127.0.8.5"))


def test_new_tcp_service_on_a_held_port(edge: Edge) -> None:
    edge.change(edge.service("db", "127.0.9.1", "127.0.9.2", scheme="tcp", host_port=edge.tcp))
    edge.change(
        edge.service("db", "127.0.9.1", scheme="tcp", host_port=edge.tcp),
        edge.service("queue", "127.0.9.3", scheme="tcp", host_port=edge.tcp + 1),
    )
    edge.change(edge.service("queue", "127.0.9.3", scheme="tcp", host_port=edge.tcp + 1))
    assert_closed(edge.tcp)


def test_new_http_service_on_a_held_port(edge: Edge) -> None:
    edge.change(edge.service("api", "127.0.9.4", host_port=edge.http))
    edge.change(edge.service("api", "127.0.9.5", host_port=edge.http + 1))
    assert_closed(edge.http)
    edge.change(edge.service("api", "127.0.9.5"))
    assert_closed(edge.http + 1)


def test_a_held_port_changes_hands(edge: Edge) -> None:
    for name in ("db", "queue", "db"):
        edge.change(edge.service(name, "127.0.9.6", scheme="tcp", host_port=edge.tcp + 2))
    edge.change(
        edge.service("db", "127.0.9.6", scheme="tcp", host_port=edge.tcp + 1),
        edge.service("queue", "127.0.9.7", scheme="tcp", host_port=edge.tcp + 2),
    )
    edge.change(
        edge.service("db", "127.0.9.6", scheme="tcp", host_port=edge.tcp + 2),
        edge.service("queue", "127.0.9.7", scheme="tcp", host_port=edge.tcp + 1),
    )


def test_a_known_service_comes_to_a_held_port(edge: Edge) -> None:
    edge.change(edge.service("web", "127.0.9.8", host_port=edge.http + 2))
    edge.change(edge.service("web", "127.0.9.8"))


def test_a_held_port_is_for_its_scheme(edge: Edge) -> None:
    (problem,) = edge.change(edge.service("db", "127.0.9.9", scheme="tcp", host_port=edge.http), problems=1)
    assert "is held for http services" in problem.reason
    assert_closed(edge.http)


def assert_closed(port: int) -> None:
    """A connection to it is refused or ended at once, without a byte."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.settimeout(20)
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(100) == b""
    except OSError as error:
        assert not isinstance(error, TimeoutError), error


def test_ports_that_no_service_has_are_closed(edge: Edge) -> None:
    edge.change()
    for first in (edge.tcp, edge.http):
        for port in range(first, first + HELD_LENGTH):
            assert_closed(port)
    for port in edge.own:
        assert_closed(port)


def test_listeners_are_closed_and_opened_again(edge: Edge) -> None:
    edge.change(*edge.first)
    with closing(HTTPConnection("127.0.0.1", edge.own[0], timeout=20)) as connection:
        asked(connection)
        edge.change(*edge.first[:2])
        # Who is connected already is served to the end.
        asked(connection)
    for port in edge.own:
        assert_closed(port)
    edge.change(*edge.first)
    without_port = [replace(each, host_port=None) for each in edge.first if each.scheme == "http"]
    edge.change(*without_port)
    edge.change(*edge.first)


def asked(connection: HTTPConnection) -> str:
    """One request on a connection that was made before, if there is one; the address that answers."""
    connection.auto_open = connection.sock is None
    connection.request("GET", "/", headers={"Host": "x"})
    with connection.getresponse() as response:
        assert response.status == 200
        return str(json.loads(response.read())["address"])


# ---- options that act at runtime --------------------------------------------------------------------


def test_hosts(edge: Edge) -> None:
    for hosts in ("a.example.com", "a.example.com,*.b.example.com", "*.b.example.com", ""):
        options = {"hosts": hosts} if hosts else {}
        edge.change(edge.service("web", "127.0.10.1", options=options), edge.service("api", "127.0.10.2"))
    assert fetch(edge.front, host="a.example.com").status == 404


def test_a_host_changes_hands(edge: Edge) -> None:
    for owner in ("web", "api", "web"):
        edge.change(
            *(
                edge.service(name, host, options={"hosts": "shop.example.com"} if name == owner else {})
                for name, host in (("web", "127.0.10.3"), ("api", "127.0.10.4"))
            )
        )


def test_a_host_that_two_claim_goes_to_the_first_and_then_to_the_next(edge: Edge) -> None:
    options = {"hosts": "shop.example.com"}
    aaa, web = (
        edge.service("aaa", "127.0.10.5", options=options),
        edge.service("web", "127.0.10.6", options=options),
    )
    edge.change(web)
    edge.change(aaa, web, problems=1)
    assert fetch(edge.front, host="shop.example.com").seen["address"] == aaa.instances[0].address
    edge.change(web)


def test_path_is_kept_and_taken_off(edge: Edge) -> None:
    for options in ({}, {"path": "keep"}, {"path": "strip"}, {"path": "keep"}, {}):
        edge.change(
            edge.service("web", "127.0.10.7", options=options),
            edge.service("new", "127.0.10.8", options=options),
        )


def test_redirect_without_https_is_reported_and_costs_no_reload(edge: Edge) -> None:
    plain = (edge.service("web", "127.0.10.9"), edge.service("new", "127.0.10.10"))
    edge.change(*plain)
    edge.change(*(replace(each, options={"redirect": "https"}) for each in plain), problems=2)
    assert fetch(edge.front, host="web").status == 200
    edge.change(*plain)


# ---- whatever comes ---------------------------------------------------------------------------------


NAMES = ("web", "fancy", "site", "db", "api", "new")


@st.composite
def services(draw: Any) -> tuple[str, str, int | None, tuple[tuple[int, int | None, bool], ...], str]:
    name = draw(st.sampled_from(NAMES))
    scheme = "tcp" if name == "db" else "http"
    weights, draining = st.sampled_from([None, None, 0, 7]), st.sampled_from([False, False, False, True])
    instances = st.tuples(st.integers(1, 6), weights, draining)
    return (
        name,
        scheme,
        draw(st.sampled_from([0, 1, 2, 3] if scheme == "tcp" else [None, None, 0, 1])),
        tuple(draw(st.lists(instances, max_size=4, unique_by=lambda each: each[0]))),
        draw(st.sampled_from(["", "", "", "path=keep", "hosts=x.example.com", "weight=5"])),
    )


catalogs = st.lists(services(), max_size=5, unique_by=lambda each: each[0])


@given(st.lists(catalogs, min_size=1, max_size=4))
@hypothesis_settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_catalog_after_any_other(edge: Edge, steps: list[Any]) -> None:
    for step in steps:
        wanted = Catalog(1, {name: made(edge, *each) for each in step for name in each[:1]})
        edge.proxy.apply(wanted)
        problems = {each.service for each in edge.proxy.apply(wanted)}
        assert_worker_is_as(edge.settings, without_refused(edge, wanted))
        for each in wanted.services.values():
            if each.name not in problems:
                edge.ask(each)


def made(edge: Edge, name: str, scheme: Any, port: int | None, instances: Any, option: str) -> Service:
    key, _, value = option.partition("=")
    options = {key: value} if option and not (scheme == "tcp" and key != "weight") else {}
    if name == "fancy":
        options["balance"] = "leastconn"
    first = edge.tcp if scheme == "tcp" else edge.http
    return Service(
        name,
        scheme,
        None if port is None else first + port,
        tuple(
            edge.instance(f"127.0.20.{number}", weight=weight, draining=draining)
            for number, weight, draining in instances
        ),
        options,
    )


def without_refused(edge: Edge, wanted: Catalog) -> Catalog:
    """The catalog with each port at the first that claims it; ports are all that is refused here."""
    taken: set[int] = set()
    kept = {}
    for name, each in sorted(wanted.services.items()):
        loses = each.host_port in taken
        if each.host_port is not None:
            taken.add(each.host_port)
        kept[name] = replace(each, host_port=None) if loses else each
    return Catalog(wanted.revision, kept)
