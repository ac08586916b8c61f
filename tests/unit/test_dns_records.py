from dataclasses import replace
from typing import Any

import dnslib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.catalog import Attributes, Instance, Service
from discovery.dns import wire
from discovery.dns.records import Zone
from discovery.dns.respond import Reply, refuse, respond
from discovery.dns.settings import DnsSettings
from discovery.dns.wire import Query
from discovery.errors import ConfigError

TAGGED = Attributes(tags=tuple("t" * length for length in range(1, 100)))
SERVICES = {
    "web": Service(
        "web",
        instances=(
            Instance("a", "10.0.0.1", 8000),
            Instance("b", "10.0.0.1", 8001, Attributes(weight=7, node="n", tags=("blue", "v1"))),
            Instance("c", "fd00::1", 8000, Attributes(tags=("v1", "é"), container="c", image="i")),
            Instance("d", "10.0.0.9", 8000, Attributes(draining=True)),
        ),
    ),
    "idle": Service("idle", "tcp", host_port=5432),
    "tagged": Service(
        "tagged", instances=tuple(Instance(str(i), "10.0.0.1", i, TAGGED) for i in (1, 2)), host_port=65535
    ),
    "many": Service("many", instances=tuple(Instance(str(i), f"10.1.0.{i}", 80) for i in range(1, 41))),
}
LISTEN = (("127.0.0.1", 53),)


def zone(
    answer: tuple[str, ...] = ("172.17.42.1",), zone: str = "local", serial: int = 42, **settings: Any
) -> Zone:
    return Zone(DnsSettings(LISTEN, answer, zones=(zone,), **settings), SERVICES, serial)


def ask(
    name: str,
    qtype: str = "A",
    *,
    of: Zone | None = None,
    edns: bool = False,
    stream: bool = False,
    **header: int,
) -> dnslib.DNSRecord:
    record = dnslib.DNSRecord.question(name, qtype)
    for field, value in header.items():
        setattr(record.header, field, value)
    if edns:
        record.add_ar(dnslib.EDNS0(udp_len=4096))
    reply = respond(of or zone(), bytes(record.pack()), stream=stream)
    assert isinstance(reply, Reply), "not answered here"
    parsed = dnslib.DNSRecord.parse(reply.message)
    assert parsed.header.id == record.header.id
    assert (parsed.header.qr, parsed.header.ra) == (1, 1)
    return parsed


def data(records: list[dnslib.RR]) -> list[str]:
    return [f"{dnslib.QTYPE[each.rtype]} {each.rdata}" for each in records]


def assert_nothing(reply: dnslib.DNSRecord, rcode: str, zone: str = "local.") -> None:
    assert dnslib.RCODE[reply.header.rcode] == rcode
    assert reply.header.aa == 1
    assert reply.rr == []
    (soa,) = reply.auth
    assert (str(soa.rname), soa.rtype, soa.ttl, soa.rdata.times[4]) == (zone, wire.SOA, 5, 5)


@pytest.mark.parametrize("name", ["web.local", "WEB.Local", "idle.local", "ns.local"])
def test_a_service_is_the_edge_with_or_without_instances(name: str) -> None:
    reply = ask(name)
    assert data(reply.rr) == ["A 172.17.42.1"]
    assert str(reply.rr[0].rname) == name + "."
    assert (reply.rr[0].ttl, reply.header.aa, reply.header.rcode) == (5, 1, 0)


@pytest.mark.parametrize("qtype", ["AAAA", "MX", "PTR", "SRV", "NS", "SOA", "HTTPS", "TYPE65280"])
def test_a_known_name_answers_every_type(qtype: str) -> None:
    assert_nothing(ask("web.local", qtype), "NOERROR")


def test_an_edge_with_ipv6_answers_both() -> None:
    both = zone(answer=("172.17.42.1", "172.17.42.2", "fd00::42"))
    assert data(ask("web.local", of=both).rr) == ["A 172.17.42.1", "A 172.17.42.2"]
    assert data(ask("web.local", "AAAA", of=both).rr) == ["AAAA fd00::42"]
    assert_nothing(ask("web.local", of=zone(answer=("fd00::42",))), "NOERROR")


@pytest.mark.parametrize(
    "name",
    [
        "nosuch.local",
        "x.web.local",
        "10-0-0-2.web.local",
        "10-0-0-01.web.local",
        "a.b.web.local",
        "_nosuch._tcp.local",
        "_nosuch._udp.local",
        "_web._sctp.local",
        "x._web._tcp.local",
        "\\195\\164.local",
    ],
)
def test_an_unknown_name_is_no_name(name: str) -> None:
    for qtype in ("A", "AAAA", "SRV"):
        assert_nothing(ask(name, qtype), "NXDOMAIN")


