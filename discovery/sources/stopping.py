"""Which containers are being stopped, by what the engine tells: a signal, and later that it died, or not.

The engine tells neither that a `docker stop` is under way nor how long it is going to wait (measured on
20.10: the event has the signal only, and the container's state does not change). So a container that was
sent its stop signal counts as stopping for as long as the engine would give it, and a margin. If it runs even
then, it may ignore the signal, or be stopped with more time than it asks for: it has to show that it serves.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from signal import SIGKILL
from typing import Literal

from discovery.sources.container import Container
from discovery.sources.docker_engine import Event

MARGIN_SECONDS = 5.0

State = Literal["serving", "stopping", "survivor"]


@dataclass(frozen=True, slots=True)
class _Signal:
    """A stop signal was sent at ``at_us`` (engine's clock); it ends the container until ``until`` (ours)."""

    at_us: int
    until: float


class Stopping:
    """What is known of stop signals. ``least_seconds`` is what a stop takes at least.

    Not thread-safe.
    """

    def __init__(
        self, least_seconds: float, clock: Callable[[], float], wall_clock: Callable[[], float]
    ) -> None:
        self._least_seconds = least_seconds
        self._clock = clock
        self._wall_clock = wall_clock
        self._signals: dict[str, _Signal] = {}

    def note(self, events: Iterable[Event], containers: Mapping[str, Container]) -> None:
        """Take these events into account, in their order."""
        for event in events:
            container = containers.get(event.container_id)
            if container is not None and is_stop(event, container):
                # The time begins when the signal was sent, which a replayed event tells of late. Where the
                # engine's clock is not ours, it still has its bound.
                seconds = max(container.stop_seconds, self._least_seconds) + MARGIN_SECONDS
                age_seconds = max(0.0, self._wall_clock() - event.at_us / 1e6)
                until = self._clock() + max(0.0, seconds - age_seconds)
                self._signals[container.id] = _Signal(event.at_us, until)

    def keep_only(self, containers: Mapping[str, Container]) -> None:
        """Forget signals to containers that are gone, or that were started after it."""
        self._signals = {
            id_: signal
            for id_, signal in self._signals.items()
            if id_ in containers and signal.at_us >= containers[id_].started_us
        }

    def state(self, container_id: str) -> State:
        """``stopping`` after its stop signal; ``survivor`` when it should have ended by now and did not."""
        signal = self._signals.get(container_id)
        if signal is None:
            return "serving"
        return "stopping" if self._clock() < signal.until else "survivor"

    def due(self) -> list[float]:
        """When a state changes by itself, in seconds of the clock."""
        now = self._clock()
        return [signal.until for signal in self._signals.values() if signal.until > now]


def is_stop(event: Event, container: Container) -> bool:
    """Whether this event is the signal that ends the container: its stop signal, or SIGKILL.

    Any other signal, such as SIGHUP, says nothing.
    """
    return event.action == "kill" and event.signal in (container.stop_signal, int(SIGKILL))
