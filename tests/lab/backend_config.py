"""Configurations of sections made by ``directives`` alone, for tests of what HAProxy makes of options."""

from collections.abc import Iterable
from dataclasses import dataclass

from discovery.catalog import Service
from discovery.haproxy.directives import Checks, Directives, directives

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
