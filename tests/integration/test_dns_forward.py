"""Forwarding: real dnsmasq as upstream, and upstreams that misbehave in every way."""

import concurrent.futures
import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dnslib
import pytest

from discovery.dns.server import DnsServer
from discovery.dns.settings import Address, DnsSettings
from discovery.errors import ConfigError
from tests.lab.dns import (
    EDGE,
    Upstream,
    answer,
    dig,
    dnsmasq,
    eventually,
    free_port,
    query,
    rcode,
    resolv_conf,
    serving,
    silent,
)

SETTINGS = DnsSettings((("127.0.0.1", 0),), (EDGE,))
# The issue asks for an answer within 2 s; the rest is a busy machine's.
ANSWERED_SECONDS = 6.0


@contextlib.contextmanager
def forwarding(*upstreams: Address) -> Iterator[Address]:
    with serving(DnsServer(replace(SETTINGS, upstreams=upstreams))) as server:
        yield server.addresses[0]


def addresses(reply: dnslib.DNSRecord) -> list[str]:
    return [str(each.rdata) for each in reply.rr]


def test_dnsmasq_as_upstream() -> None:
    long = [f"--txt-record=long.example.org,{'x' * 250}" for _ in range(30)]
    records = [
        "--local=/example.org/",
        "--address=/host.example.org/192.0.2.7",
        "--cname=alias.example.org,real.example.org",
        *long,
    ]
    with (
        dnsmasq(*records, "--host-record=real.example.org,192.0.2.8") as upstream,
        forwarding(upstream) as address,
    ):
        assert addresses(query(address, "host.example.org")) == ["192.0.2.7"]
        assert addresses(query(address, "host.example.org", tcp=True)) == ["192.0.2.7"]
        assert "192.0.2.8" in addresses(query(address, "alias.example.org"))
        assert rcode(query(address, "real.example.org", "MX")) == "NOERROR"
        for arguments in (("+noedns",), ("+edns",), ("+bufsize=4096",), ("+tcp",)):
            output = dig(address, "long.example.org", "TXT", *arguments)
            assert output.count('xxx"') == 30, output
            assert ("Truncated" in output) == ("+tcp" not in arguments)
        assert query(address, "long.example.org", "TXT").header.tc == 1


def test_the_zone_is_never_asked_of_an_upstream() -> None:
    with Upstream(lambda message: [answer(message)]) as upstream, forwarding(upstream.address) as address:
        for name in ("nosuch.local", "local", "_x.local", "a.b.local"):
            for qtype in ("A", "AAAA", "SOA", "SRV"):
                query(address, name, qtype)
        assert upstream.asked == []
        assert addresses(query(address, "example.org")) == ["192.0.2.1"]
        assert len(upstream.asked) == 1


def test_the_id_and_the_port_of_every_question_are_new() -> None:
    with Upstream(lambda message: [answer(message)]) as upstream, forwarding(upstream.address) as address:
        for number in range(20):
            query(address, f"n{number}.example.org")
        assert len({message[:2] for message in upstream.asked}) > 15
        assert len({port for _, port in upstream.clients}) > 15


def test_forged_replies_are_passed_over() -> None:
    def forge(message: bytes) -> list[bytes]:
        wrong_id = bytes([message[0] ^ 1]) + answer(message, "203.0.113.1")[1:]
        other = bytes(dnslib.DNSRecord.question("example.net").pack())
        wrong_name = message[:2] + answer(other, "203.0.113.2")[2:]
        return [b"", message, wrong_id, wrong_name, answer(message)]

    with Upstream(forge) as upstream, forwarding(upstream.address) as address:
        assert addresses(query(address, "example.org")) == ["192.0.2.1"]
        assert len(upstream.asked) == 1


