"""What runs and what is wanted → commands: tables, and a worker that is simulated."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from discovery.catalog import Attributes, Catalog, Instance, Service
from discovery.haproxy.layout import Layout, Section, place
from discovery.haproxy.model import Model, build
from discovery.haproxy.plan import Means, Plan, plan
from discovery.haproxy.routes import BACKENDS, HOSTS, KEEP, PATHS, PORTS, REDIRECT, routes_of
from discovery.haproxy.settings import HeldPorts, ProxySettings
from discovery.haproxy.state import ServerState, misfits, observed

SETTINGS = ProxySettings(
    Path("/var/lib/discovery"),
    (Path("templates"),),
    held_ports=(HeldPorts("tcp", 7000, 7002), HeldPorts("http", 7100, 7102)),
)
MEANS = Means(spares={"http": 4, "tcp": 2})


def service(name: str, *addresses: str, scheme: Any = "http", **more: Any) -> Service:
    """A service with an instance at each ``host:port``, whose id it is too."""
    instances = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        instances.append(Instance(address, host, int(port)))
    return Service(name, scheme, more.get("host_port"), tuple(instances), more.get("options", {}))


def model(*services: Service, before: Model | None = None) -> Model:
    return build(Catalog(1, {each.name: each for each in services}), SETTINGS, before)


def started(*services: Service) -> Layout:
    """The layout of a worker that was made for these services."""
    return place(model(*services), spares=MEANS.spares)


def planned(running: Layout, *services: Service, means: Means = MEANS) -> Plan:
    return plan(running, model(*services), means)


# ---- tables -----------------------------------------------------------------------------------------


def test_nothing_to_do_is_no_command() -> None:
    services = (service("web", "10.0.0.1:80"), service("db", "10.0.0.2:5432", scheme="tcp", host_port=5432))
    assert planned(started(*services), *services).commands == ()
    assert planned(started(*services), *services).reasons == ()


def test_an_instance_that_comes_is_added_with_all_its_words() -> None:
    running = started(service("web", "10.0.0.1:80"))
    found = planned(running, service("web", "10.0.0.1:80", "10.0.0.2:80"))
    add, ready = found.commands
    assert add.startswith("add server service:web/s2 10.0.0.2:80 id 2 weight 1 ")
    assert ready == "set server service:web/s2 state ready"
    assert found.touched == ("service:web",)
    assert found.reasons == ()


def test_an_instance_that_goes_leaves_a_slot_that_the_next_one_takes() -> None:
    running = started(service("web", "10.0.0.1:80", "10.0.0.2:80"))
    gone = planned(running, service("web", "10.0.0.2:80"))
    assert gone.commands == ("set server service:web/s1 state maint",)
    come = planned(gone.layout, service("web", "10.0.0.2:80", "10.0.0.3:81"))
    assert come.moves == ("set server service:web/s1 addr 10.0.0.3 port 81",)
    assert come.commands == (
        "set server service:web/s1 weight 1",
        "set server service:web/s1 state ready",
    )


def test_the_next_instance_is_there_before_the_last_one_goes() -> None:
    running = started(service("web", "10.0.0.1:80"))
    commands = planned(running, service("web", "10.0.0.2:80")).commands
    assert commands[0].startswith("add server service:web/s2 10.0.0.2:80 ")
    assert commands[-1] == "set server service:web/s1 state maint"


def test_a_weight_changes_alone() -> None:
    before = Service("web", instances=(Instance("a", "10.0.0.1", 80),))
    after = Service("web", instances=(Instance("a", "10.0.0.1", 80, Attributes(weight=7)),))
    assert planned(started(before), after).commands == ("set server service:web/s1 weight 7",)


def test_one_that_takes_nothing_any_more_goes_on_until_the_next_is_there() -> None:
    running = started(service("web", "10.0.0.1:80"))
    first = Instance("10.0.0.1:80", "10.0.0.1", 80, Attributes(weight=0))
    after = Service("web", instances=(first, Instance("new", "10.0.0.2", 80)))
    assert planned(running, after).commands[-1] == "set server service:web/s1 weight 0"


def test_an_ipv6_address_is_given_as_haproxy_reads_it() -> None:
    running = planned(started(service("web", "10.0.0.1:80")), service("web")).layout
    moves = planned(running, service("web", "fd00::1:80")).moves
    assert moves == ("set server service:web/s1 addr fd00::1 port 80",)


def test_a_new_service_takes_a_spare_section_and_is_led_to_last() -> None:
    found = planned(started(), service("web", "10.0.0.1:80"))
    assert found.reasons == ()
    assert found.commands[0].startswith("add server spare:http:1/s1 10.0.0.1:80 ")
    assert set(found.commands[2:]) == {
        "add map hosts.map web web",
        "add map paths.map web web",
        "add map backends.map web spare:http:1",
    }
    assert found.layout.free["http"] == ("spare:http:2", "spare:http:3", "spare:http:4")


def test_a_service_that_goes_is_no_longer_led_to_and_leaves_its_spare_section() -> None:
    running = planned(started(), service("web", "10.0.0.1:80")).layout
    found = planned(running)
    assert set(found.commands[:-1]) == {
        "del map hosts.map web",
        "del map paths.map web",
        "del map backends.map web",
    }
    assert found.commands[-1] == "set server spare:http:1/s1 state maint"
    assert "spare:http:1" in found.layout.free["http"]


def test_a_service_that_comes_back_has_its_section_again() -> None:
    web = service("web", "10.0.0.1:80", options={"balance": "leastconn"})
    gone = planned(started(web)).layout
    found = planned(gone, web)
    assert found.reasons == ()
    assert "add map backends.map web service:web" in found.commands


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ((), (service("web", options={"balance": "leastconn"}),), "service"),
        ((service("web"),), (service("web", options={"balance": "leastconn"}),), "options"),
        ((service("web"),), (service("web", scheme="tcp", host_port=7000),), "scheme"),
        ((service("web"),), (service("web", host_port=9000),), "listener"),
        ((), (service("db", scheme="tcp", host_port=9000),), "service"),
        (
            (service("a", host_port=9000), service("b")),
            (service("a"), service("b", host_port=9000)),
            "listener",
        ),
    ],
)
def test_what_takes_a_reload_says_why(
    before: tuple[Service, ...], after: tuple[Service, ...], reason: str
) -> None:
    found = planned(started(*before), *after)
    assert reason in found.reasons
    assert found.is_urgent


def test_a_reason_lasts_until_the_reload() -> None:
    running = started(service("web", "10.0.0.1:80"))
    after = model(service("web", "10.0.0.2:80", options={"balance": "leastconn"}))
    first = plan(running, after, MEANS)
    assert first.commands, "its instances do not wait"
    second = plan(first.layout, after, MEANS)
    assert second.commands == ()
    assert second.reasons == ("options",)


def test_a_port_of_a_held_range_takes_no_reload() -> None:
    db = service("db", "10.0.0.1:5432", scheme="tcp", host_port=7001)
    found = planned(started(), db)
    assert found.reasons == ()
    assert "add map ports.map 7001 db" in found.commands
    moved = planned(found.layout, service("db", "10.0.0.1:5432", scheme="tcp", host_port=7002))
    assert set(moved.commands) == {"add map ports.map 7002 db", "del map ports.map 7001"}


def test_a_listener_is_closed_and_opened_again_without_a_reload() -> None:
    web = service("web", "10.0.0.1:80", host_port=9000)
    gone = planned(started(web))
    assert "disable frontend port:9000" in gone.commands
    assert gone.reasons == ()
    back = planned(gone.layout, web)
    assert "enable frontend port:9000" in back.commands
    assert back.reasons == ()
    assert back.layout.paused == ()


def test_a_listener_is_not_opened_for_a_service_that_is_elsewhere() -> None:
    with_option = service("web", "10.0.0.1:80", host_port=9000, options={"balance": "leastconn"})
    gone = planned(started(with_option)).layout
    back = planned(gone, service("web", "10.0.0.1:80", host_port=9000))
    assert back.layout.places["web"] == "spare:http:1"
    assert not any("frontend" in command for command in back.commands)
    assert back.reasons == ("listener",)


def test_few_spare_sections_ask_for_a_reload_that_can_wait() -> None:
    services = [service(f"s{number}") for number in range(4)]
    three = planned(started(), *services[:3])
    assert (three.reasons, three.is_urgent) == ((), False)
    four = planned(three.layout, *services)
    assert (four.reasons, four.is_urgent) == (("spares",), False)
    assert planned(four.layout, *services, service("one-more")).is_urgent


def test_more_servers_than_there_are_files_for_ask_for_a_reload_that_can_wait() -> None:
    means = Means(spares={"http": 4}, capacity=1)
    one = planned(started(service("web")), service("web", "10.0.0.1:80"), means=means)
    assert one.reasons == ()
    two = planned(one.layout, service("web", "10.0.0.1:80", "10.0.0.2:80"), means=means)
    assert (two.reasons, two.is_urgent) == (("capacity",), False)
    assert place(model(service("web", "10.0.0.1:80", "10.0.0.2:80")), before=two.layout).added == 0


def test_servers_that_cannot_be_added_wait_for_a_reload() -> None:
    means = Means(spares={"http": 4}, can_add=False)
    running = planned(
        started(service("web", "10.0.0.1:80", "10.0.0.2:80")), service("web", "10.0.0.2:80")
    ).layout
    one = planned(running, service("web", "10.0.0.2:80", "10.0.0.3:80"), means=means)
    assert one.reasons == ()
    two = planned(running, service("web", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80"), means=means)
    assert two.reasons == ("servers",)


# ---- a worker that does as it is told ---------------------------------------------------------------


@dataclass
class Worker:
    """HAProxy's worker, as far as it is told of here."""

    sections: dict[str, dict[str, ServerState]] = field(default_factory=dict)
    maps: dict[str, dict[str, str]] = field(default_factory=dict)
    frontends: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, layout: Layout) -> "Worker":
        """One that has just loaded the configuration of a layout."""
        self = cls()
        for name, section in layout.sections.items():
            self.sections[name] = {
                slot.name: ServerState(slot.server.address, slot.server.weight, False, True)
                for slot in section.slots
                if slot.server
            }
        self.maps = wanted_maps(layout)
        self.frontends = {each.name: True for each in layout.listeners}
        return self

    def run(self, command: str) -> None:
        match command.split():
            case ["add", "server", path, address, "id", number, "weight", weight, *_]:
                section, name = path.split("/")
                assert name == f"s{number}"
                assert name not in self.sections[section], "there is one already"
                self.sections[section][name] = ServerState(address, int(weight), True, True)
            case ["set", "server", path, *words]:
                section, name = path.split("/")
                self.sections[section][name] = changed(self.sections[section][name], words)
            case ["enable", "health", path]:
                assert path.split("/")[1] in self.sections[path.split("/")[0]]
            case ["add", "map", name, key, value]:
                assert key not in self.maps[name], "HAProxy would have it twice"
                self.maps[name][key] = value
            case ["set", "map", name, key, value]:
                assert key in self.maps[name]
                self.maps[name][key] = value
            case ["del", "map", name, key]:
                del self.maps[name][key]
            case ["enable" | "disable" as verb, "frontend", name]:
                assert name in self.frontends
                self.frontends[name] = verb == "enable"
            case _:
                raise AssertionError(command)

    def up(self, service: str) -> set[str]:
        """The addresses that requests for a service may be led to."""
        servers = self.sections.get(self.maps[BACKENDS].get(service, ""), {})
        return {state.address for state in servers.values() if not state.in_maintenance and state.weight}


