"""Answers that are too long for UDP: ours, those of a real dnsmasq, and those kept from it."""

import socket
from collections.abc import Iterator

import dnslib
import pytest

from discovery.dns.server import DnsServer
from discovery.dns.settings import Address, DnsSettings
from tests.lab.dns import EDGE, dnsmasq, query, serving

SIZES = (None, 0, 512, 600, 900, 1232, 4096, 65535)
NAMES = {
    ("_many._tcp.local", "SRV"): 40,
    ("long.example.org", "TXT"): 30,
    ("many.example.org", "A"): 99,
}


@pytest.fixture(scope="module")
def address() -> Iterator[Address]:
    records = ["--local=/example.org/", "--local-ttl=300"]
    records += [f"--txt-record=long.example.org,{number:0100}" for number in range(30)]
    records += [f"--host-record=many.example.org,192.0.2.{number},300" for number in range(1, 100)]
    with (
        dnsmasq(*records) as upstream,
        serving(DnsServer(DnsSettings((("127.0.0.1", 0),), (EDGE,), upstreams=(upstream,)))) as server,
    ):
        yield server.addresses[0]


def over_udp(address: Address, name: str, qtype: str, size: int | None) -> bytes:
    record = dnslib.DNSRecord.question(name, qtype)
    if size is not None:
        record.add_ar(dnslib.EDNS0(udp_len=size))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.sendto(record.pack(), address)
        return client.recv(65535)


@pytest.mark.parametrize("kept", [False, True], ids=["asked", "kept"])
@pytest.mark.parametrize(("name", "qtype"), NAMES)
def test_no_answer_is_longer_than_the_client_takes_and_all_of_it_is_there_over_tcp(
    address: Address, name: str, qtype: str, kept: bool
) -> None:
    if kept:
        query(address, name, qtype, tcp=True)
    for size in SIZES:
        reply = over_udp(address, name, qtype, size)
        assert len(reply) <= min(max(size or 0, 512), 1232)
        parsed = dnslib.DNSRecord.parse(reply)
        assert parsed.header.tc == 1
        assert 0 < len(parsed.rr) < NAMES[name, qtype], "as many as fit"
    whole = query(address, name, qtype, tcp=True)
    assert (len(whole.rr), whole.header.tc) == (NAMES[name, qtype], 0)
