"""Talks to a running HAProxy: the sockets, and what their answers mean."""

import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from discovery.errors import ApplyError
from discovery.haproxy.model import Model

# The only answer after which the master does not close the connection, as told to.
_NO_WORKER = b"Can't find the target"

_SUMMARY = re.compile(r"(Error\(s\)|Fatal errors) found in configuration|failed to start their listeners")

NO_STATE = "1\n"
"""A server state file that says nothing; without a file HAProxy warns."""

_PROCESS = re.compile(r"(\d+)\s+(master|worker)\s+(\d+)(?:\s+\[failed: (\d+)\])?\s+\S+\s+(\S+)")


# ---- asking -----------------------------------------------------------------------------------------


def ask(path: Path, command: str, timeout_seconds: float) -> str:
    """The answer of the HAProxy socket at ``path`` to one command line.

    Raises ApplyError when nothing answers within ``timeout_seconds``, all told.
    """
    deadline = time.monotonic() + timeout_seconds
    chunks: list[bytes] = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_seconds)
            connection.connect(str(path))
            # Unlike a worker, the master keeps the connection open unless it is told not to.
            connection.sendall(f"{command};quit\n".encode())
            while True:
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
                chunk = connection.recv(1 << 20)
                if not chunk:
                    return b"".join(chunks).decode(errors="replace")
                chunks.append(chunk)
                if chunks[0].startswith(_NO_WORKER):
                    raise ApplyError(f"HAProxy has no such worker: {command!r}")
    except OSError as error:
        raise ApplyError(f"HAProxy does not answer {command!r} at {path}: {error}") from error


@dataclass(frozen=True, slots=True)
class Processes:
    """HAProxy's processes as its master tells them.

    ``reloads`` counts every reload of the master, ``failed`` those since the last that succeeded.
    ``workers`` serve; ``old_workers`` only finish what they have. Both are process ids.
    """

    master: int
    version: str
    reloads: int
    failed: int
    workers: tuple[int, ...]
    old_workers: tuple[int, ...]


def parse_processes(text: str) -> Processes:
    """The answer to ``show proc``. Raises ApplyError when it is none."""
    master: re.Match[str] | None = None
    workers: list[int] = []
    old_workers: list[int] = []
    into = workers
    for line in text.splitlines():
        if line.startswith("# old workers"):
            into = old_workers
        elif match := _PROCESS.match(line):
            if match[2] == "master":
                master = match
            else:
                into.append(int(match[1]))
    if master is None:
        raise ApplyError(f"HAProxy's master answered 'show proc' with {text[:200]!r}")
    return Processes(
        int(master[1]), master[5], int(master[3]), int(master[4] or 0), tuple(workers), tuple(old_workers)
    )


class Master:
    """HAProxy's master process, through its socket. Without an answer every method raises ApplyError."""

    def __init__(self, path: Path, timeout_seconds: float = 5.0) -> None:
        self._path = path
        self._timeout_seconds = timeout_seconds

    def processes(self) -> Processes:
        """Its processes now."""
        return parse_processes(ask(self._path, "show proc", self._timeout_seconds))

    def reload(self, timeout_seconds: float) -> str:
        """Ask for a reload. The answer comes afterwards and tells how it went; up to 2.6 it is empty."""
        return ask(self._path, "reload", timeout_seconds)

    def worker(self, pid: int, command: str) -> str:
        """The answer of exactly this worker to a runtime command."""
        return ask(self._path, f"@!{pid} {command}", self._timeout_seconds)

    def has_stopped_listening(self, pid: int) -> bool:
        """Whether a worker that was told to end has closed its listeners, or is gone."""
        processes = self.processes()
        if pid not in processes.workers + processes.old_workers:
            return True
        try:
            return "\nStopping: 1" in self.worker(pid, "show info")
        except ApplyError:
            # It may have ended just now; the next look tells.
            return False


# ---- what it writes ---------------------------------------------------------------------------------


def alerts(text: str, most: int = 3) -> str:
    """What matters of HAProxy's output: its first alerts on one line, else the end of it."""
    found = [line.partition(" : ")[2].strip() for line in text.splitlines() if "[ALERT]" in line]
    chosen = "; ".join([line for line in found if line and not _SUMMARY.search(line)][:most])
    return (chosen or text.strip()[-500:])[:1500]


def keep_state(text: str, model: Model) -> str:
    """Of ``show servers state``, the header and the servers that ``model`` has at the same address.

    HAProxy gives a server of the same name the *port* it had before, whatever its configuration says, so the
    state of one that moved must not be loaded.
    """
    lines = iter(text.splitlines())
    version = next((line for line in lines if line), "1")
    header = next((line for line in lines if line.startswith("# ")), "")
    columns = {name: index for index, name in enumerate(header.removeprefix("# ").split())}
    if not {"be_name", "srv_name", "srv_addr", "srv_port"} <= columns.keys():
        return NO_STATE
    kept = _kept_lines(lines, columns, model)
    return "\n".join((version, header, *kept)) + "\n"


def _kept_lines(lines: Iterator[str], columns: Mapping[str, int], model: Model) -> Iterator[str]:
    addresses = {
        (name, server.name): server.address
        for name, backend in model.backends.items()
        for server in backend.servers
    }
    backend_at, server_at = columns["be_name"], columns["srv_name"]
    host_at, port_at = columns["srv_addr"], columns["srv_port"]
    for line in lines:
        fields = line.split()
        if len(fields) != len(columns):
            continue
        host, port = fields[host_at], fields[port_at]
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if addresses.get((fields[backend_at].removeprefix("service:"), fields[server_at])) == address:
            yield line
