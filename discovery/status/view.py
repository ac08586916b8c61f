"""What the status role may look at: questions, asked anew at every request."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from discovery.catalog import Catalog, Problem
from discovery.dns.stats import Counts
from discovery.follow import FollowerStatus
from discovery.haproxy.report import ProxyStatus


@dataclass(frozen=True, slots=True)
class StatusView:
    """Questions that the composition root answers from its parts.

    Each is quick, thread-safe and never raises. ``catalog`` is None until the store has been read once.
    ``problems`` are what of it could not be on this node; those of the catalog itself are in it.
    ``readiness`` and ``health`` map the name of a part (``store``, ``haproxy``; a thread) to whether it is as
    it should be. ``store_connected`` and ``registrations`` (how many instances this node has in the store)
    are None where no role knows. ``appliers`` are those that follow the catalog. ``proxy`` and ``dns`` are
    None where that role does not run. ``node`` is this node's name, ``store`` the URL of the store, without
    a password.
    """

    catalog: Callable[[], Catalog | None]
    problems: Callable[[], tuple[Problem, ...]]
    readiness: Callable[[], Mapping[str, bool]]
    health: Callable[[], Mapping[str, bool]]
    store_connected: Callable[[], bool | None] = lambda: None
    registrations: Callable[[], int | None] = lambda: None
    appliers: Callable[[], tuple[FollowerStatus, ...]] = tuple
    proxy: Callable[[], ProxyStatus | None] = lambda: None
    dns: Callable[[], Counts | None] = lambda: None
    node: str = ""
    store: str = ""
