"""DNS messages as bytes: questions read, replies written (RFC 1035, 6891). Pure.

Written by hand because every packet passes here; dnslib, which takes ten times as long, is the oracle
of the tests.
"""

from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from discovery.errors import DiscoveryError

HEADER_BYTES = 12
UDP_BYTES = 512
"""What a client without EDNS can take (RFC 1035, 4.2.1)."""
EDNS_BYTES = 1232
"""What we announce and the most we send over UDP: it crosses any path unfragmented (DNS flag day 2020)."""
STREAM_BYTES = 65535

A, NS, CNAME, SOA, PTR, HINFO, TXT, AAAA, SRV, OPT = 1, 2, 5, 6, 12, 13, 16, 28, 33, 41
SIG, TKEY, TSIG, IXFR, AXFR, ANY = 24, 249, 250, 251, 252, 255
IN = 1

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 2, 3, 4, 5, 16

QR, AA, TC, RD, RA, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0010
OPCODE_MASK = 0x7800

TO_QUESTION = b"\xc0\x0c"
"""A compressed name: the one in the question."""

_HEADER = Struct(">HHHHHH")
_COUNTS = Struct(">HHHHH")
_TYPE_CLASS = Struct(">HH")
_RECORD = Struct(">HHIH")
_SOA_TIMES_BYTES = 20


class BadMessage(DiscoveryError):
    """Not a query that can be answered; ``rcode`` is what to say to it, None for nothing at all."""

    def __init__(self, rcode: int | None) -> None:
        super().__init__(f"bad DNS message, rcode {rcode}")
        self.rcode = rcode


class Edns(NamedTuple):
    """What the OPT record of a query says (RFC 6891, 6.1)."""

    size: int
    version: int
    dnssec_ok: bool


_PLAIN = Edns(EDNS_BYTES, 0, dnssec_ok=False)


class Query(NamedTuple):
    """One standard query. ``labels`` are lowercased; ``question`` is as sent, to be echoed with its case."""

    id: bytes
    flags: int
    question: bytes
    labels: tuple[bytes, ...]
    qtype: int
    qclass: int
    edns: Edns | None

    @property
    def udp_bytes(self) -> int:
        """The longest reply over UDP: what the client can take, within what we send."""
        return UDP_BYTES if self.edns is None else min(max(self.edns.size, UDP_BYTES), EDNS_BYTES)


class Sections(NamedTuple):
    """What follows the question in a reply: records in wire form, and their numbers."""

    rcode: int = NOERROR
    answers: int = 0
    authorities: int = 0
    additionals: int = 0
    answer: bytes = b""
    authority: bytes = b""
    additional: bytes = b""


# ---- reading ----------------------------------------------------------------------------------------


def parse_query(data: bytes) -> Query:
    """Read a query. Raises BadMessage for everything that is none, and nothing else."""
    # A response is never answered: two servers would talk for ever.
    if len(data) < HEADER_BYTES or data[2] & 0x80:
        raise BadMessage(None)
    flags, questions, answers, authorities, additionals = _COUNTS.unpack_from(data, 2)
    if flags & OPCODE_MASK:
        raise BadMessage(NOTIMP)
    if questions != 1:  # RFC 9619
        raise BadMessage(FORMERR)
    labels, offset = read_name(data, HEADER_BYTES, compressed=False)
    end = offset + 4
    if end > len(data):
        raise BadMessage(FORMERR)
    qtype, qclass = _TYPE_CLASS.unpack_from(data, offset)
    edns = None
    if answers or authorities or additionals:
        if answers or (authorities and qtype != IXFR):
            raise BadMessage(FORMERR)
        edns = _read_edns(data, end, authorities, additionals)
    return Query(data[:2], flags, data[HEADER_BYTES:end], labels, qtype, qclass, edns)


