"""What holds for every message and every zone; dnslib is the judge."""

import dnslib
from hypothesis import assume, example, given
from hypothesis import strategies as st

from discovery.catalog import Attributes, Instance, Service
from discovery.dns import wire
from discovery.dns.records import Zone
from discovery.dns.respond import Reply, refuse, respond
from discovery.dns.settings import DnsSettings
from discovery.dns.wire import BadMessage, Edns, Query, parse_query
from tests.fuzz.target import check, reads_in_dnslib

LISTEN = (("127.0.0.1", 53),)

words = st.integers(0, 65535)
labels = st.one_of(
    st.sampled_from(
        (b"web", b"WEB", b"local", b"Local", b"_tcp", b"_web", b"_udp", b"ns", b"arpa", b"in-addr")
    ),
    st.text(min_size=1, max_size=15).map(str.encode).filter(lambda label: len(label) < 64),
)
names = st.lists(labels, max_size=8).map(tuple).filter(lambda name: sum(map(len, name)) + len(name) < 255)
options = st.lists(st.tuples(words, st.binary(max_size=12)), max_size=3)


@st.composite
def edns(draw: st.DrawFn) -> dnslib.RR:
    carried = [dnslib.EDNSOption(code, data) for code, data in draw(options)]
    opt = dnslib.EDNS0(version=draw(st.integers(0, 255)), udp_len=draw(words), opts=carried)
    opt.ttl |= draw(st.sampled_from((0, 0x8000)))
    return opt


@st.composite
def queries(draw: st.DrawFn) -> dnslib.DNSRecord:
    """Every valid query: any name, type, class and flags; with EDNS, a signature, both or none."""
    header = dnslib.DNSHeader(id=draw(words), bitmap=draw(st.integers(0, 0x3FF)))
    question = dnslib.DNSQuestion(dnslib.DNSLabel(draw(names)), draw(words), draw(words))
    record = dnslib.DNSRecord(header, q=question)
    if draw(st.booleans()):
        record.add_ar(draw(edns()))
    if draw(st.booleans()):
        record.add_ar(dnslib.RR(draw(names), wire.TSIG, 255, rdata=dnslib.RD(draw(st.binary(min_size=1)))))
    return record


def read(data: bytes) -> Query | None:
    try:
        return parse_query(data)
    except BadMessage:
        return None


class TestTheHandParserAndDnslib:
    @given(queries())
    def test_agree_on_every_valid_query(self, record: dnslib.DNSRecord) -> None:
        data = bytes(record.pack())
        query = parse_query(data)
        parsed = dnslib.DNSRecord.parse(data)
        assert int.from_bytes(query.id, "big") == parsed.header.id
        assert query.flags == parsed.header.bitmap
        assert query.labels == tuple(label.lower() for label in parsed.q.qname.label)
        assert (query.qtype, query.qclass) == (parsed.q.qtype, parsed.q.qclass)
        opts = [each for each in parsed.ar if each.rtype == wire.OPT]
        expected = [Edns(each.rclass, each.ttl >> 16 & 0xFF, bool(each.ttl & 0x8000)) for each in opts]
        assert ([] if query.edns is None else [query.edns]) == expected

    @given(queries(), st.data())
    @example(dnslib.DNSRecord.question("web.local"), None)
    def test_agree_on_what_cannot_be_read(self, record: dnslib.DNSRecord, data: st.DataObject | None) -> None:
        """Valid messages, damaged: cut, bytes changed, bytes put in, counts changed."""
        damaged = bytearray(record.pack())
        if data is not None:
            for _ in range(data.draw(st.integers(1, 4))):
                at = data.draw(st.integers(2, max(2, len(damaged) - 1)))
                kind = data.draw(st.sampled_from(["cut", "change", "insert", "count"]))
                if kind == "cut":
                    del damaged[at:]
                elif kind == "insert":
                    damaged[at:at] = data.draw(st.binary(max_size=14))
                elif kind == "change" and at < len(damaged):
                    damaged[at] = data.draw(st.integers(0, 255))
                elif len(damaged) >= wire.HEADER_BYTES:
                    damaged[data.draw(st.sampled_from((5, 7, 9, 11)))] = data.draw(st.integers(0, 3))
        if read(bytes(damaged)) is not None:
            assert reads_in_dnslib(bytes(damaged))

    @given(st.binary(max_size=60), st.sampled_from((0, 1, 2)), st.integers(0, 1), st.integers(0, 1))
    def test_agree_on_garbage(self, tail: bytes, additionals: int, answers: int, authorities: int) -> None:
        counts = bytes((0, 1, 0, answers, 0, authorities, 0, additionals))
        data = b"\0\1\1\0" + counts + tail
        if read(data) is not None:
            assert reads_in_dnslib(data)


