"""A real HAProxy on a configuration of the test's own, without the proxy role."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from discovery.errors import ApplyError
from discovery.haproxy.runtime import Master, ask
from tests.lab.haproxy import until

GLOBAL = """\
global
    stats socket {directory}/admin.sock mode 600 level admin expose-fd listeners
    stats timeout 2m
    hard-stop-after 5s
{more}
defaults
    mode http
    timeout connect 5s
    timeout client 20s
    timeout server 20s
    option idle-close-on-response
"""


class Bare:
    """HAProxy's master and worker, on ``haproxy.cfg`` in ``directory``."""

    def __init__(self, binary: str, directory: Path) -> None:
        self.config = directory / "haproxy.cfg"
        self.log = directory / "log"
        self.admin_socket = directory / "admin.sock"
        self._directory = directory
        self._command = [binary, "-W", "-S", f"{directory}/master.sock,mode,600", "-f", str(self.config)]
        self._master = Master(directory / "master.sock")
        self._child: subprocess.Popen[bytes] | None = None

    def write(self, sections: str, more_global: str = "") -> None:
        """Put a configuration of these sections on disk."""
        self.config.write_text(GLOBAL.format(directory=self._directory, more=more_global) + sections)

    def start(self) -> None:
        """Start it, and return when its worker answers."""
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)
        until(lambda: self.worker, "HAProxy runs")

    def reload(self) -> None:
        """Load what is on disk now, and return when a new worker answers."""
        before = self.worker
        # Up to 2.6 the master drops the connection.
        with suppress(ApplyError):
            self._master.reload(20)
        until(lambda: self.worker not in (None, before), "a new worker runs")

    @property
    def worker(self) -> int | None:
        """The process id of the worker that serves; None as long as none does."""
        if self._child is not None and self._child.poll() is not None:
            pytest.fail(f"HAProxy ended: {self.log.read_text()}")
        try:
            workers = self._master.processes().workers
            return (
                workers[0] if workers and "\nPid: " in self._master.worker(workers[0], "show info") else None
            )
        except ApplyError:
            return None

    def ask(self, command: str) -> str:
        """The worker's answer to a runtime command."""
        return ask(self.admin_socket, command, 20)

    def ask_plain(self, command: str) -> str:
        """The worker's answer to a command that has a payload: sent as it is, with one newline after it."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(str(self.admin_socket))
            connection.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()

    def stop(self) -> None:
        """End it."""
        if self._child is not None:
            self._child.terminate()
            self._child.wait(20)


@contextmanager
def bare(binary: str, directory: Path, sections: str, more_global: str = "") -> Iterator[Bare]:
    """HAProxy running these sections; ended afterwards."""
    haproxy = Bare(binary, directory)
    haproxy.write(sections, more_global)
    haproxy.start()
    try:
        yield haproxy
    finally:
        haproxy.stop()
