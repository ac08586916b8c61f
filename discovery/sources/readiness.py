"""Which of the containers' instances are registered now: what health, checks, stop signals and requests say.

being drained       on request or after its stop signal: registered as draining, so that no edge sends it
                    anything new, until it is dead
unhealthy           not registered, by the engine's health check
starting            not registered, but for a grace after the start where there is one
with a check        registered only while that is good
outlived its stop   registered only while its port can be connected to
"""

import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from discovery.catalog import Problem, Registration
from discovery.sources.checker import Checker, Commands
from discovery.sources.checks import Check
from discovery.sources.container import Container, Port
from discovery.sources.docker import Decision, Outcome, register, register_all
from discovery.sources.docker_engine import Event
from discovery.sources.rules import Rules
from discovery.sources.stopping import Stopping

FIRST_CHECK_SECONDS = 3.0
"""So long the first look waits for first results, lest an agent that starts anew withdraws what serves."""

SURVIVOR_INTERVAL_SECONDS = 5.0


class DrainRequests(Protocol):
    """Who is to be drained by request; see ``discovery.drains.Drains``."""

    def changed(self) -> bool:
        """Whether requests came or went since the last ``current``."""
        ...

    def current(self) -> dict[str, float]:
        """The ids of containers to be drained, each with the seconds for which that holds."""
        ...


class NoDrains:
    """No requests."""

    def changed(self) -> bool:
        """See DrainRequests."""
        return False

    def current(self) -> dict[str, float]:
        """See DrainRequests."""
        return {}


@dataclass(frozen=True, slots=True)
class Readying:
    """How instances get ready and are drained.

    ``grace_seconds`` is how long after its start a container is registered although its health check has no
    verdict yet. ``stop_seconds`` is how long a stop takes at least, for those who stop with more time than
    the containers ask for.
    """

    grace_seconds: float = 0.0
    stop_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Registered:
    """What one container registers, and what that was made from."""

    container: Container
    rules: Rules
    outcome: Outcome


class Readiness:
    """One thread calls it; ``wake``, from others, says that ``changed``."""

    def __init__(
        self,
        readying: Readying,
        drains: DrainRequests,
        commands: Commands,
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._readying = readying
        self._drains = drains
        self._commands = commands
        self._wake = wake
        self._clock = clock
        self._wall_clock = wall_clock
        self._stopping = Stopping(readying.stop_seconds, clock, wall_clock)
        self._registered: dict[str, _Registered] = {}
        self._checker: Checker | None = None
        self._checked = False
        self._looked = False
        self._closed = False
        self._due: list[float] = []

    def note(self, events: Iterable[Event], containers: Mapping[str, Container]) -> None:
        """Take signals that were sent into account."""
        self._stopping.note(events, containers)

    def outcome(self, containers: Mapping[str, Container], rules: Rules) -> Outcome:
        """What these containers, by id, register now."""
        self._stopping.keep_only(containers)
        self._checked = False
        self._due = self._stopping.due()
        requested = self._drains.current()
        self._due += [self._clock() + seconds for seconds in requested.values()]
        judged = {id_: self._in_grace(container) for id_, container in containers.items()}
        found = register_all(judged.values(), judged, rules, self._register)
        self._registered = {id_: known for id_, known in self._registered.items() if id_ in judged}
        wanted = [each for each in found.decisions if each.registration is not None]
        checks = {
            key: check for each in wanted for key, check in self._check(each, containers[each.container_id])
        }
        self._watch(checks)
        registrations, problems = [], list(found.problems)
        for decision in wanted:
            registration = decision.registration
            assert registration is not None
            reason = self._not_ready(decision, containers[decision.container_id], checks)
            if reason is not None:
                subject = f"container {decision.container} port {decision.port.number}"
                problems.append(Problem(registration.service, subject, reason))
                continue
            state = self._stopping.state(decision.container_id)
            draining = state == "stopping" or decision.container_id in requested
            registrations.append(_draining(registration) if draining else registration)
        self._looked = True
        return Outcome(tuple(registrations), tuple(problems), found.decisions)

    def changed(self) -> bool:
        """Whether a check's result or a request is new since the last ``outcome``."""
        return self._checked or self._drains.changed()

    def due(self) -> list[float]:
        """When the outcome may become another by itself, in seconds of the clock."""
        return self._due

    def close(self) -> None:
        """End the checks; for any thread."""
        self._closed = True
        if self._checker is not None:
            self._checker.close()

    # -- details

    def _in_grace(self, container: Container) -> Container:
        """The container as it is to be taken: in its grace, one that still starts is as without a check."""
        if container.health != "starting" or not self._readying.grace_seconds:
            return container
        left_seconds = container.started_us / 1e6 + self._readying.grace_seconds - self._wall_clock()
        if left_seconds <= 0:
            return container
        self._due.append(self._clock() + left_seconds)
        return replace(container, health=None)

    def _register(self, container: Container, running: Mapping[str, Container], rules: Rules) -> Outcome:
        """As ``register``; for a thousand containers, of which one changed, at the cost of that one."""
        if container.network_mode.startswith("container:"):
            # What it registers depends on another.
            return register(container, running, rules)
        known = self._registered.get(container.id)
        if known is None or known.container is not container or known.rules is not rules:
            known = _Registered(container, rules, register(container, running, rules))
            self._registered[container.id] = known
        return known.outcome

    def _check(self, decision: Decision, container: Container) -> Iterable[tuple[Hashable, Check]]:
        check, registration = decision.check, decision.registration
        if check is None and self._stopping.state(container.id) == "survivor":
            check = _connection(container, decision.port, registration) if registration is not None else None
        return [(_key(decision, container), check)] if check is not None else []

    def _watch(self, checks: Mapping[Hashable, Check]) -> None:
        if self._checker is None:
            if not checks or self._closed:
                return
            self._checker = Checker(self._note_checked, self._commands)
        self._checker.watch(checks)
        if not self._looked:
            self._checker.wait_settled(FIRST_CHECK_SECONDS)

    def _note_checked(self) -> None:
        self._checked = True
        self._wake()

    def _not_ready(
        self, decision: Decision, container: Container, checks: Mapping[Hashable, Check]
    ) -> str | None:
        """Why it is not registered, None when it is."""
        key = _key(decision, container)
        if key not in checks or self._checker is None or self._checker.up(key):
            return None
        reason = self._checker.reason(key) or "its check was good, but not yet often enough"
        if decision.check is None:
            return f"it outlived its stop signal, and does not seem to serve: {reason}"
        return f"its check fails: {reason}"


def _key(decision: Decision, container: Container) -> Hashable:
    # With the start, for what was found out in a former life of the container says nothing.
    return (container.id, container.started_us, decision.port)


def _connection(container: Container, port: Port, registration: Registration) -> Check | None:
    """Whether anyone can connect to it; UDP cannot tell."""
    instance = registration.instance
    if instance.protocol != "tcp":
        return None
    own = next(
        (address for _, addresses in sorted(container.networks.items()) for address in addresses), None
    )
    return Check(
        "tcp",
        container.id,
        instance.host,
        instance.port,
        own_host=own,
        own_port=port.number if own is not None else None,
        interval_seconds=SURVIVOR_INTERVAL_SECONDS,
        rise=1,
        fall=1,
    )


def _draining(registration: Registration) -> Registration:
    instance = registration.instance
    return replace(
        registration, instance=replace(instance, attributes=replace(instance.attributes, draining=True))
    )