def changed(state: ServerState, words: list[str]) -> ServerState:
    match words:
        case ["addr", host, "port", port]:
            assert state.in_maintenance, "requests in this moment would go astray"
            joined = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            return ServerState(joined, state.weight, True, True)
        case ["weight", weight]:
            return ServerState(state.address, int(weight), state.in_maintenance, True)
        case ["state", "ready" | "maint" as word]:
            return ServerState(state.address, state.weight, word == "maint", True)
    raise AssertionError(words)


def wanted_maps(layout: Layout) -> dict[str, dict[str, str]]:
    maps: dict[str, dict[str, str]] = {name: {} for name in (HOSTS, PATHS, KEEP, REDIRECT, BACKENDS, PORTS)}
    for name, place_ in layout.places.items():
        backend = layout.sections[place_].backend
        assert backend is not None
        for map_, entries in routes_of(backend.service).items():
            # Without a certificate HAProxy does not know the map of what is redirected to https.
            maps[map_] |= entries if map_ != REDIRECT or layout.certificates else {}
        maps[BACKENDS][name] = place_
    maps[HOSTS] |= layout.hosts
    maps[PORTS] = {str(port): service for port, service in layout.ports.items()}
    return maps


names = st.sampled_from(["a", "b", "c", "d", "e"])
instances = st.builds(
    lambda id_, last, port, attributes: Instance(id_, f"10.0.0.{last}", port, attributes),
    id_=st.sampled_from(["0", "1", "2", "3"]),
    last=st.integers(1, 4),
    port=st.sampled_from([80, 81]),
    attributes=st.builds(
        Attributes, weight=st.sampled_from([None, 0, 5]), draining=st.sampled_from([False, False, True])
    ),
)
services = st.builds(
    Service,
    name=names,
    scheme=st.sampled_from(["http", "http", "tcp"]),
    host_port=st.sampled_from([None, None, 7000, 7001, 7100, 9000, 9001]),
    instances=st.lists(instances, max_size=4, unique_by=lambda each: each.id).map(tuple),
    options=st.sampled_from(
        [
            {},
            {},
            {"path": "keep"},
            {"redirect": "https"},
            {"hosts": "x.example.com"},
            {"balance": "leastconn"},
        ]
    ),
)
catalogs = st.lists(services, max_size=5, unique_by=lambda each: each.name)


