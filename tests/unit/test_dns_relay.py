"""Upstreams' replies as bytes: read, kept, and given to clients. dnslib writes and reads them."""

import dnslib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.dns import wire
from discovery.dns.cache import MOST_BODY_BYTES, Kept, ReplyCache, cache_key
from discovery.dns.relay import MOST_KEPT_SECONDS, MOST_NEGATIVE_SECONDS, Body, read_body, relay
from discovery.dns.wire import BadMessage, Query, parse_query

SOA = "example.org {ttl} SOA ns.example.org. mail.example.org. 1 2 3 4 {minimum}"


def ask(
    name: str = "ExAmple.org", qtype: str = "A", *, edns: int | None = None, dnssec: bool = False
) -> Query:
    record = dnslib.DNSRecord.question(name, qtype)
    record.header.id = 7
    if edns is not None:
        record.add_ar(dnslib.EDNS0(udp_len=edns, flags="do" if dnssec else ""))
    return parse_query(bytes(record.pack()))


def message(
    *answers: str,
    name: str = "example.org",
    qtype: str = "A",
    authority: tuple[str, ...] = (),
    additional: tuple[str, ...] = (),
    edns: dnslib.RR | None = None,
    **header: int,
) -> bytes:
    reply = dnslib.DNSRecord(
        dnslib.DNSHeader(id=9, qr=1, ra=1, ad=1, aa=1),
        q=dnslib.DNSQuestion(name, getattr(dnslib.QTYPE, qtype)),
    )
    for field, value in header.items():
        setattr(reply.header, field, value)
    for texts, add in ((answers, reply.add_answer), (authority, reply.add_auth), (additional, reply.add_ar)):
        for text in texts:
            add(*dnslib.RR.fromZone(text))
    if edns is not None:
        reply.ar.insert(0, edns)
        reply.set_header_qa()
    return bytes(reply.pack())


def body(*answers: str, **details: object) -> Body:
    qtype = str(details.get("qtype", "A"))
    return read_body(message(*answers, **details), ask(qtype=qtype))  # type: ignore[arg-type]


def relayed(what: Body, query: Query, most_bytes: int = 512, **age: int) -> dnslib.DNSRecord:
    packed = relay(what, query, most_bytes, **age)
    assert len(packed) <= most_bytes
    parsed = dnslib.DNSRecord.parse(packed)
    assert parsed.header.id == int.from_bytes(query.id, "big")
    return parsed


