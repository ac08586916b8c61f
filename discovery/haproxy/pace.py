"""When a reload may be: gathered, spaced, and not at one moment all over the fleet. Pure but for chance."""

import math
import random
from collections.abc import Callable

GATHER_SECONDS = 0.05
"""What comes as a burst, such as the keys of one new service, goes into one reload."""

QUIET_SECONDS = 10.0
"""How long a reload waits that nobody waits for; one that is needed meanwhile comes sooner and does for both.
"""


class Pacer:
    """Says when the next reload is due; all times are seconds of a monotonic clock."""

    def __init__(
        self, interval_seconds: float, spread_seconds: float, chance: Callable[[], float] = random.random
    ) -> None:
        """At least ``interval_seconds`` between two, each later by up to ``spread_seconds``.

        With an interval of 0 every reload is due at once. ``chance`` gives numbers from 0 to 1.
        """
        self._interval_seconds = interval_seconds
        self._spread_seconds = spread_seconds
        self._chance = chance
        self._last = -math.inf
        self._due: dict[bool, float] = {}

    def wait_seconds(self, now: float, *, is_urgent: bool = True) -> float:
        """How long a reload that is wanted has to wait, 0 when it is due.

        The first to want it begins the wait, and no later wish puts it off.
        """
        if self._interval_seconds == 0:
            return 0
        if is_urgent not in self._due:
            delay = GATHER_SECONDS if is_urgent else QUIET_SECONDS
            wanted = now + delay + self._chance() * self._spread_seconds
            self._due[is_urgent] = max(wanted, self._last + self._interval_seconds)
        return max(0.0, min(self._due.values()) - now)

    def done(self, now: float) -> None:
        """A reload was tried; whatever wanted it begins to wait anew."""
        self._last = now
        self._due.clear()

    def not_wanted(self) -> None:
        """There is nothing left to reload for."""
        self._due.clear()
