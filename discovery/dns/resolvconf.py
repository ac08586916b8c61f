"""The system's resolvers: resolv.conf(5), followed as it changes."""

import ipaddress
from collections.abc import Callable
from pathlib import Path

import structlog

from discovery.dns.settings import Address

log = structlog.get_logger(__name__)

RESOLV_CONF = Path("/etc/resolv.conf")
DNS_PORT = 53

_Identity = tuple[int, int, int]


def parse_resolv_conf(text: str) -> tuple[Address, ...]:
    """The name servers it lists, in order, once each; lines that are none are skipped, as libc does."""
    found: dict[Address, None] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        host, separator, scope = words[1].partition("%")
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            continue
        found[(f"{address}{separator}{scope}", DNS_PORT)] = None
    return tuple(found)


class ResolvConf:
    """Reads the file again when it has changed. What cannot be read leaves what was read before."""

    def __init__(self, path: Path, is_own: Callable[[Address], bool]) -> None:
        self._path = path
        self._is_own = is_own
        self._identity: _Identity | None = None
        self._error: str | None = None
        self._servers: tuple[Address, ...] = ()

    def read(self) -> tuple[Address, ...]:
        """The servers to ask: those listed, without ourselves."""
        try:
            status = self._path.stat()
            identity = (status.st_ino, status.st_size, status.st_mtime_ns)
            if identity == self._identity:
                return self._servers
            listed = parse_resolv_conf(self._path.read_text(encoding="utf-8", errors="replace"))
        except OSError as error:
            if self._error != str(error):
                self._error = str(error)
                log.warning("dns_upstreams_unreadable", path=str(self._path), error=str(error))
            return self._servers
        self._error = None
        self._identity = identity
        for address in listed:
            if self._is_own(address):
                log.warning("dns_upstream_skipped", upstream=address[0], reason="it is our own address")
        self._servers = tuple(address for address in listed if not self._is_own(address))
        log.info("dns_upstreams", path=str(self._path), upstreams=[host for host, _ in self._servers])
        return self._servers
