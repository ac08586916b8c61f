"""What upstreams have said is kept, and who is asked for what: over real sockets, with a clock to turn."""

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import dnslib
import pytest

from discovery.dns.server import DnsServer
from discovery.dns.settings import Address, DnsSettings
from tests.lab.dns import (
    EDGE,
    Upstream,
    answer,
    dnsmasq,
    eventually,
    query,
    rcode,
    resolv_conf,
    serving,
    silent,
)

SETTINGS = DnsSettings((("127.0.0.1", 0),), (EDGE,), upstreams=())
SOA = "example.org 60 SOA ns.example.org. mail.example.org. 1 2 3 4 20"


class Clock:
    """Time that runs, and can be turned on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@contextlib.contextmanager
def forwarding(*upstreams: Address, clock: Clock | None = None, **settings: object) -> Iterator[Address]:
    changed = replace(SETTINGS, upstreams=upstreams, **settings)  # type: ignore[arg-type]
    with serving(DnsServer(changed, clock=clock or Clock())) as server:
        yield server.addresses[0]


def only(reply: dnslib.DNSRecord) -> tuple[str, int]:
    (record,) = reply.rr
    return str(record.rdata), record.ttl


def nothing(message: bytes, code: int, soa: bool = True) -> list[bytes]:
    reply = dnslib.DNSRecord.parse(message).reply()
    reply.header.rcode = code
    if soa:
        reply.add_auth(*dnslib.RR.fromZone(SOA))
    return [bytes(reply.pack())]


class Switch:
    """An upstream's mind: what it does, changed while it runs."""

    def __init__(self) -> None:
        self.reply = lambda message: [answer(message)]

    def __call__(self, message: bytes) -> Sequence[bytes]:
        return self.reply(message)


