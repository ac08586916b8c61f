"""Upstreams' replies: read once, then given to every client that asks the same, also later. Pure."""

from bisect import bisect_right
from struct import Struct
from typing import NamedTuple

from discovery.dns import wire
from discovery.dns.wire import HEADER_BYTES, BadMessage, Query

MOST_KEPT_SECONDS = 86400
MOST_NEGATIVE_SECONDS = 10800
"""Of "no such name" (RFC 2308, 5, which takes more than that for a mistake)."""

_COUNTS = Struct(">HHHHH")
_RECORD = Struct(">HHIH")
_TTL = Struct(">I")
_ANSWER, _AUTHORITY, _ADDITIONAL = range(3)


class Body(NamedTuple):
    """What follows the question in a reply, without EDNS, which is between neighbours.

    Names in it may point into the question: it belongs to questions with a name of that length.
    """

    rcode: int
    """With the upper bits that EDNS adds."""
    counts: tuple[int, int, int]
    records: bytes
    ends: tuple[int, ...]
    """Where each record ends in ``records``."""
    ttls: tuple[int, ...]
    """Where each TTL is."""
    truncated: bool
    has_edns: bool
    kept_seconds: int
    """How long it may be kept, 0 for not at all."""


def read_body(message: bytes, query: Query) -> Body:
    """Read a reply that holds this question. Raises BadMessage for one that is broken.

    A truncated one may end anywhere: what is whole of it counts.
    """
    flags = int.from_bytes(message[2:4], "big")
    return _Reader(message, query, flags).body()


class _Reader:
    """One walk through the records."""

    def __init__(self, message: bytes, query: Query, flags: int) -> None:
        self._message = message
        self._query = query
        self._truncated = bool(flags & wire.TC)
        self._rcode = flags & 0xF
        self._begin = self._offset = HEADER_BYTES + len(query.question)
        self._counts = [0, 0, 0]
        self._ends: list[int] = []
        self._ttls: list[int] = []
        self._least_ttl = MOST_KEPT_SECONDS
        self._has_soa = False
        self._has_edns = False
        self._answers: set[int] = set()

    def body(self) -> Body:
        try:
            self._walk()
        except BadMessage:
            if not self._truncated:
                raise
        end = self._begin + (self._ends[-1] if self._ends else 0)
        answers, authorities, additionals = self._counts
        return Body(
            self._rcode,
            (answers, authorities, additionals),
            self._message[self._begin : end],
            tuple(self._ends),
            tuple(self._ttls),
            self._truncated,
            self._has_edns,
            self._kept_seconds(),
        )

    def _walk(self) -> None:
        announced = _COUNTS.unpack_from(self._message, 2)[2:]
        for section in (_ANSWER, _AUTHORITY, _ADDITIONAL):
            for _ in range(announced[section]):
                if not self._record(section):
                    # It mostly comes last. What comes after is additional, and would move if it were kept.
                    return

    def _record(self, section: int) -> bool:
        """Take up the next record; whether it is any but the one of EDNS."""
        _, after = wire.read_name(self._message, self._offset, compressed=True)
        data = after + _RECORD.size
        if data > len(self._message):
            raise BadMessage(wire.FORMERR)
        rtype, _, ttl, length = _RECORD.unpack_from(self._message, after)
        end = data + length
        if end > len(self._message) or (rtype == wire.OPT and section != _ADDITIONAL):
            raise BadMessage(wire.FORMERR)
        if rtype == wire.OPT:
            self._has_edns = True
            self._rcode |= ttl >> 24 << 4
            return False
        if section == _ANSWER:
            self._answers.add(rtype)
        # RFC 2181, 8: with the highest bit it is taken for 0.
        seconds = 0 if ttl & 0x80000000 else ttl
        if section == _AUTHORITY and rtype == wire.SOA and length >= 22:
            self._has_soa = True
            # RFC 2308, 5: its last number is how long there is nothing.
            seconds = min(seconds, _TTL.unpack_from(self._message, end - 4)[0])
        self._least_ttl = min(self._least_ttl, seconds)
        self._counts[section] += 1
        self._ttls.append(after + 4 - self._begin)
        self._ends.append(end - self._begin)
        self._offset = end
        return True

    def _kept_seconds(self) -> int:
        if self._truncated or self._rcode not in (wire.NOERROR, wire.NXDOMAIN):
            return 0
        qtype = self._query.qtype
        found = bool(self._answers) if qtype == wire.ANY else qtype in self._answers
        if found and self._rcode == wire.NOERROR:
            return self._least_ttl
        # RFC 2308, 5: that there is nothing is kept only with an SOA.
        return min(self._least_ttl, MOST_NEGATIVE_SECONDS) if self._has_soa else 0


def relay(
    body: Body, query: Query, most_bytes: int, *, age_seconds: int = 0, ttl_seconds: int | None = None
) -> bytes:
    """The reply to ``query`` within ``most_bytes``, under its id, with its question as it was written.

    TTLs are less by ``age_seconds``, or all are ``ttl_seconds``. What does not fit goes as in
    wire.build_reply, but for answers that do: old libcs take them and ask no further. Neither AA nor AD is
    set: we are no authority, and have validated nothing.
    """
    opt = wire.edns_record(query.edns) if query.edns is not None else b""
    records, counts, truncated = body.records, body.counts, body.truncated
    room = most_bytes - HEADER_BYTES - len(query.question) - len(opt)
    if len(records) > room:
        records, counts, cut = _fit(body, room)
        truncated = truncated or cut
    if age_seconds or ttl_seconds is not None:
        records = _with_ttls(records, body.ttls, age_seconds, ttl_seconds)
    flags = wire.QR | wire.RA | query.flags & (wire.RD | wire.CD) | body.rcode & 0xF
    if truncated:
        flags |= wire.TC
    answers, authorities, additionals = counts
    header = _COUNTS.pack(flags, 1, answers, authorities, additionals + bool(opt))
    return b"".join((query.id, header, query.question, records, opt))


def _fit(body: Body, room: int) -> tuple[bytes, tuple[int, int, int], bool]:
    """The records that fit, their numbers, and whether more than additional ones are missing."""
    answers, authorities, _ = body.counts
    needed = answers + authorities
    end = body.ends[needed - 1] if needed else 0
    if end <= room:
        return body.records[:end], (answers, authorities, 0), False
    number = bisect_right(body.ends, room, 0, answers)
    end = body.ends[number - 1] if number else 0
    return body.records[:end], (number, 0, 0), True


def _with_ttls(records: bytes, offsets: tuple[int, ...], age_seconds: int, ttl_seconds: int | None) -> bytes:
    changed = bytearray(records)
    for offset in offsets:
        if offset >= len(records):
            break
        seconds = ttl_seconds
        if seconds is None:
            seconds = max(_TTL.unpack_from(records, offset)[0] - age_seconds, 0)
        _TTL.pack_into(changed, offset, seconds)
    return bytes(changed)