@given(st.lists(catalogs, min_size=1, max_size=6), st.booleans())
@hypothesis_settings(max_examples=120, deadline=None)
def test_a_worker_that_does_as_planned_ends_as_wanted(steps: list[list[Service]], can_add: bool) -> None:
    means = Means(spares=MEANS.spares, can_add=can_add)
    wanted = model()
    layout = place(wanted, spares=means.spares)
    worker = Worker.of(layout)
    for step in steps:
        wanted = model(*step, before=wanted)
        before = {name: worker.up(name) for name in layout.places}
        found = plan(layout, wanted, means)
        for command in (*found.moves, *found.commands):
            worker.run(command)
            led_to = {
                *worker.maps[HOSTS].values(),
                *worker.maps[PATHS].values(),
                *worker.maps[PORTS].values(),
            }
            assert led_to <= worker.maps[BACKENDS].keys(), command
            for name, addresses in before.items():
                after = usable(wanted, name)
                if addresses and after and not found.reasons:
                    assert worker.up(name), f"{name} is without a server after {command}"
        layout = found.layout
        assert misfits(layout.sections.values(), worker.sections) == ()
        assert worker.maps == wanted_maps(layout)
        assert {name for name, is_open in worker.frontends.items() if is_open} == {
            each.name for each in layout.listeners
        }
        if found.is_urgent:
            layout = place(wanted, spares=means.spares, before=layout)
            worker = Worker.of(layout)
        assert_serves(worker, layout, wanted)
        assert not plan(layout, wanted, means).has_commands


