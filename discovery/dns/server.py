"""The DNS role: binds, and answers.

    UDP: a thread for each socket ─► what was answered before (answers)
                                   └► else, with the lock of the loop held, as below
    TCP: the loop ─► access ─► the zone: an answer from the newest Catalog
                             └► any other name: the forwarder, which asks upstream from the loop

A new Catalog comes from another thread as one immutable Zone with an empty cache: one assignment.
"""

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import structlog

from discovery.catalog import Catalog, Problem
from discovery.dns import batch, wire
from discovery.dns.access import Access, own_interfaces, own_networks
from discovery.dns.answers import Answers, InForce
from discovery.dns.cache import ReplyCache
from discovery.dns.forward import Forwarder
from discovery.dns.limit import RateLimit
from discovery.dns.listen import WILDCARDS, Sockets, address_of, bind_all
from discovery.dns.loop import Loop
from discovery.dns.records import Zone
from discovery.dns.resolvconf import RESOLV_CONF, ResolvConf
from discovery.dns.respond import Reply, Send, refuse, respond
from discovery.dns.settings import Address, DnsSettings
from discovery.dns.stats import Cell, Counts, Origin, Stats
from discovery.dns.tcp import TcpEndpoint
from discovery.dns.udp import (
    BatchUdpEndpoint,
    UdpEndpoint,
    WildcardUdpEndpoint,
)
from discovery.dns.upstreams import Upstreams
from discovery.errors import ConfigError
from discovery.workers import Workers

log = structlog.get_logger(__name__)

