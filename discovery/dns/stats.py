"""Counts of what the DNS role answered."""

from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeVar

from dnslib import QTYPE, RCODE

from discovery.dns import wire

Origin = Literal["local", "forwarded", "refused"]
Cell = list[int]
"""One number that the hot path counts up in place."""


class Outcome(NamedTuple):
    """Labels of one count: the question's type (``other`` for rare ones), the rcode, and who knew the answer.

    ``refused`` are clients outside the networks we answer.
    """

    qtype: str
    rcode: str
    origin: Origin


LATENCY_SECONDS = tuple(2**exponent / 1e6 for exponent in range(4, 22))
"""Upper bounds of the histogram's classes, 16 µs to 2.1 s; one more class has no bound."""
_CLASSES = len(LATENCY_SECONDS) + 1
PER_SECOND = 1 / LATENCY_SECONDS[0]
"""A time in units of the least bound has as many bits as its class has classes below it."""
_MOST_BITS = 64

_K = TypeVar("_K")
_N = TypeVar("_N", int, float)


class UpstreamCounts(NamedTuple):
    """How one upstream does; ``is_up`` is false after it did not answer, and while it leads back to us."""

    is_up: bool = True
    queries: int = 0
    replies: int = 0

    def plus(self, other: "UpstreamCounts") -> "UpstreamCounts":
        """Both together: it is up if nobody finds it down."""
        return UpstreamCounts(
            self.is_up and other.is_up, self.queries + other.queries, self.replies + other.replies
        )


class ForwardCounts(NamedTuple):
    """What became of the questions that no zone of ours answers.

    ``hits`` were answered from what was kept, ``stale`` from what was kept past its time, ``misses`` were
    asked of an upstream, or joined a question on its way.
    """

    hits: int = 0
    stale: int = 0
    misses: int = 0
    kept: int = 0
    """Replies kept now."""
    upstreams: Mapping[str, UpstreamCounts] = {}

    def plus(self, other: "ForwardCounts") -> "ForwardCounts":
        """Both together."""
        upstreams = {**self.upstreams}
        for name, counts in other.upstreams.items():
            upstreams[name] = upstreams.get(name, UpstreamCounts()).plus(counts)
        return ForwardCounts(
            self.hits + other.hits,
            self.stale + other.stale,
            self.misses + other.misses,
            self.kept + other.kept,
            upstreams,
        )

    def ended(self) -> "ForwardCounts":
        """What remains true once the process is gone."""
        upstreams = {name: counts._replace(is_up=True) for name, counts in self.upstreams.items()}
        return self._replace(kept=0, upstreams=upstreams)


class Counts(NamedTuple):
    """Everything counted so far, as plain values: what a process tells of itself."""

    outcomes: Mapping[Outcome, int] = {}
    latency: Mapping[Origin, tuple[int, ...]] = {}
    """Answers by how long they took, class by class (LATENCY_SECONDS)."""
    latency_seconds: Mapping[Origin, float] = {}
    """The sum of all these times."""
    dropped: int = 0
    unsent: int = 0
    limited: int = 0
    forwarding: ForwardCounts = ForwardCounts()

    def plus(self, other: "Counts") -> "Counts":
        """Both together."""
        latency = {**self.latency}
        for origin, classes in other.latency.items():
            mine = latency.get(origin, (0,) * _CLASSES)
            latency[origin] = tuple(map(sum, zip(mine, classes, strict=True)))
        return Counts(
            _sum(self.outcomes, other.outcomes),
            latency,
            _sum(self.latency_seconds, other.latency_seconds),
            self.dropped + other.dropped,
            self.unsent + other.unsent,
            self.limited + other.limited,
            self.forwarding.plus(other.forwarding),
        )

    def ended(self) -> "Counts":
        """What remains true once the process is gone."""
        return self._replace(forwarding=self.forwarding.ended())


class Latency:
    """How long answers took, from when their messages were taken up."""

    __slots__ = ("classes", "seconds")

    def __init__(self) -> None:
        self.classes = [0] * _MOST_BITS
        """How many by ``int(seconds * PER_SECOND).bit_length()``."""
        self.seconds = 0.0
        """All together."""

    def add(self, seconds: float, answers: int = 1) -> None:
        """So many answers took so long each."""
        self.classes[int(seconds * PER_SECOND).bit_length()] += answers
        self.seconds += seconds * answers

    def folded(self) -> tuple[int, ...]:
        """The numbers of LATENCY_SECONDS, and what took longer."""
        bounded = _CLASSES - 1
        return (*self.classes[:bounded], sum(self.classes[bounded:]))


class Stats:
    """Written by the threads that serve, read by any.

    No addition here makes a call between reading a number and writing it, so that none is lost.
    """

    def __init__(self) -> None:
        self._cells: dict[Outcome, Cell] = {}
        self._found: dict[tuple[int, int, Origin], Cell] = {}
        self.local = Latency()
        """Of answers from a zone; the hot path adds to it by itself."""
        self.forwarded = Latency()
        """Of answers from an upstream, or kept from one."""
        self.dropped = 0
        """Messages met with silence: responses, and less than a header."""
        self.unsent = 0
        """Replies that the kernel would not take."""
        self.limited = 0
        """Messages met with silence because their client asks too much."""

    def cell(self, qtype: int, rcode: int, origin: Origin) -> Cell:
        """The count of this outcome; ``qtype`` 0 stands for a message without a question."""
        cell = self._found.get((qtype, rcode, origin))
        if cell is None:
            cell = self._cells.setdefault(Outcome(_qtype(qtype), _rcode(rcode), origin), [0])
            if qtype in QTYPE.forward:
                self._found[qtype, rcode, origin] = cell
        return cell

    def counts(self) -> Counts:
        """Everything so far, as values that no longer change."""
        each: dict[Origin, Latency] = {"local": self.local, "forwarded": self.forwarded}
        latency = {origin: of.folded() for origin, of in each.items() if any(of.classes)}
        seconds = {origin: each[origin].seconds for origin in latency}
        return Counts(self.snapshot(), latency, seconds, self.dropped, self.unsent, self.limited)

    def snapshot(self) -> Mapping[Outcome, int]:
        """Every count so far."""
        return {outcome: cell[0] for outcome, cell in list(self._cells.items())}


def _sum(one: Mapping[_K, _N], other: Mapping[_K, _N]) -> dict[_K, _N]:
    total = dict(one)
    for key, value in other.items():
        total[key] = total[key] + value if key in total else value
    return total


def _qtype(qtype: int) -> str:
    if qtype == 0:
        return "none"
    # Only types that dnslib knows: labels made of whatever a client sends would have no bound.
    return str(QTYPE.forward[qtype]) if qtype in QTYPE.forward else "other"


def _rcode(rcode: int) -> str:
    if rcode == wire.BADVERS:
        return "BADVERS"
    return str(RCODE.forward[rcode]) if rcode in RCODE.forward else "other"