def read_name(data: bytes, offset: int, *, compressed: bool) -> tuple[tuple[bytes, ...], int]:
    """The lowercased labels of the name at ``offset``, and the offset after it.

    A compression pointer must point before the part it ends, so that none can loop; with ``compressed``
    false there must be none. Raises BadMessage(FORMERR).
    """
    labels: list[bytes] = []
    length = 1
    begin, end = offset, 0
    try:
        while size := data[offset]:
            if size < 0x40:
                label = data[offset + 1 : offset + 1 + size]
                length += 1 + size
                if len(label) < size or length > 255:
                    raise BadMessage(FORMERR)
                labels.append(label.lower())
                offset += 1 + size
            elif compressed and size >= 0xC0:
                target = (size & 0x3F) << 8 | data[offset + 1]
                if not HEADER_BYTES <= target < begin:
                    raise BadMessage(FORMERR)
                end = end or offset + 2
                begin = offset = target
            else:
                raise BadMessage(FORMERR)
    except IndexError:
        raise BadMessage(FORMERR) from None
    return tuple(labels), end or offset + 1


def _read_edns(data: bytes, offset: int, authorities: int, additionals: int) -> Edns | None:
    """Walk the records after the question; the OPT record among the additional ones, if there is one.

    A query has no others than OPT, a signature and, for IXFR, the SOA that the client holds (RFC 1995, 3).
    """
    edns = None
    for index in range(authorities + additionals):
        owner, after = read_name(data, offset, compressed=True)
        body = after + _RECORD.size
        if body > len(data):
            raise BadMessage(FORMERR)
        rtype, size, ttl, length = _RECORD.unpack_from(data, after)
        offset = body + length
        if offset > len(data):
            raise BadMessage(FORMERR)
        if index < authorities:
            if rtype != SOA or not _soa_fits(data, body, offset):
                raise BadMessage(FORMERR)
        elif rtype == OPT:
            if edns is not None or owner or not _options_fit(data, body, offset):
                raise BadMessage(FORMERR)
            edns = Edns(size, ttl >> 16 & 0xFF, bool(ttl & 0x8000))
        elif rtype not in (SIG, TSIG) or not length:
            raise BadMessage(FORMERR)
    return edns


def _soa_fits(data: bytes, offset: int, end: int) -> bool:
    for _ in range(2):
        _, offset = read_name(data, offset, compressed=True)
    return offset + _SOA_TIMES_BYTES == end


def _options_fit(data: bytes, offset: int, end: int) -> bool:
    while end - offset >= 4:
        offset += 4 + _TYPE_CLASS.unpack_from(data, offset)[1]
    return offset == end


# ---- writing ----------------------------------------------------------------------------------------


def encode_name(name: str) -> bytes:
    """The wire form of a name of valid ASCII labels."""
    return b"".join(bytes([len(label)]) + label.encode("ascii") for label in name.split(".")) + b"\0"


def record(owner: bytes, rtype: int, ttl_seconds: int, data: bytes) -> bytes:
    """One resource record of class IN; ``owner`` is a name in wire form, maybe a pointer."""
    return owner + _RECORD.pack(rtype, IN, ttl_seconds, len(data)) + data


def pointer(query: Query, name: bytes) -> bytes:
    """A compressed name that points at the end of the question's name, where ``name`` stands."""
    offset = HEADER_BYTES + len(query.question) - 4 - len(name)
    return (0xC000 | offset).to_bytes(2, "big")