def usable(wanted: Model, name: str) -> set[str]:
    backend = wanted.backends.get(name)
    return {server.address for server in backend.servers if server.weight} if backend else set()


def assert_serves(worker: Worker, layout: Layout, wanted: Model) -> None:
    assert worker.maps[BACKENDS].keys() == wanted.backends.keys()
    for name, backend in wanted.backends.items():
        assert worker.up(name) == {server.address for server in backend.servers if server.weight}
        section = layout.sections[worker.maps[BACKENDS][name]]
        assert section.shape == backend.shape
    assert worker.maps[HOSTS] == {
        **{name: name for name, each in wanted.backends.items() if each.mode == "http"},
        **wanted.hosts,
    }
    assert {name for name, is_open in worker.frontends.items() if is_open} == {
        each.name for each in wanted.listeners
    }
    unused = layout.sections.keys() - set(layout.places.values())
    assert all(state.in_maintenance for name in unused for state in worker.sections[name].values())


@given(catalogs, catalogs, st.data())
@hypothesis_settings(max_examples=60, deadline=None)
def test_what_is_really_there_is_mended(first: list[Service], then: list[Service], data: Any) -> None:
    """Somebody else changes servers behind our back; looking and planning again puts it right."""
    layout = place(model(*first), spares=MEANS.spares)
    worker = Worker.of(layout)
    for servers in worker.sections.values():
        for name, state in list(servers.items()):
            servers[name] = data.draw(st.sampled_from([state, tampered(state)]))
    wrong = misfits(layout.sections.values(), worker.sections)
    seen = observed(layout, wrong, worker.sections)
    wanted = model(*then)
    found = plan(seen, wanted, MEANS)
    for command in (*found.moves, *found.commands):
        worker.run(command)
    assert misfits(found.layout.sections.values(), worker.sections) == ()
    for name, place_ in found.layout.places.items():
        section = found.layout.sections[place_]
        if name in wanted.backends and section.shape == wanted.backends[name].shape:
            assert worker.up(name) == usable(wanted, name)


def tampered(state: ServerState) -> ServerState:
    return ServerState("10.9.9.9:9", state.weight + 1, not state.in_maintenance, state.is_up)


def test_sections_that_did_not_change_are_shared() -> None:
    web, api = service("web", "10.0.0.1:80"), service("api", "10.0.0.2:80")
    before = model(web, api)
    layout = place(before)
    after = model(web, service("api", "10.0.0.3:80"), before=before)
    found = plan(layout, after, MEANS)
    assert found.layout.sections["service:web"] is layout.sections["service:web"]
    again = place(after, before=found.layout)
    assert again.sections["service:web"] is layout.sections["service:web"]


def test_an_instance_keeps_its_number_over_a_reload() -> None:
    web = service("web", "10.0.0.1:80", "10.0.0.2:80")
    running = planned(started(web), service("web", "10.0.0.2:80")).layout
    again = place(model(service("web", "10.0.0.2:80", "10.0.0.3:80")), before=running)
    section: Section = again.sections["service:web"]
    numbers: Mapping[int, str] = {slot.number: slot.server.address for slot in section.slots if slot.server}
    assert numbers == {2: "10.0.0.2:80", 1: "10.0.0.3:80"}