class TestRoundTrips:
    @given(queries(), words)
    def test_a_query_put_to_an_upstream_asks_the_same(self, record: dnslib.DNSRecord, id_: int) -> None:
        query = parse_query(bytes(record.pack()))
        again, plain = (parse_query(wire.build_query(query, id_, edns=edns)) for edns in (True, False))
        assert int.from_bytes(again.id, "big") == id_
        assert again.question == plain.question == query.question
        dnssec_ok = query.edns is not None and query.edns.dnssec_ok
        assert (again.edns, plain.edns) == ((wire.EDNS_BYTES, 0, dnssec_ok), None)

    @given(names.filter(bool), st.integers(0, 255), st.integers(0, 0x3FFF))
    def test_an_encoded_name_is_read_again(self, name: tuple[bytes, ...], before: int, pad: int) -> None:
        text = tuple(f"l{number}" for number, _ in enumerate(name))
        data = bytes(wire.HEADER_BYTES + before) + wire.encode_name(".".join(text)) + bytes(pad % 7)
        read_back, end = wire.read_name(data, wire.HEADER_BYTES + before, compressed=False)
        assert read_back == tuple(label.encode() for label in text)
        assert end == len(data) - pad % 7

    @given(queries())
    def test_a_reply_reads_as_the_reply_to_its_question(self, record: dnslib.DNSRecord) -> None:
        query = parse_query(bytes(record.pack()))
        sections = wire.Sections(wire.NXDOMAIN)
        reply = wire.build_reply(query, sections, authoritative=True, most_bytes=wire.STREAM_BYTES)
        parsed = dnslib.DNSRecord.parse(reply)
        assert parsed.header.id == record.header.id
        assert bytes(reply[wire.HEADER_BYTES :]).startswith(query.question)
        assert (parsed.header.qr, parsed.header.aa, parsed.header.tc) == (1, 1, 0)
        got = wire.parse_reply(reply, record.header.id, query)
        assert got is not None
        assert got.rcode == wire.NXDOMAIN


# ---- zones -------------------------------------------------------------------------------------------

service_names = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,20}[a-z0-9])?", fullmatch=True)
hosts = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
instances = st.builds(
    Instance,
    id=st.uuids().map(str),
    host=hosts,
    port=st.integers(1, 65535),
    attributes=st.builds(
        Attributes,
        weight=st.none() | st.integers(0, 256),
        node=st.none() | st.text(max_size=20),
        image=st.none() | st.text(max_size=300),
        tags=st.lists(st.text(max_size=20), max_size=3).map(tuple),
        draining=st.booleans(),
    ),
)


