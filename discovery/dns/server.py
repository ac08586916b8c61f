"""The DNS role: binds, and answers in one loop on one thread.

    UDP, TCP ─► access ─► the zone: an answer from the newest Catalog
                        └► any other name: the forwarder, which asks upstream from the same loop

A new Catalog comes from another thread as one immutable Zone with an empty cache: one assignment.
"""

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog

from discovery.catalog import Catalog, Problem
from discovery.dns import batch, wire
from discovery.dns.access import Access, own_interfaces, own_networks
from discovery.dns.answers import Answers
from discovery.dns.cache import ReplyCache
from discovery.dns.forward import Forwarder
from discovery.dns.limit import RateLimit
from discovery.dns.loop import Loop
from discovery.dns.records import Zone
from discovery.dns.resolvconf import RESOLV_CONF, ResolvConf
from discovery.dns.respond import Reply, Send, refuse, respond
from discovery.dns.settings import Address, DnsSettings
from discovery.dns.stats import Cell, Origin, Stats
from discovery.dns.tcp import TcpEndpoint
from discovery.dns.udp import (
    RECEIVE_BUFFER_BYTES,
    BatchUdpEndpoint,
    UdpEndpoint,
    WildcardUdpEndpoint,
)
from discovery.dns.upstreams import Upstreams, family_of
from discovery.errors import ConfigError

log = structlog.get_logger(__name__)

HOUSEKEEPING_SECONDS = 1.0
_STOP_SECONDS = 0.2
"""How often the stop event is looked at."""
_IP_FREEBIND = 15
_IPV6_FREEBIND = 78
_SO_RCVBUFFORCE = 33
_BACKLOG = 128
_WILDCARDS = ("0.0.0.0", "::")


