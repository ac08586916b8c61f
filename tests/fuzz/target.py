"""What must hold for any bytes that come in over the network; for atheris and for hypothesis."""

import dnslib

from discovery.catalog import Attributes, Instance, Service
from discovery.dns import wire
from discovery.dns.records import Zone
from discovery.dns.relay import read_body, relay
from discovery.dns.respond import Reply, refuse, respond
from discovery.dns.settings import DnsSettings
from discovery.dns.wire import BadMessage, Query, parse_query

SERVICES = {
    "web": Service(
        "web",
        instances=(
            Instance("a", "10.0.0.1", 8000, Attributes(weight=7, tags=("blue",), image="shop:1")),
            Instance("b", "fd00::1", 8001),
        ),
    ),
    "idle": Service("idle"),
    "many": Service("many", instances=tuple(Instance(str(i), f"10.1.0.{i}", 80) for i in range(1, 61))),
}
ZONE = Zone(DnsSettings((("127.0.0.1", 53),), ("172.17.42.1", "fd00::42")), SERVICES, 42)


def check(zone: Zone | None, data: bytes) -> None:
    """Handle ``data`` as a question over UDP and over TCP, and as an upstream's reply.

    AssertionError, or whatever was raised, tells what is wrong.
    """
    zone = zone or ZONE
    query = _read(data)
    for stream in (False, True):
        outcome = respond(zone, data, stream=stream)
        if isinstance(outcome, Reply):
            _check_reply(data, query, outcome.message, stream=stream)
        else:
            assert outcome is None or outcome == query
    refusal = refuse(data)
    assert refusal is None or len(refusal.message) <= len(data)
    if query is not None:
        assert reads_in_dnslib(data), "the hand parser took what dnslib cannot read"
    _check_upstream(data)


def reads_in_dnslib(data: bytes) -> bool:
    """Whether dnslib can read it too.

    It takes labels for UTF-8, where any byte may stand (RFC 2181, 11): they are made ASCII first, unless
    that changes a length or a pointer.
    """
    try:
        dnslib.DNSRecord.parse(_in_ascii(data))
    except dnslib.DNSError as error:
        # A pointer may lead into bytes that are no name of their own, so that they were not made ASCII.
        return "Invalid label" in str(error)
    return True


def _in_ascii(data: bytes) -> bytes:
    """The message with the bytes of its labels beyond ASCII made ``x``; it has been read by hand before."""
    made = bytearray(data)
    _, offset = wire.read_name(data, wire.HEADER_BYTES, compressed=False)
    _cover(made, wire.HEADER_BYTES)
    offset += 4
    records = sum(int.from_bytes(data[at : at + 2], "big") for at in (6, 8, 10))
    for _ in range(records):
        _cover(made, offset)
        _, offset = wire.read_name(data, offset, compressed=True)
        offset += 10 + int.from_bytes(data[offset + 8 : offset + 10], "big")
    return bytes(made)


def _cover(made: bytearray, offset: int) -> None:
    while offset < len(made) and 0 < (size := made[offset]) < 0x40:
        made[offset + 1 : offset + 1 + size] = bytes(
            byte if byte < 0x80 else 0x78 for byte in made[offset + 1 : offset + 1 + size]
        )
        offset += 1 + size


def _read(data: bytes) -> Query | None:
    try:
        return parse_query(data)
    except BadMessage:
        return None


def _check_reply(data: bytes, query: Query | None, message: bytes, *, stream: bool) -> None:
    assert message[:2] == data[:2]
    assert message[2] & 0x80, "a reply says so"
    assert not data[2] & 0x80, "a response is never answered"
    if query is None:
        assert len(message) == wire.HEADER_BYTES
        return
    announced = 512 if query.edns is None else max(query.edns.size, 512)
    assert stream or len(message) <= min(announced, wire.EDNS_BYTES)
    assert len(message) <= wire.STREAM_BYTES
    assert message[wire.HEADER_BYTES :].startswith(query.question), "the question is echoed as it came"
    assert message[2] & 0x78 == 0
    assert not message[3] & 0x20, "AD is not echoed: nothing was validated"
    dnslib.DNSRecord.parse(_in_ascii(message))


def _check_upstream(data: bytes) -> None:
    """Bytes from an upstream, under an id and a question that match as far as bytes can."""
    query = parse_query(QUESTION)
    forged = data[:2].ljust(2, b"\0") + data[2:]
    reply = wire.parse_reply(forged, int.from_bytes(forged[:2], "big"), query)
    if reply is None or not reply.complete:
        return
    try:
        body = read_body(reply.message, query)
    except BadMessage:
        return
    relayed = relay(body, query, wire.UDP_BYTES, age_seconds=data[0] if data else 0)
    assert len(relayed) <= wire.UDP_BYTES
    assert relayed[:2] == query.id
    assert relayed[wire.HEADER_BYTES :].startswith(query.question)


QUESTION = b"\0\7\1\0\0\1\0\0\0\0\0\0\7example\3org\0\0\1\0\1"
