"""A process that answers, and does nothing else: ``python -m discovery.dns.worker DESCRIPTOR``.

The sockets are inherited; what to answer comes over the pipe that the descriptor names. When that ends,
the agent is gone or wants us gone.
"""

import gc
import signal
import socket
import sys
import threading
from collections.abc import MutableMapping
from typing import Any

import structlog

from discovery.catalog import Catalog, Service
from discovery.dns.pipe import Message, PipeEnded, Reader, Writer
from discovery.dns.server import DnsServer

_SWITCH_SECONDS = 0.0005


class Worker:
    """Builds the table from what the agent sends, and answers by it."""

    def __init__(self, pipe: socket.socket) -> None:
        self._pipe = pipe
        self._reader = Reader(pipe)
        self._writer = Writer(pipe)
        self._server: DnsServer | None = None
        self._services: dict[str, Service] = {}
        self._changes: dict[str, Service | None] = {}
        self._waits = True
        self._stop = threading.Event()

    def run(self) -> None:
        """Answer until the pipe ends."""
        structlog.configure(processors=[self._log])
        # With a table to come, questions wait in the sockets: better late than denied.
        while self._waits and not self._stop.is_set():
            self._on_pipe()
        if self._server is not None:
            self._pipe.setblocking(False)
            self._server.watch(self._pipe, self._on_pipe)
            self._server.run(self._stop)
            self._server.close()

    def _on_pipe(self) -> None:
        try:
            for message in self._reader.read():
                self._take(message)
        except PipeEnded:
            self._stop.set()

    def _take(self, message: Message) -> None:
        kind, *rest = message
        if kind == "begin":
            settings, resolv_conf, descriptors, self._waits = rest
            self._server = DnsServer(settings, resolv_conf=resolv_conf, on_second=self._tell)
            sockets = [tuple(socket.socket(fileno=each) for each in pair) for pair in descriptors]
            self._server.adopt(sockets)
        elif kind == "services":
            self._changes.update(rest[0])
        elif kind == "commit":
            self._commit(*rest)

    def _commit(self, number: int, revision: int) -> None:
        assert self._server is not None, "the first message begins"
        services: dict[str, Service] = {**self._services, **self._changes}  # type: ignore[dict-item]
        for name, service in self._changes.items():
            if service is None:
                del services[name]
        self._services, self._changes = services, {}
        self._server.apply(Catalog(revision, services))
        if number == 1 or self._waits:
            # Most of it is here to stay; the collector need not walk it again and again.
            gc.freeze()
        self._waits = False
        self._writer.write(("applied", number))

    def _tell(self) -> None:
        if self._server is not None:
            self._writer.write(("counts", self._server.counts()))

    def _log(self, _logger: object, level: str, event: MutableMapping[str, Any]) -> str:
        """Have the agent log it, in its manner."""
        self._writer.write(("log", level, dict(event)))
        raise structlog.DropEvent


def main() -> None:
    """The process."""
    # Ctrl-C and a supervisor's SIGTERM reach the whole group; the agent decides when we end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # A thread that has a question is not to wait as long as this usually is for one that takes in a table.
    sys.setswitchinterval(_SWITCH_SECONDS)
    Worker(socket.socket(fileno=int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
