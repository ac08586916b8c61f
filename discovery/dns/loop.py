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
        self._interrupted = False
        self._hot: dict[int, Callable[[], None]] = {}
        # An epoll is itself readable when one of its own is ready.
        self._epoll.register(self.selector.fileno(), select.EPOLLIN)
        self._hot[self.selector.fileno()] = self._dispatch

    def read_at_once(self, sock: socket.socket, call: Callable[[], None]) -> None:
        """Call this whenever the socket has something to read; for as long as the loop lives."""
        self._epoll.register(sock, select.EPOLLIN)
        self._hot[sock.fileno()] = call

    def run(self, until: float, clock: Callable[[], float]) -> None:
        """Call whom events concern until this time, ``interrupt`` or an event of ``selector``.

        Between two events of UDP sockets nothing else is done.
        """
        self._interrupted = False
        while not self._interrupted and (wait_seconds := until - clock()) > 0:
            events = self._epoll.poll(wait_seconds)
            for fd, _ in events:
                self._hot[fd]()
            if not events:
                return

    def interrupt(self) -> None:
        """Have ``run`` return: something is due at another time than it knows of."""
        self._interrupted = True

    def close(self) -> None:
        """Forget every socket; they are their makers' to close."""
        self._epoll.close()
        self.selector.close()

    def _dispatch(self) -> None:
        self._interrupted = True
        for key, events in self.selector.select(0):
            # An event of this round may be of a socket that an earlier one has closed.
            if self.selector.get_map().get(key.fd) is key:
                key.data(events)
