"""A container as the Docker engine describes it, reduced to what registering it needs. Pure.

Of its environment and labels only what words.py names is kept, so that nothing else can be stored or logged.
"""

import ipaddress
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from discovery.errors import SchemaError
from discovery.schema import parse_port
from discovery.sources.words import Words, read_words

DEFAULT_STOP_SECONDS = 10.0
"""How long the engine waits between stop signal and SIGKILL, unless told otherwise."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Port(NamedTuple):
    """A port inside the container. ``protocol`` is ``tcp``, ``udp`` or ``sctp``."""

    number: int
    protocol: str


class Binding(NamedTuple):
    """Where the host publishes a port. ``host`` is empty or unspecified for all of its addresses."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Container:
    """One container.

    ``status`` is the engine's word (running, paused, exited, …), ``health`` that of its health check, None
    without one. Times are microseconds since 1970 by the engine's clock; ``started_us`` is 0 when it never
    started. ``published`` are the bindings in force, ``exposed`` all ports it declares, ``requested`` those
    that were asked to be published, in force or not. ``networks`` are its own addresses by network.
    """

    id: str
    name: str
    image: str
    status: str
    health: str | None
    created_us: int
    started_us: int
    stop_signal: int
    stop_seconds: float
    network_mode: str
    published: Mapping[Port, tuple[Binding, ...]]
    exposed: frozenset[Port]
    requested: frozenset[Port]
    networks: Mapping[str, tuple[str, ...]]
    words: Words


def read_container(document: Mapping[str, Any]) -> Container:
    """The container that an answer of ``GET /containers/ID/json`` describes; SchemaError when it does not."""
    try:
        config, host = document["Config"], document["HostConfig"]
        state, network = document["State"], document["NetworkSettings"]
        ports = network.get("Ports") or {}
        exposed = [*(config.get("ExposedPorts") or {}), *ports]
        stop_seconds = config.get("StopTimeout")
        return Container(
            id=document["Id"],
            name=document["Name"].removeprefix("/"),
            image=_image(config["Image"], document["Image"]),
            status=state["Status"],
            health=_health(state.get("Health")),
            created_us=_microseconds(document["Created"]),
            started_us=_microseconds(state["StartedAt"]),
            stop_signal=signal_number(config.get("StopSignal") or "SIGTERM"),
            stop_seconds=DEFAULT_STOP_SECONDS if stop_seconds is None else float(stop_seconds),
            network_mode=host.get("NetworkMode") or "default",
            published={_port(text): found for text, each in ports.items() if (found := _bindings(each))},
            exposed=frozenset(map(_port, exposed)),
            requested=frozenset(map(_port, host.get("PortBindings") or {})),
            networks={name: _addresses(each) for name, each in (network.get("Networks") or {}).items()},
            words=read_words(config.get("Env") or (), config.get("Labels") or {}),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, SchemaError) as error:
        # Not with the error's text, which may quote whatever was found where it does not belong.
        reason = f"the engine describes it in a way that is not understood ({_where(error)})"
        raise SchemaError(reason) from error


def _where(error: Exception) -> str:
    """What could be wrong, by name: the member that is missing, else the kind of the error."""
    return f"no {error.args[0]}" if isinstance(error, KeyError) else type(error).__name__


def signal_number(text: str) -> int:
    """``SIGTERM``, ``TERM``, ``15`` or ``SIGRTMIN+3`` → its number; ValueError for anything else."""
    if text.isdigit():
        return int(text)
    name, plus, offset = text.upper().partition("+")
    name = name if name.startswith("SIG") else f"SIG{name}"
    try:
        return int(signal.Signals[name]) + (int(offset) if plus else 0)
    except KeyError:
        raise ValueError(f"unknown signal {text!r}") from None


def _image(name: str, id_: str) -> str:
    """The image's name, or its full id when the container was made from an id, whole or shortened."""
    return id_ if id_.removeprefix("sha256:").startswith(name) else name


def _health(health: Mapping[str, Any] | None) -> str | None:
    # `--no-healthcheck` is told as "none" by some engines.
    status = health.get("Status") if health else None
    return None if status in (None, "", "none") else str(status)


def _port(text: str) -> Port:
    number, _, protocol = text.partition("/")
    return Port(parse_port(number), protocol or "tcp")


def _bindings(found: Iterable[Mapping[str, str]] | None) -> tuple[Binding, ...]:
    """The bindings in force; one that has no port (yet) is none."""
    given = [each for each in found or () if each.get("HostPort") not in (None, "", "0")]
    return tuple(Binding(_host(each.get("HostIp") or ""), parse_port(each["HostPort"])) for each in given)


def _host(text: str) -> str:
    return str(ipaddress.ip_address(text)) if text else ""


def _addresses(network: Mapping[str, Any]) -> tuple[str, ...]:
    found = (network.get("IPAddress"), network.get("GlobalIPv6Address"))
    return tuple(str(ipaddress.ip_address(address)) for address in found if address)


def _microseconds(text: str) -> int:
    """An RFC 3339 time; the engine's "never" is the year 1."""
    return max(0, (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1))