class TestRelay:
    def test_is_under_the_clients_id_and_case_without_aa_and_ad(self) -> None:
        parsed = relayed(body("example.org 60 A 192.0.2.1"), ask())
        assert str(parsed.q.qname) == "ExAmple.org."
        header = parsed.header
        assert (header.ra, header.ad, header.aa, header.tc, header.rcode) == (1, 0, 0, 0, 0)
        assert [(str(each.rname), str(each.rdata), each.ttl) for each in parsed.rr] == [
            ("ExAmple.org.", "192.0.2.1", 60)
        ]

    def test_edns_is_between_neighbours(self) -> None:
        plain = body("example.org 60 A 192.0.2.1")
        with_edns = body("example.org 60 A 192.0.2.1", edns=dnslib.EDNS0(udp_len=4096, version=0))
        assert (plain.has_edns, with_edns.has_edns) == (False, True)
        for each in (plain, with_edns):
            assert relayed(each, ask()).ar == []
            (opt,) = relayed(each, ask(edns=4096, dnssec=True)).ar
            assert (opt.rtype, opt.rclass, opt.edns_do) == (wire.OPT, 1232, 1)

    def test_what_follows_edns_goes_with_it(self) -> None:
        records = ("one.example.org 60 A 192.0.2.1",)
        first = body("example.org 60 A 192.0.2.1", additional=records, edns=dnslib.EDNS0())
        assert [each.rtype for each in relayed(first, ask(edns=1232)).ar] == [wire.OPT]

    def test_an_rcode_of_edns_is_read_whole(self) -> None:
        assert body(edns=dnslib.EDNS0(ext_rcode=1)).rcode == wire.BADVERS

    def test_too_long_it_sheds_additional_records_first_and_then_keeps_what_fits_with_tc(self) -> None:
        answers = [f"example.org 60 A 192.0.2.{number}" for number in range(1, 25)]
        more = tuple(f"h{number}.example.org 60 A 192.0.2.9" for number in range(20))
        long = body(*answers, additional=more)
        whole, bare = relayed(long, ask(edns=1232), 1232), relayed(long, ask(), 512)
        assert (len(whole.rr), len(whole.ar), whole.header.tc) == (24, 21, 0)
        assert (len(bare.rr), len(bare.ar), bare.header.tc) == (24, 0, 0)
        cut = relayed(long, ask(), 300)
        # musl before 1.2.4 does not ask again over TCP.
        assert [str(each.rdata) for each in cut.rr] == [f"192.0.2.{n}" for n in range(1, 17)]
        assert cut.header.tc == 1

    def test_ttls_count_down_in_every_section(self) -> None:
        every = body(
            "example.org 60 A 192.0.2.1",
            authority=("example.org 90 NS ns.example.org",),
            additional=("ns.example.org 10 A 192.0.2.2",),
        )
        parsed = relayed(every, ask(), age_seconds=15)
        assert [each.ttl for each in (*parsed.rr, *parsed.auth, *parsed.ar)] == [45, 75, 0]
        parsed = relayed(every, ask(), ttl_seconds=30)
        assert [each.ttl for each in (*parsed.rr, *parsed.auth, *parsed.ar)] == [30, 30, 30]
        cut = relayed(every, ask(), 50, age_seconds=15)
        assert [each.ttl for each in cut.rr] == [45]

    def test_a_truncated_reply_counts_as_far_as_it_goes(self) -> None:
        whole = message("example.org 60 A 192.0.2.1", "example.org 60 A 192.0.2.2", tc=1)
        what = read_body(whole[:-5], ask())
        assert (len(relayed(what, ask()).rr), relayed(what, ask()).header.tc) == (1, 1)
        assert what.kept_seconds == 0

    @pytest.mark.parametrize(
        "broken",
        [
            message("example.org 60 A 192.0.2.1")[:-1],
            message()[:6] + b"\0\1" + message()[8:],
            message()[:6] + b"\0\1" + message()[8:] + b"\0\0\x29\0\0\0\0\0\0\0\0",
            message()[:6] + b"\0\1" + message()[8:] + b"\xc0\xff\0\1\0\1\0\0\0\0\0\0",
        ],
    )
    def test_a_broken_one_is_none(self, broken: bytes) -> None:
        with pytest.raises(BadMessage):
            read_body(broken, ask())

    @given(st.binary(max_size=120), st.integers(12, 1232), st.integers(0, 10**6), st.booleans())
    def test_no_reply_raises_anything_else_or_is_longer_than_it_may_be(
        self, tail: bytes, most_bytes: int, age_seconds: int, truncated: bool
    ) -> None:
        query = ask()
        flags = b"\x82\x80" if truncated else b"\x80\x80"
        data = b"\0\7" + flags + b"\0\1" + tail[:6].ljust(6, b"\0") + query.question + tail[6:]
        try:
            what = read_body(data, query)
        except BadMessage:
            return
        room = max(most_bytes, wire.HEADER_BYTES + len(query.question))
        assert len(relay(what, query, room, age_seconds=age_seconds)) <= room


class TestKeptSeconds:
    def test_are_the_least_ttl(self) -> None:
        assert body("example.org 60 A 192.0.2.1", "example.org 40 A 192.0.2.2").kept_seconds == 40
        assert body("example.org 999999 A 192.0.2.1").kept_seconds == MOST_KEPT_SECONDS
        assert body("example.org 0 A 192.0.2.1").kept_seconds == 0

    def test_a_ttl_with_the_highest_bit_is_none(self) -> None:
        data = message("example.org 60 A 192.0.2.1")
        assert read_body(data[:-10] + b"\x80\0\0\1" + data[-6:], ask()).kept_seconds == 0

    @pytest.mark.parametrize("rcode", [wire.NOERROR, wire.NXDOMAIN])
    @pytest.mark.parametrize(
        ("ttl", "minimum", "kept"), [(60, 30, 30), (30, 60, 30), (10**6, 10**6, MOST_NEGATIVE_SECONDS)]
    )
    def test_of_nothing_are_the_soas(self, rcode: int, ttl: int, minimum: int, kept: int) -> None:
        soa = (SOA.format(ttl=ttl, minimum=minimum),)
        assert body(authority=soa, rcode=rcode).kept_seconds == kept
        alias = body("example.org 20 CNAME other.org", authority=soa, rcode=rcode)
        assert alias.kept_seconds == min(20, kept)

    @pytest.mark.parametrize("rcode", [wire.NOERROR, wire.NXDOMAIN])
    def test_of_nothing_without_soa_are_none(self, rcode: int) -> None:
        assert body(rcode=rcode).kept_seconds == 0
        assert body("example.org 60 CNAME other.org", rcode=rcode).kept_seconds == 0

    def test_of_what_was_asked(self) -> None:
        assert body("example.org 60 CNAME a.org", qtype="CNAME").kept_seconds == 60
        assert body("example.org 60 CNAME a.org", "a.org 50 A 192.0.2.1").kept_seconds == 50
        assert body("example.org 60 A 192.0.2.1", qtype="ANY").kept_seconds == 60

    @pytest.mark.parametrize("rcode", [wire.SERVFAIL, wire.REFUSED, wire.FORMERR])
    def test_of_failures_are_none(self, rcode: int) -> None:
        assert body("example.org 60 A 192.0.2.1", rcode=rcode).kept_seconds == 0


