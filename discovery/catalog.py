"""The Catalog: everything that is known to be served, as immutable values. Pure.

Catalogs share what did not change: a service that is the same in two catalogs is the same object, so
that a comparison costs one look at each name and nothing more.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Scheme = Literal["http", "tcp"]
Protocol = Literal["tcp", "udp"]
Consequence = Literal["left out", "kept at its last good value", "reported"]


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a registrator tells of an instance beyond its address; every part is optional.

    ``extra`` is what its container says besides, for templates: nothing of ours depends on it.
    """

    scheme: Scheme | None = None
    host_port: int | None = None
    weight: int | None = None
    node: str | None = None
    container: str | None = None
    image: str | None = None
    tags: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, str] = field(default_factory=dict)
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Instance:
    """One address that serves. ``host`` is an IPv4 or IPv6 address in canonical text, without brackets.

    ``protocol`` is what its port is of: one of UDP is found by DNS, and by nobody who speaks TCP.
    """

    id: str
    host: str
    port: int
    attributes: Attributes = Attributes()
    protocol: Protocol = "tcp"

    @property
    def address(self) -> str:
        """``ip:port`` or ``[ipv6]:port``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Registration:
    """What a registrator wants in the store: one instance of one service."""

    service: str
    instance: Instance


@dataclass(frozen=True, slots=True)
class Service:
    """A name and the instances behind it, in the order of their ids; it may have none.

    ``host_port`` is the port every edge listens on for it, if it won that port. ``options`` are
    validated, canonical texts by option name: what instances ask for, overlaid with the operator's word.

    ``udp`` are the instances that speak UDP; ``instances`` are those of TCP. A service of which only UDP is
    known is not ``routed``: no edge has anything to do with it.
    """

    name: str
    scheme: Scheme = "http"
    host_port: int | None = None
    instances: tuple[Instance, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    udp: tuple[Instance, ...] = ()
    routed: bool = True


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something is not, or not as written, in force. Every text is printable and of bounded length.

    ``service`` is None when it concerns no single service; ``subject`` is what is at fault, mostly a key.
    """

    service: str | None
    subject: str
    reason: str
    consequence: Consequence = "left out"


@dataclass(frozen=True, slots=True)
class Catalog:
    """The services by name, as of one store revision, and what is wrong with the rest."""

    revision: int = 0
    services: Mapping[str, Service] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Diff:
    """Names of services that one catalog has and another lacks, or has differently; sorted."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


def diff(old: Catalog, new: Catalog) -> Diff:
    """What differs between two catalogs that share unchanged services."""
    before, after = old.services, new.services
    return Diff(
        added=_sorted(name for name in after if name not in before),
        removed=_sorted(name for name in before if name not in after),
        changed=_sorted(
            name
            for name, service in after.items()
            if (was := before.get(name)) is not None and was is not service and was != service
        ),
    )


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names))
