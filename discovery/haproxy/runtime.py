"""Talks to a running HAProxy: the sockets, and what their answers mean."""

import re
import socket
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from discovery.errors import ApplyError

# The only answer after which the master does not close the connection, as told to.
_NO_WORKER = b"Can't find the target"

_SUMMARY = re.compile(r"(Error\(s\)|Fatal errors) found in configuration|failed to start their listeners")

_SESSION = re.compile(r"^0x\S+: proto=\S+ src=\S+ fe=(\S+) be=(\S+) ", re.MULTILINE)

_PROCESS = re.compile(r"(\d+)\s+(master|worker)\s+(\d+)(?:\s+\[failed: (\d+)\])?\s+\S+\s+(\S+)")


# ---- asking -----------------------------------------------------------------------------------------


def ask(path: Path, command: str, timeout_seconds: float) -> str:
    """The answer of the HAProxy socket at ``path`` to one command line, with its payload if it has one.

    Raises ApplyError when nothing answers within ``timeout_seconds``, all told.
    """
    deadline = time.monotonic() + timeout_seconds
    chunks: list[bytes] = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_seconds)
            connection.connect(str(path))
            connection.sendall(f"{command}\n".encode())
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


def sessions(text: str) -> Counter[str]:
    """The answer to ``show sess``: how many connections there are by backend, or by frontend without one.

    The one that asks is not counted.
    """
    found: Counter[str] = Counter()
    for match in _SESSION.finditer(text):
        frontend, backend = match[1], match[2]
        if frontend != "GLOBAL":
            found[frontend if backend == "<NONE>" else backend] += 1
    return found


class Master:
    """HAProxy's master process, through its socket. Without an answer every method raises ApplyError."""

    def __init__(self, path: Path, timeout_seconds: float = 5.0) -> None:
        self._path = path
        self._timeout_seconds = timeout_seconds

    def processes(self) -> Processes:
        """Its processes now."""
        return parse_processes(self._ask("show proc", self._timeout_seconds))

    def reload(self, timeout_seconds: float) -> str:
        """Ask for a reload. The answer comes afterwards and tells how it went; up to 2.6 it is empty."""
        return self._ask("reload", timeout_seconds)

    def worker(self, pid: int, command: str) -> str:
        """The answer of exactly this worker to a runtime command."""
        return self._ask(f"@!{pid} {command}", self._timeout_seconds)

    def _ask(self, command: str, timeout_seconds: float) -> str:
        # Unlike a worker, the master keeps the connection open unless it is told not to.
        return ask(self._path, f"{command};quit", timeout_seconds)

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