HOUSEKEEPING_SECONDS = 1.0
_STOP_SECONDS = 0.2
"""How often the stop event is looked at, and what the UDP threads have had forwarded: tries last longer."""
_END_SECONDS = 5.0


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
        on_second: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_second = on_second
        self.stats = Stats()
        self.addresses: tuple[Address, ...] = ()
        """What is bound, once started."""
        self._settings = settings
        self._clock = clock
        self._in_force = InForce(Answers(settings, Zone(settings, None)))
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
        self._udp: list[UdpEndpoint] = []

    def start(self) -> None:
        """Bind every address, for UDP and TCP. Raises ConfigError, with nothing left bound."""
        with contextlib.ExitStack() as sockets:
            bound = bind_all(self._settings, 1, sockets)
            refuse_own_upstreams(self._settings, [address_of(each) for each in bound])
            self._sockets = sockets.pop_all()
        self.adopt(bound)
        shown = [f"{host}#{port}" for host, port in self.addresses]
        log.info("dns_started", listen=shown, zones=self._settings.zones, answer=self._settings.answer)

    def adopt(self, bound: Iterable[Sockets]) -> None:
        """Serve on these sockets, TCP and UDP of each address; instead of ``start``."""
        bound = list(bound)
        self.addresses = tuple(address_of(each) for each in bound)
        # With a limit every message is looked at, answered before or not.
        clients = self._access.known if self._limit is None else frozenset[str | bytes]()
        for (tcp, udp), (host, _) in zip(bound, self.addresses, strict=True):
            kind = _endpoint_kind(host)
            handle = partial(self._handle, False)
            self._udp.append(kind(udp, clients, self.stats, self._in_force, handle, self._loop.lock))
            handle = partial(self._handle, True)
            self._tcp.append(
                TcpEndpoint(tcp, self._loop.selector, handle, self._access.allows, clock=self._clock)
            )
        self._upstreams.refresh()

    def watch(self, sock: socket.socket, call: Callable[[], None]) -> None:
        """Call this from the loop whenever the socket has something to read."""
        self._loop.selector.register(sock, selectors.EVENT_READ, lambda _events: call())

    def counts(self) -> Counts:
        """Everything counted so far."""
        return self.stats.counts()._replace(forwarding=self._forwarder.counts())

    def apply(self, catalog: Catalog) -> tuple[Problem, ...]:
        """Answer by this catalog from the next query on. From any one thread."""
        zone = self._in_force.answers.zone
        if not zone.is_known or zone.services is not catalog.services:
            zone = Zone(self._settings, catalog.services, catalog.revision)
            self._in_force.answers = Answers(self._settings, zone)
        return ()

    def run(self, stop: threading.Event) -> None:
        """Serve until ``stop``."""
        workers = Workers(on_failure=stop.set)
        for (host, port), endpoint in zip(self.addresses, self._udp, strict=True):
            workers.start(f"dns {host}#{port}", endpoint.serve)
        try:
            self._run_loop(stop)
        finally:
            workers.stop(_END_SECONDS)
        if workers.failure is not None:
            raise workers.failure

    def _run_loop(self, stop: threading.Event) -> None:
        housekeeping_at = self._clock() + HOUSEKEEPING_SECONDS
        while not stop.is_set():
            now = self._clock()
            due = min(self._forwarder.next_due or housekeeping_at, now + _STOP_SECONDS)
            self._loop.run_once(due - now)
            with self._loop.lock:
                self._forwarder.expire()
                if self._clock() >= housekeeping_at:
                    housekeeping_at = self._clock() + HOUSEKEEPING_SECONDS
                    self._upstreams.refresh()
                    self._on_second()
                    for endpoint in self._tcp:
                        endpoint.expire()

    def close(self) -> None:
        """Free every socket; after ``run`` has returned."""
        self._forwarder.close()
        for endpoint in self._tcp:
            endpoint.close()
        self._sockets.close()
        self._loop.close()

    # -- one message, with the loop's lock held

    def _handle(self, stream: bool, data: bytes, client: str, send: Send) -> bool:
        began = self._clock()
        answers = self._in_force.answers
        if client not in self._access.known and not self._access.allows(client):
            return self._send(refuse(data), "refused", send) is not None
        if self._limit is not None and not self._limit.takes(client):
            self.stats.limited += 1
            return False
        outcome = respond(answers.zone, data, stream=stream)
        if isinstance(outcome, wire.Query):
            return self._forward(outcome, stream, send, began)
        count = self._send(outcome, "local", send)
        if count is not None:
            self.stats.local.add(self._clock() - began)
        if count is not None and outcome is not None and outcome.qtype and not stream:
            answers.remember(data, outcome.message, outcome.qtype, outcome.rcode, count)
        return count is not None

    def _forward(self, query: wire.Query, stream: bool, send: Send, began: float) -> bool:
        if self._upstreams.is_probe(query.labels):
            self.stats.dropped += 1
            return False
        self._forwarder.ask(query, stream=stream, answer=lambda reply: self._answer(reply, send, began))
        return True

    def _answer(self, reply: Reply, send: Send, began: float) -> None:
        self._send(reply, "forwarded", send)
        self.stats.forwarded.add(self._clock() - began)

    def _send(self, reply: Reply | None, origin: Origin, send: Send) -> Cell | None:
        """Count and send; the count, or None where silence is the answer."""
        if reply is None:
            self.stats.dropped += 1
            return None
        count = self.stats.cell(reply.qtype, reply.rcode, origin)
        count[0] += 1
        send(reply.message)
        return count

    def _is_own(self, address: Address) -> bool:
        return _is_one_of(address, self.addresses)


def refuse_own_upstreams(settings: DnsSettings, addresses: Iterable[Address]) -> None:
    """Raises ConfigError where a named upstream is what we are bound to."""
    for host, port in settings.named_upstreams:
        if _is_one_of((host, port), tuple(addresses)):
            raise ConfigError("dns.upstream", f"{host} port {port} is our own address", "name another")


def _is_one_of(address: Address, bound: tuple[Address, ...]) -> bool:
    if address in bound:
        return True
    host, port = address
    if not any(own in WILDCARDS and own_port == port for own, own_port in bound):
        return False
    return any(str(interface.ip) == host for interface in own_interfaces())


def _endpoint_kind(host: str) -> type[UdpEndpoint]:
    if host in WILDCARDS:
        return WildcardUdpEndpoint
    return BatchUdpEndpoint if batch.is_available() else UdpEndpoint
