"""Answering in processes of their own, so that nothing else the agent does delays an answer.

    agent: binds ─► one process, or several that share each UDP port (SO_REUSEPORT)
           apply ─► what has changed, to each; returns when all have confirmed it
           run   ─► their counts and logs; one that has ended is started again, with the whole table

The agent keeps every socket open: what arrives while a process starts again waits there.
"""

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from discovery.catalog import Catalog, Problem, Service
from discovery.dns.listen import Sockets, address_of, bind_all
from discovery.dns.pipe import Message, PipeEnded, Reader, pack
from discovery.dns.resolvconf import RESOLV_CONF
from discovery.dns.server import refuse_own_upstreams
from discovery.dns.settings import Address, DnsSettings
from discovery.dns.stats import Counts
from discovery.errors import ApplyError, ConfigError

log = structlog.get_logger(__name__)

CONFIRM_SECONDS = 10.0
"""How long ``apply`` waits, and how long a process may take nothing from us before it is ended."""
RESTART_SECONDS = 1.0
"""The least time between two starts of one process."""
MOST_PROCESSES = 64
_POLL_SECONDS = 0.2
_END_SECONDS = 3.0
_CHUNK = 200
"""Services of one message: a process answers between two."""


class DnsProcesses:
    """Answers DNS queries as a Catalog says; an Applier. ``start``, then ``run`` on a thread of its own.

    Raises ConfigError for a number of processes that cannot be.
    """

    name = "dns"

    def __init__(
        self,
        settings: DnsSettings,
        *,
        processes: int = 1,
        resolv_conf: Path = RESOLV_CONF,
        confirm_seconds: float = CONFIRM_SECONDS,
    ) -> None:
        if not 1 <= processes <= MOST_PROCESSES:
            raise ConfigError("dns.processes", f"{processes} is not from 1 to {MOST_PROCESSES}")
        self.addresses: tuple[Address, ...] = ()
        """What is bound, once started."""
        self._settings = settings
        self._resolv_conf = resolv_conf
        self._number = processes
        self._confirm_seconds = confirm_seconds
        self._sockets = contextlib.ExitStack()
        self._workers: list[_Process] = []
        self._changed = threading.Condition()
        self._table = _Table()
        self._ended = Counts()

    def start(self) -> None:
        """Bind every address and start the processes. Raises ConfigError, with nothing left bound."""
        with contextlib.ExitStack() as sockets:
            bound = bind_all(self._settings, self._number, sockets)
            self.addresses = tuple(address_of(each) for each in bound)
            refuse_own_upstreams(self._settings, self.addresses)
            self._sockets = sockets.pop_all()
        for index in range(self._number):
            self._workers.append(self._launch([(tcp, udp[index]) for tcp, *udp in bound]))
        log.info(
            "dns_started",
            listen=[f"{host}#{port}" for host, port in self.addresses],
            zones=self._settings.zones,
            answer=self._settings.answer,
            processes=[worker.pid for worker in self._workers],
        )

    def apply(self, catalog: Catalog) -> tuple[Problem, ...]:
        """Answer by this catalog in every process. Raises ApplyError when one does not confirm it."""
        with self._changed:
            if not self._table.is_same(catalog):
                self._table = _Table(self._table.number + 1, catalog)
                for worker in self._workers:
                    worker.send_table(self._table)
            wanted = self._table.number
            if not self._changed.wait_for(lambda: self._confirmed >= wanted, self._confirm_seconds):
                for worker in self._workers:
                    if worker.applied < wanted:
                        # It hangs: with its end another is started.
                        worker.kill()
                raise ApplyError("a process that answers DNS has not confirmed the zone")
        return ()

    def run(self, stop: threading.Event) -> None:
        """Look after the processes until ``stop``."""
        while not stop.is_set():
            workers = [worker for worker in self._workers if worker.alive]
            ready, _, _ = select.select([worker.pipe for worker in workers], [], [], _POLL_SECONDS)
            for worker in workers:
                if worker.pipe in ready:
                    worker.read(self._take)
            for index, worker in enumerate(self._workers):
                if not worker.alive and time.monotonic() - worker.started_at >= RESTART_SECONDS:
                    self._restart(index)

    def close(self) -> None:
        """End the processes and free every socket; after ``run`` has returned."""
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            worker.end()
        self._sockets.close()

    def counts(self) -> Counts:
        """Everything counted so far, as of a second ago, by every process there is and has been."""
        total = self._ended
        for worker in self._workers:
            total = total.plus(worker.counts)
        return total

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes."""
        return tuple(worker.pid for worker in self._workers)

    # -- processes

    @property
    def _confirmed(self) -> int:
        return min(worker.applied for worker in self._workers)

    def _launch(self, sockets: list[Sockets]) -> "_Process":
        worker = _Process(sockets)
        descriptors = [tuple(each.fileno() for each in pair) for pair in sockets]
        waits = self._table.catalog is not None
        worker.send(("begin", self._settings, self._resolv_conf, descriptors, waits))
        worker.send_table(self._table)
        return worker

    def _restart(self, index: int) -> None:
        old = self._workers[index]
        code = old.end()
        with self._changed:
            self._ended = self._ended.plus(old.counts.ended())
            self._workers[index] = self._launch(old.sockets)
        log.error("dns_process_restarted", ended=old.pid, code=code, started=self._workers[index].pid)

    def _take(self, worker: "_Process", message: Message) -> None:
        kind, *rest = message
        if kind == "applied":
            with self._changed:
                worker.applied = rest[0]
                self._changed.notify_all()
        elif kind == "counts":
            worker.counts = rest[0]
        elif kind == "log":
            level, event = rest
            getattr(log, level)(event.pop("event"), **event)


class _Table:
    """What is to be answered, and its number; 0 is before the first."""

    def __init__(self, number: int = 0, catalog: Catalog | None = None) -> None:
        self.number = number
        self.catalog = catalog
        self.services: Mapping[str, Service] = catalog.services if catalog is not None else {}

    def is_same(self, catalog: Catalog) -> bool:
        return self.catalog is not None and self.services is catalog.services


class _Process:
    """One process and our end of its pipe."""

    def __init__(self, sockets: list[Sockets]) -> None:
        self.sockets = sockets
        self.applied = 0
        self.counts = Counts()
        self.alive = True
        self.started_at = time.monotonic()
        self._sent: Mapping[str, Service] = {}
        self.pipe, theirs = socket.socketpair()
        self.pipe.settimeout(CONFIRM_SECONDS)
        self._reader = Reader(self.pipe)
        inherited = [each.fileno() for pair in sockets for each in pair]
        with theirs:
            # A program of its own and no fork: the agent has threads. It finds the modules where we did.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "discovery.dns.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno(), *inherited],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self.pid = self._process.pid

    def send(self, message: Message) -> None:
        """Send it. A process that takes nothing is ended, and with that started anew."""
        try:
            self.pipe.sendall(pack(message))
        except TimeoutError:
            self.kill()
        except OSError:
            # It has ended; whoever reads sees that too.
            return

    def send_table(self, table: _Table) -> None:
        """Send what differs from what it was sent before."""
        if table.catalog is None:
            return
        before, after = self._sent, table.services
        changes: dict[str, Service | None] = {name: None for name in before if name not in after}
        changes.update((name, service) for name, service in after.items() if before.get(name) is not service)
        names = list(changes)
        for begin in range(0, len(names), _CHUNK):
            self.send(("services", {name: changes[name] for name in names[begin : begin + _CHUNK]}))
        self.send(("commit", table.number, table.catalog.revision))
        self._sent = after

    def read(self, take: "Callable[[_Process, Message], None]") -> None:
        """Pass on what it says; once it says nothing more, it is not ``alive``."""
        try:
            for message in self._reader.read():
                take(self, message)
        except PipeEnded:
            self.alive = False

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def end(self) -> int:
        """End it, if it has not ended; how it ended."""
        self.pipe.close()
        try:
            return self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
