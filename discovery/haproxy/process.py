"""HAProxy's master process under our care: started, adopted, reloaded, ended.

It outlives us on purpose: it has a session of its own and no pipe to us, so that an agent that is killed
and started again finds it serving, and takes it over without a gap.
"""

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from pathlib import Path

import structlog

from discovery.errors import ApplyError
from discovery.haproxy.engine import OldWorker
from discovery.haproxy.program import Program, check
from discovery.haproxy.runtime import Master, alerts, ask, sessions
from discovery.haproxy.settings import ProxySettings

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.02
ASK_SECONDS = 5.0
SHOWN_BACKENDS = 5
REMNANTS_SECONDS = 3.0
LOG_BYTES = 1 << 20
ENVIRONMENT = ("PATH", "LANG", "TZ", "LD_LIBRARY_PATH")
"""All that HAProxy gets of our environment, which may hold secrets and systemd's sockets."""


class ReloadFailed(ApplyError):
    """A reload is over and has failed; the former worker serves what it served before."""


class Process:
    """One HAProxy in master-worker mode on ``settings.config``. Only ``wait_for_end`` and ``pid`` are for
    other threads than the one that commands."""

    def __init__(self, settings: ProxySettings, program: Program) -> None:
        self.master = Master(settings.master_socket)
        self._settings = settings
        self._program = program
        self._lock = threading.Lock()
        self._pid: int | None = None
        self._pidfd: int | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._workers: list[int] = []

    @property
    def pid(self) -> int | None:
        """The master's process id; None when there is none, or it ended."""
        return None if self._pid is None or self.wait_for_end(0) else self._pid

    @property
    def version(self) -> str:
        """HAProxy's version."""
        return self._program.version

    def check(self, config: Path) -> None:
        """Have a configuration checked. Raises ConfigRefused, ApplyError when it cannot be."""
        check(self._program, config, self._settings.check_timeout_seconds)

    # -- beginning

    def adopt(self) -> bool:
        """Take over a master that already runs on our configuration; False if there is none fit for it.

        One that does not answer, or is another program than the one we are told to run, is ended.
        """
        ours = self._ours()
        masters = [pid for pid, parent in ours.items() if parent not in ours]
        if not masters:
            return False
        for pid in masters[1:]:
            _kill(pid, signal.SIGKILL)
        self._hold(masters[0])
        try:
            if _command(masters[0])[:1] != [str(self._program.path)]:
                raise ApplyError(f"it is another program than {self._program.path}")
            self._wait_for_worker(set(), self._settings.start_timeout_seconds)
        except ApplyError as error:
            log.warning("haproxy_not_adopted", pid=masters[0], reason=str(error))
            self.stop()
            return False
        log.info("haproxy_adopted", pid=masters[0])
        return True

    def start(self) -> None:
        """Start HAProxy on the current configuration, and return when it serves. Raises ApplyError."""
        self.clear()
        written = self._log_size()
        try:
            with self._settings.log_file.open("ab") as output:
                child = subprocess.Popen(
                    self._arguments(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
                    start_new_session=True,
                )
        except OSError as error:
            raise ApplyError(f"HAProxy cannot be started: {error}") from error
        self._hold(child.pid, child)
        try:
            self._wait_for_worker(set(), self._settings.start_timeout_seconds)
        except ApplyError as error:
            self._end(signal.SIGKILL, REMNANTS_SECONDS)
            raise ApplyError(
                f"HAProxy cannot be started: {alerts(self._log_since(written)) or error}"
            ) from error
        log.info("haproxy_started", pid=child.pid, version=self._program.version)

    # -- changing

    def reload(self) -> None:
        """Have a new worker load the current configuration; return when it alone takes connections.

        Raises ReloadFailed when HAProxy could not, ApplyError when it is not known whether it could.
        """
        timeout_seconds = self._settings.start_timeout_seconds
        written = self._log_size()
        before = self.master.processes()
        answer = ""
        # Up to 2.6 the master drops the connection to begin anew, and how it went is found by looking.
        with contextlib.suppress(ApplyError):
            answer = self.master.reload(timeout_seconds)
        try:
            if answer.startswith("Success=0"):
                raise ReloadFailed("no new worker runs")
            self._wait_for_worker(set(before.workers), timeout_seconds, before.reloads)
        except ApplyError as error:
            said = answer.partition("--\n")[2] or self._log_since(written)
            kind = ReloadFailed if isinstance(error, ReloadFailed) else ApplyError
            raise kind(f"HAProxy's reload failed: {alerts(said) or error}") from error
        deadline = time.monotonic() + timeout_seconds
        for pid in before.workers:
            while not self.master.has_stopped_listening(pid):
                if time.monotonic() > deadline:
                    # It hangs, and would take its share of the new connections for ever.
                    log.error("haproxy_worker_killed", worker=pid, reason="it does not stop listening")
                    _kill(pid, signal.SIGKILL)
                    break
                self.wait_for_end(POLL_SECONDS)

    def ask(self, command: str) -> str:
        """The newest worker's answer to one line of runtime commands. Raises ApplyError."""
        return ask(self._settings.admin_socket, command, ASK_SECONDS)

    def old_workers(self) -> tuple[OldWorker, ...]:
        """The workers that were replaced, and what keeps them. Raises ApplyError."""
        found = []
        for pid in self.master.processes().old_workers:
            try:
                backends = sessions(self.master.worker(pid, "show sess"))
            except ApplyError:
                # It may have ended just now. One that is there and does not answer is worth knowing of.
                if Path(f"/proc/{pid}").exists():
                    found.append(OldWorker(pid))
                continue
            found.append(OldWorker(pid, sum(backends.values()), tuple(backends.most_common(SHOWN_BACKENDS))))
        return tuple(found)

    # -- ending

    def wait_for_end(self, timeout_seconds: float) -> bool:
        """Wait for the master to end; True at once when it did, False after the time-out. For any thread."""
        with self._lock:
            if self._pidfd is None:
                return True
            descriptor = os.dup(self._pidfd)
        try:
            return _ended(descriptor, timeout_seconds)
        finally:
            os.close(descriptor)

    def stop(self) -> None:
        """End HAProxy: let it finish what it has, for a bounded time, then not."""
        self._end(signal.SIGUSR1, self._settings.stop_timeout_seconds)

    def clear(self) -> None:
        """Leave nothing of a HAProxy that ended: its workers follow their master, but not at once."""
        # A process that ends loses its command line before its sockets, so those known are waited for.
        with self._lock:
            known = [each for each in (self._pidfd, *self._workers) if each is not None]
        deadline = time.monotonic() + REMNANTS_SECONDS
        while not all(_ended(each) for each in known) or self._ours():
            if time.monotonic() > deadline:
                for each in known:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(each, signal.SIGKILL)
                for pid in self._ours():
                    _kill(pid, signal.SIGKILL)
            select.select((), (), (), POLL_SECONDS)
        self.release()

    def release(self) -> None:
        """Let go of HAProxy, which goes on."""
        with self._lock:
            child = self._child
            for descriptor in (self._pidfd, *self._workers):
                if descriptor is not None:
                    os.close(descriptor)
            self._pid = self._pidfd = self._child = None
            self._workers = []
        if child is not None:
            child.poll()

    def trim_log(self) -> None:
        """Keep HAProxy's log within its bound: the older half of it is in ``haproxy.log.1``."""
        path = self._settings.log_file
        if self._log_size() > LOG_BYTES:
            try:
                path.with_suffix(".log.1").write_bytes(path.read_bytes()[-LOG_BYTES:])
                # HAProxy appends, so it goes on at the beginning.
                os.truncate(path, 0)
            except OSError as error:
                log.warning("haproxy_log_not_trimmed", error=str(error))

    # -- the steps

    def _arguments(self) -> list[str]:
        settings = self._settings
        socket = f"{settings.master_socket},mode,600"
        return [str(self._program.path), "-W", "-S", socket, "-f", str(settings.config)]

    def _wait_for_worker(self, former: set[int], timeout_seconds: float, reloads: int = -1) -> None:
        """Wait until a worker that is none of ``former`` answers, the master having reloaded since."""
        deadline = time.monotonic() + timeout_seconds
        last = ApplyError("it does not answer")
        while True:
            try:
                processes = self.master.processes()
                new = [pid for pid in processes.workers if pid not in former]
                if processes.master == self._pid and processes.reloads > reloads:
                    if not new:
                        raise ReloadFailed("no new worker runs")
                    if "\nPid: " in self.master.worker(new[0], "show info"):
                        self._hold_workers(new)
                        return
            except ReloadFailed:
                raise
            except ApplyError as error:
                last = error
            if self.wait_for_end(POLL_SECONDS):
                raise ApplyError("it ended")
            if time.monotonic() > deadline:
                raise last

    def _hold(self, pid: int, child: subprocess.Popen[bytes] | None = None) -> None:
        try:
            descriptor = os.pidfd_open(pid)
        except OSError as error:
            raise ApplyError(f"HAProxy's process {pid} ended") from error
        with self._lock:
            self._pid, self._pidfd, self._child = pid, descriptor, child

    def _hold_workers(self, pids: list[int]) -> None:
        for descriptor in self._workers:
            os.close(descriptor)
        self._workers = []
        for pid in pids:
            with contextlib.suppress(OSError):
                self._workers.append(os.pidfd_open(pid))

    def _end(self, first: signal.Signals, timeout_seconds: float) -> None:
        pid = self._pid
        if pid is not None:
            for how, patience in ((first, timeout_seconds), (signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0)):
                if self.wait_for_end(0):
                    break
                _kill(pid, how)
                self.wait_for_end(patience)
        self.clear()

    def _ours(self) -> dict[int, int]:
        """The processes that run on our configuration, and their parents."""
        ours = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                command = _command(int(entry.name))
                if "-f" in command and str(self._settings.config) in command and "-W" in command:
                    with contextlib.suppress(OSError, IndexError, ValueError):
                        ours[int(entry.name)] = int(
                            (entry / "stat").read_text().rpartition(")")[2].split()[1]
                        )
        return ours

    def _log_size(self) -> int:
        try:
            return self._settings.log_file.stat().st_size
        except OSError:
            return 0

    def _log_since(self, offset: int) -> str:
        try:
            with self._settings.log_file.open("rb") as file:
                file.seek(offset)
                return file.read(LOG_BYTES).decode(errors="replace")
        except OSError:
            return ""


def _ended(pidfd: int, timeout_seconds: float = 0) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_seconds * 1000))


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _kill(pid: int, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, how)