@st.composite
def zones(draw: st.DrawFn) -> tuple[Zone, list[str]]:
    """A zone, and names that are worth asking it."""
    found = draw(st.lists(service_names, max_size=4, unique=True))
    services = {}
    for name in found:
        size = draw(st.sampled_from((0, 1, 3, 8, 70)))
        few = draw(st.lists(instances, max_size=min(size, 8)))
        many = [Instance(str(n), f"10.3.{n}.1", 80) for n in range(size - 8)] if size > 8 else []
        services[name] = Service(name, instances=(*few, *many))
    edges = draw(st.lists(st.ip_addresses().map(str), min_size=1, max_size=40))
    answer = [host for host in edges if host not in ("0.0.0.0", "::")] or ["192.0.2.1"]
    suffix = draw(st.sampled_from(("local", "svc.example.org")))
    settings = DnsSettings(LISTEN, tuple(answer), zones=(suffix,), wildcard=draw(st.booleans()))
    asked = [suffix, f"ns.{suffix}", f"nosuch.{suffix}", f"_tcp.{suffix}", f"x.nosuch.{suffix}"]
    for name in found:
        asked += [
            f"{name}.{suffix}",
            f"_{name}._tcp.{suffix}",
            f"_{name}._udp.{suffix}",
            f"x.{name}.{suffix}",
        ]
        asked += [f"10-3-0-1.{name}.{suffix}"]
    return Zone(settings, services, draw(words)), asked


TYPES = st.sampled_from((1, 2, 5, 6, 12, 13, 15, 16, 28, 33, 64, 65, 255, 251, 252, 0, 41))


@given(zones(), st.data())
def test_every_answer_of_every_zone_fits_the_client_and_reads_in_dnslib(
    made: tuple[Zone, list[str]], data: st.DataObject
) -> None:
    zone, asked = made
    name = data.draw(st.sampled_from(asked))
    record = dnslib.DNSRecord(
        dnslib.DNSHeader(id=7, rd=1), q=dnslib.DNSQuestion(name.swapcase(), data.draw(TYPES))
    )
    size = data.draw(st.none() | st.sampled_from((0, 511, 512, 513, 600, 1232, 4096, 65535)) | words)
    if size is not None:
        record.add_ar(dnslib.EDNS0(udp_len=size))
    message = bytes(record.pack())
    announced = 512 if size is None else max(size, 512)  # RFC 6891, 6.2.3: less counts as 512
    over_udp, over_tcp = respond(zone, message, stream=False), respond(zone, message, stream=True)
    assert isinstance(over_udp, Reply)
    assert isinstance(over_tcp, Reply)
    assert len(over_udp.message) <= min(announced, wire.EDNS_BYTES)
    short, whole = dnslib.DNSRecord.parse(over_udp.message), dnslib.DNSRecord.parse(over_tcp.message)
    assert short.header.rcode == whole.header.rcode
    assert str(short.q.qname) == f"{name.swapcase()}."
    assert whole.header.tc == 0
    # What is cut says so; additional records may go silently (RFC 2181, 9).
    if not short.header.tc:
        assert [*map(str, short.rr)] == [*map(str, whole.rr)]
        assert [*map(str, short.auth)] == [*map(str, whole.auth)]
    # RFC 2308: a denial comes with the SOA, whose TTL is at most its last field.
    if whole.header.rcode in (0, 3) and not whole.rr:
        (soa,) = whole.auth
        assert soa.rtype == wire.SOA
        assert soa.ttl <= soa.rdata.times[4]


@given(zones(), queries())
def test_no_query_to_no_zone_raises(made: tuple[Zone, list[str]], record: dnslib.DNSRecord) -> None:
    check(made[0], bytes(record.pack()))


@given(st.binary(max_size=120), st.integers(0, 255))
def test_garbage_never_raises_and_is_never_amplified(tail: bytes, flags: int) -> None:
    for data in (tail, b"\0\1" + bytes((flags, 0)) + b"\0\1\0\0\0\0\0\1" + tail):
        check(None, data)


@given(queries())
def test_a_stranger_gets_no_more_than_it_sent(record: dnslib.DNSRecord) -> None:
    data = bytes(record.pack())
    reply = refuse(data)
    assume(reply is not None)
    assert reply is not None
    assert len(reply.message) <= len(data)
