import dnslib
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from discovery.dns import wire
from discovery.dns.wire import BadMessage, Sections, build_error, build_reply, parse_query

LABELS = st.lists(st.binary(min_size=1, max_size=20), min_size=0, max_size=8)


def question(name: str = "web.local", qtype: str = "A", **header: int) -> bytes:
    record = dnslib.DNSRecord.question(name, qtype)
    for field, value in header.items():
        setattr(record.header, field, value)
    return bytes(record.pack())


def with_edns(data: bytes, size: int = 4096, version: int = 0, flags: int = 0, options: bytes = b"") -> bytes:
    opt = b"\0\0\x29" + size.to_bytes(2, "big") + bytes([0, version]) + flags.to_bytes(2, "big")
    return data[:10] + b"\0\1" + data[12:] + opt + len(options).to_bytes(2, "big") + options


@given(LABELS, st.integers(0, 65535), st.integers(0, 65535), st.booleans())
def test_reads_what_dnslib_writes(labels: list[bytes], qtype: int, qclass: int, rd: bool) -> None:
    record = dnslib.DNSRecord(
        dnslib.DNSHeader(id=7, rd=rd), q=dnslib.DNSQuestion(dnslib.DNSLabel(labels), qtype, qclass)
    )
    data = bytes(record.pack())
    query = parse_query(data)
    assert query.labels == tuple(label.lower() for label in labels)
    assert (query.qtype, query.qclass, query.edns) == (qtype, qclass, None)
    assert query.question == data[12:]


@given(st.binary(max_size=80))
@example(b"\0\1\1\0\0\1\0\0\0\0\0\0" + b"\xc0\x0c\0\1\0\1")
@example(b"\0\1\1\0\0\1\0\0\0\0\0\1" + b"\0\0\1\0\1" + b"\xc0\x11\0\1\0\1\0\0\0\0\0\0")
@example(b"\0\1\1\0\0\1\0\0\0\0\0\0" + b"\x3fshort")
def test_garbage_is_read_or_refused_but_never_raises_anything_else(tail: bytes) -> None:
    for data in (tail, b"\0\1\1\0\0\1\0\0\0\0\0\1" + tail, b"\0\1\1\0\0\1\0\1\0\1\0\1" + tail):
        try:
            parse_query(data)
        except BadMessage as error:
            if error.rcode is not None:
                assert len(build_error(data, error.rcode)) == wire.HEADER_BYTES


@given(st.binary(max_size=60))
def test_what_it_accepts_dnslib_accepts(tail: bytes) -> None:
    data = b"\0\1\1\0\0\1\0\0\0\0\0\0" + tail
    try:
        query = parse_query(data)
    except BadMessage:
        return
    parsed = dnslib.DNSRecord.parse(data)
    assert tuple(label.lower() for label in parsed.q.qname.label) == query.labels
    assert (parsed.q.qtype, parsed.q.qclass) == (query.qtype, query.qclass)


@pytest.mark.parametrize(
    ("data", "rcode"),
    [
        (b"", None),
        (b"\0" * 11, None),
        (question(qr=1), None),
        (question(opcode=5), wire.NOTIMP),
        (question()[:4] + b"\0\0" + question()[6:12], wire.FORMERR),
        (question()[:4] + b"\0\2" + question()[6:] + question()[12:], wire.FORMERR),
        (question()[:-1], wire.FORMERR),
        (b"\0\1\1\0\0\1\0\0\0\0\0\0" + b"\x40" + b"a" * 64 + b"\0\0\1\0\1", wire.FORMERR),
        (b"\0\1\1\0\0\1\0\0\0\0\0\0" + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1", wire.FORMERR),
        (
            with_edns(with_edns(question()))[:10] + b"\0\2" + with_edns(with_edns(question()))[12:],
            wire.FORMERR,
        ),
        (with_edns(question(), options=b"\0\x0a\0\x09short"), wire.FORMERR),
        (with_edns(question())[:-1], wire.FORMERR),
    ],
)
def test_what_is_no_query(data: bytes, rcode: int | None) -> None:
    with pytest.raises(BadMessage) as caught:
        parse_query(data)
    assert caught.value.rcode == rcode


def test_an_opt_record_among_the_answers_is_an_error() -> None:
    data = with_edns(question())
    with pytest.raises(BadMessage):
        parse_query(data[:6] + b"\0\1\0\0\0\0" + data[12:])


def test_edns_is_read() -> None:
    query = parse_query(with_edns(question(), size=4000, version=1, flags=0x8000, options=b"\0\x0a\0\1x"))
    assert query.edns == (4000, 1, True)
    assert query.udp_bytes == 1232
    assert parse_query(with_edns(question(), size=100)).udp_bytes == 512
    assert parse_query(question()).udp_bytes == 512


def test_a_reply_keeps_the_case_of_the_question_and_echoes_edns_but_not_ad() -> None:
    data = with_edns(question("WeB.lOcAl", ad=1, cd=1), flags=0x8000)
    reply = build_reply(parse_query(data), Sections(wire.BADVERS), authoritative=True, most_bytes=512)
    parsed = dnslib.DNSRecord.parse(reply)
    assert str(parsed.q.qname) == "WeB.lOcAl."
    header = parsed.header
    assert (header.qr, header.aa, header.ra, header.rd, header.ad, header.cd) == (1, 1, 1, 1, 0, 1)
    assert header.rcode == 0
    (opt,) = parsed.ar
    assert (opt.rclass, opt.ttl) == (1232, 1 << 24 | 0x8000)


def test_a_reply_sheds_additional_records_first_and_then_says_tc() -> None:
    query = parse_query(with_edns(question()))
    record = wire.record(wire.TO_QUESTION, 16, 5, b"\x63" + b"x" * 99)
    sections = Sections(answers=2, answer=record * 2, additionals=3, additional=record * 3)

    def reply(most_bytes: int) -> dnslib.DNSRecord:
        packed = build_reply(query, sections, authoritative=True, most_bytes=most_bytes)
        assert len(packed) <= most_bytes
        return dnslib.DNSRecord.parse(packed)

    whole, bare, cut = reply(1232), reply(512), reply(200)
    assert (len(whole.rr), len(whole.ar), whole.header.tc) == (2, 4, 0)
    assert (len(bare.rr), len(bare.ar), bare.header.tc) == (2, 1, 0)
    assert (len(cut.rr), len(cut.ar), cut.header.tc) == (1, 1, 1)


class TestUpstreamReplies:
    QUERY = parse_query(question("ExAmple.org"))

    @pytest.mark.parametrize(
        "forged",
        [
            b"",
            question("example.net", id=9, qr=1),
            question("example.org", id=9),
            question("example.org", "AAAA", id=9, qr=1),
            question("example.org", id=8, qr=1),
            question("example.org", id=9, qr=1, opcode=4),
            question("example.org", id=9, qr=1)[:4] + b"\0\0\0\0\0\0\0\0",
        ],
    )
    def test_for_another_question_or_id_is_none(self, forged: bytes) -> None:
        assert wire.parse_reply(forged, 9, self.QUERY) is None

    def test_an_error_without_its_question_is_told_apart(self) -> None:
        reply = wire.parse_reply(b"\0\x09\x80\x01" + b"\0" * 8, 9, self.QUERY)
        assert reply is not None
        assert not reply.complete
