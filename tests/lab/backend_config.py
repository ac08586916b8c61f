"""Configurations of sections made by ``directives`` alone, for tests of what HAProxy makes of options."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from discovery.catalog import Service
from discovery.haproxy.directives import Checks, Directives, directives
from tests.lab.bare import Bare, bare
from tests.lab.haproxy import Answer, fetch, free_port, haproxy_binary

CHECKS = Checks(500)

DEFAULTS = """\
defaults edge
    mode http
    timeout connect 5s
    timeout client 20s
    timeout server 20s
    timeout check 2s
    option redispatch 1
    retries 3
    retry-on conn-failure empty-response
"""


@dataclass(frozen=True)
class Section:
    """A service's section, with its instances as servers ``s1``, ``s2``, …"""

    service: Service
    directives: Directives

    @property
    def name(self) -> str:
        return f"service:{self.service.name}"

    @property
    def text(self) -> str:
        lines = [*self.directives.sections, f"backend {self.name} from edge"]
        lines += [f"    mode {self.service.scheme}", *(f"    {line}" for line in self.directives.lines)]
        if self.directives.server:
            lines.append(f"    default-server {self.directives.server}")
        for number, instance in enumerate(self.service.instances, 1):
            lines.append(f"    server s{number} {instance.address}")
        return "\n".join((*lines, ""))


def section(service: Service, checks: Checks | None = CHECKS) -> Section:
    """The section of a service."""
    return Section(service, directives(service, checks))


def configuration(port: int, sections: Iterable[Section], tcp_ports: dict[str, int] | None = None) -> str:
    """All sections behind one http listener, and tcp ones on ports of their own.

    A request is for the service that the header X-Service names, else the first label of Host.
    """
    parts = [DEFAULTS, f"frontend edge from edge\n    bind 127.0.0.1:{port}\n"]
    parts.append("    use_backend service:%[req.fhdr(x-service)] if { req.fhdr(x-service) -m found }\n")
    parts.append("    use_backend service:%[req.fhdr(host),lower,field(1,:),field(1,.)]\n")
    for name, tcp_port in (tcp_ports or {}).items():
        parts.append(f"frontend port:{tcp_port} from edge\n    mode tcp\n    bind 127.0.0.1:{tcp_port}\n")
        parts.append(f"    default_backend service:{name}\n")
    return "".join((*parts, *(each.text for each in sections)))


@dataclass
class Edge:
    """A HAProxy that runs such a configuration. ``one`` and ``two`` are the ports of instances behind it."""

    haproxy: Bare
    port: int
    tcp_ports: dict[str, int] = field(default_factory=dict)
    one: int = 0
    two: int = 0

    def fetch(self, name: str, target: str = "/", **more: object) -> Answer:
        return fetch(self.port, target, f"{name}.local", **more)  # type: ignore[arg-type]

    def servers(self, name: str) -> dict[str, dict[str, str]]:
        """What `show stat` says of each server of a service, and of the whole as ``BACKEND``."""
        lines = self.haproxy.ask("show stat").lstrip("# ").splitlines()
        columns = lines[0].split(",")
        rows = [dict(zip(columns, line.split(","), strict=False)) for line in lines[1:] if line]
        return {row["svname"]: row for row in rows if row["pxname"] == f"service:{name}"}


@contextmanager
def edge_of(directory: Path, version: str, sections: list[Section], more: str = "") -> Iterator[Edge]:
    """A HAProxy that runs these sections, and whatever ``more`` says."""
    port = free_port()
    with bare(haproxy_binary(version), directory, configuration(port, sections) + more) as haproxy:
        yield Edge(haproxy, port)