class TestCache:
    def cache(self, most_entries: int = 3, stale_seconds: float = 100) -> ReplyCache:
        self.now = 1000.0
        return ReplyCache(most_entries=most_entries, stale_seconds=stale_seconds, clock=lambda: self.now)

    def test_a_key_is_name_type_class_do_and_cd(self) -> None:
        assert (
            cache_key(ask("a.ORG")) == cache_key(ask("A.org", edns=512)) == cache_key(ask("a.org", edns=4096))
        )
        others = [ask("b.org"), ask("a.org", "AAAA"), ask("a.org", edns=512, dnssec=True)]
        others.append(ask("a.org")._replace(flags=wire.CD))
        assert len({cache_key(each) for each in (ask("a.org"), *others)}) == 5
        # One label with a dot in it is another name than two.
        assert cache_key(ask("a.org")._replace(labels=(b"a.org",))) != cache_key(ask("a.org"))

    def test_is_found_until_its_time_counting_down_and_stale_for_a_while(self) -> None:
        cache, key = self.cache(), cache_key(ask())
        cache.keep(key, body("example.org 60 A 192.0.2.1"))

        def ttl() -> int:
            kept = cache.find(key)
            assert kept is not None
            (record,) = dnslib.DNSRecord.parse(kept.reply(ask(), 512, self.now)).rr
            return int(record.ttl)

        assert ttl() == 60
        self.now += 59.9
        assert ttl() == 1
        self.now += 0.1
        assert ttl() == 30, "past its time, as RFC 8767 has it"
        self.now += 99.9
        assert ttl() == 30
        self.now += 0.1
        assert cache.find(key) is None
        assert len(cache) == 0

    def test_the_one_asked_for_least_lately_gives_way(self) -> None:
        cache = self.cache(most_entries=3)
        keys = [cache_key(ask(f"n{number}.org")) for number in range(4)]
        for key in keys[:3]:
            cache.keep(key, body("example.org 60 A 192.0.2.1"))
        cache.find(keys[0])
        cache.keep(keys[3], body("example.org 60 A 192.0.2.1"))
        assert [cache.find(key) is not None for key in keys] == [True, False, True, True]

    def test_what_may_not_be_kept_still_replaces_what_was(self) -> None:
        cache, key = self.cache(), cache_key(ask())
        cache.keep(key, body("example.org 60 A 192.0.2.1"))
        cache.keep(key, body("example.org 0 A 192.0.2.2"))
        assert cache.find(key) is None

    def test_long_ones_and_with_no_room_none_are_kept(self) -> None:
        cache, key = self.cache(), cache_key(ask())
        long = [f"example.org 60 TXT {'x' * 250}" for _ in range(MOST_BODY_BYTES // 250)]
        cache.keep(key, body(*long, qtype="TXT"))
        assert cache.find(key) is None
        none = self.cache(most_entries=0)
        none.keep(key, body("example.org 60 A 192.0.2.1"))
        assert none.find(key) is None

    def test_one_reply_serves_clients_with_and_without_edns(self) -> None:
        kept = Kept(body("example.org 60 A 192.0.2.1", edns=dnslib.EDNS0()), 0, 60)
        assert dnslib.DNSRecord.parse(kept.reply(ask("eXample.org"), 512, 1)).ar == []
        parsed = dnslib.DNSRecord.parse(kept.reply(ask("exaMple.org", edns=1232), 1232, 1))
        assert (str(parsed.q.qname), len(parsed.ar)) == ("exaMple.org.", 1)