class TestKept:
    def test_an_answer_serves_all_for_its_ttl_and_counts_down(self) -> None:
        clock = Clock()
        with (
            Upstream(lambda message: [answer(message)]) as upstream,
            forwarding(upstream.address, clock=clock) as address,
        ):
            assert only(query(address, "example.org")) == ("192.0.2.1", 60)
            clock.ahead = 20.0
            for name, tcp in (("eXample.org", False), ("example.ORG", True)):
                reply = query(address, name, tcp=tcp)
                assert str(reply.q.qname) == f"{name}."
                assert only(reply)[0] == "192.0.2.1"
                assert 30 <= only(reply)[1] <= 40
            assert len(upstream.asked) == 1
            clock.ahead = 61.0
            assert only(query(address, "example.org")) == ("192.0.2.1", 60)
            assert len(upstream.asked) == 2

    def test_is_by_type_and_by_dnssec(self) -> None:
        with (
            Upstream(lambda message: [answer(message)]) as upstream,
            forwarding(upstream.address) as address,
        ):
            for _ in range(2):
                for flags in ("", "do"):
                    record = dnslib.DNSRecord.question("example.org")
                    record.add_ar(dnslib.EDNS0(udp_len=1232, flags=flags))
                    reply = dnslib.DNSRecord.parse(record.send(*address, timeout=10))
                    assert [each.rtype for each in reply.ar] == [41]
                query(address, "example.org", "TXT")
            wanted = [dnslib.DNSRecord.parse(message) for message in upstream.asked]
            # The answer to TXT holds none, and no SOA that tells how long that is so.
            assert [(each.q.qtype, each.ar[0].edns_do) for each in wanted] == [
                (1, 0),
                (1, 1),
                (16, 0),
                (16, 0),
            ]

    @pytest.mark.parametrize("code", [dnslib.RCODE.NOERROR, dnslib.RCODE.NXDOMAIN])
    def test_that_there_is_nothing_for_as_long_as_the_soa_says(self, code: int) -> None:
        clock = Clock()
        with (
            Upstream(lambda message: nothing(message, code)) as upstream,
            forwarding(upstream.address, clock=clock) as address,
        ):
            for _ in range(3):
                reply = query(address, "none.example.org")
                assert (reply.header.rcode, len(reply.auth)) == (code, 1)
            assert len(upstream.asked) == 1
            clock.ahead = 21.0
            query(address, "none.example.org")
            assert len(upstream.asked) == 2

    def test_nothing_that_failed_or_has_no_soa(self) -> None:
        replies = [
            lambda message: [answer(message, rcode=2)],
            lambda message: nothing(message, 3, soa=False),
            lambda message: [answer(message, tc=1)],
        ]
        for reply in replies:
            with Upstream(reply) as upstream, forwarding(upstream.address) as address:
                for asked in (1, 2):
                    query(address, "example.org")
                    assert len({message[:2] for message in upstream.asked}) >= asked

    def test_nothing_that_was_said_without_looking_further(self) -> None:
        with Upstream(lambda message: [answer(message)]) as upstream, forwarding(upstream.address) as address:
            record = dnslib.DNSRecord.question("example.org")
            record.header.rd = 0
            for asked in (1, 2):
                assert only(dnslib.DNSRecord.parse(record.send(*address, timeout=10)))[0] == "192.0.2.1"
                assert len(upstream.asked) == asked
            assert only(query(address, "example.org"))[0] == "192.0.2.1"
            record.send(*address, timeout=10)
            assert len(upstream.asked) == 3, "what is known is told to whoever asks for no more"

    def test_from_dnsmasq(self) -> None:
        with (
            dnsmasq("--host-record=a.example.org,192.0.2.7", "--local-ttl=300") as upstream,
            forwarding(upstream) as address,
        ):
            assert only(query(address, "a.example.org")) == ("192.0.2.7", 300)
            before = dnsmasq_queries(upstream)
            for _ in range(20):
                assert only(query(address, "a.example.org"))[0] == "192.0.2.7"
            assert dnsmasq_queries(upstream) == before + 1, "more than that it was asked this"

    def test_not_at_all_if_there_is_no_room(self) -> None:
        with (
            Upstream(lambda message: [answer(message)]) as upstream,
            forwarding(upstream.address, cache_entries=0) as address,
        ):
            for _ in range(3):
                assert only(query(address, "example.org")) == ("192.0.2.1", 60)
            assert len(upstream.asked) == 3

    def test_no_longer_when_other_upstreams_are_listed(self, tmp_path: Path) -> None:
        one, two = (
            ["--host-record=x.example.org," + host, "--local-ttl=300"] for host in ("192.0.2.1", "192.0.2.2")
        )
        with dnsmasq(*one, host="127.0.53.5", port=53), dnsmasq(*two, host="127.0.53.6", port=53):
            path = resolv_conf(tmp_path, "127.0.53.5")
            settings = replace(SETTINGS, upstreams=None)
            with serving(DnsServer(settings, resolv_conf=path)) as server:
                address = server.addresses[0]
                assert only(query(address, "x.example.org"))[0] == "192.0.2.1"
                resolv_conf(tmp_path, "127.0.53.6", "# another network")
                eventually(lambda: only(query(address, "x.example.org"))[0] == "192.0.2.2")