def test_srv_names_the_instances_that_are_not_draining() -> None:
    reply = ask("_web._tcp.local", "SRV")
    assert data(reply.rr) == [
        "SRV 0 1 8000 10-0-0-1.web.local.",
        "SRV 0 7 8001 10-0-0-1.web.local.",
        "SRV 0 1 8000 fd00-0000-0000-0000-0000-0000-0000-0001.web.local.",
    ]
    assert data(reply.ar) == ["A 10.0.0.1", "AAAA fd00::1"]
    assert {str(each.rname) for each in reply.ar} == {str(each.rdata.target) for each in reply.rr}


def test_the_targets_of_srv_resolve() -> None:
    v6 = "fd00-0000-0000-0000-0000-0000-0000-0001.web.local"
    assert data(ask("10-0-0-1.web.local").rr) == ["A 10.0.0.1"]
    assert data(ask("FD00" + v6[4:], "AAAA").rr) == ["AAAA fd00::1"]
    assert_nothing(ask("10-0-0-1.web.local", "AAAA"), "NOERROR")
    # A zone index (RFC 4007, 11) makes an address of it for Python, but is none of an instance's.
    for label in ("--%a", "fe80--1%a", "fe80--1%", "%"):
        assert_nothing(ask(f"{label}.web.local"), "NXDOMAIN")
    assert_nothing(ask(v6), "NOERROR")


def test_the_names_of_srv_are_nodata_where_they_have_no_record() -> None:
    assert_nothing(ask("_web._tcp.local", "A"), "NOERROR")
    assert_nothing(ask("_idle._tcp.local", "SRV"), "NOERROR")
    for qtype in ("SRV", "A", "TXT"):
        for name in ("_tcp.local", "_udp.local", "_web._udp.local"):
            assert_nothing(ask(name, qtype), "NOERROR")


def test_srv_that_does_not_fit_sheds_addresses_then_says_tc_and_is_whole_over_tcp() -> None:
    small, large = ask("_many._tcp.local", "SRV"), ask("_many._tcp.local", "SRV", edns=True)
    assert (small.header.tc, len(small.rr)) == (1, 12)
    assert (large.header.tc, len(large.rr)) == (1, 29)
    whole = ask("_many._tcp.local", "SRV", stream=True)
    assert (whole.header.tc, len(whole.rr), len(whole.ar)) == (0, 40, 40)


def test_the_apex() -> None:
    soa = ask("local", "SOA")
    assert data(soa.rr) == ["SOA ns.local. hostmaster.local. 42 3600 600 86400 5"]
    ns = ask("LOCAL", "NS")
    assert data(ns.rr) == ["NS ns.local."]
    assert data(ns.ar) == ["A 172.17.42.1"]
    assert_nothing(ask("local", "A"), "NOERROR")
    assert_nothing(ask("local", "AAAA"), "NOERROR")


@pytest.mark.parametrize("name", ["local", "web.local", "_web._tcp.local", "10-0-0-1.web.local"])
def test_any_gets_one_small_record(name: str) -> None:
    (record,) = ask(name, "ANY").rr
    assert record.rtype == wire.HINFO
    assert bytes(record.rdata.data) == b"\x07RFC8482\x00"


def test_wildcard_answers_every_name() -> None:
    every = zone(wildcard=True)
    for name in ("local", "nosuch.local", "a.b.c.local", "_x._tcp.local", "x.web.local"):
        assert data(ask(name, of=every).rr) == ["A 172.17.42.1"]
        assert_nothing(ask(name, "AAAA", of=every), "NOERROR")
    assert len(ask("_web._tcp.local", "SRV", of=every).rr) == 3
    assert data(ask("10-0-0-1.web.local", of=every).rr) == ["A 10.0.0.1"]


def test_names_below_a_service_are_the_edge_where_the_settings_say_so() -> None:
    below = zone(subdomains=True)
    for name in ("x.web.local", "a.b.Web.local", "_tcp.web.local"):
        assert data(ask(name, of=below).rr) == ["A 172.17.42.1"]
        assert_nothing(ask(name, "TXT", of=below), "NOERROR")
    for name in ("x.nosuch.local", "x.ns.local", "x._web._tcp.local"):
        assert_nothing(ask(name, of=below), "NXDOMAIN")
    assert data(ask("10-0-0-1.web.local", of=below).rr) == ["A 10.0.0.1"]
    assert data(ask("10-0-0-2.web.local", of=below).rr) == ["A 172.17.42.1"]


