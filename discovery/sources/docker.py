"""Containers → registrations, by the conventions of gliderlabs' registrator. Pure.

A container that serves registers one instance for each TCP port that others can reach:

    SERVICE_NAME        the service; default the image's name without registry, tag and digest.
                        Of several ports each has its own, `name-<port>`, unless the port itself is named
    SERVICE_IGNORE      anything but empty: not registered
    SERVICE_ID          the instance's id; default `<node>:<container>:<port>`
    SERVICE_TAGS        comma-separated; `\\,` is a comma
    SERVICE_SCHEME      http or tcp
    SERVICE_HOST_PORT   the port that every edge listens on for the service
    SERVICE_NETWORK     with `internal`: the network whose address is registered
    SERVICE_<OPTION>    any of discovery.options

each as environment variable or label, labels win; `SERVICE_<port>_X` is for one port, the container's, and
wins over `SERVICE_X`. A bad value costs its own port, or just itself where the port can do without it.
"""

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from discovery.catalog import Attributes, Instance, Problem, Registration
from discovery.errors import SchemaError
from discovery.options import OPTIONS, parse_option, stand_in
from discovery.schema import parse_id, parse_port, parse_scheme, printable, to_name
from discovery.sources.container import Binding, Container, Port

NAME_CHARACTERS = 63
TAGS_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class Rules:
    """How containers of a node are registered.

    ``node`` is the node's name, ``address`` its own for published ports that are bound to all addresses.
    With ``internal`` containers are registered by their own addresses, on ``network`` where they have
    several, else on the first by name. With ``explicit`` only ports with a SERVICE_NAME are registered.
    """

    node: str
    address: str
    internal: bool = False
    explicit: bool = False
    network: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one container, or all, register, and what could not be."""

    registrations: tuple[Registration, ...] = ()
    problems: tuple[Problem, ...] = ()


def register_all(containers: Iterable[Container], running: Mapping[str, Container], rules: Rules) -> Outcome:
    """What these containers register, oldest first. ``running`` are all there are, by id.

    Where two claim one service and id, the older has it.
    """
    registrations: dict[tuple[str, str], Registration] = {}
    problems: list[Problem] = []
    for container in sorted(containers, key=lambda each: (each.created_us, each.id)):
        outcome = register(container, running, rules)
        problems += outcome.problems
        for registration in outcome.registrations:
            key = (registration.service, registration.instance.id)
            if key in registrations:
                reason = f"id {registration.instance.id} is taken by another port or container"
                problems.append(Problem(registration.service, _subject(container), reason))
            else:
                registrations[key] = registration
    return Outcome(tuple(registrations.values()), tuple(problems))


def register(container: Container, running: Mapping[str, Container], rules: Rules) -> Outcome:
    """What one container registers. ``running`` finds the owner of a network that it shares."""
    if unready(container) is not None:
        return Outcome()
    try:
        ports = _ports(container, running, rules)
    except SchemaError as error:
        return Outcome(problems=(Problem(None, _subject(container), str(error)),))
    if not ports and _wants_registration(container):
        return Outcome(problems=(Problem(None, _subject(container), _no_port(rules)),))
    registrations, problems = [], []
    for port in sorted(ports):
        # The conventions number all ports, whatever their protocol; served are those of TCP.
        if port.protocol != "tcp" or not _is_wanted(container, port, rules):
            continue
        try:
            found, bad_options = _registration(container, port, ports[port], len(ports) > 1, rules)
        except SchemaError as error:
            problems.append(Problem(None, _subject(container, port), str(error)))
            continue
        registrations.append(found)
        problems += bad_options
    return Outcome(tuple(registrations), tuple(problems))


def unready(container: Container) -> str | None:
    """Why a container serves nothing in its present state, None when it serves."""
    if container.status != "running":
        return f"it is {container.status}"
    if container.health not in (None, "healthy"):
        return f"its health check says {container.health}"
    return None


# ---- ports and addresses ----------------------------------------------------------------------------

_Where = tuple[Binding, ...] | Binding
"""The bindings a port is published by, or the one address it is reached at for sure."""


def _ports(container: Container, running: Mapping[str, Container], rules: Rules) -> Mapping[Port, _Where]:
    """The ports to register, each with where it is reached."""
    kind, _, owner_id = container.network_mode.partition(":")
    if kind == "host":
        return {port: Binding(rules.address, port.number) for port in _explicit_ports(container)}
    if kind != "container":
        return _own_ports(container, rules)
    owner = running.get(owner_id)
    if owner is None:
        raise SchemaError("the container whose network it shares does not run")
    chosen = container.exposed | _explicit_ports(container)
    if owner.network_mode == "host":
        return {port: Binding(rules.address, port.number) for port in chosen}
    return {port: where for port, where in _own_ports(owner, rules).items() if port in chosen}


def _own_ports(container: Container, rules: Rules) -> Mapping[Port, _Where]:
    if not rules.internal:
        return dict(container.published)
    if not container.exposed:
        return {}
    address = _own_address(container, rules)
    return {port: Binding(address, port.number) for port in container.exposed}


def _explicit_ports(container: Container) -> frozenset[Port]:
    """Ports that a person named: by ``--publish``, which host networking ignores, or by SERVICE_<port>_X."""
    return container.requested | {Port(number, "tcp") for number in container.words.by_port}


def _own_address(container: Container, rules: Rules) -> str:
    """The container's address on the network that was asked for, else on the first by name."""
    asked = container.words.general.get("network") or rules.network
    networks = {name: addresses for name, addresses in container.networks.items() if addresses}
    if asked in networks:
        return networks[asked][0]
    if not networks:
        raise SchemaError("it has no address of its own")
    if container.words.general.get("network"):
        raise SchemaError(f"SERVICE_NETWORK: it is not on a network {printable(asked or '')!r}")
    return networks[min(networks)][0]


