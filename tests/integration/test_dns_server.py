"""The DNS server over real sockets, asked by dig, by dnslib and by hand."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import dnslib
import pytest

from discovery.catalog import Catalog, Instance, Service
from discovery.dns.server import DnsServer
from discovery.dns.settings import Address, DnsSettings
from discovery.dns.stats import Outcome
from discovery.errors import ConfigError
from tests.lab.dns import CATALOG, EDGE, dig, eventually, free_port, query, rcode, serving
from tests.lab.wait import until

SETTINGS = DnsSettings((("127.0.0.1", 0),), (EDGE,), upstreams=())


@pytest.fixture
def server() -> Iterator[DnsServer]:
    with serving(DnsServer(SETTINGS)) as server:
        yield server


@pytest.fixture
def address(server: DnsServer) -> Address:
    return server.addresses[0]


def exchange(address: Address, message: bytes, timeout_seconds: float = 10) -> bytes | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(timeout_seconds)
        client.sendto(message, address)
        try:
            return client.recv(65535)
        except TimeoutError:
            return None


def packed(name: str, qtype: str = "A") -> bytes:
    return bytes(dnslib.DNSRecord.question(name, qtype).pack())


def test_dig_finds_no_fault(address: Address) -> None:
    for arguments in (
        ("web.local",),
        ("+tcp", "web.local"),
        ("+edns", "+cookie", "WEB.local"),
        ("+dnssec", "web.local"),
    ):
        output = dig(address, *arguments)
        assert "status: NOERROR" in output
        assert f"A\t{EDGE}" in output
        assert "flags: qr aa rd ra" in output
        assert output.count("WARNING") == 1, "more than that .local is also mDNS's"
    assert "status: NXDOMAIN" in dig(address, "nosuch.local")
    assert "status: BADVERS" in dig(address, "+edns=1", "+noednsnegotiation", "web.local")


def test_dig_comes_back_over_tcp_for_what_is_too_long(address: Address) -> None:
    output = dig(address, "_many._tcp.local", "SRV")
    assert "Truncated" in output
    assert output.count("10-1-0-") >= 80


def test_the_same_question_again_gets_the_same_answer_under_its_own_id(
    server: DnsServer, address: Address
) -> None:
    for _ in range(3):
        record = dnslib.DNSRecord.question("wEb.local")
        reply = exchange(address, bytes(record.pack()))
        assert reply is not None
        parsed = dnslib.DNSRecord.parse(reply)
        assert parsed.header.id == record.header.id
        assert str(parsed.q.qname) == "wEb.local."
    assert server.stats.snapshot()[Outcome("A", "NOERROR", "local")] == 3


def test_a_new_catalog_is_answered_once_apply_has_returned(server: DnsServer, address: Address) -> None:
    assert rcode(query(address, "new.local")) == "NXDOMAIN"
    for revision in range(2, 30):
        gone, new = f"s{revision - 1}", f"s{revision}"
        server.apply(Catalog(revision, {**CATALOG.services, new: Service(new)}))
        assert rcode(query(address, f"{new}.local")) == "NOERROR"
        assert rcode(query(address, f"{gone}.local")) == "NXDOMAIN"
    (soa,) = query(address, "local", "SOA").rr
    assert soa.rdata.times[0] == 29


def test_no_name_is_denied_before_the_first_catalog() -> None:
    with serving(DnsServer(SETTINGS), catalog=None) as server:
        assert rcode(query(server.addresses[0], "web.local")) == "SERVFAIL"
        server.apply(CATALOG)
        assert rcode(query(server.addresses[0], "web.local")) == "NOERROR"


def test_garbage_gets_an_error_or_silence_and_the_next_is_answered(
    server: DnsServer, address: Address
) -> None:
    response = bytearray(packed("web.local"))
    response[2] |= 0x80
    for message in (b"", b"x", bytes(response), packed("web.local")[:11]):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(message, address)
    looped = b"\0\1\1\0\0\1\0\0\0\0\0\0" + b"\xc0\x0c\0\1\0\1"
    reply = exchange(address, looped)
    assert reply is not None
    assert reply[:4] + reply[4:] == b"\0\1\x81\x81" + b"\0" * 8
    eventually(lambda: server.stats.dropped == 4)
    assert rcode(query(address, "web.local")) == "NOERROR"


def test_a_name_outside_the_zone_without_any_upstream_is_servfail(address: Address) -> None:
    assert rcode(query(address, "example.org")) == "SERVFAIL"
    assert rcode(query(address, "example.org", tcp=True)) == "SERVFAIL"


def test_who_is_not_of_our_networks_is_refused() -> None:
    with serving(DnsServer(replace(SETTINGS, networks=("10.0.0.0/8",)))) as server:
        reply = query(server.addresses[0], "web.local")
        assert (rcode(reply), reply.rr) == ("REFUSED", [])
        with socket.create_connection(server.addresses[0], timeout=10) as client:
            assert client.recv(10) == b""


def test_an_answer_already_made_is_refused_to_a_stranger_too() -> None:
    with serving(DnsServer(replace(SETTINGS, networks=("127.0.0.1/32",)))) as server:
        message = packed("web.local")
        for host, code in (("127.0.0.1", "NOERROR"), ("127.0.0.2", "REFUSED"), ("127.0.0.1", "NOERROR")):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(10)
                client.bind((host, 0))
                client.sendto(message, server.addresses[0])
                assert rcode(dnslib.DNSRecord.parse(client.recv(4096))) == code


def test_a_network_that_comes_up_later_may_ask() -> None:
    networks: list[str] = []
    with serving(DnsServer(SETTINGS, read_networks=lambda: tuple(networks))) as server:
        assert rcode(query(server.addresses[0], "web.local")) == "REFUSED"
        networks.append("127.0.0.0/8")
        eventually(lambda: rcode(query(server.addresses[0], "web.local")) == "NOERROR")


def test_ipv6() -> None:
    settings = DnsSettings((("::1", 0), ("127.0.0.1", 0)), (EDGE, "fd00::42"), upstreams=())
    with serving(DnsServer(settings)) as server:
        for address in server.addresses:
            assert str(query(address, "web.local", "AAAA").rr[0].rdata) == "fd00::42"
            assert str(query(address, "web.local", tcp=True).rr[0].rdata) == EDGE


@pytest.mark.parametrize(("wildcard", "asked"), [("0.0.0.0", "127.0.0.77"), ("::", "::1")])
def test_bound_to_every_address_it_replies_from_the_one_that_was_asked(wildcard: str, asked: str) -> None:
    with serving(DnsServer(replace(SETTINGS, listen=((wildcard, 0),)))) as server:
        port = server.addresses[0][1]
        with socket.socket(socket.AF_INET6 if ":" in asked else socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.sendto(packed("web.local"), (asked, port))
            assert client.recvfrom(4096)[1][:2] == (asked, port)


def test_an_address_that_nobody_has_yet_can_be_bound() -> None:
    server = DnsServer(replace(SETTINGS, listen=(("192.0.2.53", 0), ("2001:db8::53", 0))))
    server.start()
    server.close()


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_port_in_use_is_a_clear_error_and_leaves_nothing_bound(kind: socket.SocketKind) -> None:
    port, free = free_port(), free_port()
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind(("127.0.0.1", port))
        if kind == socket.SOCK_STREAM:
            other.listen()
        server = DnsServer(replace(SETTINGS, listen=(("127.0.0.1", free), ("127.0.0.1", port))))
        with pytest.raises(ConfigError, match=f"127.0.0.1 port {port} is in use") as caught:
            server.start()
        assert caught.value.setting == "dns.listen"
        assert caught.value.mend
    with serving(DnsServer(replace(SETTINGS, listen=(("127.0.0.1", free),)))):
        pass


class TestTcp:
    @staticmethod
    def connect(address: Address) -> socket.socket:
        client = socket.create_connection(address, timeout=10)
        client.settimeout(10)
        return client

    @staticmethod
    def framed(message: bytes) -> bytes:
        return len(message).to_bytes(2, "big") + message

    @staticmethod
    def read(client: socket.socket) -> dnslib.DNSRecord | None:
        stream = client.makefile("rb")
        length = stream.read(2)
        return dnslib.DNSRecord.parse(stream.read(int.from_bytes(length, "big"))) if length else None

    def test_several_queries_on_one_connection(self, address: Address) -> None:
        with self.connect(address) as client:
            for name in ("web.local", "nosuch.local", "idle.local"):
                client.sendall(self.framed(packed(name)))
                reply = self.read(client)
                assert reply is not None
                assert str(reply.q.qname) == f"{name}."

    def test_a_thousand_at_once_in_pieces_and_a_closed_half(self, address: Address) -> None:
        stream = b"".join(
            self.framed(packed("example.org" if number % 3 else "_many._tcp.local", "SRV"))
            for number in range(1000)
        )
        replies: list[int] = []

        def read(client: socket.socket) -> None:
            with client.makefile("rb") as reader:
                while length := reader.read(2):
                    replies.append(len(reader.read(int.from_bytes(length, "big"))))

        with self.connect(address) as client:
            reader = threading.Thread(target=read, args=(client,))
            reader.start()
            for begin in range(0, len(stream), 777):
                client.sendall(stream[begin : begin + 777])
            client.shutdown(socket.SHUT_WR)
            reader.join(30)
        assert len(replies) == 1000

    def test_nonsense_ends_the_connection(self, address: Address) -> None:
        with self.connect(address) as client:
            client.sendall(b"\0\3abc")
            assert client.recv(10) == b""

    def test_too_many_connections_end_the_one_idle_longest(self, address: Address) -> None:
        clients = [self.connect(address) for _ in range(101)]
        try:
            assert clients[0].recv(10) == b""
            clients[-1].sendall(self.framed(packed("web.local")))
            assert self.read(clients[-1]) is not None
        finally:
            for client in clients:
                client.close()

    def test_an_idle_connection_is_ended(self) -> None:
        now = [0.0]
        with (
            serving(DnsServer(SETTINGS, clock=lambda: now[0])) as server,
            self.connect(server.addresses[0]) as client,
        ):
            client.sendall(self.framed(packed("web.local")))
            assert self.read(client) is not None
            client.settimeout(0.1)

            def is_ended() -> bool:
                # More than once: the server may note the time of its answer after it was sent.
                now[0] += 30.0
                try:
                    return client.recv(10) == b""
                except TimeoutError:
                    return False

            until(is_ended, "the connection is ended")


def test_instances_that_share_nothing_with_the_old_catalog_are_answered(
    server: DnsServer, address: Address
) -> None:
    moved = Service("web", instances=(Instance("a", "10.9.9.9", 1),))
    server.apply(Catalog(2, {"web": moved}))
    assert str(query(address, "_web._tcp.local", "SRV").ar[0].rdata) == "10.9.9.9"


def test_a_thread_that_meets_a_bug_ends_the_role_with_it() -> None:
    """The process is then started afresh; deaf, it would not be."""
    calls: list[int] = []

    def read_networks() -> tuple[str, ...]:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("a bug")
        return ("10.0.0.0/8",)

    server = DnsServer(SETTINGS, read_networks=read_networks)
    server.start()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            server.run(threading.Event())
        except RuntimeError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        while thread.is_alive():
            client.sendto(b"0" * 20, server.addresses[0])
            thread.join(0.05)
    server.close()
    assert [str(failure) for failure in failures] == ["a bug"]