class TestStale:
    def test_answers_while_no_upstream_does_and_gives_way_when_one_does(self) -> None:
        clock, mind = Clock(), Switch()
        with Upstream(mind) as upstream, forwarding(upstream.address, clock=clock) as address:
            assert only(query(address, "example.org")) == ("192.0.2.1", 60)
            mind.reply = silent
            clock.ahead = 61.0
            assert only(query(address, "example.org")) == ("192.0.2.1", 30)
            asked = len(upstream.asked)
            # Now it is known that none answers, and nobody waits any more.
            began = time.monotonic()
            for _ in range(20):
                assert only(query(address, "example.org")) == ("192.0.2.1", 30)
            assert time.monotonic() - began < 10, "each waited for the upstream"
            assert len(upstream.asked) <= asked + 20
            mind.reply = lambda message: [answer(message, "192.0.2.2")]
            eventually(lambda: only(query(address, "example.org")) == ("192.0.2.2", 60))

    @pytest.mark.parametrize("code", [dnslib.RCODE.SERVFAIL, dnslib.RCODE.REFUSED])
    def test_answers_while_the_upstream_cannot(self, code: int) -> None:
        clock, mind = Clock(), Switch()
        with Upstream(mind) as upstream, forwarding(upstream.address, clock=clock) as address:
            query(address, "example.org")
            mind.reply = lambda message: [answer(message, rcode=code)]
            clock.ahead = 61.0
            assert only(query(address, "example.org")) == ("192.0.2.1", 30)
            mind.reply = lambda message: nothing(message, dnslib.RCODE.NXDOMAIN)
            assert rcode(query(address, "example.org")) == "NXDOMAIN"

    def test_answers_before_an_upstream_that_is_slow_whose_word_counts_from_then_on(self) -> None:
        def late(message: bytes) -> list[bytes]:
            time.sleep(1.5)
            return [answer(message, "192.0.2.2")]

        clock, mind = Clock(), Switch()
        with (
            Upstream(mind) as upstream,
            Upstream(silent) as second,
            forwarding(upstream.address, second.address, clock=clock) as address,
        ):
            query(address, "example.org")
            mind.reply = late
            clock.ahead = 61.0
            assert only(query(address, "example.org")) == ("192.0.2.1", 30)
            eventually(lambda: only(query(address, "example.org"))[0] == "192.0.2.2")

    def test_ends(self) -> None:
        clock, mind = Clock(), Switch()
        with (
            Upstream(mind) as upstream,
            forwarding(upstream.address, clock=clock, stale_seconds=100) as address,
        ):
            query(address, "example.org")
            mind.reply = silent
            clock.ahead = 161.0
            assert rcode(query(address, "example.org")) == "SERVFAIL"


class TestDomains:
    def test_with_upstreams_of_their_own(self) -> None:
        corp = ["--host-record=db.corp.example,192.0.2.8", "--host-record=db.in.corp.example,192.0.2.8"]
        with (
            dnsmasq(*corp) as inner,
            dnsmasq("--host-record=db.in.corp.example,192.0.2.9") as innermost,
            Upstream(lambda message: [answer(message)]) as world,
            forwarding(
                world.address,
                domain_upstreams=(("corp.example", (inner,)), ("In.corp.example", (innermost,))),
            ) as address,
        ):
            assert only(query(address, "db.CORP.example"))[0] == "192.0.2.8"
            assert only(query(address, "db.in.corp.example"))[0] == "192.0.2.9"
            assert world.asked == []
            for name in ("notcorp.example", "corp.example.org", "example"):
                assert only(query(address, name))[0] == "192.0.2.1"
            assert len(world.asked) == 3

    def test_whose_upstream_is_dead_harm_no_others(self) -> None:
        with (
            Upstream(silent) as dead,
            Upstream(lambda message: [answer(message)]) as world,
            forwarding(world.address, domain_upstreams=(("corp.example", (dead.address,)),)) as address,
        ):
            assert rcode(query(address, "db.corp.example")) == "SERVFAIL"
            assert only(query(address, "example.org"))[0] == "192.0.2.1"
            assert len(world.asked) == 1


class TestNamesOfAddresses:
    PRIVATE = "9.0.0.10.in-addr.arpa"

    def test_of_private_networks_reach_no_upstream(self) -> None:
        with Upstream(lambda message: [answer(message)]) as upstream, forwarding(upstream.address) as address:
            for name in (self.PRIVATE, "1.0.168.192.in-addr.arpa", "1.0.31.172.in-addr.arpa"):
                assert rcode(query(address, name, "PTR")) == "NXDOMAIN"
            assert str(query(address, "1.42.17.172.in-addr.arpa", "PTR").rr[0].rdata) == "ns.local."
            assert upstream.asked == []
            query(address, "8.8.8.8.in-addr.arpa", "PTR")
            assert len(upstream.asked) == 1

    def test_do_where_the_settings_ask_for_it(self) -> None:
        with (
            dnsmasq("--ptr-record=9.0.0.10.in-addr.arpa,host.example.org") as upstream,
            forwarding(upstream, forward_private=True) as everything,
            forwarding(domain_upstreams=(("10.in-addr.arpa", (upstream,)),)) as one_network,
        ):
            for address in (everything, one_network):
                assert str(query(address, self.PRIVATE, "PTR").rr[0].rdata) == "host.example.org."


