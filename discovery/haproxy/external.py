"""A HAProxy that somebody else runs, such as systemd: we write its files and have it reloaded, no more.

It is never started, stopped or killed by us; a command of the administrator's does what has to be done. The
configuration is ours, and so is the admin socket in it: who answers there is the HAProxy that runs on our
files, and a change of the files is in force when another worker answers there than before.
"""

import re
import select
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import structlog

from discovery import commands
from discovery.errors import ApplyError, CommandError, ConfigRefused
from discovery.haproxy import program
from discovery.haproxy.engine import OldWorker
from discovery.haproxy.process import ReloadFailed
from discovery.haproxy.program import Program
from discovery.haproxy.runtime import alerts, ask
from discovery.haproxy.settings import ProxySettings

log = structlog.get_logger(__name__)

ANSWER_SECONDS = 5.0
LOOK_SECONDS = 0.25
POLL_SECONDS = 0.02
REFUSED_SECONDS = 1.0
"""So long a new worker is waited for after the command failed: it may have failed after it did its work."""
SETTLED_ANSWERS = 5
"""So many answers of the new worker in a row say that the former one takes no more connections: for a moment
both do, and either may have the next one."""

_SRC = re.compile(r"\{\{\s*\.?src\s*\}\}")


class WorkerReplaced(ApplyError):
    """Another worker answers than the one that is known: what runs is what the files said when it began."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker as it describes itself: process id as it sees it, Unix time of its start, its version."""

    pid: int
    started_seconds: int
    version: str


