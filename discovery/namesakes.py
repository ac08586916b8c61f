"""Whether another live node has this node's name, though no key of the two is the same.

Every instance of a container names its node in its attributes. One that names ours, that we did not write,
and that outlives whatever a former life of ours could have left, is kept alive by somebody else. What is
announced by hand (`discovery announce`) names no container: it is of this node, by a process of its own.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from discovery.catalog import Problem
from discovery.schema import ATTRIBUTES, address_rests, printable, read_attributes, split_key

log = structlog.get_logger(__name__)

PROOF_TTLS = 2.0
"""After so many TTLs in sight a key is not left from a former life.

Not one: a store that changes its leader may give every key its whole TTL once more.
"""

MEND = "another live node has this node's name; give one of them another by --node"


class Sight(Protocol):
    """What `mirror.Mirror` has of the store."""

    @property
    def naming(self) -> Mapping[str, str]:
        """Attributes that may name this node, by key."""
        ...

    @property
    def listed_at(self) -> float:
        """When the store was last asked for everything."""
        ...

    @property
    def heard_at(self) -> float:
        """When it was last heard."""
        ...

    def seen(self, service: str) -> Mapping[str, str]:
        """The keys of a service by what follows its name."""
        ...


class Namesakes:
    """Not thread-safe, but for ``problems``."""

    def __init__(self, node: str, ttl_seconds: float) -> None:
        self.problems: tuple[Problem, ...] = ()
        self._node = node
        self._proof_seconds = PROOF_TTLS * ttl_seconds
        self._since: dict[str, float] = {}

    def look(self, store: Sight, is_ours: Callable[[str], bool]) -> None:
        """Take in what the store holds; ``is_ours`` tells what we may have written, or report otherwise.

        While the store is out of reach nothing is proved, and after that what it held before proves nothing
        either: it was listed anew.
        """
        addresses = {
            key: address
            for key, value in store.naming.items()
            if not is_ours(key)
            and (address := _address(key, store.seen)) is not None
            and self._is_of_a_container_here(value)
        }
        heard_at, listed_at = store.heard_at, store.listed_at
        self._since = {key: max(self._since.get(key, heard_at), listed_at) for key in addresses}
        lasting = {
            address: key
            for key, address in addresses.items()
            if heard_at - self._since[key] > self._proof_seconds
        }
        self._say(sorted(lasting.items()))

    def _is_of_a_container_here(self, value: str) -> bool:
        attributes = read_attributes(value)
        return attributes.node == self._node and attributes.container is not None

    def _say(self, found: list[tuple[str, str]]) -> None:
        was = bool(self.problems)
        if not found:
            self.problems = ()
            if was:
                log.info("node_name_no_longer_shared", node=self._node)
            return
        address, key = found[0]
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        reason = f"{MEND}. It registered {printable(address)} ({printable(key)}){more}"
        self.problems = (Problem(None, f"node {self._node}", reason, "reported"),)
        if not was:
            log.warning("node_name_shared", node=self._node, key=key, address=printable(address))


def _address(key: str, seen: Callable[[str], Mapping[str, str]]) -> str | None:
    """Where the instance is whose attributes are at ``key``; None when there is only a claim to an id."""
    service, rest = split_key(key)
    keys = seen(service)
    at = address_rests(rest.removeprefix(ATTRIBUTES))
    return next((keys[where] for where in at if where in keys), None)
