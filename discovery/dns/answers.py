"""Answers that are known without parsing the question: those given before, and others of their shape.

A message seen before is answered by its bytes. Beyond that, every service's A and AAAA are the same but for
the service's label: what was said to ``web.local`` is said to ``api.local``, once both are services that
the edge routes to.
"""

from collections.abc import Mapping

from discovery.catalog import Service
from discovery.dns import wire
from discovery.dns.records import Zone
from discovery.dns.settings import DnsSettings
from discovery.dns.stats import Cell

MOST_BYTES = 300
"""A longer message is answered without being remembered."""
MOST_ANSWERS = 4_000
MOST_SHAPES = 2_000

LABEL_AT = wire.HEADER_BYTES
"""Where the length of a question's first label stands."""

Whole = dict[bytes, tuple[bytes, Cell]]
"""A message without its id → the whole answer without its id, and its count."""
Shapes = dict[bytes, tuple[bytes, int, bytes, Cell]]
"""A message without its id and its first label, whose length stays → the rest of the answer's header, how
much of the question follows the label, what follows the question, and the count."""


class Answers:
    """One immutable zone, and the answers already made from it; dropped with it."""

    __slots__ = ("_tails", "services", "shapes", "whole", "zone")

    def __init__(self, settings: DnsSettings, zone: Zone) -> None:
        self.zone = zone
        self.services: Mapping[str, Service] = zone.services
        self.whole: Whole = {}
        self.shapes: Shapes = {}
        zones = settings.zones
        # Where one zone lies in another, its apex looks like a service of the other.
        nested = any(one.endswith(f".{other}") for one in zones for other in zones)
        self._tails = () if nested else tuple(wire.encode_name(name) for name in zones)

    def is_routed(self, label: bytes) -> bool:
        """Whether it names a service that has the edge's addresses, as every such service has."""
        service = self.services.get(label.decode("latin-1"))
        return service is not None and service.routed

    def remember(self, data: bytes, answer: bytes, qtype: int, rcode: int, count: Cell) -> None:
        """Answer this message so again."""
        if len(data) > MOST_BYTES:
            return
        learnt = qtype in (wire.A, wire.AAAA) and rcode == wire.NOERROR and self._learn(data, answer, count)
        if len(self.whole) >= MOST_ANSWERS:
            if learnt:
                return
            # Random case and cookies make keys without end.
            self.whole.clear()
        self.whole[data[2:]] = answer[2:], count

    def _learn(self, data: bytes, answer: bytes, count: Cell) -> bool:
        """Answer messages like this one so, if its name is a service's, just below a zone."""
        after = LABEL_AT + 1 + data[LABEL_AT]
        if not self.is_routed(data[LABEL_AT + 1 : after]):
            return False
        tail = next((tail for tail in self._tails if data.startswith(tail, after)), None)
        if tail is None:
            return False
        rest = len(tail) + 4
        if len(self.shapes) >= MOST_SHAPES:
            self.shapes.clear()
        key = data[2 : LABEL_AT + 1] + data[after:]
        self.shapes[key] = answer[2:LABEL_AT], rest, answer[after + rest :], count
        return True


class InForce:
    """The answers in force. Others come by one assignment, and are looked up anew for every message."""

    __slots__ = ("answers",)

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
