"""Layout → the texts of HAProxy's files, by templates. Pure but for reading the templates.

The text of a section is rendered once and kept for as long as the section is the same object: of ten thousand
services, one that changes costs one small template and a join.
"""

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from discovery.catalog import Scheme, Service
from discovery.errors import ConfigError, RenderError
from discovery.haproxy.certificates import certificate_files
from discovery.haproxy.directives import Checks
from discovery.haproxy.layout import Layout, Section
from discovery.haproxy.model import CHECK_INTERVAL_MS, Listener, Model
from discovery.haproxy.routes import map_text
from discovery.haproxy.settings import ProxySettings, join_address, split_address
from discovery.templating import Templates

CONFIG = "haproxy.cfg"

_OTHER_DESCRIPTORS = 100
_LEAST_CONNECTIONS = 16

_BIND = re.compile(r"^[ \t]*bind[ \t]+(\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Machine:
    """What the configuration says of the machine it is for.

    ``uid`` and ``gid`` are what HAProxy becomes, None to stay what it is; ``descriptor_limit`` is the number
    of files it may open.
    """

    uid: int | None
    gid: int | None
    descriptor_limit: int

    @property
    def spare_descriptors(self) -> int:
        """How many files are left for the checks of servers that are added at runtime."""
        return self.descriptor_limit // 20


@dataclass(frozen=True, slots=True)
class BackendView:
    """What ``backend.cfg.j2`` sees as ``backend``.

    ``service`` is None for a spare section. ``sections`` are lines that go before it, ``lines`` those in it,
    all escaped; ``server_words`` follow the address of each of its ``servers``, which have a ``name``, a
    ``number``, an ``address`` and a ``weight``.
    """

    name: str
    mode: Scheme
    service: Service | None
    sections: tuple[str, ...]
    lines: tuple[str, ...]
    server_words: str
    servers: tuple["ServerView", ...]


@dataclass(frozen=True, slots=True)
class ServerView:
    """One server of a BackendView."""

    name: str
    number: int
    address: str
    weight: int


class Renderer:
    """Renders layouts for one machine. Not thread-safe.

    ``knows_servers`` is whether all that is said of servers is said by ``directives``, and nothing by a
    template of the user's own.
    """

    def __init__(self, settings: ProxySettings, machine: Machine, templates: Templates) -> None:
        self._settings = settings
        self._machine = machine
        self._templates = templates
        self._proxy = {
            "http": _addresses(settings.http, "proxy.http"),
            "https": _addresses(settings.https, "proxy.https"),
            "bind_address": settings.bind_address,
            "admin_socket": str(settings.admin_socket),
            "server_state": str(settings.server_state),
            "uid": machine.uid,
            "gid": machine.gid,
            "descriptor_limit": machine.descriptor_limit,
            "hard_stop_after_seconds": settings.hard_stop_after_seconds,
            "max_reloads": settings.max_reloads,
        }
        self._sections: dict[str, tuple[Section, str]] = {}
        self._listeners: dict[Listener, str] = {}
        self._checks: Checks | None = None
        self.knows_servers = self._is_packaged("backend.cfg.j2")

    def render(self, layout: Layout) -> Mapping[str, str]:
        """The files by name: ``haproxy.cfg`` and its maps.

        Raises RenderError naming the template's file and line, and the service it could not be rendered for.
        """
        if layout.checks != self._checks:
            self._sections.clear()
            self._checks = layout.checks
        self._sections = {name: self._section(name, each) for name, each in layout.sections.items()}
        self._listeners = {listener: self._listener(listener) for listener in layout.listeners}
        backends = [section.backend for section in layout.sections.values() if section.backend is not None]
        config = self._templates.render(
            "haproxy.cfg.j2",
            max_connections=self._max_connections(layout),
            # Without a certificate HAProxy would refuse to listen, and everything else with it.
            proxy=self._proxy if layout.certificates else {**self._proxy, "https": []},
            services=[backend.service for backend in backends],
            held=layout.held,
            listeners="".join(self._listeners.values()),
            backends="".join(text for _, text in self._sections.values()),
        )
        if "\0" in config:
            raise RenderError("haproxy.cfg.j2: the text contains a NUL, which would end the configuration")
        maps = {name: map_text(entries) for name, entries in layout.maps().items()}
        return {CONFIG: config, **maps, **certificate_files(layout.certificates)}

    def _max_connections(self, layout: Layout) -> int:
        """What fits into the files that HAProxy may open, at two a connection.

        It would work this out itself, but for the servers it has at its start.
        """
        servers = sum(len(section.slots) for section in layout.sections.values()) if layout.checks else 0
        ports = sum(each.last - each.first + 1 for each in layout.held) + len(layout.listeners)
        taken = servers + ports + self._machine.spare_descriptors + _OTHER_DESCRIPTORS
        return max((self._machine.descriptor_limit - taken) // 2, _LEAST_CONNECTIONS)

    def checks(self, model: Model, *, are_on: bool = False) -> Checks | None:
        """How servers are checked; None when that would take more than half of the files HAProxy may open.

        Checks that ``are_on`` go on up to a fifth more, or each server that comes and goes there would turn
        them on and off.
        """
        room = self._machine.descriptor_limit * (0.6 if are_on else 0.5)
        has_room = model.server_count <= room
        return Checks(CHECK_INTERVAL_MS * model.check_stretch, model.check_stretch) if has_room else None

    def clear(self) -> None:
        """Forget every text and template, because templates changed."""
        self._templates.clear()
        self._sections.clear()
        self._listeners.clear()
        self.knows_servers = self._is_packaged("backend.cfg.j2")

    def _is_packaged(self, template: str) -> bool:
        return not any((directory / template).exists() for directory in self._settings.templates[:-1])

    def _section(self, name: str, section: Section) -> tuple[Section, str]:
        kept = self._sections.get(name)
        if kept is not None and kept[0] is section:
            return kept
        view = _view(section, self._checks)
        try:
            return section, self._templates.render("backend.cfg.j2", proxy=self._proxy, backend=view)
        except RenderError as error:
            raise RenderError(str(error), view.service.name if view.service else None) from error

    def _listener(self, listener: Listener) -> str:
        kept = self._listeners.get(listener)
        if kept is not None:
            return kept
        try:
            return self._templates.render("listener.cfg.j2", proxy=self._proxy, listener=listener)
        except RenderError as error:
            raise RenderError(str(error), listener.service) from error


def _view(section: Section, checks: Checks | None) -> BackendView:
    service = section.backend.service if section.backend is not None else None
    said = section.said(checks)
    servers = tuple(
        ServerView(slot.name, slot.number, slot.server.address, slot.server.weight)
        for slot in section.slots
        if slot.server is not None
    )
    return BackendView(
        section.name, section.shape.mode, service, said.sections, said.lines, said.server, servers
    )


def binds_of(files: Mapping[str, str]) -> frozenset[tuple[str, int]]:
    """Host and port of every TCP listener in a configuration, those of a user's own templates too."""
    binds: set[tuple[str, int]] = set()
    for match in _BIND.finditer(files.get(CONFIG, "")):
        for address in match[1].split(","):
            first, _, last = address.partition("-")
            # What is no address and port, such as a path, is not ours to test.
            with contextlib.suppress(ConfigError):
                host, port = split_address(first, "bind")
                binds.update((host, each) for each in range(port, int(last if last.isdigit() else port) + 1))
    return frozenset(binds)


def front_binds(settings: ProxySettings) -> Mapping[tuple[str, str], tuple[str, int]]:
    """Host and port of the common listeners, by setting and the address as it is written there."""
    return {
        (setting, address): split_address(address, setting)
        for setting, addresses in (("proxy.http", settings.http), ("proxy.https", settings.https))
        for address in addresses
    }


def _addresses(addresses: Iterable[str], setting: str) -> list[str]:
    return [join_address(*split_address(address, setting)) for address in addresses]
