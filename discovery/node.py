"""Who this node is: its name, and the address under which other nodes reach it."""

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import structlog

from discovery.errors import ConfigError

log = structlog.get_logger(__name__)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_MEND = "give an address, an interface or a CIDR by --address"


@dataclass(frozen=True, slots=True)
class Node:
    """``name`` is part of instance ids, ``address`` an IP address in canonical text."""

    name: str
    address: str


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """One address that this machine has."""

    interface: str
    address: Address


def find_node(name: str | None, address: str | None) -> Node:
    """This node, by its settings ``node.name`` and ``node.address``; ConfigError when they lead nowhere."""
    return Node(node_name(name), node_address(address))


# ---- the name ---------------------------------------------------------------------------------------


def node_name(setting: str | None) -> str:
    """The setting, else the host's name, with what an id cannot hold replaced."""
    if setting is not None:
        if not _NAME.fullmatch(setting):
            raise ConfigError("node.name", f"{setting!r} is no node name", "1 to 63 of A-Z a-z 0-9 _ . -")
        return setting
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", socket.gethostname())[:63].strip("_.-")
    if not name:
        raise ConfigError("node.name", "the host has no usable name", "give one by --node")
    if re.fullmatch(r"[0-9a-f]{12}", name) and Path("/.dockerenv").exists():
        # Ids made from it would be orphaned by every new container of ours.
        log.warning("node_name_is_random", name=name, mend="give the host's name by --node")
    return name


# ---- the address ------------------------------------------------------------------------------------


def node_address(setting: str | None) -> str:
    """The address that the setting names, else the source address of the default route.

    The setting is an address (taken as it is), an interface, or a CIDR (the first of the machine's addresses
    in it). Loopback is only ever taken when the setting names it. ConfigError when there is none.
    """
    if setting is None:
        return str(_default_route_address())
    if (address := _parse_address(setting)) is not None:
        if address.is_unspecified or address.is_multicast:
            raise ConfigError("node.address", f"nobody can reach this node at {setting}", _MEND)
        return str(address)
    try:
        return str(choose_address(setting, machine_addresses()))
    except OSError as error:
        raise ConfigError(
            "node.address", f"the machine's addresses cannot be read: {error}", "give an address by --address"
        ) from error


def choose_address(setting: str, addresses: Iterable[InterfaceAddress]) -> Address:
    """The first of the machine's addresses on an interface or in a CIDR, IPv4 first; ConfigError without."""
    network = _parse_network(setting)
    if network is None:
        found = [each.address for each in addresses if each.interface == setting]
    else:
        found = [each.address for each in addresses if each.address in network]
        if not network.is_loopback:
            found = [address for address in found if not address.is_loopback]
    found = [address for address in found if not address.is_link_local]
    if not found:
        kind = (
            "interface with an address" if network is None else "network that this machine has an address in"
        )
        raise ConfigError("node.address", f"{setting!r} is no {kind}", _MEND)
    return min(found, key=lambda address: address.version)


def _default_route_address() -> Address:
    """What the kernel would use as source towards the outside; asking sends nothing.

    The targets are of RFC 5737 and RFC 3849: documentation only, so that no special route leads there.
    """
    for family, target in ((socket.AF_INET, "198.51.100.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((target, 9))
                address = ipaddress.ip_address(probe.getsockname()[0])
        except OSError:
            continue
        if not (address.is_loopback or address.is_unspecified or address.is_link_local):
            return address
    raise ConfigError("node.address", "there is no default route to tell this node's address", _MEND)


def _parse_address(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _parse_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    if "/" not in text:
        return None
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ConfigError("node.address", f"{text!r} is no CIDR", _MEND) from None


def machine_addresses() -> list[InterfaceAddress]:
    """Every IP address of every interface. Raises OSError."""
    return [
        InterfaceAddress(interface, ipaddress.ip_address(each.address.partition("%")[0]))
        for interface, addresses in psutil.net_if_addrs().items()
        for each in addresses
        if each.family in (socket.AF_INET, socket.AF_INET6)
    ]
