"""Our long-lived loops, run in a thread for as long as a test needs them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

END_SECONDS = 30.0


@contextmanager
def in_thread(run: Callable[[threading.Event], None]) -> Iterator[None]:
    """``run(stop)`` in a thread; afterwards it is told to stop, and has to end."""
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(END_SECONDS)
        assert not thread.is_alive()