def test_txt_tells_what_clients_may_know() -> None:
    def texts(name: str) -> list[str]:
        (record,) = ask(name, "TXT").rr
        return [text.decode() for text in record.rdata.data]

    assert texts("web.local") == ["scheme=http", "tags=blue,v1,é"]
    assert texts("idle.local") == ["scheme=tcp", "host_port=5432"]
    assert_nothing(ask("ns.local", "TXT"), "NOERROR")
    assert_nothing(ask("local", "TXT"), "NOERROR")


def test_txt_is_bounded_by_whole_tags() -> None:
    (record,) = ask("tagged.local", "TXT").rr
    scheme, port, tags = record.rdata.data
    assert (scheme, port) == (b"scheme=http", b"host_port=65535")
    assert 190 < len(tags) <= 205
    assert tags.removeprefix(b"tags=").split(b",") == [b"t" * n for n in range(1, 19)]


def test_the_longest_txt_fits_without_edns() -> None:
    suffix, name = ".".join(["z" * 49] * 3), "n" * 63
    services = {name: replace(SERVICES["tagged"], name=name)}
    longest = Zone(DnsSettings(LISTEN, ("172.17.42.1",), zones=(suffix,)), services)
    reply = ask(f"{name}.{suffix}", "TXT", of=longest)
    assert (reply.header.tc, len(reply.rr)) == (0, 1)


def test_negative_answers_have_a_ttl_of_their_own() -> None:
    short = zone(ttl_seconds=300, negative_ttl_seconds=2)
    assert ask("web.local", of=short).rr[0].ttl == 300
    assert ask("local", "SOA", of=short).rr[0].ttl == 300
    for name, qtype in (("nosuch.local", "A"), ("web.local", "AAAA"), ("1.0.0.10.in-addr.arpa", "PTR")):
        (soa,) = ask(name, qtype, of=short).auth
        assert (soa.ttl, soa.rdata.times[4]) == (2, 2)


class TestSeveralZones:
    BOTH = Zone(
        DnsSettings(LISTEN, ("172.17.42.1",), zones=("local", "Svc.example.org.", "in.local")), SERVICES
    )

    @pytest.mark.parametrize("suffix", ["local", "svc.example.org", "in.local"])
    def test_have_the_same_names(self, suffix: str) -> None:
        assert data(ask(f"web.{suffix}", of=self.BOTH).rr) == ["A 172.17.42.1"]
        assert_nothing(ask(f"nosuch.{suffix}", of=self.BOTH), "NXDOMAIN", f"{suffix}.")
        assert str(ask(suffix, "SOA", of=self.BOTH).rr[0].rdata.mname) == "ns.local."
        srv = ask(f"_web._tcp.{suffix}", "SRV", of=self.BOTH)
        assert str(srv.rr[0].rdata.target) == f"10-0-0-1.web.{suffix}."
        assert data(ask(f"10-0-0-1.web.{suffix}", of=self.BOTH).rr) == ["A 10.0.0.1"]

    def test_others_are_not_ours(self) -> None:
        for name in ("example.org", "web.example.org"):
            question = bytes(dnslib.DNSRecord.question(name).pack())
            assert isinstance(respond(self.BOTH, question, stream=False), Query)