def test_equal_questions_share_one_exchange_each_under_its_own_id_and_case() -> None:
    def lag(message: bytes) -> list[bytes]:
        time.sleep(0.3)
        return [answer(message)]

    names = [f"{'e' if number % 2 else 'E'}xample.org" for number in range(20)]
    with (
        Upstream(lag) as upstream,
        forwarding(upstream.address) as address,
        concurrent.futures.ThreadPoolExecutor(20) as pool,
    ):
        replies = list(pool.map(lambda name: query(address, name), names))
        assert [str(reply.q.qname) for reply in replies] == [f"{name}." for name in names]
        assert all(addresses(reply) == ["192.0.2.1"] for reply in replies)
        assert len(upstream.asked) < 10


def test_a_dead_upstream_costs_one_try_and_is_then_asked_last() -> None:
    with (
        Upstream(silent) as dead,
        Upstream(lambda message: [answer(message)]) as alive,
        forwarding(dead.address, alive.address) as address,
    ):
        for number in range(5):
            assert addresses(query(address, f"n{number}.example.org")) == ["192.0.2.1"]
        assert len(dead.asked) < 3


def test_a_reply_to_the_first_try_counts_after_the_second_was_sent() -> None:
    def late(message: bytes) -> list[bytes]:
        time.sleep(1.2)
        return [answer(message)]

    with Upstream(late) as slow, Upstream(silent) as dead, forwarding(slow.address, dead.address) as address:
        assert addresses(query(address, "example.org")) == ["192.0.2.1"]
        assert len(dead.asked) == 1


@pytest.mark.parametrize("tcp", [False, True])
def test_dead_upstreams_are_servfail_in_time_and_local_names_unharmed(tcp: bool) -> None:
    with Upstream(silent) as dead, forwarding(dead.address) as address:
        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(query, address, f"n{n}.example.org", tcp=tcp) for n in range(8)]
            # Asked over and over while the others wait.
            while not all(each.done() for each in waiting):
                assert addresses(query(address, "web.local")) == [EDGE]
            assert {rcode(each.result()) for each in waiting} == {"SERVFAIL"}
        assert time.monotonic() - began < ANSWERED_SECONDS
        assert len(dead.asked) == 16


def test_a_client_that_has_closed_its_half_still_gets_the_answer_it_waits_for() -> None:
    def lag(message: bytes) -> list[bytes]:
        time.sleep(0.3)
        return [answer(message)]

    with Upstream(lag) as upstream, forwarding(upstream.address) as address:
        message = bytes(dnslib.DNSRecord.question("example.org").pack())
        with socket.create_connection(address, timeout=10) as client:
            client.sendall(len(message).to_bytes(2, "big") + message)
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as stream:
                assert addresses(dnslib.DNSRecord.parse(stream.read()[2:])) == ["192.0.2.1"]


def test_an_upstream_that_is_not_there_is_passed_by_at_once() -> None:
    nobody = ("127.0.0.1", free_port())
    with Upstream(lambda message: [answer(message)]) as alive, forwarding(nobody, alive.address) as address:
        assert addresses(query(address, "example.org")) == ["192.0.2.1"]
    with forwarding(nobody) as address:
        assert rcode(query(address, "example.org")) == "SERVFAIL"


@pytest.mark.parametrize("code", [dnslib.RCODE.REFUSED, dnslib.RCODE.SERVFAIL, dnslib.RCODE.FORMERR])
def test_a_refusal_sends_us_to_the_next_and_the_last_one_is_passed_on(code: int) -> None:
    with (
        Upstream(lambda message: [answer(message, rcode=code)]) as refusing,
        Upstream(lambda message: [answer(message)]) as willing,
    ):
        with forwarding(refusing.address, willing.address) as address:
            assert addresses(query(address, "example.org")) == ["192.0.2.1"]
        with forwarding(refusing.address) as address:
            assert rcode(query(address, "example.org")) == dnslib.RCODE[code]


