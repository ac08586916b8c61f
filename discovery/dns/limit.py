"""How much one client may ask: a token bucket for each."""

from collections.abc import Callable

MOST_CLIENTS = 10_000


class RateLimit:
    """``queries_per_second`` for each client, and as many at once after a second of silence.

    Not thread-safe. Of more clients than MOST_CLIENTS it forgets who they were, which errs in their favour.
    """

    def __init__(self, queries_per_second: int, *, clock: Callable[[], float]) -> None:
        self._rate = float(queries_per_second)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}
        """By address: tokens left, and when that was so."""

    def takes(self, host: str) -> bool:
        """Whether the client at this address may ask once more, now."""
        now = self._clock()
        bucket = self._buckets.get(host)
        if bucket is None:
            if len(self._buckets) >= MOST_CLIENTS:
                self._buckets.clear()
            bucket = (self._rate, now)
        tokens = min(bucket[0] + (now - bucket[1]) * self._rate, self._rate)
        may_ask = tokens >= 1
        self._buckets[host] = (tokens - 1 if may_ask else tokens, now)
        return may_ask
