"""From a message to what is to be done with it. Pure."""

from collections.abc import Callable
from typing import NamedTuple

from discovery.dns import wire
from discovery.dns.records import Zone
from discovery.dns.wire import BadMessage, Query

_META_ERRORS = {
    0: wire.FORMERR,
    wire.OPT: wire.FORMERR,
    wire.TKEY: wire.FORMERR,
    wire.TSIG: wire.FORMERR,
    wire.IXFR: wire.REFUSED,
    wire.AXFR: wire.REFUSED,
}
"""Types that are no question, and zone transfers, of which nobody needs any."""


Send = Callable[[bytes], None]
Handle = Callable[[bytes, str, Send], bool]
"""Takes a message, its client's address and what sends a reply; tells whether there is or will be one."""


class Reply(NamedTuple):
    """A reply to be sent; ``qtype`` is 0 where there was no question to read."""

    message: bytes
    qtype: int
    rcode: int


def respond(zone: Zone, data: bytes, *, stream: bool) -> Reply | Query | None:
    """What to do with one message that came over UDP or, with ``stream``, over TCP.

    A Reply is sent, a Query is outside the zone and goes to an upstream, None is met with silence.
    """
    try:
        query = wire.parse_query(data)
    except BadMessage as error:
        rcode = error.rcode
        return None if rcode is None else Reply(wire.build_error(data, rcode), 0, rcode)
    if query.edns is not None and query.edns.version != 0:
        return failure(query, wire.BADVERS, stream=stream)
    if query.qtype in _META_ERRORS:
        return failure(query, _META_ERRORS[query.qtype], stream=stream)
    if query.qclass != wire.IN:
        return failure(query, wire.REFUSED, stream=stream)
    sections = zone.answer(query)
    if sections is None:
        return query
    most_bytes = wire.STREAM_BYTES if stream else query.udp_bytes
    # A zone not yet read is no authority.
    authoritative = sections.rcode != wire.SERVFAIL
    message = wire.build_reply(query, sections, authoritative=authoritative, most_bytes=most_bytes)
    return Reply(message, query.qtype, sections.rcode)


def refuse(data: bytes) -> Reply | None:
    """The answer to a client that is none of ours: no longer than its message, so that it lends no force."""
    try:
        query = wire.parse_query(data)
    except BadMessage:
        return None
    return failure(query._replace(edns=None), wire.REFUSED, stream=False)


def failure(query: Query, rcode: int, *, stream: bool) -> Reply:
    """A reply that says only ``rcode``."""
    sections = wire.Sections(rcode)
    most_bytes = wire.STREAM_BYTES if stream else query.udp_bytes
    message = wire.build_reply(query, sections, authoritative=False, most_bytes=most_bytes)
    return Reply(message, query.qtype, rcode)