def test_an_error_without_its_question_is_no_answer() -> None:
    with (
        Upstream(lambda message: [message[:2] + b"\x80\x01" + b"\0" * 8]) as broken,
        forwarding(broken.address) as address,
    ):
        assert rcode(query(address, "example.org")) == "SERVFAIL"


def test_nxdomain_is_an_answer() -> None:
    with (
        Upstream(lambda message: [answer(message, rcode=3)]) as upstream,
        forwarding(upstream.address) as address,
    ):
        assert rcode(query(address, "example.org")) == "NXDOMAIN"
        assert len(upstream.asked) == 1


def test_more_questions_than_the_bound_are_servfail_at_once() -> None:
    with Upstream(silent) as dead, forwarding(dead.address) as address:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            for number in range(600):
                client.sendto(dnslib.DNSRecord.question(f"n{number}.example.org").pack(), address)
            replies = [dnslib.DNSRecord.parse(client.recv(4096)) for _ in range(600)]
        assert {rcode(reply) for reply in replies} == {"SERVFAIL"}
        assert len({str(dnslib.DNSRecord.parse(message).q.qname) for message in dead.asked}) < 600


def test_an_upstream_that_leads_back_to_us_is_noticed_and_left_out() -> None:
    port = free_port()
    with dnsmasq(f"--server=127.0.0.1#{port}") as loop:
        settings = replace(SETTINGS, listen=(("127.0.0.1", port),), upstreams=(loop,))
        with serving(DnsServer(settings)) as server:
            eventually(lambda: server.stats.dropped == 1)  # the probe has come back
            assert rcode(query(server.addresses[0], "example.org")) == "SERVFAIL"
            assert sum(server.stats.snapshot().values()) == 1, "the question has come back"


class TestResolvConf:
    def test_is_followed_when_it_changes_and_kept_when_it_vanishes(self, tmp_path: Path) -> None:
        one, two = "--address=/x.example.org/192.0.2.1", "--address=/x.example.org/192.0.2.2"
        with on_port_53("127.0.53.1", one), on_port_53("127.0.53.2", two):
            path = resolv_conf(tmp_path, "127.0.53.1")
            with serving(DnsServer(SETTINGS, resolv_conf=path)) as server:
                address = server.addresses[0]
                assert addresses(query(address, "x.example.org")) == ["192.0.2.1"]
                resolv_conf(tmp_path, "127.0.53.2", "# and some more")
                eventually(lambda: addresses(query(address, "x.example.org")) == ["192.0.2.2"])
                path.unlink()
                for _ in range(25):
                    time.sleep(0.05)  # long enough to be read again
                    assert addresses(query(address, "x.example.org")) == ["192.0.2.2"]

    def test_without_one_other_names_are_servfail(self, tmp_path: Path) -> None:
        with serving(DnsServer(SETTINGS, resolv_conf=tmp_path / "none")) as server:
            assert rcode(query(server.addresses[0], "example.org")) == "SERVFAIL"

    def test_our_own_address_in_it_is_skipped(self, tmp_path: Path) -> None:
        path = resolv_conf(tmp_path, "127.0.53.3")
        settings = replace(SETTINGS, listen=(("127.0.53.3", 53),))
        with serving(DnsServer(settings, resolv_conf=path)) as server:
            assert rcode(query(("127.0.53.3", 53), "example.org")) == "SERVFAIL"
            assert sum(server.stats.snapshot().values()) == 1


def test_our_own_address_as_upstream_is_a_configuration_error() -> None:
    port = free_port()
    server = DnsServer(replace(SETTINGS, listen=(("0.0.0.0", port),), upstreams=(("127.0.0.1", port),)))
    with pytest.raises(ConfigError) as caught:
        server.start()
    assert caught.value.setting == "dns.upstream"


@contextlib.contextmanager
def on_port_53(host: str, *options: str) -> Iterator[None]:
    """resolv.conf can name no port."""
    with dnsmasq(*options, host=host, port=53):
        yield
