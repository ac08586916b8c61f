import ipaddress
import socket
from pathlib import Path

import pytest

from discovery.dns.access import Access, own_interfaces, own_networks
from discovery.dns.limit import MOST_CLIENTS, RateLimit
from discovery.dns.resolvconf import ResolvConf, parse_resolv_conf
from discovery.dns.stats import Outcome, Stats


def test_the_nodes_own_networks_hold_loopback_and_every_address() -> None:
    networks = [ipaddress.ip_network(each) for each in own_networks()]
    assert ipaddress.ip_network("127.0.0.0/8") in networks
    for interface in own_interfaces():
        assert any(interface.ip in network for network in networks)
    assert all(network.prefixlen > 0 for network in networks)


class Reading:
    def __init__(self, *networks: str) -> None:
        self.networks = networks
        self.times = 0

    def __call__(self) -> tuple[str, ...]:
        self.times += 1
        return self.networks


def test_fixed_networks_are_all() -> None:
    access = Access(("10.0.0.0/8", "fd00::/64"), clock=lambda: 0.0, read=lambda: pytest.fail("read"))
    assert access.allows("10.1.2.3")
    assert access.allows("fd00::1")
    assert not access.allows("127.0.0.1")
    assert not access.allows("fd00:0:0:1::1")
    packed = {socket.inet_aton("10.1.2.3"), socket.inet_pton(socket.AF_INET6, "fd00::1")}
    assert access.known == {"10.1.2.3", "fd00::1"} | packed


def test_link_local_clients_are_known_with_their_interface() -> None:
    access = Access(("fe80::/64",), clock=lambda: 0.0)
    assert access.allows("fe80::1%eth0")
    assert access.known == {"fe80::1%eth0", socket.inet_pton(socket.AF_INET6, "fe80::1")}


def test_strangers_make_it_look_again_but_at_most_ten_times_a_second() -> None:
    now, reading = [0.0], Reading("127.0.0.0/8")
    access = Access(None, clock=lambda: now[0], read=reading)
    for _ in range(100):
        assert not access.allows("172.17.0.2")
    assert reading.times == 1
    now[0] = 0.1
    reading.networks = ("127.0.0.0/8", "172.17.0.0/16")
    for _ in range(100):
        assert access.allows("172.17.0.2")
        assert access.allows("172.17.0.3")
    assert reading.times == 2


def test_resolv_conf_is_read_as_libc_does() -> None:
    text = """\
# comment
; comment
domain example.org
search example.org
nameserver 192.0.2.1 trailing
nameserver\t2001:DB8::1
nameserver fe80::1%eth0
nameserver 192.0.2.1
nameserver
nameserver example.org
nameservers 192.0.2.9
 nameserver 192.0.2.2
"""
    hosts = [host for host, port in parse_resolv_conf(text) if port == 53]
    assert hosts == ["192.0.2.1", "2001:db8::1", "fe80::1%eth0", "192.0.2.2"]


def test_resolv_conf_is_followed_without_our_own_address(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    followed = ResolvConf(path, lambda address: address == ("172.17.42.1", 53))
    assert followed.read() == ()
    path.write_text("nameserver 172.17.42.1\nnameserver 192.0.2.1\n")
    assert followed.read() == (("192.0.2.1", 53),)
    replaced = tmp_path / "new"
    replaced.write_text("nameserver 172.17.42.1\nnameserver 192.0.2.2\n")
    replaced.rename(path)
    assert followed.read() == (("192.0.2.2", 53),)
    path.unlink()
    path.mkdir()
    assert followed.read() == (("192.0.2.2", 53),)


def test_counts_have_bounded_labels() -> None:
    stats = Stats()
    for qtype in range(1000):
        for rcode in (0, 3, 16, 99):
            stats.cell(qtype, rcode, "local")[0] += 1
    counts = stats.snapshot()
    assert counts[Outcome("A", "NXDOMAIN", "local")] == 1
    assert counts[Outcome("AAAA", "BADVERS", "local")] == 1
    assert counts[Outcome("other", "other", "local")] > 500
    assert sum(counts.values()) == 4000
    assert len(counts) < 600


class TestRateLimit:
    def test_a_client_may_ask_so_much_a_second_whatever_others_do(self) -> None:
        now = [0.0]
        limit = RateLimit(10, clock=lambda: now[0])
        assert [limit.takes("10.0.0.1") for _ in range(15)] == [True] * 10 + [False] * 5
        assert limit.takes("10.0.0.2")
        now[0] = 0.25
        assert [limit.takes("10.0.0.1") for _ in range(4)] == [True, True, False, False]
        now[0] = 100.0
        assert [limit.takes("10.0.0.1") for _ in range(15)] == [True] * 10 + [False] * 5

    def test_over_time_it_is_neither_more_nor_less(self) -> None:
        now = [0.0]
        limit = RateLimit(7, clock=lambda: now[0])
        allowed = 0
        for tick in range(10_000):
            now[0] = tick / 1000
            allowed += limit.takes("10.0.0.1")
        assert 7 * 10 <= allowed <= 7 * 11

    def test_clients_without_end_take_memory_with_an_end(self) -> None:
        limit = RateLimit(1, clock=lambda: 0.0)
        for number in range(MOST_CLIENTS * 2):
            assert limit.takes(str(number))
        assert len(limit._buckets) <= MOST_CLIENTS
