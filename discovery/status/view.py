"""What the status role may look at: questions, asked anew at every request."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from discovery.catalog import Catalog, Problem
from discovery.dns.stats import Counts


@dataclass(frozen=True, slots=True)
class StatusView:
    """Questions that the composition root answers from its parts.

    Each is quick, thread-safe and never raises. ``catalog`` is None until the store has been read once.
    ``problems`` are those of the catalog and those of this node's appliers. ``readiness`` and ``health``
    map the name of a part (``store``, ``haproxy``; a thread) to whether it is as it should be.
    ``store_connected`` and ``registrations`` (how many instances this node has in the store) are None
    where no role knows. ``haproxy_reloads`` counts by reason. ``dns`` is None where that role does not run.
    """

    catalog: Callable[[], Catalog | None]
    problems: Callable[[], tuple[Problem, ...]]
    readiness: Callable[[], Mapping[str, bool]]
    health: Callable[[], Mapping[str, bool]]
    store_connected: Callable[[], bool | None] = lambda: None
    registrations: Callable[[], int | None] = lambda: None
    haproxy_reloads: Callable[[], Mapping[str, int]] = dict
    dns: Callable[[], Counts | None] = lambda: None
