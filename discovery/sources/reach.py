"""Which ports of a container others can reach, and at which address. Pure.

    default bridge, user networks   published ports, at the node's address or the one they are bound to
    `internal`                      exposed ports, at the container's own address
    macvlan, ipvlan                 exposed and named ports, at the container's own address: it is on the
                                    node's network. Published ones of a bridge beside it stay published
    host                            ports named by ``--publish`` or SERVICE_<port>_X, at the node's address
    container:X                     as X reaches them: its own exposed and named ports

Where a container has several networks: SERVICE_NETWORK, else the setting, else the first by name. Of an IPv4
and an IPv6 address the one of the node's version is taken, for that is what other nodes reach it by.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from discovery.errors import SchemaError
from discovery.schema import printable
from discovery.sources.container import Binding, Container, Port
from discovery.sources.rules import Rules


@lru_cache(maxsize=4096)
def parse_ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address, made once: the same few are looked at for every port, which was half of the time."""
    return ipaddress.ip_address(text)


@dataclass(frozen=True, slots=True)
class Reached:
    """A port and where others reach it. ``how`` is in words.

    ``own`` is the container's own address and port, where its node reaches it too and it is another one.
    """

    host: str
    port: int
    how: str
    own: Binding | None = None


@dataclass(frozen=True, slots=True)
class Unreached:
    """Why nobody reaches a port. One that nobody ``asked`` to be reached is no problem.

    One that is ``published`` all the same is one of several, as far as names are concerned.
    """

    reason: str
    asked: bool
    published: bool = False


Reach = Mapping[Port, Reached | Unreached]


def reach(container: Container, running: Mapping[str, Container], rules: Rules) -> Reach:
    """The ports of a container and how each is reached. ``running`` finds whose network it shares.

    SchemaError when that does not run.
    """
    owner = _owner(container, running)
    shared = "" if owner is container else f"; it shares the network of container {owner.name}"
    if owner.network_mode == "host":
        return _by_host(container, shared, rules)
    ports = container.exposed | _named_virtually(container)
    if owner is container:
        ports |= container.published.keys()
    else:
        # The owner's other ports are its own; what is asked for here may be published there.
        ports |= _named(container)
    if rules.direct & owner.networks.keys():
        ports |= _named(container)
    way = _Way(container, owner, rules, shared)
    return {port: way.to(port) for port in sorted(ports)}


def _owner(container: Container, running: Mapping[str, Container]) -> Container:
    """Whose network a container uses: its own, or that of the one at the end of `container:X`."""
    owner = container
    seen = {container.id}
    while owner.network_mode.startswith("container:"):
        wanted = owner.network_mode.removeprefix("container:")
        found = running.get(wanted) or next((it for it in running.values() if it.name == wanted), None)
        if found is None or found.id in seen:
            raise SchemaError("the container whose network it shares does not run")
        seen.add(found.id)
        owner = found
    return owner


def _by_host(container: Container, shared: str, rules: Rules) -> Reach:
    """On the host's network nothing is published, and what an image exposes is a guess: what is named."""
    found: dict[Port, Reached | Unreached] = {}
    for port in sorted(container.exposed):
        reason = (
            f"on the host's network only ports named by --publish or SERVICE_{port.number}_… are registered"
        )
        found[port] = Unreached(reason + shared, asked=False)
    for port in sorted(_named(container) | _named_virtually(container)):
        found[port] = Reached(
            rules.address, port.number, "on the host's network, the node's address" + shared
        )
    return found


def _named(container: Container) -> frozenset[Port]:
    """Ports that a person named: by ``--publish``, in force or not, or by SERVICE_<port>_X."""
    declared = container.exposed | container.requested
    return container.requested | _with_protocol(container.words.by_port, declared)


def _named_virtually(container: Container) -> frozenset[Port]:
    text = container.words.virtual.get("port", "")
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else 0
    return _with_protocol([number] if 1 <= number <= 65535 else [], container.exposed | container.requested)


def _with_protocol(numbers: Iterable[int], declared: frozenset[Port]) -> frozenset[Port]:
    """Ports of these numbers, of the protocols that are declared for them, else of TCP."""
    known = {port.number for port in declared}
    return frozenset(port for port in declared if port.number in numbers) | {
        Port(number, "tcp") for number in numbers if number not in known
    }