def _reached(where: _Where, rules: Rules) -> Binding:
    """The address and port under which other nodes reach a published port.

    One bound to all addresses is reached at the node's, one bound to a certain address there. Two choices
    are settled by rule, not by the engine's order: all addresses first, then the lowest.
    """
    if isinstance(where, Binding):
        return where
    node = ipaddress.ip_address(rules.address)
    found: list[tuple[int, Binding]] = []
    for host, port in where:
        bound = ipaddress.ip_address(host) if host else None
        if bound is None or (bound.is_unspecified and bound.version == node.version):
            found.append((0, Binding(rules.address, port)))
        elif not bound.is_unspecified and (node.is_loopback or not bound.is_loopback):
            found.append((1, Binding(host, port)))
    if found:
        return min(found)[1]
    if any(host and ipaddress.ip_address(host).is_loopback for host, _ in where):
        raise SchemaError(f"it is published on {where[0].host}, where no other node can reach it")
    raise SchemaError(f"it is published for another IP version than that of the node, {rules.address}")


# ---- words ------------------------------------------------------------------------------------------


def _is_wanted(container: Container, port: Port, rules: Rules) -> bool:
    words = container.words.of(port.number)
    return not words.get("ignore") and bool(words.get("name") or not rules.explicit)


def _wants_registration(container: Container) -> bool:
    words = container.words
    named = [words.general, *words.by_port.values()]
    return not words.general.get("ignore") and any(each.get("name") for each in named)


def _no_port(rules: Rules) -> str:
    return "it has a SERVICE_NAME, but " + ("exposes no port" if rules.internal else "publishes no port")


def _registration(
    container: Container, port: Port, where: _Where, group: bool, rules: Rules
) -> tuple[Registration, list[Problem]]:
    """The registration of one port, and the options it goes without. SchemaError when it cannot be."""
    words = container.words.of(port.number)
    named = "name" in container.words.by_port.get(port.number, {})
    service = _service_name(container, words, f"-{port.number}" if group and not named else "")
    reached = _reached(where, rules)
    options, problems = _options(words, service, _subject(container, port))
    weight = options.pop("weight", None)
    attributes = Attributes(
        scheme=parse_scheme(words["scheme"].lower()) if words.get("scheme") else None,
        host_port=_host_port(words),
        weight=None if weight is None else int(weight),  # of this instance, not of the service
        node=rules.node,
        container=container.name,
        image=container.image,
        tags=split_tags(words.get("tags", "")),
        options=options,
    )
    id_ = parse_id(words.get("id") or f"{rules.node}:{container.name}:{port.number}")
    instance = Instance(id_, str(ipaddress.ip_address(reached.host)), reached.port, attributes)
    return Registration(service, instance), problems


def _service_name(container: Container, words: Mapping[str, str], suffix: str) -> str:
    if words.get("name"):
        name = to_name(words["name"])
    elif container.image.startswith("sha256:"):
        raise SchemaError("its image has no name, SERVICE_NAME must give one")
    else:
        name = to_name(image_name(container.image))
    return name[: NAME_CHARACTERS - len(suffix)].rstrip("-_") + suffix


def image_name(image: str) -> str:
    """``registry:5000/team/web:1.2@sha256:…`` → ``web``."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0]


def _host_port(words: Mapping[str, str]) -> int | None:
    if not words.get("host_port"):
        return None
    try:
        return parse_port(words["host_port"])
    except SchemaError as error:
        raise SchemaError(f"SERVICE_HOST_PORT: {error}") from None


def _options(words: Mapping[str, str], service: str, subject: str) -> tuple[dict[str, str], list[Problem]]:
    options: dict[str, str] = {}
    problems: list[Problem] = []
    for name in OPTIONS:
        # Empty is as not set; but a variable that came out empty must not let in those it was to keep out.
        if not words.get(name) and not (name in words and stand_in(name)):
            continue
        try:
            options[name] = parse_option(name, words[name])
        except SchemaError as error:
            options |= stand_in(name)
            problems.append(Problem(service, f"{subject}, SERVICE_{name.upper()}", str(error)))
    return options, problems


def split_tags(text: str) -> tuple[str, ...]:
    """``a,b\\,c`` → ``a`` and ``b,c``; empty ones are dropped."""
    if len(text) > TAGS_CHARACTERS:
        raise SchemaError(f"SERVICE_TAGS: is longer than {TAGS_CHARACTERS} characters")
    return tuple(filter(None, _split_unescaped(text)))


def _split_unescaped(text: str) -> Iterator[str]:
    tag = ""
    for part in text.split(","):
        if part.endswith("\\"):
            tag += part[:-1] + ","
            continue
        yield tag + part
        tag = ""
    yield tag


def _subject(container: Container, port: Port | None = None) -> str:
    return printable(f"container {container.name}" + (f" port {port.number}" if port else ""))
