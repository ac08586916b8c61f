"""The long-lived threads of one process: started by name, stopped in groups, never lost silently."""

import math
import threading
import time
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

STUCK_SECONDS = 180.0
"""A thread that has not looked at its stop event for so long hangs: every wait has a time-out, and a look at
a thousand containers on a busy machine takes less."""


class Workers:
    """A group of threads under one stop event.

    A thread that raises has met a bug: ``on_failure`` is called, and the process is to end with the
    traceback in ``failure``, for its supervisor to start it afresh.
    """

    def __init__(
        self,
        on_failure: Callable[[], None],
        *,
        stuck_seconds: float = STUCK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.failure: BaseException | None = None
        self._on_failure = on_failure
        self._stuck_seconds = stuck_seconds
        self._clock = clock
        self._stop = _StopEvent(clock)
        self._threads: dict[str, threading.Thread] = {}

    def start(self, name: str, run: Callable[[threading.Event], None]) -> None:
        """Run ``run(stop)`` in a thread until the group is stopped."""
        thread = threading.Thread(target=self._run, args=(name, run), name=name, daemon=True)
        self._threads[name] = thread
        thread.start()

    def ask_to_stop(self) -> None:
        """Set the group's stop event, and return at once."""
        self._stop.set()

    def stop(self, timeout_seconds: float) -> None:
        """Ask all threads to end and wait for them; one that does not in time is logged and left."""
        self.ask_to_stop()
        for name, thread in self._threads.items():
            thread.join(timeout_seconds)
            if thread.is_alive():
                log.error("thread_does_not_end", thread=name, timeout_seconds=timeout_seconds)

    @property
    def alive(self) -> dict[str, bool]:
        """Whether each thread lives."""
        return {name: thread.is_alive() for name, thread in self._threads.items()}

    @property
    def stuck(self) -> tuple[str, ...]:
        """The threads that died or have not looked at the stop event for ``stuck_seconds``."""
        oldest = self._clock() - self._stuck_seconds
        return tuple(
            name
            for name, thread in list(self._threads.items())
            if not thread.is_alive() or self._stop.looked_at(thread) < oldest
        )

    def _run(self, name: str, run: Callable[[threading.Event], None]) -> None:
        try:
            self._stop.is_set()  # the first sign of life
            run(self._stop)
        except BaseException as error:  # noqa: BLE001 - kept, and raised again by the main thread
            # First what must not fail to happen.
            self.failure = error
            self._on_failure()
            log.error("thread_failed", thread=name, error=repr(error))


class _StopEvent(threading.Event):
    """A stop event that knows when each thread last looked at it: a sign of life that costs them nothing."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._looked: dict[int, float] = {}

    def looked_at(self, thread: threading.Thread) -> float:
        """When it last did; infinite while it waits for the stop, and before it began."""
        return self._looked.get(thread.ident or 0, math.inf)

    def is_set(self) -> bool:
        self._looked[threading.get_ident()] = self._clock()
        return super().is_set()

    def wait(self, timeout: float | None = None) -> bool:
        self._looked[threading.get_ident()] = math.inf
        try:
            return super().wait(timeout)
        finally:
            self._looked[threading.get_ident()] = self._clock()
