"""Keys of ours that others remove, overwrite or hold: what is put back and when, and who gives way.

What is gone is put back at once. What another writer overwrote is put back ever later, for two nodes of one
name would else make every edge reload as fast as they can. One of the two gives way for good:

- who finds an instance's id taken by another writer leaves it, and waits until that key is gone;
- of two that both wrote it, the one whose address is the greater text, once it was overwritten thrice.

A newcomer that waits says so in the store, so that the one that holds the id hears of it: by attributes of an
instance that does not exist, ``<id>:<the address it wants to register>``.
"""

import random
import time
from collections.abc import Callable, Mapping

import structlog

from discovery.catalog import Problem
from discovery.retry import Backoff
from discovery.schema import is_instance, printable, split_key

log = structlog.get_logger(__name__)

SHARED_JITTER_SECONDS = 1.0
"""Survivors put a shared key back at different times: the first does it for all."""

MOST_CONTEST_SECONDS = 300.0
"""At most so long a key that another writer keeps overwriting is left to it."""

CONTEST_SECONDS = 3 * MOST_CONTEST_SECONDS
"""How long a key that another writer overwrote is reported."""

OVERWRITES = 3
"""So often a key is overwritten by a writer that goes on, rather than by a slip."""

_NAMESAKE = "does another node have this node's name?"


class Contests:
    """Not thread-safe, but for ``problems``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: dict[str, float] = {}
        self._overwritten: dict[str, tuple[float, Problem]] = {}
        self._times: dict[str, int] = {}
        self._waiting: dict[str, Problem] = {}
        self._backoff = Backoff(first_seconds=1, most_seconds=MOST_CONTEST_SECONDS)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What others hold or overwrite."""
        overwritten = (problem for _, problem in list(self._overwritten.values()))
        return (*overwritten, *list(self._waiting.values()))

    def is_due(self, now: float) -> bool:
        """Whether a key is to be put back now."""
        return any(due <= now for due in self._due.values())

    def restore(
        self, restores: Mapping[str, str], found: Mapping[str, str]
    ) -> tuple[dict[str, str], list[str]]:
        """Of the keys that should be put back those whose time has come, and those to give up.

        ``found`` is what others put there, where they did.
        """
        now = self._clock()
        for key in self._due.keys() - restores.keys():
            del self._due[key]
        for key in restores.keys() - self._due.keys():
            self._due[key] = now + self._delay_seconds(key, found.get(key))
        ceded = [key for key, value in restores.items() if self._gives_way(key, value, found.get(key))]
        puts = {key: value for key, value in restores.items() if self._due[key] <= now and key not in ceded}
        for key in (*puts, *ceded):
            del self._due[key]
        for key in puts:
            log.info("key_restored", key=key)
        for key in ceded:
            log.warning("key_ceded", key=key, value=printable(found[key]))
            self._times.pop(key, None)
        self._forget(now)
        return puts, ceded

    def wait_for(self, taken: Mapping[str, str], rivals: Mapping[str, str]) -> None:
        """``taken`` are ids' keys that others hold, with what they say; ``rivals`` those that others want."""
        waiting: dict[str, Problem] = {}
        for key, value in taken.items():
            reason = f"its id is taken, by {printable(value)}; {_NAMESAKE} It is registered once that is gone"
            waiting[key] = _problem(key, reason, "left out")
        for key, value in rivals.items():
            reason = f"another writer wants this id for {printable(value)}; {_NAMESAKE}"
            waiting[key] = _problem(key, reason, "reported")
        for key in waiting.keys() - self._waiting.keys():
            log.warning("id_contested", key=key, reason=waiting[key].reason)
        for key in self._waiting.keys() - waiting.keys():
            log.info("id_no_longer_contested", key=key)
        self._waiting = waiting

    def _delay_seconds(self, key: str, found: str | None) -> float:
        if "/" not in split_key(key)[1]:
            return random.uniform(0, SHARED_JITTER_SECONDS)
        if found is None:
            return 0.0
        if key not in self._overwritten:
            log.warning("key_overwritten", key=key, value=printable(found))
        self._times[key] = self._times.get(key, 0) + 1
        reason = f"another writer put {printable(found)!r}; {_NAMESAKE}"
        self._overwritten[key] = (self._clock(), _problem(key, reason, "reported"))
        return self._backoff.next_seconds()

    def _gives_way(self, key: str, value: str, found: str | None) -> bool:
        is_address = is_instance(split_key(key)[1])
        return is_address and found is not None and self._times.get(key, 0) >= OVERWRITES and value > found

    def _forget(self, now: float) -> None:
        recent = {key: it for key, it in self._overwritten.items() if now - it[0] < CONTEST_SECONDS}
        for key in self._overwritten.keys() - recent.keys():
            self._times.pop(key, None)
        self._overwritten = recent
        if not recent:
            self._backoff.reset()


def _problem(key: str, reason: str, consequence: str) -> Problem:
    return Problem(split_key(key)[0], printable(key), reason, consequence)  # type: ignore[arg-type]
