"""The event loop of one process that answers: whatever comes and goes, unlike the UDP sockets (udp)."""

import selectors
import threading


class Loop:
    """Waits for sockets and calls whom they concern, one after the other.

    The keys of ``selector`` hold callables that take the events. Each is called with ``lock`` held, and so
    shares what it uses with other threads that hold it.
    """

    def __init__(self) -> None:
        self.selector = selectors.EpollSelector()
        self.lock = threading.Lock()

    def run_once(self, wait_seconds: float) -> None:
        """Call whom the next events concern; return after this time if there are none."""
        ready = self.selector.select(max(wait_seconds, 0))
        with self.lock:
            for key, events in ready:
                # An event may be of a socket that has been closed since.
                if self.selector.get_map().get(key.fd) is key:
                    key.data(events)

    def close(self) -> None:
        """Forget every socket; they are their makers' to close."""
        self.selector.close()
