"""Model → the texts of HAProxy's files, by templates. Pure but for reading the templates.

The section of a service is rendered once and kept for as long as its backend is the same object: of ten
thousand services, one that changes costs one small template and a join.
"""

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from discovery.errors import ConfigError, RenderError
from discovery.haproxy.model import Backend, Listener, Model
from discovery.haproxy.routes import BACKENDS, HOSTS, MAPS, claim_hosts, map_text, routes_of
from discovery.haproxy.settings import ProxySettings, join_address, split_address
from discovery.templating import Templates

CONFIG = "haproxy.cfg"

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


class Renderer:
    """Renders models for one machine. Not thread-safe."""

    def __init__(self, settings: ProxySettings, machine: Machine, templates: Templates) -> None:
        self._settings = settings
        self._machine = machine
        self._templates = templates
        self._proxy = {
            "http": _addresses(settings.http, "proxy.http"),
            "https": _addresses(settings.https, "proxy.https"),
            "certs": str(settings.certs),
            "admin_socket": str(settings.admin_socket),
            "server_state": str(settings.server_state),
            "uid": machine.uid,
            "gid": machine.gid,
            "descriptor_limit": machine.descriptor_limit,
            "hard_stop_after_seconds": settings.hard_stop_after_seconds,
            "max_reloads": settings.max_reloads,
        }
        self._backends: dict[str, tuple[Backend, str]] = {}
        self._listeners: dict[Listener, str] = {}

    def render(self, model: Model) -> Mapping[str, str]:
        """The files by name: ``haproxy.cfg`` and its maps.

        Raises RenderError naming the template's file and line.
        """
        self._backends = {name: self._backend(name, backend) for name, backend in model.backends.items()}
        self._listeners = {listener: self._listener(listener) for listener in model.listeners}
        config = self._templates.render(
            "haproxy.cfg.j2",
            proxy=self._proxy,
            check_interval_ms=model.check_interval_ms,
            has_checks=self.has_checks(model),
            services=[backend.service for backend in model.backends.values()],
            listeners="".join(self._listeners.values()),
            backends="".join(text for _, text in self._backends.values()),
        )
        if "\0" in config:
            raise RenderError("haproxy.cfg.j2: the text contains a NUL, which would end the configuration")
        return {CONFIG: config, **_maps(model.backends.values())}

    def has_checks(self, model: Model) -> bool:
        """Whether servers are checked: each check takes a file, and all of them at most half the limit."""
        return model.server_count * 2 <= self._machine.descriptor_limit

    def clear(self) -> None:
        """Forget every text and template, because templates changed."""
        self._templates.clear()
        self._backends.clear()
        self._listeners.clear()

    def _backend(self, name: str, backend: Backend) -> tuple[Backend, str]:
        kept = self._backends.get(name)
        if kept is not None and kept[0] is backend:
            return kept
        return backend, self._templates.render("backend.cfg.j2", proxy=self._proxy, backend=backend)

    def _listener(self, listener: Listener) -> str:
        kept = self._listeners.get(listener)
        if kept is not None:
            return kept
        return self._templates.render("listener.cfg.j2", proxy=self._proxy, listener=listener)


def _maps(backends: Iterable[Backend]) -> Mapping[str, str]:
    """The texts of the routing maps by file name."""
    http = [backend.service for backend in backends if backend.mode == "http"]
    entries: dict[str, dict[str, str]] = {name: {} for name in MAPS}
    for service in http:
        for name, made in routes_of(service).items():
            entries[name].update(made)
        entries[BACKENDS][service.name] = f"service:{service.name}"
    hosts, _ = claim_hosts(service for service in http if "hosts" in service.options)
    entries[HOSTS].update(hosts)
    return {name: map_text(made) for name, made in entries.items()}


def binds_of(files: Mapping[str, str]) -> frozenset[tuple[str, int]]:
    """Host and port of every TCP listener in a configuration, those of a user's own templates too."""
    binds = set()
    for match in _BIND.finditer(files.get(CONFIG, "")):
        for address in match[1].split(","):
            # What is no address and port, such as a path, is not ours to test.
            with contextlib.suppress(ConfigError):
                binds.add(split_address(address, "bind"))
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
