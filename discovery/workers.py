"""The long-lived threads of one process: started by name, stopped in groups, never lost silently."""

import threading
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)


class Workers:
    """A group of threads under one stop event.

    A thread that raises has met a bug: ``on_failure`` is called, and the process is to end with the
    traceback in ``failure``, for its supervisor to start it afresh.
    """

    def __init__(self, on_failure: Callable[[], None]) -> None:
        self.failure: BaseException | None = None
        self._on_failure = on_failure
        self._stop = threading.Event()
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

    def _run(self, name: str, run: Callable[[threading.Event], None]) -> None:
        try:
            run(self._stop)
        except BaseException as error:  # noqa: BLE001 - kept, and raised again by the main thread
            log.error("thread_failed", thread=name, error=repr(error))
            self.failure = error
            self._on_failure()
