"""The event loop of one process that answers: what is asked most often is looked at first."""

import select
import selectors
import socket
from collections.abc import Callable


class Loop:
    """Waits for sockets and calls whom they concern.

    ``selector`` is for whatever comes and goes: its keys hold callables that take the events. The UDP
    sockets, which nearly all events are of, are watched without its detours.
    """

    def __init__(self) -> None:
        self.selector = selectors.EpollSelector()
        self._epoll = select.epoll()
        self._hot: dict[int, Callable[[], None]] = {}
        # An epoll is itself readable when one of its own is ready.
        self._epoll.register(self.selector.fileno(), select.EPOLLIN)
        self._hot[self.selector.fileno()] = self._dispatch

    def read_at_once(self, sock: socket.socket, call: Callable[[], None]) -> None:
        """Call this whenever the socket has something to read; for as long as the loop lives."""
        self._epoll.register(sock, select.EPOLLIN)
        self._hot[sock.fileno()] = call

    def run_once(self, wait_seconds: float) -> None:
        """Wait for an event, at most so long, and call whom it concerns."""
        for fd, _ in self._epoll.poll(wait_seconds):
            self._hot[fd]()

    def close(self) -> None:
        """Forget every socket; they are their makers' to close."""
        self._epoll.close()
        self.selector.close()

    def _dispatch(self) -> None:
        for key, events in self.selector.select(0):
            # An event of this round may be of a socket that an earlier one has closed.
            if self.selector.get_map().get(key.fd) is key:
                key.data(events)
