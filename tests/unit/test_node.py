"""Which name and address a node has."""

import ipaddress
import socket

import pytest

from discovery.errors import ConfigError
from discovery.node import InterfaceAddress, choose_address, machine_addresses, node_address, node_name

ADDRESSES = [
    InterfaceAddress(interface, ipaddress.ip_address(address))
    for interface, address in (
        ("lo", "127.0.0.1"),
        ("lo", "::1"),
        ("eth0", "fe80::1"),
        ("eth0", "2001:db8::7"),
        ("eth0", "192.0.2.7"),
        ("eth0", "192.0.2.8"),
        ("eth1", "2001:db8:1::7"),
        ("eth2", "fe80::2"),
    )
]


@pytest.mark.parametrize(
    ("setting", "address"),
    [
        ("eth0", "192.0.2.7"),
        ("eth1", "2001:db8:1::7"),
        ("lo", "127.0.0.1"),
        ("192.0.2.8/32", "192.0.2.8"),
        ("192.0.2.99/24", "192.0.2.7"),
        ("2001:db8::/32", "2001:db8::7"),
        # Loopback is in it, but was not asked for.
        ("0.0.0.0/0", "192.0.2.7"),
        ("127.0.0.0/8", "127.0.0.1"),
    ],
)
def test_an_interface_or_a_network_chooses(setting: str, address: str) -> None:
    assert str(choose_address(setting, ADDRESSES)) == address


@pytest.mark.parametrize("setting", ["eth2", "eth9", "10.0.0.0/8", "10.0.0.0/99", "::1/x"])
def test_what_chooses_nothing_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"node\.address.*--address"):
        choose_address(setting, ADDRESSES)


@pytest.mark.parametrize(
    ("setting", "address"),
    [("192.0.2.77", "192.0.2.77"), ("127.0.0.1", "127.0.0.1"), ("2001:DB8:0::1", "2001:db8::1")],
)
def test_an_address_is_taken_as_it_is(setting: str, address: str) -> None:
    assert node_address(setting) == address


@pytest.mark.parametrize("setting", ["0.0.0.0", "::", "224.0.0.1"])
def test_an_address_nobody_can_reach_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="nobody can reach"):
        node_address(setting)


def test_the_machines_own_addresses_are_read() -> None:
    assert InterfaceAddress("lo", ipaddress.ip_address("127.0.0.1")) in machine_addresses()


def test_the_default_is_no_loopback() -> None:
    try:
        address = ipaddress.ip_address(node_address(None))
    except ConfigError as error:
        assert "default route" in str(error)
    else:
        assert not address.is_loopback
        assert address in [each.address for each in machine_addresses()]


def test_names() -> None:
    assert node_name("node-1.example") == "node-1.example"
    assert node_name(None).startswith(socket.gethostname()[:1])
    for bad in ("", "a b", "a:b", "a/b", "-a", "x" * 64):
        with pytest.raises(ConfigError, match=r"node\.name"):
            node_name(bad)