class _Way:
    """How the ports of one container are reached; a class only for what the steps share."""

    def __init__(self, container: Container, owner: Container, rules: Rules, shared: str) -> None:
        self._container = container
        self._owner = owner
        self._rules = rules
        self._shared = shared
        self._networks = {name: found for name, found in owner.networks.items() if found}
        self._version = parse_ip(rules.address).version

    def to(self, port: Port) -> Reached | Unreached:
        """How this port is reached."""
        word = self._container.words.of(port.number).get("network")
        try:
            asked = self._network_of(word) if word else None
            if self._rules.internal:
                return self._own(port, asked, self._networks)
            if asked in self._rules.direct or (port not in self._owner.published and self._direct()):
                return self._own(port, asked, self._direct())
            if port not in self._owner.published:
                return self._unpublished(port)
            return self._published(port)
        except SchemaError as error:
            return Unreached(str(error) + self._shared, asked=True, published=True)

    # -- the container's own address

    def _own(self, port: Port, asked: str | None, networks: Iterable[str]) -> Reached:
        name = self._choose(asked, networks)
        host = self._address(name)
        how = f"its own address on network {printable(name)}"
        return Reached(host, port.number, how + self._shared)

    def _choose(self, asked: str | None, networks: Iterable[str]) -> str:
        """The network that a word names, else the setting, else the first by name."""
        among = sorted(networks)
        if asked is not None:
            return asked
        if not among:
            raise SchemaError("it has no address of its own")
        preferred = self._rules.network
        return preferred if preferred in among else among[0]

    def _network_of(self, word: str) -> str:
        """The network that SERVICE_NETWORK names, as the engine or as the compose file calls it."""
        compose = self._container.words.compose
        for name in (word, f"{compose.project}_{word}" if compose else word):
            if name in self._networks:
                return name
        raise SchemaError(f"SERVICE_NETWORK: it is not on a network {printable(word)!r}")

    def _address(self, network: str) -> str:
        """Its address there, of the node's IP version if it has one."""
        found = self._networks[network]
        return next((it for it in found if parse_ip(it).version == self._version), found[0])

    def _direct(self) -> frozenset[str]:
        return self._rules.direct & self._networks.keys()

    # -- the node's address

    def _unpublished(self, port: Port) -> Unreached:
        asked = port in _named_virtually(self._container)
        verb = "is not" if asked or port in _named(self._container) else "is exposed but not"
        return Unreached(f"it {verb} published on the node{self._shared}", asked)

    def _published(self, port: Port) -> Reached:
        """Two choices are settled by rule, not the engine's order: all addresses first, then the lowest."""
        bindings = self._owner.published[port]
        node = parse_ip(self._rules.address)
        found: list[tuple[int, Binding]] = []
        for host, number in bindings:
            bound = parse_ip(host) if host else None
            if bound is None or (bound.is_unspecified and bound.version == node.version):
                found.append((0, Binding(self._rules.address, number)))
            elif bound.is_unspecified or bound.is_link_local or bound.is_multicast:
                continue
            elif node.is_loopback or not bound.is_loopback:
                found.append((1, Binding(host, number)))
        if not found:
            raise SchemaError(self._nowhere(bindings))
        everywhere, reached = min(found)[0] == 0, min(found)[1]
        how = "published on all addresses, so at the node's" if everywhere else "published on this address"
        return Reached(reached.host, reached.port, how + self._shared, self._beside(port))

    def _nowhere(self, bindings: Iterable[Binding]) -> str:
        local = [host for host, _ in bindings if host and _is_local(host)]
        if local:
            return f"it is published on {local[0]}, where no other node can reach it"
        return f"it is published for another IP version than that of the node, {self._rules.address}"

    def _beside(self, port: Port) -> Binding | None:
        """Where the node itself reaches a published port past docker-proxy: on a bridge of its own."""
        bridges = sorted(self._networks.keys() - self._rules.direct)
        return Binding(self._address(bridges[0]), port.number) if bridges else None


def _is_local(host: str) -> bool:
    address = parse_ip(host)
    return address.is_loopback or address.is_link_local or address.is_multicast