class DnsServer:
    """Answers DNS queries as a Catalog says; an Applier. ``start``, then ``run`` on a thread of its own.

    Until the first ``apply`` names in the zone are SERVFAIL, all others are forwarded.
    """

    name = "dns"

    def __init__(
        self,
        settings: DnsSettings,
        *,
        resolv_conf: Path = RESOLV_CONF,
        read_networks: Callable[[], tuple[str, ...]] = own_networks,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stats = Stats()
        self.addresses: tuple[Address, ...] = ()
        """What is bound, once started."""
        self._settings = settings
        self._clock = clock
        self._answers = Answers(settings, Zone(settings, None))
        self._access = Access(settings.networks, clock=clock, read=read_networks)
        rate = settings.queries_per_second
        self._limit = None if rate is None else RateLimit(rate, clock=clock)
        self._loop = Loop()
        listed = ResolvConf(resolv_conf, self._is_own).read
        fixed = settings.upstreams
        read = listed if fixed is None else lambda: fixed
        self._upstreams = Upstreams(
            read, zones=settings.zones, domains=settings.domain_upstreams, clock=clock
        )
        cache = ReplyCache(
            most_entries=settings.cache_entries, stale_seconds=settings.stale_seconds, clock=clock
        )
        self._forwarder = Forwarder(self._loop.selector, self._upstreams, cache, clock=clock)
        self._sockets = contextlib.ExitStack()
        self._tcp: list[TcpEndpoint] = []

    def start(self) -> None:
        """Bind every address, for UDP and TCP. Raises ConfigError, with nothing left bound."""
        with contextlib.ExitStack() as sockets:
            bound = [_bind_both(host, port, sockets) for host, port in self._settings.listen]
            self.addresses = tuple((udp.getsockname()[0], udp.getsockname()[1]) for udp, _ in bound)
            for host, port in self._settings.named_upstreams:
                if self._is_own((host, port)):
                    raise ConfigError(
                        "dns.upstream", f"{host} port {port} is our own address", "name another"
                    )
            self._sockets = sockets.pop_all()
        # With a limit every message is looked at, answered before or not.
        clients = self._access.known if self._limit is None else frozenset[str]()
        for (udp, tcp), (host, _) in zip(bound, self.addresses, strict=True):
            kind = _endpoint_kind(host)
            handle = partial(self._handle, False)
            kind(udp, clients, self.stats, self._in_force, handle).register(self._loop)
            handle = partial(self._handle, True)
            self._tcp.append(
                TcpEndpoint(tcp, self._loop.selector, handle, self._access.allows, clock=self._clock)
            )
        self._upstreams.refresh()
        shown = [f"{host}#{port}" for host, port in self.addresses]
        log.info("dns_started", listen=shown, zones=self._settings.zones, answer=self._settings.answer)

    def apply(self, catalog: Catalog) -> tuple[Problem, ...]:
        """Answer by this catalog from the next query on. From any one thread."""
        zone = self._answers.zone
        if not zone.is_known or zone.services is not catalog.services:
            zone = Zone(self._settings, catalog.services, catalog.revision)
            self._answers = Answers(self._settings, zone)
        return ()

    def run(self, stop: threading.Event) -> None:
        """Serve until ``stop``."""
        housekeeping_at = self._clock() + HOUSEKEEPING_SECONDS
        while not stop.is_set():
            due = min(self._forwarder.next_due or housekeeping_at, housekeeping_at)
            wait_seconds = min(max(due - self._clock(), 0), _STOP_SECONDS)
            self._loop.run_once(wait_seconds)
            self._forwarder.expire()
            if self._clock() >= housekeeping_at:
                housekeeping_at = self._clock() + HOUSEKEEPING_SECONDS
                self._upstreams.refresh()
                for endpoint in self._tcp:
                    endpoint.expire()

    def close(self) -> None:
        """Free every socket; after ``run`` has returned."""
        self._forwarder.close()
        for endpoint in self._tcp:
            endpoint.close()
        self._sockets.close()
        self._loop.close()

    # -- one message

    def _handle(self, stream: bool, data: bytes, client: str, send: Send) -> bool:
        answers = self._answers
        if client not in self._access.known and not self._access.allows(client):
            return self._send(refuse(data), "refused", send) is not None
        if self._limit is not None and not self._limit.takes(client):
            self.stats.limited += 1
            return False
        outcome = respond(answers.zone, data, stream=stream)
        if isinstance(outcome, wire.Query):
            return self._forward(outcome, stream, send)
        count = self._send(outcome, "local", send)
        if count is not None and outcome is not None and outcome.qtype and not stream:
            answers.remember(data, outcome.message, outcome.qtype, outcome.rcode, count)
        return count is not None

    def _forward(self, query: wire.Query, stream: bool, send: Send) -> bool:
        if self._upstreams.is_probe(query.labels):
            self.stats.dropped += 1
            return False
        self._forwarder.ask(query, stream=stream, answer=lambda reply: self._answer(reply, send))
        return True

    def _answer(self, reply: Reply, send: Send) -> None:
        self._send(reply, "forwarded", send)

    def _send(self, reply: Reply | None, origin: Origin, send: Send) -> Cell | None:
        """Count and send; the count, or None where silence is the answer."""
        if reply is None:
            self.stats.dropped += 1
            return None
        count = self.stats.cell(reply.qtype, reply.rcode, origin)
        count[0] += 1
        send(reply.message)
        return count

    def _in_force(self) -> Answers:
        return self._answers

    def _is_own(self, address: Address) -> bool:
        if address in self.addresses:
            return True
        host, port = address
        if not any(bound in _WILDCARDS and own_port == port for bound, own_port in self.addresses):
            return False
        return any(str(interface.ip) == host for interface in own_interfaces())


def _endpoint_kind(host: str) -> type[UdpEndpoint]:
    if host in _WILDCARDS:
        return WildcardUdpEndpoint
    return BatchUdpEndpoint if batch.is_available() else UdpEndpoint


def _bind_both(host: str, port: int, sockets: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    """UDP and TCP on one port, closed by ``sockets``."""
    for attempt in range(10):
        with contextlib.ExitStack() as trial:
            udp = trial.enter_context(socket.socket(family_of(host), socket.SOCK_DGRAM))
            tcp = trial.enter_context(socket.socket(family_of(host), socket.SOCK_STREAM))
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                _bind(udp, host, port)
                _bind(tcp, host, udp.getsockname()[1])
                tcp.listen(_BACKLOG)
            except OSError as error:
                if port == 0 and attempt < 9 and error.errno == errno.EADDRINUSE:
                    continue
                raise _config_error(host, port, error) from error
            _grow_receive_buffer(udp)
            sockets.push(trial.pop_all())
            return udp, tcp
    raise AssertionError("the last attempt returns or raises")


def _bind(sock: socket.socket, host: str, port: int) -> None:
    # FREEBIND: the bridge may come up after us.
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    sock.setblocking(False)
    sock.bind((host, port))


def _grow_receive_buffer(udp: socket.socket) -> None:
    try:
        udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
    except PermissionError:
        # Not root: as much as net.core.rmem_max allows.
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)


def _config_error(host: str, port: int, error: OSError) -> ConfigError:
    where = f"{host} port {port}"
    if error.errno == errno.EADDRINUSE:
        mend = "see who holds it with `ss -lunpt`, or listen elsewhere"
        return ConfigError("dns.listen", f"{where} is in use by another program", mend)
    if error.errno in (errno.EACCES, errno.EPERM):
        mend = "run as root or with CAP_NET_BIND_SERVICE, or listen on a port above 1023"
        return ConfigError("dns.listen", f"{where} needs more rights than we have", mend)
    return ConfigError("dns.listen", f"{where} cannot be bound: {error.strerror}", "listen elsewhere")