class External:
    """The HAProxy that runs on ``settings.config``. Only ``pid`` and ``wait_for_end`` are for other threads
    than the one that commands.

    A worker counts as the known one by process id and start, for in a container every HAProxy may have the
    same id. Only the known one is told anything.
    """

    def __init__(self, settings: ProxySettings, program: Program) -> None:
        """``settings.mode`` is ``external``. ``program`` is what checks where there is no ``check_cmd``."""
        assert settings.reload_cmd is not None  # as the settings of an external one are checked for
        self._reload_cmd = settings.reload_cmd
        self._settings = settings
        self._program = program
        self._worker: Worker | None = None

    @property
    def pid(self) -> int | None:
        """The known worker's process id; None when it does not answer, or another one does."""
        worker = self._worker
        return None if worker is None or self.wait_for_end(0) else worker.pid

    @property
    def version(self) -> str | None:
        """The version of the known worker, which may be another than that of our own program."""
        worker = self._worker
        return None if worker is None else worker.version

    # -- beginning

    def adopt(self) -> bool:
        """Take the worker that answers for the known one; False if none does, or it is stopping."""
        self._worker = self._look()
        if self._worker is None:
            return False
        log.info("haproxy_adopted", pid=self._worker.pid, version=self._worker.version)
        return True

    def start(self) -> None:
        """Have HAProxy load the current configuration, whether it runs or not, and return when it serves.

        One that was started again by others is reloaded too: it may have begun before our files changed.
        Raises ApplyError.
        """
        self._load("HAProxy cannot be started")

    # -- changing

    def check(self, config: Path) -> None:
        """Have a configuration checked. Raises ApplyError with what is said against it."""
        command = self._settings.check_cmd
        if command is None:
            program.check(self._program, config, self._settings.check_timeout_seconds)
            return
        quoted = shlex.quote(str(config))
        try:
            commands.run(_SRC.sub(lambda _match: quoted, command), self._settings.command_timeout_seconds)
        except CommandError as error:
            message = str(error)
            if error.status is None:
                raise ApplyError(f"proxy.check_cmd cannot check the configuration: {message}") from error
            reason = f"proxy.check_cmd refuses the configuration: {alerts(message)}"
            raise ConfigRefused(reason, message) from error

    def reload(self) -> None:
        """Have a new worker load the current configuration; return when it alone takes connections.

        Raises ReloadFailed when the former worker goes on as before, ApplyError when none answers.
        """
        self._load("HAProxy's reload failed")

    def ask(self, command: str) -> str:
        """The known worker's answer to one runtime command; a payload ends with a newline.

        Raises WorkerReplaced when another worker had the connection, or it is stopping: the command is lost
        then, and what runs is not known before ``adopt`` or ``start``. Raises ApplyError without an answer.
        """
        if self._worker is None:
            raise ApplyError("HAProxy does not run")
        # On one connection, so that both answers are of one worker.
        answer = ask(self._settings.admin_socket, f"show info;{command}", ANSWER_SECONDS)
        info, _, rest = answer.partition("\n\n")
        if _worker(info) != self._worker:
            raise WorkerReplaced(f"HAProxy's worker {self._worker.pid} was replaced by somebody else")
        return rest

    def old_workers(self) -> tuple[OldWorker, ...]:
        """The former workers, as far as their processes can be seen; what keeps them is not known."""
        worker = self._worker
        return () if worker is None else tuple(OldWorker(pid) for pid in _former(worker.pid))

    # -- ending

    def wait_for_end(self, timeout_seconds: float) -> bool:
        """Wait until the known worker no longer serves: it ended, is stopping, or was replaced by others.

        True at once when that is so, False after the time-out. For any thread.
        """
        worker = self._worker
        deadline = time.monotonic() + timeout_seconds
        while worker is not None and self._look() == worker:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            select.select((), (), (), min(LOOK_SECONDS, left))
        return True

    def stop(self) -> None:
        """Let go of HAProxy: it is for others to stop."""
        self.release()

    def clear(self) -> None:
        """Nothing: what is left of a HAProxy that ended is for others to end."""

    def release(self) -> None:
        """Let go of HAProxy, which goes on."""
        self._worker = None

    def trim_log(self) -> None:
        """Nothing: what HAProxy writes goes where others told it to."""

    # -- the steps

    def _load(self, failure: str) -> None:
        """Run the reload command, and wait for a worker that is not the one of before."""
        before = self._look()
        refusal: CommandError | None = None
        try:
            commands.run(self._reload_cmd, self._settings.command_timeout_seconds)
        except CommandError as error:
            refusal = error
        # What counts is what runs: a command may fail after it did its work, and end well without any.
        patience_seconds = self._settings.start_timeout_seconds if refusal is None else REFUSED_SECONDS
        worker = self._wait_for_another(before, patience_seconds)
        if worker is None:
            reason = f"{failure}: proxy.reload_cmd {_said(refusal)}"
            raise (ReloadFailed if before is not None and self._look() == before else ApplyError)(reason)
        if refusal is not None:
            log.warning("haproxy_reload_cmd_failed", pid=worker.pid, error=_said(refusal))
        self._worker = worker
        log.info("haproxy_loaded", pid=worker.pid, version=worker.version)

    def _wait_for_another(self, former: Worker | None, timeout_seconds: float) -> Worker | None:
        """The worker that answers, several times in a row, and is not ``former``; None after the time-out."""
        deadline = time.monotonic() + timeout_seconds
        found: Worker | None = None
        answers = 0
        while time.monotonic() < deadline:
            worker = self._look()
            answers = answers + 1 if worker == found else 1
            found = worker
            if answers >= SETTLED_ANSWERS and worker not in (None, former):
                return worker
            select.select((), (), (), POLL_SECONDS)
        return None

    def _look(self) -> Worker | None:
        """The worker that answers at the admin socket; None when none does, or it is stopping."""
        try:
            return _worker(ask(self._settings.admin_socket, "show info", ANSWER_SECONDS))
        except ApplyError:
            return None


def _worker(info: str) -> Worker | None:
    """The worker that gave this answer to ``show info``; None for one that is stopping, and for no answer."""
    fields = dict(line.split(": ", 1) for line in info.splitlines() if ": " in line)
    if fields.get("Stopping") != "0":
        return None
    try:
        return Worker(int(fields["Pid"]), int(fields["Start_time_sec"]), fields["Version"])
    except (KeyError, ValueError):
        return None


def _former(pid: int) -> tuple[int, ...]:
    """The other workers of the master of worker ``pid``; none where none is seen, as in another container."""
    try:
        worker = psutil.Process(pid)
        master = worker.parent()
        # In the foreground without a master, its parent is no HAProxy; nor is whoever has that id here.
        if master is None or master.name() != worker.name():
            return ()
        others = (each for each in master.children() if each.pid != pid and each.name() == worker.name())
        return tuple(sorted(each.pid for each in others))
    except psutil.Error:
        return ()


def _said(error: CommandError | None) -> str:
    return "ended well, and yet no new worker serves" if error is None else alerts(str(error))