class TestNamesOfAddresses:
    OURS = "1.42.17.172.in-addr.arpa"

    def test_the_edges_address_is_the_name_server(self) -> None:
        assert data(ask(self.OURS.upper(), "PTR").rr) == ["PTR ns.local."]
        assert data(ask("ns.local").rr) == ["A 172.17.42.1"]
        six = "2.4." + "0." * 28 + "d.f.ip6.arpa"
        assert data(ask(six, "PTR", of=zone(answer=("fd00::42",))).rr) == ["PTR ns.local."]
        assert_nothing(ask(self.OURS, "A"), "NOERROR", self.OURS + ".")
        assert_nothing(ask("x." + self.OURS, "PTR"), "NXDOMAIN", self.OURS + ".")

    @pytest.mark.parametrize(
        ("name", "of"),
        [
            ("1.0.0.10.in-addr.arpa", "10.in-addr.arpa"),
            ("1.2.16.172.in-addr.arpa", "16.172.in-addr.arpa"),
            ("1.2.31.172.in-addr.arpa", "31.172.in-addr.arpa"),
            ("1.2.168.192.in-addr.arpa", "168.192.in-addr.arpa"),
            ("1.2.64.100.in-addr.arpa", "64.100.in-addr.arpa"),
            ("1.0.0.127.in-addr.arpa", "127.in-addr.arpa"),
            ("1.0.254.169.in-addr.arpa", "254.169.in-addr.arpa"),
            ("1." + "0." * 29 + "d.f.ip6.arpa", "d.f.ip6.arpa"),
            ("1." + "0." * 28 + "9.e.f.ip6.arpa", "9.e.f.ip6.arpa"),
        ],
    )
    def test_of_private_networks_stay_here(self, name: str, of: str) -> None:
        assert_nothing(ask(name, "PTR"), "NXDOMAIN", of + ".")
        assert_nothing(ask(of, "PTR"), "NOERROR", of + ".")
        assert data(ask(of, "NS").rr) == ["NS ns.local."]
        assert ask(of, "SOA").rr[0].rtype == wire.SOA
        question = bytes(dnslib.DNSRecord.question(name, "PTR").pack())
        assert isinstance(respond(zone(forward_private=True), question, stream=False), Query)

    @pytest.mark.parametrize(
        "name",
        [
            "8.8.8.8.in-addr.arpa",
            "1.2.15.172.in-addr.arpa",
            "1.2.32.172.in-addr.arpa",
            "1.2.128.100.in-addr.arpa",
            "168.192.in-addr.arpa.example.org",
            "1.c.f.ip6.arpa",
            "168.in-addr.arpa",
            "arpa",
        ],
    )
    def test_of_the_world_are_asked_of_it(self, name: str) -> None:
        question = bytes(dnslib.DNSRecord.question(name, "PTR").pack())
        assert isinstance(respond(zone(), question, stream=False), Query)

    def test_of_a_domain_with_an_upstream_are_asked_there(self) -> None:
        there = zone(domain_upstreams=(("2.10.in-addr.arpa", (("192.0.2.1", 53),)),))
        inside = bytes(dnslib.DNSRecord.question("1.3.2.10.in-addr.arpa", "PTR").pack())
        assert isinstance(respond(there, inside, stream=False), Query)
        assert_nothing(ask("1.3.3.10.in-addr.arpa", "PTR", of=there), "NXDOMAIN", "10.in-addr.arpa.")


def test_a_zone_with_one_service_changed_costs_nothing_that_grows() -> None:
    """Its mapping is used as it is: whoever changes it makes a new one."""
    assert zone().services is SERVICES


def test_a_zone_of_several_labels() -> None:
    deep = zone(zone=".Svc.Example.org.")
    assert data(ask("web.svc.example.org", of=deep).rr) == ["A 172.17.42.1"]
    assert_nothing(ask("nosuch.svc.example.org", of=deep), "NXDOMAIN", "svc.example.org.")
    assert_nothing(ask("svc.example.org", of=deep), "NOERROR", "svc.example.org.")


@pytest.mark.parametrize("name", ["example.org", "local.org", "web.notlocal", "web.local.example.org", "."])
def test_other_names_are_not_of_the_zone(name: str) -> None:
    data = bytes(dnslib.DNSRecord.question(name).pack())
    assert isinstance(respond(zone(), data, stream=False), Query)


def test_a_label_that_ends_like_the_zone_is_not_of_the_zone() -> None:
    message = b"\0\1\1\0\0\1\0\0\0\0\0\0" + b"\x07x\x05local\0" + b"\0\1\0\1"
    query = respond(zone(), message, stream=False)
    assert isinstance(query, Query)
    assert query.labels == (b"x\x05local",)


@pytest.mark.parametrize("qtype", ["A", "SRV", "AXFR", "ANY"])
@pytest.mark.parametrize("name", ["local", "_kerberos._udp.local", "_x.local"])
def test_the_zone_is_never_forwarded(name: str, qtype: str) -> None:
    data = bytes(dnslib.DNSRecord.question(name, qtype).pack())
    assert isinstance(respond(zone(), data, stream=False), Reply)


def test_before_the_services_are_known_no_name_is_denied() -> None:
    unread = Zone(DnsSettings(LISTEN, ("172.17.42.1",)), None)
    reply = ask("web.local", of=unread)
    assert (dnslib.RCODE[reply.header.rcode], reply.header.aa) == ("SERVFAIL", 0)