def build_reply(query: Query, sections: Sections, *, authoritative: bool, most_bytes: int) -> bytes:
    """The reply to ``query`` within ``most_bytes``.

    If it does not fit it goes without its additional records, which a resolver can ask for, and if that is
    not enough, with the answers that do fit and TC.
    """
    rcode, answers, authorities, additionals, answer, authority, additional = sections
    opt = edns_record(query.edns, rcode) if query.edns is not None else b""
    flags = QR | RA | query.flags & (RD | CD) | rcode & 0xF
    if authoritative:
        flags |= AA
    room = most_bytes - HEADER_BYTES - len(query.question) - len(opt)
    if len(answer) + len(authority) + len(additional) > room:
        additionals, additional = 0, b""
    if len(answer) + len(authority) > room:
        authorities, authority = 0, b""
        answers, answer = _first_records(answer, answers, room)
        flags |= TC
    counts = _COUNTS.pack(flags, 1, answers, authorities, additionals + bool(opt))
    return b"".join((query.id, counts, query.question, answer, authority, additional, opt))


def _first_records(records: bytes, count: int, room: int) -> tuple[int, bytes]:
    """The records from the front that fit whole, at most ``count``, and their number.

    musl before 1.2.4 does not come back over TCP, and takes what it was given.
    """
    kept = end = 0
    try:
        while kept < count:
            body = _skip_name(records, end) + _RECORD.size
            after = body + _RECORD.unpack_from(records, body - _RECORD.size)[3]
            if after > min(room, len(records)):
                break
            kept, end = kept + 1, after
    except (IndexError, StructError):
        pass  # An upstream has told of more than it sent.
    return kept, records[:end]


def _skip_name(data: bytes, offset: int) -> int:
    while 0 < (size := data[offset]) < 0xC0:
        offset += 1 + size
    return offset + (2 if size else 1)


def build_error(data: bytes, rcode: int) -> bytes:
    """A header that says ``rcode`` to a message of at least a header, whose rest cannot be relied on."""
    flags = int.from_bytes(data[2:4], "big") & (OPCODE_MASK | RD | CD)
    return data[:2] + _COUNTS.pack(QR | RA | flags | rcode, 0, 0, 0, 0)


def edns_record(edns: Edns, rcode: int = NOERROR) -> bytes:
    """Our OPT record towards one who said ``edns``."""
    # RFC 3225, 3: DO is copied. RFC 6891, 6.1.3: the upper bits of the rcode, and version 0.
    ttl = (rcode >> 4) << 24 | (0x8000 if edns.dnssec_ok else 0)
    return b"\0" + _RECORD.pack(OPT, EDNS_BYTES, ttl, 0)


# ---- forwarding -------------------------------------------------------------------------------------


def build_query(query: Query, id_: int, *, edns: bool = True) -> bytes:
    """The question to put to an upstream for ``query``.

    EDNS is ours, hop by hop (RFC 6891, 6.2.6), whatever the client speaks: the reply may be for others too.
    """
    opt = edns_record(query.edns or _PLAIN) if edns else b""
    return _HEADER.pack(id_, query.flags & (RD | CD), 1, 0, 0, bool(opt)) + query.question + opt


class UpstreamReply(NamedTuple):
    """A reply to our question. ``complete`` tells that it holds the question, and may hold more."""

    message: bytes
    rcode: int
    truncated: bool
    complete: bool = True


def parse_reply(reply: bytes, id_: int, query: Query) -> UpstreamReply | None:
    """An upstream's reply; None if it is no reply to this very question under this id.

    A server that refuses a message may leave the question out.
    """
    if len(reply) < HEADER_BYTES:
        return None
    got, flags, questions, answers, _, _ = _HEADER.unpack_from(reply)
    rcode = flags & 0xF
    if got != id_ or not flags & QR or flags & OPCODE_MASK:
        return None
    if questions == 0 and answers == 0 and rcode:
        return UpstreamReply(reply, rcode, truncated=False, complete=False)
    end = HEADER_BYTES + len(query.question)
    # Lowercasing is safe on the wire: a length is at most 63, below any letter. Type and class come after.
    same = reply[HEADER_BYTES : end - 4].lower() == query.question[:-4].lower()
    if questions != 1 or not same or reply[end - 4 : end] != query.question[-4:]:
        return None
    return UpstreamReply(reply, rcode, truncated=bool(flags & TC))
