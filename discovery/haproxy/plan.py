"""What runs and what is wanted → runtime commands, and the reasons for a reload where they do not suffice.
Pure.

The order matters to those who are served meanwhile: a server is there before requests are led to it, and the
last one of a service leaves when the next is ready.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from discovery.catalog import Scheme
from discovery.haproxy.certificate_commands import certificate_commands
from discovery.haproxy.directives import Checks
from discovery.haproxy.layout import Layout, Section, Slot, section_name
from discovery.haproxy.model import Backend, Listener, Model, Server, Shape
from discovery.haproxy.routes import BACKENDS, HOSTS, PORTS, REDIRECT, routes_of
from discovery.haproxy.settings import split_address


@dataclass(frozen=True, slots=True)
class Means:
    """What may be done at runtime.

    ``spares`` is how many spare sections a new worker has by mode. ``can_add`` is whether servers may be
    added beyond those of the configuration: not when its template may say more of them than we know.
    ``busy`` are vacant slots that have requests under way, by name of the section and number.
    """

    checks: Checks | None = None
    spares: Mapping[Scheme, int] = field(default_factory=dict)
    can_add: bool = True
    capacity: int = 1000
    busy: frozenset[tuple[str, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Plan:
    """``moves`` and ``commands`` lead from the layout planned for to ``layout``; ``touched`` are the sections
    they change.

    ``moves`` give vacant slots their next addresses. They come first, and nothing else before each slot is
    seen to have its own: 3.0 answers before it has changed the address, and would serve from the former one.

    ``certificate_commands`` are apart, for they have payloads.

    ``reasons`` say, each in a word, what only a reload can do; ``is_urgent`` is whether anyone waits for it.
    """

    layout: Layout
    moves: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    certificate_commands: tuple[str, ...] = ()
    touched: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    is_urgent: bool = False

    @property
    def has_commands(self) -> bool:
        """Whether anything is to be done at runtime."""
        return bool(self.moves or self.commands or self.certificate_commands)

    @property
    def reused(self) -> tuple[str, ...]:
        """The http sections with slots that are used again, and so perhaps still in use."""
        names = dict.fromkeys(command.split()[2].partition("/")[0] for command in self.moves)
        return tuple(name for name in names if self.layout.sections[name].shape.mode == "http")


def plan(running: Layout, wanted: Model, means: Means) -> Plan:
    """How to get from what runs to what is wanted, as far as that can be done at runtime."""
    return _Planner(running, wanted, means).plan()


class _Planner:
    """One planning; a class only for what its steps share."""

    def __init__(self, running: Layout, wanted: Model, means: Means) -> None:
        self.running = running
        self.wanted = wanted
        self.means = means
        self.moves: list[str] = []
        self.adding: list[str] = []
        self.leaving: list[str] = []
        self.removing: list[str] = []
        self.reasons: dict[str, None] = {}
        self.changed: dict[str, Section] = {}
        self.places: dict[str, str] = {}
        self.left: set[str] = set()
        self.added = running.added
        self.freed: list[Section] = []
        self.free = {mode: list(names) for mode, names in running.free.items()}

    def plan(self) -> Plan:
        for name in self.running.places.keys() - self.wanted.backends.keys():
            self._withdraw(name)
        for name, backend in self.wanted.backends.items():
            place = self.running.places.get(name)
            if place is None:
                self._welcome(name, backend)
            elif (section := self.running.sections[place]).backend is not backend or not section.is_complete:
                self._update(section, backend)
        places = self._places()
        # Nobody is led to a service that has no section yet.
        hosts = {host: service for host, service in self.wanted.hosts.items() if service in places}
        ports = {port: service for port, service in self.wanted.ports.items() if service in places}
        self._map(HOSTS, self.running.hosts, hosts)
        self._map(PORTS, _texts(self.running.ports), _texts(ports))
        listeners, paused = self._listeners()
        certificates = self._certificates()
        if (self.running.checks is None) != (self.means.checks is None):
            self.reasons["checks"] = None
        urgent = bool(self.reasons)
        if any(4 * len(self.free.get(mode, ())) < count for mode, count in self.means.spares.items()):
            self.reasons["spares"] = None
        if self.added > self.means.capacity:
            self.reasons["capacity"] = None
        layout = replace(
            self.running,
            sections={**self.running.sections, **self.changed} if self.changed else self.running.sections,
            places=places,
            listeners=listeners,
            paused=paused,
            added=self.added,
            hosts=hosts,
            ports=ports,
            certificates=self.running.certificates if certificates is None else self.wanted.certificates,
            free=self._free(),
        )
        return Plan(
            layout,
            tuple(self.moves),
            (*self.adding, *self.leaving, *self.removing),
            certificates or (),
            tuple(self.changed),
            tuple(self.reasons),
            urgent,
        )

    def _certificates(self) -> tuple[str, ...] | None:
        """The commands that exchange certificates, None when that takes a reload."""
        if self.wanted.certificates == self.running.certificates:
            return ()
        commands = certificate_commands(self.running.certificates, self.wanted.certificates)
        if commands is None:
            self.reasons["certificates"] = None
        return commands

    # -- services

    def _withdraw(self, name: str) -> None:
        section = self.running.sections[self.running.places[name]]
        assert section.backend is not None  # it has a place
        self._routes(_routes(section.backend, section), {})
        self.removing += _vacate(section, section.slots)
        self.left.add(name)
        vacant = tuple(Slot(slot.number) for slot in section.slots)
        self.changed[section.name] = replace(section, backend=None, slots=vacant, is_complete=True)
        if section.is_spare:
            # For the next plan: what is done to a section now must not meet what is undone there.
            self.freed.append(section)

    def _welcome(self, name: str, backend: Backend) -> None:
        """Find a place for a service that has none."""
        own = self.running.sections.get(section_name(name))
        spares = self.free.get(backend.mode)
        if own is not None and own.backend is None and own.shape == backend.shape:
            section = own
        elif backend.shape == Shape(backend.mode) and spares and self._is_reachable(backend):
            section = self.running.sections[spares.pop(0)]
        else:
            self.reasons["service"] = None
            return
        self.places[name] = section.name
        self._update(section, backend)

    def _is_reachable(self, backend: Backend) -> bool:
        """Whether requests can be led to a spare section: a service's own listener knows its own only."""
        return backend.mode == "http" or backend.service.host_port in self.wanted.ports

    def _update(self, section: Section, backend: Backend) -> None:
        if section.shape.mode != backend.mode:
            # Until then it is served as it was: nothing of it fits into this section.
            self.reasons["scheme"] = None
            return
        if section.shape != backend.shape:
            self.reasons["options"] = None
        before = _routes(section.backend, section) if section.backend is not None else {}
        slots = self._slots(section, backend.servers)
        is_complete = section.shape == backend.shape and _served(slots) == len(backend.servers)
        self.changed[section.name] = replace(section, backend=backend, slots=slots, is_complete=is_complete)
        self._routes(before, _routes(backend, section))

    def _free(self) -> Mapping[Scheme, tuple[str, ...]]:
        for section in self.freed:
            self.free[section.shape.mode].append(section.name)
        return {mode: tuple(names) for mode, names in self.free.items()}

    def _places(self) -> Mapping[str, str]:
        if not self.places and not self.left:
            return self.running.places
        kept = {name: place for name, place in self.running.places.items() if name not in self.left}
        return {**kept, **self.places}

    # -- servers

    def _slots(self, section: Section, servers: Iterable[Server]) -> tuple[Slot, ...]:
        """The slots of a section once these servers are in them.

        A slot is not handed over at once: for a moment nobody would be in it, and perhaps in the whole
        section.
        """
        wanted = {(server.id, server.address): server for server in servers}
        slots = {slot.number: slot for slot in section.slots}
        leaving: list[Slot] = []
        for slot in section.slots:
            if slot.server is None:
                continue
            server = wanted.pop((slot.server.id, slot.server.address), None)
            if server is None:
                leaving.append(slot)
                slots[slot.number] = Slot(slot.number)
            elif server != slot.server:
                # One that takes nothing any more goes on until the others are there.
                commands = self.adding if server.weight else self.removing
                commands.append(f"set server {section.name}/{slot.name} weight {server.weight}")
                slots[slot.number] = Slot(slot.number, server)
        vacant = [
            slot
            for slot in section.slots
            if slot.server is None and (section.name, slot.number) not in self.means.busy
        ]
        for server in wanted.values():
            if vacant:
                slot = self._put(section, vacant.pop(0).number, server)
            elif self.means.can_add:
                slot = self._add(section, max(slots, default=0) + 1, server)
            else:
                self.reasons["servers"] = None
                continue
            slots[slot.number] = slot
        self.removing += _vacate(section, leaving)
        return tuple(slots.values())

    def _put(self, section: Section, number: int, server: Server) -> Slot:
        """Have a vacant slot stand for a server.

        Out of maintenance it is up at once, whatever the checks found of its former one, and down again with
        the first that fails.
        """
        slot = Slot(number, server)
        name = f"set server {section.name}/{slot.name}"
        host, port = split_address(server.address, server.id)
        self.moves.append(f"{name} addr {host} port {port}")
        self.adding.append(f"{name} weight {server.weight}")
        self.adding.append(f"{name} state ready")
        return slot

    def _add(self, section: Section, number: int, server: Server) -> Slot:
        """Make one more entry: it knows nothing of default-server, and comes in maintenance."""
        self.added += 1
        slot = Slot(number, server)
        name, said = f"{section.name}/{slot.name}", section.said(self.running.checks)
        words = f"id {number} weight {server.weight} {said.server}".rstrip()
        self.adding.append(f"add server {name} {server.address} {words}")
        if said.after_add:
            self.adding.append(f"{said.after_add} {section.name}")
        if said.checked:
            # Without, it would be up for ever.
            self.adding.append(f"enable health {name}")
        self.adding.append(f"set server {name} state ready")
        return slot

    # -- maps and listeners

    def _routes(
        self, before: Mapping[str, Mapping[str, str]], after: Mapping[str, Mapping[str, str]]
    ) -> None:
        for name in {**before, **after}:
            self._map(name, before.get(name, {}), after.get(name, {}))

    def _map(self, name: str, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        if before is after or (name == REDIRECT and not self.running.certificates):
            # Without https no rule reads the map of what is redirected there, and HAProxy does not know it.
            return
        for key, value in after.items():
            if key not in before:
                self.adding.append(f"add map {name} {key} {value}")
            elif before[key] != value:
                self.adding.append(f"set map {name} {key} {value}")
        self.leaving[:0] = [f"del map {name} {key}" for key in before if key not in after]

    def _listeners(self) -> tuple[tuple[Listener, ...], tuple[Listener, ...]]:
        """The listeners that are open then, and those that are paused.

        One that is paused refuses connections, and keeps its port until the next reload. It can be opened
        again; one that is new, or stands for another service, takes a reload.
        """
        if self.wanted.listeners == self.running.listeners:
            return self.running.listeners, self.running.paused
        wanted = set(self.wanted.listeners)
        opened = [each for each in self.running.paused if each in wanted and self._has_own_section(each)]
        self.adding += [f"enable frontend {each.name}" for each in opened]
        new = wanted - {*self.running.listeners, *opened}
        if new:
            self.reasons["listener"] = None
        # A port that another service waits for changes hands with the reload, and a service that waits for
        # another port, which HAProxy may refuse, has its former one until then.
        asked_for, moving = {each.port for each in wanted}, {each.service for each in new}
        left = [
            each
            for each in self.running.listeners
            if each.port not in asked_for and each.service not in moving
        ]
        self.removing += [f"disable frontend {each.name}" for each in left]
        kept = [each for each in self.running.listeners if each not in left]
        paused = [each for each in self.running.paused if each not in opened]
        return (*kept, *opened), (*paused, *left)

    def _has_own_section(self, listener: Listener) -> bool:
        """Whether its service is where the listener leads to."""
        place = self.places.get(listener.service) or self.running.places.get(listener.service)
        return place == section_name(listener.service)


def _served(slots: Iterable[Slot]) -> int:
    return sum(slot.server is not None for slot in slots)


def _routes(backend: Backend, section: Section) -> Mapping[str, Mapping[str, str]]:
    """The entries that lead to a service; the first is there before the others, and goes after them."""
    return {BACKENDS: {backend.name: section.name}, **routes_of(backend.service)}


def _vacate(section: Section, slots: Iterable[Slot]) -> Iterator[str]:
    for slot in slots:
        if slot.server is not None:
            yield f"set server {section.name}/{slot.name} state maint"


def _texts(ports: Mapping[int, str]) -> Mapping[str, str]:
    return {str(port): service for port, service in ports.items()}