@pytest.mark.parametrize(
    ("qtype", "qclass", "rcode"),
    [
        ("AXFR", 1, "REFUSED"),
        ("IXFR", 1, "REFUSED"),
        ("A", 3, "REFUSED"),
        ("A", 255, "REFUSED"),
        ("OPT", 1, "FORMERR"),
    ],
)
@pytest.mark.parametrize("name", ["local", "web.local", "example.org"])
def test_what_is_not_answered_is_said(name: str, qtype: str, qclass: int, rcode: str) -> None:
    record = dnslib.DNSRecord(q=dnslib.DNSQuestion(name, getattr(dnslib.QTYPE, qtype), qclass))
    reply = respond(zone(), bytes(record.pack()), stream=True)
    assert isinstance(reply, Reply)
    assert dnslib.RCODE[dnslib.DNSRecord.parse(reply.message).header.rcode] == rcode


def test_an_edns_version_we_do_not_speak() -> None:
    record = dnslib.DNSRecord.question("web.local")
    record.add_ar(dnslib.EDNS0(version=1))
    reply = respond(zone(), bytes(record.pack()), stream=False)
    assert isinstance(reply, Reply)
    assert reply.rcode == wire.BADVERS
    (opt,) = dnslib.DNSRecord.parse(reply.message).ar
    assert opt.ttl >> 24 == 1


@given(st.binary(max_size=100), st.sampled_from([b"", b"\x03web\x05local\0\0\xff\0\1", b"\5local\0\0\6\0\1"]))
def test_no_message_raises_or_is_answered_with_more_than_it_can_take(tail: bytes, question: bytes) -> None:
    for data in (
        tail,
        b"\0\1\1\0\0\1\0\0\0\0\0\0" + question + tail,
        b"\0\1\1\0\0\1\0\0\0\0\0\1" + question + tail,
    ):
        reply = respond(zone(), data, stream=False)
        if isinstance(reply, Reply):
            assert len(reply.message) <= 1232
            assert reply.message[:2] == data[:2]
        refused = refuse(data)
        assert refused is None or len(refused.message) <= len(data)


def test_a_refusal_is_no_longer_than_the_question() -> None:
    record = dnslib.DNSRecord.question("web.local")
    record.add_ar(dnslib.EDNS0())
    message = bytes(record.pack())
    reply = refuse(message)
    assert reply is not None
    assert len(reply.message) <= len(message)
    assert dnslib.DNSRecord.parse(reply.message).header.rcode == wire.REFUSED
    assert refuse(b"garbage") is None


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"listen": ()}, "dns.listen"),
        ({"listen": (("docker0", 53),)}, "dns.listen"),
        ({"listen": (("127.0.0.1", 65536),)}, "dns.listen"),
        ({"answer": ()}, "dns.answer"),
        ({"answer": ("0.0.0.0",)}, "dns.answer"),
        ({"zones": ("lo cal",)}, "dns.zone"),
        ({"zones": ("",)}, "dns.zone"),
        ({"zones": ("local", "a" * 64)}, "dns.zone"),
        ({"ttl_seconds": -1}, "dns.ttl_seconds"),
        ({"upstreams": (("resolver", 53),)}, "dns.upstream"),
        ({"upstreams": (("127.0.0.1", 0),)}, "dns.upstream"),
        ({"upstreams": LISTEN}, "dns.upstream"),
        ({"upstreams": (("0.0.0.0", 53),)}, "dns.upstream"),
        ({"domain_upstreams": (("corp", (("resolver", 53),)),)}, "dns.upstream"),
        ({"domain_upstreams": (("cor p", (("10.0.0.1", 53),)),)}, "dns.upstream"),
        ({"domain_upstreams": (("x.LOCAL", (("10.0.0.1", 53),)),)}, "dns.upstream"),
        ({"domain_upstreams": (("corp", LISTEN),)}, "dns.upstream"),
        ({"zones": ()}, "dns.zone"),
        ({"negative_ttl_seconds": -1}, "dns.negative_ttl_seconds"),
        ({"stale_seconds": -1}, "dns.stale_seconds"),
        ({"cache_entries": -1}, "dns.cache_entries"),
        ({"queries_per_second": 0}, "dns.queries_per_second"),
        ({"networks": ("10.0.0.1/8",)}, "dns.networks"),
        ({"listen": (("FD00::1", 53),), "upstreams": (("fd00:0::1", 53),)}, "dns.upstream"),
    ],
)
def test_settings_that_cannot_be_name_themselves(settings: dict[str, object], setting: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DnsSettings(**{"listen": LISTEN, "answer": ("10.0.0.1",), **settings})  # type: ignore[arg-type]
    assert caught.value.setting == setting
