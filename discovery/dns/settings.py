"""What the DNS role is told, checked once. Pure."""

import ipaddress
import itertools
import re
from dataclasses import dataclass

from discovery.errors import ConfigError

Address = tuple[str, int]
"""An IP address in canonical text, without brackets, and a port."""

DomainUpstreams = tuple[str, tuple[Address, ...]]
"""A domain and the resolvers of the names in it."""

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")


@dataclass(frozen=True)
class DnsSettings:
    """Settings of the DNS role; raises ConfigError when they cannot be.

    ``answer`` holds the edge's addresses, IPv4, IPv6 or both: what every service's name means.
    ``zones`` are the domains that are ours, each with the same names in it.
    ``upstreams`` None stands for the system's resolvers, ``()`` for none at all.
    ``domain_upstreams`` are domains, each with the resolvers that are asked for it instead.
    ``networks`` are the networks (CIDR) whose clients are answered; None stands for the node's own.
    ``queries_per_second`` is what one client may ask; None sets no limit.
    A listen port of 0 means any free one.
    """

    listen: tuple[Address, ...]
    answer: tuple[str, ...]
    zones: tuple[str, ...] = ("local",)
    upstreams: tuple[Address, ...] | None = None
    domain_upstreams: tuple[DomainUpstreams, ...] = ()
    wildcard: bool = False
    subdomains: bool = False
    ttl_seconds: int = 5
    negative_ttl_seconds: int = 5
    networks: tuple[str, ...] | None = None
    queries_per_second: int | None = None
    forward_private: bool = False
    cache_entries: int = 10_000
    stale_seconds: int = 3600

    def __post_init__(self) -> None:
        if not self.listen:
            raise ConfigError("dns.listen", "is empty", "give an address, such as 172.17.0.1:53")
        self._set("listen", _canonical("dns.listen", self.listen, lowest_port=0))
        if not self.answer:
            raise ConfigError("dns.answer", "is empty", "give the address at which HAProxy is reached")
        for host in self.answer:
            if _parse_address("dns.answer", host).is_unspecified:
                raise ConfigError("dns.answer", f"{host} is no address that can be reached", "name one")
        if not self.zones:
            raise ConfigError("dns.zone", "is empty", "such as local or svc.example.org")
        self._set("zones", tuple(dict.fromkeys(_canonical_domain("dns.zone", zone) for zone in self.zones)))
        for name in ("ttl_seconds", "negative_ttl_seconds", "stale_seconds"):
            _check_range(f"dns.{name}", getattr(self, name), 0, 86400)
        _check_range("dns.cache_entries", self.cache_entries, 0, 1_000_000)
        if self.queries_per_second is not None:
            _check_range("dns.queries_per_second", self.queries_per_second, 1, 1_000_000)
        self._check_upstreams()
        for network in self.networks or ():
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ConfigError("dns.networks", str(error), "write it as 10.0.0.0/8") from None

    @property
    def named_upstreams(self) -> tuple[Address, ...]:
        """Every resolver that the settings name, for whatever domain."""
        own = (addresses for _, addresses in self.domain_upstreams)
        return tuple(dict.fromkeys(itertools.chain(self.upstreams or (), *own)))

    def _check_upstreams(self) -> None:
        if self.upstreams is not None:
            self._set("upstreams", _canonical("dns.upstream", self.upstreams, lowest_port=1))
        domains: dict[str, tuple[Address, ...]] = {}
        for domain, addresses in self.domain_upstreams:
            name = _canonical_domain("dns.upstream", domain)
            inside = next((zone for zone in self.zones if f".{name}".endswith(f".{zone}")), None)
            if inside is not None:
                mend = "names of our zones are answered here; see dns.zone"
                raise ConfigError("dns.upstream", f"{name} is in our zone {inside}", mend)
            canonical = _canonical("dns.upstream", addresses, lowest_port=1)
            domains[name] = tuple(dict.fromkeys((*domains.get(name, ()), *canonical)))
        self._set("domain_upstreams", tuple(domains.items()))
        for host, port in self.named_upstreams:
            if ipaddress.ip_address(host).is_unspecified:
                raise ConfigError("dns.upstream", f"{host} is no address that can be reached", "name one")
            if (host, port) in self.listen:
                mend = "name the resolver that answers all other names"
                raise ConfigError("dns.upstream", f"{host} port {port} is our own address", mend)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # frozen, but for its own making


def _check_range(setting: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ConfigError(setting, f"{value} is not from {least} to {most}")


def _canonical_domain(setting: str, domain: str) -> str:
    """The domain in lower case, without dots at its ends."""
    name = domain.lower().removeprefix(".").removesuffix(".")
    if len(name) > 150 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise ConfigError(setting, f"{domain!r} is no domain name", "such as local or svc.example.org")
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
