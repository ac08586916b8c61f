"""Who may ask: by default the clients of the node's own networks, so that this is no open resolver."""

import ipaddress
import socket
from collections.abc import Callable, Iterable

import psutil
import structlog

log = structlog.get_logger(__name__)

REREAD_SECONDS = 0.1
"""A reading takes 0.4 ms. A container asks as soon as its network is there, and musl waits on REFUSED."""
_MOST_KNOWN = 20_000
"""Two for each client: its text, and packed."""
_MOST_LOGGED = 100

_LOOPBACK = ("127.0.0.0/8", "::1/128")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


def own_interfaces() -> tuple[Interface, ...]:
    """Every address of this node with its network, now."""
    found: list[Interface] = []
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            if each.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            host = ipaddress.ip_address(each.address.partition("%")[0])
            # A point-to-point link may have no mask.
            mask = ipaddress.ip_address(each.netmask) if each.netmask else None
            bits = int(mask).bit_count() if mask is not None else host.max_prefixlen
            found.append(ipaddress.ip_interface((host, bits)))
    return tuple(found)


def own_networks() -> tuple[str, ...]:
    """The networks this node has an address in, and loopback, as CIDR."""
    networks = (str(each.network) for each in own_interfaces() if each.network.prefixlen > 0)
    return tuple(dict.fromkeys((*_LOOPBACK, *networks)))


class Access:
    """Decides by a client's address. Not thread-safe but for looks at ``known``.

    ``fixed`` are the networks to answer; None stands for those that ``read`` tells, which is asked again when
    a client is not in them: the bridge may have come up since.
    """

    def __init__(
        self,
        fixed: Iterable[str] | None,
        *,
        clock: Callable[[], float],
        read: Callable[[], tuple[str, ...]] = own_networks,
    ) -> None:
        self.known: set[str | bytes] = set()
        """Addresses that may ask, as text and packed, for a look without a call."""
        self._clock = clock
        self._read = read if fixed is None else None
        self._networks = _parse(fixed if fixed is not None else read())
        self._read_at = clock()
        self._refused: set[str] = set()

    def allows(self, host: str) -> bool:
        """Whether the client at this address is answered."""
        if host in self.known:
            return True
        address = ipaddress.ip_address(host.partition("%")[0])
        if not self._contains(address) and self._read is not None:
            now = self._clock()
            if now - self._read_at >= REREAD_SECONDS:
                self._read_at = now
                self._networks = _parse(self._read())
        if self._contains(address):
            if len(self.known) >= _MOST_KNOWN:
                self.known.clear()
            self.known.update((host, address.packed))
            self._refused.discard(host)
            return True
        if host not in self._refused and len(self._refused) < _MOST_LOGGED:
            self._refused.add(host)
            log.warning("dns_client_refused", client=host, mend="add its network to dns.networks")
        return False

    def _contains(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        return any(address in network for network in self._networks)


def _parse(networks: Iterable[str]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(network) for network in networks)
