"""What the proxy role tells people of itself. Pure.

All times are Unix time in seconds.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from discovery.haproxy.engine import OldWorker
from discovery.haproxy.layout import Layout
from discovery.haproxy.massloss import MassLoss
from discovery.haproxy.model import Model

PROXY = "haproxy"
"""The name of the proxy role's applier."""


@dataclass(frozen=True, slots=True)
class Reload:
    """One start or reload that reached the new configuration: when it had, why, and how long it took."""

    at_seconds: float
    reasons: tuple[str, ...]
    took_seconds: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits for a reload: the reasons, since when, and when it is due.

    ``services`` are those that miss something meanwhile, as far as that is known; nobody does unless
    ``is_urgent``.
    """

    reasons: tuple[str, ...]
    services: tuple[str, ...]
    since_seconds: float
    due_seconds: float
    is_urgent: bool


@dataclass(frozen=True, slots=True)
class ProxyStatus:
    """What the proxy role is doing. ``revision`` is the one confirmed running, None before the first.

    ``reloads`` counts, by reason, how often HAProxy was started or reloaded since this agent began,
    ``reload_seconds`` is how long all of them took; ``last_reloads`` are the newest, oldest first.
    ``changes`` counts how often it was changed without. ``loss`` is the mass loss that is held back, if one
    is. ``certificates`` tells until when each that is served is valid.
    """

    running: bool
    pid: int | None
    version: str
    revision: int | None = None
    reloads: Mapping[str, int] = field(default_factory=dict)
    reload_seconds: float = 0.0
    last_reloads: tuple[Reload, ...] = ()
    changes: int = 0
    waiting: Waiting | None = None
    old_workers: tuple[OldWorker, ...] = ()
    loss: MassLoss | None = None
    certificates: Mapping[str, float] = field(default_factory=dict)

    @property
    def last_reload_seconds(self) -> float | None:
        """How long the last start or reload took, None before the first."""
        return self.last_reloads[-1].took_seconds if self.last_reloads else None

    @property
    def held(self) -> int:
        """How many instances of a mass loss are kept."""
        return self.loss.count if self.loss else 0


def unserved(running: Layout, wanted: Model) -> tuple[str, ...]:
    """The services of which something is wanted that this worker cannot be told, in order of their names."""
    return tuple(sorted(set(_unserved(running, wanted))))


def _unserved(running: Layout, wanted: Model) -> Iterator[str]:
    for name in wanted.backends:
        section = running.section_of(name)
        if section is None or not section.is_complete:
            yield name
    there = set(running.listeners)
    yield from (each.service for each in wanted.listeners if each not in there)
