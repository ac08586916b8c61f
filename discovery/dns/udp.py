"""Questions over UDP: the hot path."""

import selectors
import socket
from collections.abc import Callable, Container
from struct import Struct

from discovery.dns.respond import Handle
from discovery.dns.stats import Cell, Stats

RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024
"""A burst waits here while something else runs; below 1 MiB bursts are lost."""
CACHED_BYTES = 300
CACHED_ANSWERS = 20_000
_BATCH = 64
_DATAGRAM_BYTES = 4096
_IP_PKTINFO = 8
_ANCILLARY_BYTES = socket.CMSG_SPACE(Struct("20s").size)

Cache = dict[bytes, tuple[bytes, Cell]]
"""A message without its id → the whole answer without its id, and its count."""


class UdpEndpoint:
    """One bound UDP socket. ``cache`` gives the cache in force; what it lacks goes to ``handle``.

    ``clients`` are addresses that may ask, known without asking ``handle``.
    """

    def __init__(
        self,
        udp: socket.socket,
        clients: Container[str],
        stats: Stats,
        cache: Callable[[], Cache],
        handle: Handle,
    ) -> None:
        self._socket = udp
        self._clients = clients
        self._stats = stats
        self._cache = cache
        self._handle = handle

    def register(self, selector: selectors.BaseSelector) -> None:
        """Have the loop call us."""
        selector.register(self._socket, selectors.EVENT_READ, self._drain)

    def _drain(self, _events: int) -> None:
        """Answer what waits, up to a bound that lets others have their turn."""
        receive, send, clients = self._socket.recvfrom, self._socket.sendto, self._clients
        for _ in range(_BATCH):
            try:
                data, client = receive(_DATAGRAM_BYTES)
            except OSError:
                return
            # Looked up anew for every message: it may have been sent because a new catalog is in force.
            hit = self._cache().get(data[2:])
            if hit is None or client[0] not in clients:
                self._handle(data, client[0], lambda reply, client=client: self._send(reply, client))  # type: ignore[misc]
                continue
            answer, count = hit
            count[0] += 1
            try:
                send(data[:2] + answer, client)
            except OSError:
                self._stats.unsent += 1

    def _send(self, reply: bytes, client: tuple[str, int]) -> None:
        try:
            self._socket.sendto(reply, client)
        except OSError:
            # The client is gone, has port 0, or the buffer is full; it will ask again.
            self._stats.unsent += 1


class WildcardUdpEndpoint(UdpEndpoint):
    """A socket bound to every address: a reply leaves from the address that was asked, or nobody takes it."""

    def register(self, selector: selectors.BaseSelector) -> None:
        """Have the loop call us."""
        if self._socket.family == socket.AF_INET6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            self._socket.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        super().register(selector)

    def _drain(self, _events: int) -> None:
        for _ in range(_BATCH):
            try:
                data, ancillary, _flags, client = self._socket.recvmsg(_DATAGRAM_BYTES, _ANCILLARY_BYTES)
            except OSError:
                return
            reply_from = [each for each in ancillary if each[1] in (_IP_PKTINFO, socket.IPV6_PKTINFO)]

            def send(reply: bytes, client=client, reply_from=reply_from) -> None:  # type: ignore[no-untyped-def]
                try:
                    # As received it names the interface and our address there, which is what sending wants.
                    self._socket.sendmsg([reply], reply_from, 0, client)
                except OSError:
                    self._stats.unsent += 1

            self._handle(data, client[0], send)
