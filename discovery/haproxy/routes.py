"""Services → the maps that HAProxy routes by: which host or path names which service. Pure.

Most of it follows from one service alone, so that it can be kept with what else is made of that service. Only
further host names have to be compared, and few services have any.
"""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from discovery.catalog import Problem, Service
from discovery.schema import printable, service_prefix

HOSTS = "hosts.map"
"""Host → service. A key is a first label, a whole host name, or ``*.`` and all labels but the first."""
PATHS = "paths.map"
"""First path segment → service."""
KEEP = "keep.map"
"""Service → ``keep``, when the segment that named it stays on the path."""
REDIRECT = "redirect.map"
"""Service → ``https``, when it is to be asked by https only."""
BACKENDS = "backends.map"
"""Service → the name of its backend section."""
PORTS = "ports.map"
"""Port of a held range → service."""

MAPS = (HOSTS, PATHS, KEEP, REDIRECT, BACKENDS, PORTS)

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
# A name whose last label is a number would be read as an address, and those name no service.
_HOST = re.compile(rf"(?:(?:{_LABEL}\.)+|\*\.(?:{_LABEL}\.)*)(?![0-9]+\Z){_LABEL}")
_HOST_BYTES = 253
_SEPARATORS = re.compile(r"[\s,]+")
_NOTHING: Mapping[str, Mapping[str, str]] = MappingProxyType({})


def routes_of(service: Service) -> Mapping[str, Mapping[str, str]]:
    """The entries by map that this service makes, whatever others there are; none for tcp.

    Not among them: its further host names, which another service may have (``claim_hosts``), and
    its backend section, which is the running worker's choice.
    """
    if service.scheme != "http":
        return _NOTHING
    name = service.name
    routes = {HOSTS: {name: name}, PATHS: {name: name}}
    if service.options.get("path") == "keep":
        routes[KEEP] = {name: "keep"}
    if service.options.get("redirect") == "https":
        routes[REDIRECT] = {name: "https"}
    return routes


def claim_hosts(services: Iterable[Service]) -> tuple[Mapping[str, str], tuple[Problem, ...]]:
    """Who has which further host name: service by host, and what of the claims is left out.

    ``services`` are those with option ``hosts``, in the order of their names: of two that claim one host
    the first has it, on every node alike. A host name has a dot, so it is never the label of a service.
    """
    winners: dict[str, str] = {}
    problems: list[Problem] = []
    for service in services:
        if service.scheme != "http":
            continue
        for host in filter(None, _SEPARATORS.split(service.options.get("hosts", "").lower())):
            if len(host) > _HOST_BYTES or not _HOST.fullmatch(host):
                problems.append(_refused(service, f"{printable(host)!r} is no host name with a dot in it"))
            elif (winner := winners.setdefault(host, service.name)) != service.name:
                problems.append(_refused(service, f"host {printable(host)} is a host of service {winner}"))
    return winners, tuple(problems)


def map_text(entries: Mapping[str, str]) -> str:
    """A map as HAProxy reads it: ``key value`` lines, in the order of the entries."""
    return "".join(f"{key} {value}\n" for key, value in entries.items())


def _refused(service: Service, reason: str) -> Problem:
    return Problem(service.name, f"{service_prefix(service.name)}options/hosts", reason)
