"""Model → Layout: which backend section and which server entry stands for what. Pure.

A Layout describes one worker of HAProxy: what its configuration was made from, and every change that was made
to it at runtime since. Its server entries are called slots, ``s1``, ``s2`` and so on, since one instance may
follow another in the same entry; a slot without an instance is in maintenance. Layouts share what did not
change, as models do.
"""

import re
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

from discovery.catalog import Scheme, Service
from discovery.haproxy.certificates import Certificate
from discovery.haproxy.directives import Checks, Directives, directives
from discovery.haproxy.model import Backend, Listener, Model, Server, Shape
from discovery.haproxy.routes import BACKENDS, HOSTS, MAPS, PORTS, routes_of
from discovery.haproxy.settings import HeldPorts, join_address

Numbers = Mapping[str, Mapping[str, int]]
"""By service and address, the number of the slot where an instance was before."""

_SERVICE = "service:"

_SECTION = re.compile(r"^backend service:(\S+)|^[ \t]+server s([1-9][0-9]*) (\S+)|^\S", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Slot:
    """One server entry of a section; ``server`` is None while it is vacant."""

    number: int
    server: Server | None = None

    @property
    def name(self) -> str:
        """HAProxy's name for it."""
        return f"s{self.number}"


@dataclass(frozen=True, slots=True)
class Section:
    """One backend section. ``backend`` is whom it serves now, None while nobody.

    ``shape`` is what its text was made from. It is complete when nothing that its backend asks for is left
    to a reload.
    """

    name: str
    shape: Shape
    backend: Backend | None = None
    slots: tuple[Slot, ...] = ()
    is_complete: bool = True

    def is_exactly(self, backend: Backend) -> bool:
        """Whether it serves this backend as it asks for, and has no slot besides."""
        return self.backend is backend and self.is_complete and all(slot.server for slot in self.slots)

    def slot_at(self, address: str) -> Slot | None:
        """The slot of the instance at an address."""
        return next((slot for slot in self.slots if slot.server and slot.server.address == address), None)

    def said(self, checks: Checks | None) -> Directives:
        """What HAProxy is told of it besides its servers."""
        name = "spare" if self.is_spare else self.name.removeprefix(_SERVICE)
        return directives(Service(name, self.shape.mode, options=dict(self.shape.options)), checks)

    @property
    def is_spare(self) -> bool:
        """Whether it was made for no service in particular."""
        return self.name.startswith("spare:")


@dataclass(frozen=True, slots=True)
class HeldRange:
    """Ports that are kept open for services of one scheme to come; ``host`` as in Listener."""

    scheme: Scheme
    host: str
    first: int
    last: int

    @property
    def address(self) -> str:
        """The range as HAProxy binds it."""
        return f"{join_address(self.host, self.first)}-{self.last}"


@dataclass(frozen=True, slots=True)
class Layout:
    """One worker. ``sections`` are by name, ``places`` names the section of each service that has one.

    ``free`` are the spare sections that nobody uses, by mode. ``added`` is how many servers there are beyond
    those of its configuration.

    ``paused`` are listeners that refuse connections, and keep their port until the next reload. ``hosts`` and
    ``ports`` are those maps, ``held`` the ranges those ports are of; ``checks`` is how servers are checked,
    None for not at all.
    """

    sections: Mapping[str, Section] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    listeners: tuple[Listener, ...] = ()
    paused: tuple[Listener, ...] = ()
    hosts: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[int, str] = field(default_factory=dict)
    held: tuple[HeldRange, ...] = ()
    checks: Checks | None = None
    certificates: Mapping[str, Certificate] = field(default_factory=dict)
    free: Mapping[Scheme, tuple[str, ...]] = field(default_factory=dict)
    added: int = 0

    def section_of(self, service: str) -> Section | None:
        """The section that serves a service."""
        name = self.places.get(service)
        return None if name is None else self.sections[name]

    def maps(self) -> Mapping[str, Mapping[str, str]]:
        """The entries of the routing maps, by name of the map."""
        entries: dict[str, dict[str, str]] = {name: {} for name in MAPS}
        for place in self.places.values():
            backend = self.sections[place].backend
            if backend is not None:
                for name, made in routes_of(backend.service).items():
                    entries[name].update(made)
        entries[BACKENDS].update(self.places)
        entries[HOSTS].update(self.hosts)
        entries[PORTS].update({str(port): service for port, service in self.ports.items()})
        return entries

    @property
    def bound_ports(self) -> frozenset[int]:
        """The ports of services that nobody else can listen on."""
        held = (port for each in self.held for port in range(each.first, each.last + 1))
        return frozenset((*held, *(each.port for each in (*self.listeners, *self.paused))))


def section_name(service: str) -> str:
    """The name of the section that is made for a service."""
    return f"{_SERVICE}{service}"


def place(
    model: Model,
    checks: Checks | None = None,
    *,
    spares: Mapping[Scheme, int] | None = None,
    held: tuple[HeldRange, ...] = (),
    before: Layout | None = None,
    numbers: Numbers | None = None,
) -> Layout:
    """The layout of a new worker for a model: every service in its own section, and so many spare ones.

    An instance keeps the number it has in ``before``, or else in ``numbers``: hash rings are made of them.
    """
    sections = {}
    for name, backend in model.backends.items():
        own = section_name(name)
        former = before.section_of(name) if before else None
        if former is not None and former.name == own and former.is_exactly(backend):
            sections[own] = former
            continue
        known = _numbers(former) if former else (numbers or {}).get(name, {})
        sections[own] = Section(own, backend.shape, backend, _slots(backend.servers, known))
    free = {
        mode: tuple(f"spare:{mode}:{number}" for number in range(1, count + 1))
        for mode, count in (spares or {}).items()
    }
    sections |= {name: Section(name, Shape(mode)) for mode, names in free.items() for name in names}
    return Layout(
        sections,
        {name: section_name(name) for name in model.backends},
        model.listeners,
        hosts=model.hosts,
        ports=model.ports,
        held=held,
        checks=checks,
        certificates=model.certificates,
        free=free,
    )


def held_ranges(ranges: Iterable[HeldPorts], host: str, refused: Container[int]) -> tuple[HeldRange, ...]:
    """The ranges to listen on: as they are set, without the ports that cannot be had."""
    found: list[HeldRange] = []
    for each in ranges:
        first: int | None = None
        for port in range(each.first, each.last + 2):
            if port <= each.last and port not in refused:
                first = port if first is None else first
            elif first is not None:
                found.append(HeldRange(each.scheme, host, first, port - 1))
                first = None
    return tuple(found)


def numbers_of(config: str) -> Numbers:
    """The numbers that a configuration of ours gives to its servers, read from its text."""
    numbers: dict[str, dict[str, int]] = defaultdict(dict)
    service = None
    for match in _SECTION.finditer(config):
        if match[2] is None:
            service = match[1]
        elif service is not None:
            numbers[service][match[3]] = int(match[2])
    return numbers


def _numbers(section: Section) -> Mapping[str, int]:
    return {slot.server.address: slot.number for slot in section.slots if slot.server is not None}


def _slots(servers: Iterable[Server], numbers: Mapping[str, int]) -> tuple[Slot, ...]:
    """A slot for each server, in the order of their numbers."""
    slots: list[Slot] = []
    new: list[Server] = []
    taken: set[int] = set()
    for server in servers:
        number = numbers.get(server.address)
        if number is None or number in taken:
            new.append(server)
        else:
            taken.add(number)
            slots.append(Slot(number, server))
    number = 0
    for server in new:
        number += 1
        while number in taken:
            number += 1
        slots.append(Slot(number, server))
    return tuple(sorted(slots, key=lambda slot: slot.number))
