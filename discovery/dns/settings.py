"""What the DNS role is told, checked once. Pure."""

import ipaddress
import re
from dataclasses import dataclass

from discovery.errors import ConfigError

Address = tuple[str, int]
"""An IP address in canonical text, without brackets, and a port."""

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")


@dataclass(frozen=True)
class DnsSettings:
    """Settings of the DNS role; raises ConfigError when they cannot be.

    ``answer`` holds the edge's addresses, IPv4, IPv6 or both: what every service's name means.
    ``upstreams`` None stands for the system's resolvers, ``()`` for none at all.
    ``networks`` are the networks (CIDR) whose clients are answered; None stands for the node's own.
    A listen port of 0 means any free one.
    """

    listen: tuple[Address, ...]
    answer: tuple[str, ...]
    zone: str = "local"
    upstreams: tuple[Address, ...] | None = None
    wildcard: bool = False
    ttl_seconds: int = 5
    networks: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.listen:
            raise ConfigError("dns.listen", "is empty", "give an address, such as 172.17.0.1:53")
        self._set("listen", _canonical("dns.listen", self.listen, lowest_port=0))
        if not self.answer:
            raise ConfigError("dns.answer", "is empty", "give the address at which HAProxy is reached")
        for host in self.answer:
            if _parse_address("dns.answer", host).is_unspecified:
                raise ConfigError("dns.answer", f"{host} is no address that can be reached", "name one")
        self._set("zone", _canonical_zone(self.zone))
        if not 0 <= self.ttl_seconds <= 86400:
            raise ConfigError("dns.ttl_seconds", f"{self.ttl_seconds} is not from 0 to 86400")
        if self.upstreams is not None:
            self._set("upstreams", _canonical("dns.upstream", self.upstreams, lowest_port=1))
        for host, port in self.upstreams or ():
            if (host, port) in self.listen:
                mend = "name the resolver that answers all other names"
                raise ConfigError("dns.upstream", f"{host} port {port} is our own address", mend)
        for network in self.networks or ():
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ConfigError("dns.networks", str(error), "write it as 10.0.0.0/8") from None

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # frozen, but for its own making


def _canonical_zone(zone: str) -> str:
    """The zone in lower case, without dots at its ends."""
    name = zone.lower().removeprefix(".").removesuffix(".")
    if len(name) > 150 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise ConfigError("dns.zone", f"{zone!r} is no domain name", "such as local or svc.example.org")
    return name


def _canonical(setting: str, addresses: tuple[Address, ...], lowest_port: int) -> tuple[Address, ...]:
    for _, port in addresses:
        if not lowest_port <= port <= 65535:
            raise ConfigError(setting, f"{port} is no port from 1 to 65535")
    return tuple((str(_parse_address(setting, host)), port) for host, port in addresses)


def _parse_address(setting: str, host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        raise ConfigError(setting, f"{host!r} is no IP address", "names are not looked up here") from None