class TestEdns:
    def test_an_upstream_that_cannot_read_it_is_asked_without(self) -> None:
        def old(message: bytes) -> list[bytes]:
            has_edns = message[11] > 0
            return [message[:2] + b"\x81\x81" + b"\0" * 8] if has_edns else [answer(message)]

        with Upstream(old) as upstream, forwarding(upstream.address) as address:
            for number in range(5):
                assert only(query(address, f"n{number}.example.org"))[0] == "192.0.2.1"
            assert [message[11] for message in upstream.asked] == [1, 0, 0, 0, 0, 0]

    def test_an_answer_to_others_edns_reaches_a_client_without(self) -> None:
        def modern(message: bytes) -> list[bytes]:
            reply = dnslib.DNSRecord.parse(answer(message))
            reply.add_ar(dnslib.EDNS0(udp_len=4096))
            return [bytes(reply.pack())]

        with Upstream(modern) as upstream, forwarding(upstream.address) as address:
            assert query(address, "example.org").ar == []
            assert query(address, "example.org").ar == []
            assert len(upstream.asked) == 1


def test_a_broken_reply_sends_us_to_the_next_upstream() -> None:
    with (
        Upstream(lambda message: [answer(message)[:-3]]) as broken,
        Upstream(lambda message: [answer(message)]) as whole,
        forwarding(broken.address, whole.address) as address,
    ):
        assert only(query(address, "example.org"))[0] == "192.0.2.1"
        assert len(broken.asked) == 1


def test_several_zones_and_names_below_a_service() -> None:
    with forwarding(zones=("local", "svc.example.org"), subdomains=True) as address:
        for name in ("web.local", "web.svc.example.org", "x.web.local"):
            assert only(query(address, name)) == (EDGE, 5)
        assert rcode(query(address, "x.nosuch.local")) == "NXDOMAIN"


class TestRateLimit:
    def test_a_client_that_asks_too_much_gets_so_many_answers_and_others_theirs(self) -> None:
        clock = Clock()
        frozen = clock()
        settings = replace(SETTINGS, queries_per_second=20)
        with serving(DnsServer(settings, clock=lambda: frozen + clock.ahead)) as server:
            address = server.addresses[0]
            message = bytes(dnslib.DNSRecord.question("web.local").pack())
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as greedy:
                greedy.bind(("127.0.0.2", 0))
                greedy.settimeout(10)
                for _ in range(100):
                    greedy.sendto(message, address)
                eventually(lambda: server.stats.limited == 80)
                assert only(query(address, "web.local"))[0] == EDGE
                greedy.settimeout(0.2)
                received = 0
                with contextlib.suppress(TimeoutError):
                    while greedy.recv(4096):
                        received += 1
                assert received == 20
                clock.ahead = 1.0
                greedy.settimeout(10)
                greedy.sendto(message, address)
                assert greedy.recv(4096)


def dnsmasq_queries(address: Address) -> int:
    """How many questions it has answered from what it knows."""
    record = dnslib.DNSRecord(q=dnslib.DNSQuestion("hits.bind", dnslib.QTYPE.TXT, dnslib.CLASS.CH))
    reply = dnslib.DNSRecord.parse(record.send(*address, timeout=10))
    return int(str(reply.rr[0].rdata).strip('"'))


@pytest.mark.parametrize("listen", ["127.0.0.1", "0.0.0.0"])
def test_each_answer_is_timed_once_under_who_knew_it(listen: str) -> None:
    """A reply that was kept is still an upstream's."""
    with Upstream(lambda message: [answer(message)]) as upstream:
        changed = replace(SETTINGS, listen=((listen, 0),), upstreams=(upstream.address,))
        with serving(DnsServer(changed)) as server:
            address = "127.0.0.1", server.addresses[0][1]
            for _ in range(10):
                query(address, "web.local")
                query(address, "example.org")
            query(address, "web.local", tcp=True)
            eventually(
                lambda: (
                    {origin: sum(classes) for origin, classes in server.counts().latency.items()}
                    == {"local": 11, "forwarded": 10}
                )
            )
