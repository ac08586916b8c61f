"""Which resolvers are asked, and in which order."""

import itertools
import secrets
import socket
from collections.abc import Callable
from struct import Struct

import structlog

from discovery.dns import wire
from discovery.dns.settings import Address, DomainUpstreams
from discovery.dns.stats import UpstreamCounts

log = structlog.get_logger(__name__)

DISTRUST_SECONDS = 10.0
"""How long an upstream that failed to answer is asked last."""
REPROBE_SECONDS = 30.0
"""How often an upstream that led back to us is probed again."""
PLAIN_SECONDS = 900.0
"""How long an upstream that cannot read EDNS is asked without."""

_RESERVED = ("test", "invalid", "example")
_HEADER = Struct(">HHHHHH")


class Upstream:
    """One resolver, and how it did lately."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.failed_at: float | None = None
        self.loops = False
        self.plain_until: float | None = None
        """Until when it is asked without EDNS."""
        self.queries = 0
        self.replies = 0
        self.token = secrets.token_hex(16).encode("ascii")

    def __str__(self) -> str:
        return f"{self.address[0]}#{self.address[1]}"


class Upstreams:
    """The resolvers that ``read`` lists, those that answer first. Not thread-safe.

    Names in one of ``domains`` are asked of that domain's resolvers instead, the innermost's.

    Each new one is sent a probe, a question that nobody else would ask; if it reaches us, that upstream
    forwards to us, and it is left out until a later probe does not come back.
    """

    def __init__(
        self,
        read: Callable[[], tuple[Address, ...]],
        *,
        zones: tuple[str, ...],
        domains: tuple[DomainUpstreams, ...] = (),
        clock: Callable[[], float],
    ) -> None:
        self.generation = 0
        """Changes when others than before are asked: what they said may no longer hold."""
        self._read = read
        self._clock = clock
        self._domains = {tuple(name.encode("ascii").split(b".")): listed for name, listed in domains}
        # Reserved names (RFC 2606) that are resolved by nobody; those of a zone would be answered here.
        last_labels = {zone.rpartition(".")[2] for zone in zones}
        self._probe_domain = next(name for name in _RESERVED if name not in last_labels)
        self._upstreams: dict[Address, Upstream] = {}
        self._listed: tuple[Address, ...] = ()
        self._probed_at = clock()

    def refresh(self) -> None:
        """Take in what is listed now, and probe what is due."""
        listed = self._read()
        if listed != self._listed:
            # A list that is empty for a moment says nothing of what the old ones said.
            self.generation += bool(listed)
            self._listed = listed
        every = dict.fromkeys(itertools.chain(listed, *self._domains.values()))
        new = [Upstream(address) for address in every if address not in self._upstreams]
        known = {upstream.address: upstream for upstream in (*self._upstreams.values(), *new)}
        self._upstreams = {address: known[address] for address in every}
        now = self._clock()
        if now - self._probed_at >= REPROBE_SECONDS:
            self._probed_at = now
            suspects = [upstream for upstream in self._upstreams.values() if upstream.loops]
            for upstream in suspects:
                upstream.loops = False
            new += suspects
        for upstream in new:
            self._probe(upstream)

    def candidates(self, labels: tuple[bytes, ...]) -> list[Upstream]:
        """Whom to ask for this name of lower-case labels, in this order. Empty if there is nobody."""
        now = self._clock()
        usable = [upstream for upstream in self._of_name(labels) if not upstream.loops]
        return sorted(usable, key=lambda each: _is_recent(each.failed_at, now))

    def are_down(self, labels: tuple[bytes, ...]) -> bool:
        """Whether nobody who is asked for this name has answered lately."""
        now = self._clock()
        return all(each.loops or _is_recent(each.failed_at, now) for each in self._of_name(labels))

    def speaks_edns(self, upstream: Upstream) -> bool:
        """Whether to ask it with EDNS."""
        return upstream.plain_until is None or self._clock() >= upstream.plain_until

    def refused_edns(self, upstream: Upstream) -> None:
        """It could not read EDNS."""
        upstream.plain_until = self._clock() + PLAIN_SECONDS

    def counts(self) -> dict[str, UpstreamCounts]:
        """Of every resolver in use, written as ``host#port``."""
        return {
            str(each): UpstreamCounts(each.failed_at is None and not each.loops, each.queries, each.replies)
            for each in self._upstreams.values()
        }

    def _of_name(self, labels: tuple[bytes, ...]) -> list[Upstream]:
        listed = self._listed
        if self._domains:
            for depth in range(len(labels)):
                if labels[depth:] in self._domains:
                    listed = self._domains[labels[depth:]]
                    break
        return [self._upstreams[address] for address in listed if address in self._upstreams]

    def failed(self, upstream: Upstream, reason: str) -> None:
        """It did not answer, or not to be used."""
        if upstream.failed_at is None:
            log.warning("dns_upstream_failed", upstream=str(upstream), reason=reason)
        upstream.failed_at = self._clock()

    def answered(self, upstream: Upstream) -> None:
        """It did answer."""
        upstream.replies += 1
        if upstream.failed_at is not None:
            log.info("dns_upstream_recovered", upstream=str(upstream))
            upstream.failed_at = None

    def is_probe(self, labels: tuple[bytes, ...]) -> bool:
        """Whether a question's name is a probe of ours come back; then its upstream is left out."""
        if len(labels) != 2 or labels[1] != self._probe_domain.encode("ascii"):
            return False
        for upstream in self._upstreams.values():
            if upstream.token == labels[0]:
                if not upstream.loops:
                    log.error("dns_upstream_loops", upstream=str(upstream), reason="it forwards to us")
                upstream.loops = True
                return True
        return False

    def _probe(self, upstream: Upstream) -> None:
        name = wire.encode_name(f"{upstream.token.decode('ascii')}.{self._probe_domain}")
        question = name + wire.A.to_bytes(2, "big") + wire.IN.to_bytes(2, "big")
        message = _HEADER.pack(secrets.randbits(16), wire.RD, 1, 0, 0, 0) + question
        try:
            with socket.socket(family_of(upstream.address[0]), socket.SOCK_DGRAM) as probe:
                probe.setblocking(False)
                probe.sendto(message, upstream.address)
        except OSError:
            # Out of reach for now; a real question will tell.
            return


def family_of(host: str) -> socket.AddressFamily:
    """The address family of an IP address in text."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _is_recent(failed_at: float | None, now: float) -> bool:
    return failed_at is not None and now - failed_at < DISTRUST_SECONDS
