"""Services whose keys a store refuses, found and set aside: one must not hold up the others."""

import random
from collections.abc import Callable, Iterable, Mapping

import structlog

from discovery.catalog import Problem
from discovery.errors import StoreRefused
from discovery.retry import Backoff
from discovery.schema import split_key

log = structlog.get_logger(__name__)

MOST_SECONDS = 60.0
"""At least so often what was refused is tried again."""


class Refusals:
    """Writes the keys of many services, and remembers which were refused. Not thread-safe."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._refused: dict[str, Problem] = {}
        self._due = 0.0
        self._backoff = Backoff(first_seconds=1, most_seconds=MOST_SECONDS)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is refused at present, and why."""
        return tuple(self._refused.values())

    def is_due(self, now: float) -> bool:
        """Whether what was refused may be tried again."""
        return bool(self._refused) and self._due <= now

    def is_set_aside(self, key: str) -> bool:
        """Whether a key is of a service that is not to be tried now."""
        return self._due > self._clock() and split_key(key)[0] in self._refused

    def keep_only(self, services: Iterable[str]) -> None:
        """Forget of all other services that they were refused."""
        kept = set(services)
        self._refused = {name: problem for name, problem in self._refused.items() if name in kept}

    def write(self, keys: Iterable[str], write: Callable[[list[str]], None]) -> set[str]:
        """``write`` these keys, all at once if possible; the services whose keys were accepted.

        When they are refused, those of the services that are to blame are set aside, and the others written.
        Raises StoreRefused when nothing is accepted: then none of them is to blame.
        """
        groups: dict[str, list[str]] = {}
        for key in keys:
            groups.setdefault(split_key(key)[0], []).append(key)
        if not groups:
            return set()
        attempt = _Attempt(groups, write)
        # Not always in one order, or a few bad ones at its beginning would use up every attempt.
        attempt.run(random.sample(sorted(groups), len(groups)))
        before = set(self._refused)
        for service in attempt.written:
            self._refused.pop(service, None)
        if attempt.error is not None and not attempt.written and not groups.keys() <= before:
            raise attempt.error
        for service, error in attempt.refused.items():
            self._refused[service] = Problem(service, f"service {service}", f"the store refuses it: {error}")
            if service not in before:
                log.error("service_refused", service=service, error=str(error))
        if attempt.refused:
            self._due = self._clock() + self._backoff.next_seconds()
        elif not self._refused:
            self._backoff.reset()
        if attempt.error is not None and not attempt.refused:
            raise attempt.error
        return attempt.written


class _Attempt:
    """One write; a refused half is divided until the one to blame is found."""

    def __init__(self, groups: Mapping[str, list[str]], write: Callable[[list[str]], None]) -> None:
        self.written: set[str] = set()
        self.refused: dict[str, StoreRefused] = {}
        self.error: StoreRefused | None = None
        self._groups = groups
        self._write = write
        # Enough to find two of them; the rest is found the next time.
        self._left = 4 * max(1, len(groups).bit_length())

    def run(self, services: list[str]) -> None:
        if self._left <= 0:
            return
        try:
            self._write([key for service in services for key in self._groups[service]])
        except StoreRefused as error:
            self._left -= 1
            self.error = error
            if len(services) == 1:
                self.refused[services[0]] = error
                return
            middle = len(services) // 2
            self.run(services[:middle])
            self.run(services[middle:])
        else:
            self.written.update(services)
