"""A sidekick for one address, or for a command: announced while it runs, withdrawn before it is stopped.

The end has an order. The instance is marked as draining, and every edge stops sending it new requests; it
still answers those under way, for the drain's seconds. Then its keys go. Then the command gets the signal.
"""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from discovery.errors import CommandError
from discovery.notify import EXTEND_SECONDS, Notifier, Report, keep_told
from discovery.registrator import Registrator
from discovery.signals import Signals
from discovery.workers import Workers

DRAIN_SECONDS = 2.0
"""How long an instance is drained unless told otherwise: edges take a fraction of a second to hear of it."""

WITHDRAW_SECONDS = 3.0
"""How long the end waits for the keys to go at most; they then expire by themselves.

With the drain much less than the 10 s after which `docker stop` kills: the command needs its share of them.
"""

LOOK_SECONDS = 0.5
"""How often it is looked whether our own threads still do; signals and the command's end come at once."""

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_PASSED_ON = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT)
_OF_A_TERMINAL = (signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT)
"""What a terminal sends to a whole process group, and we to that of the command."""

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_prctl = ctypes.CDLL(None).prctl
_prctl.argtypes = [ctypes.c_int, ctypes.c_ulong]


@dataclass(frozen=True, slots=True)
class Announcement:
    """An address that is announced while its registrator runs; ``drain`` marks it as draining."""

    registrator: Registrator
    drain: Callable[[], None]


def run_announcement(
    announcement: Announcement, *, drain_seconds: float = DRAIN_SECONDS, notifier: Notifier | None = None
) -> None:
    """Announce until SIGTERM, SIGINT, SIGQUIT or SIGHUP, then drain and withdraw.

    A second signal ends the drain. Call it from the main thread.
    """
    with Signals((*_ENDING, signal.SIGHUP)) as signals:
        sidekick = _Sidekick(announcement, notifier or Notifier())
        while not sidekick.failed and not signals.wait(LOOK_SECONDS):
            pass
        sidekick.withdraw(drain_seconds, lambda seconds: bool(signals.wait(seconds)))
    sidekick.raise_failure()


def run_announced(
    command: Sequence[str],
    announcement: Announcement,
    *,
    drain_seconds: float = DRAIN_SECONDS,
    notifier: Notifier | None = None,
) -> int:
    """Run a command and announce beside it; the exit status as a shell gives it, 128 + n for signal n.

    The first SIGTERM, SIGINT or SIGQUIT drains and withdraws, and is then passed on to the command; a second
    one ends the drain and is passed on as well. Other signals are passed on at once, SIGTSTP stops both. When
    the command ends by itself the keys go. Should we be killed, the kernel kills the command. Call it from
    the main thread. Raises CommandError when the command cannot be started.
    """
    with Signals((*_ENDING, *_PASSED_ON, signal.SIGCHLD)) as signals:
        child = _Child(command, signals)
        sidekick = _Sidekick(announcement, notifier or Notifier())
        while not (child.has_ended or child.pending or sidekick.failed):
            child.turn(LOOK_SECONDS)
        sidekick.withdraw(0 if child.has_ended else drain_seconds, child.is_over_after)
        if sidekick.failed and not child.pending:
            child.pending.append(signal.SIGTERM)
        child.send_pending()
        while not child.has_ended:
            child.turn(LOOK_SECONDS)
            child.send_pending()
    sidekick.raise_failure()
    return child.status


class _Sidekick:
    """The registrator, and what tells a supervisor of it, each in a thread; it begins when it is made."""

    def __init__(self, announcement: Announcement, notifier: Notifier) -> None:
        self._announcement = announcement
        self._notifier = notifier
        self._draining = False
        self._workers = Workers(on_failure=lambda: None)
        self._workers.start("registrator", announcement.registrator.run)
        self._workers.start("notify", lambda stop: keep_told(notifier, self._report, stop))

    @property
    def failed(self) -> bool:
        return self._workers.failure is not None

    def withdraw(self, drain_seconds: float, is_over_after: Callable[[float], bool]) -> None:
        """Drain, unless nothing is registered, and have the keys removed.

        ``is_over_after(seconds)`` waits so long, and says earlier if there is no need to drain any more.
        """
        self._notifier.tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={(drain_seconds + EXTEND_SECONDS) * 1e6:.0f}")
        if drain_seconds and not self.failed and self._announcement.registrator.status.registered:
            self._draining = True
            self._announcement.drain()
            deadline = time.monotonic() + drain_seconds
            while (left := deadline - time.monotonic()) > 0 and not is_over_after(min(left, LOOK_SECONDS)):
                pass
        self._workers.stop(WITHDRAW_SECONDS)

    def raise_failure(self) -> None:
        if self._workers.failure is not None:
            raise self._workers.failure

    def _report(self) -> Report:
        status = self._announcement.registrator.status
        reasons = [problem.reason for problem in status.problems] + ([status.error] if status.error else [])
        state = "draining" if self._draining else "registered" if status.registered else "not registered"
        return Report(
            ready=bool(status.registered) and status.error is None,
            status=": ".join([state, *reasons[:1]]),
            stuck=(*self._workers.stuck, *self._announcement.registrator.stuck),
        )


class _Child:
    """The command. ``pending`` are the ending signals that it has yet to get."""

    def __init__(self, command: Sequence[str], signals: Signals) -> None:
        self.pending: list[int] = []
        self._signals = signals
        self._process = _start(command)

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def status(self) -> int:
        """Its exit status as a shell gives it, once it has ended."""
        code = self._process.returncode
        return code if code >= 0 else 128 - code

    def turn(self, timeout_seconds: float) -> None:
        """Wait for signals, and pass on those that do not end it."""
        for number in self._signals.wait(timeout_seconds):
            if number in _ENDING:
                self.pending.append(number)
            elif number == signal.SIGTSTP:
                self._send(number)
                # In our own right, as the handler has kept us from stopping; SIGCONT continues both.
                os.kill(os.getpid(), signal.SIGSTOP)
            elif number != signal.SIGCHLD:
                self._send(number)
        _reap_orphans(self._process.pid)

    def is_over_after(self, seconds: float) -> bool:
        """Whether it has ended, or somebody insists on its end, within that time."""
        self.turn(seconds)
        return self.has_ended or len(self.pending) > 1

    def send_pending(self) -> None:
        while self.pending:
            self._send(self.pending.pop(0))

    def _send(self, number: int) -> None:
        if self.has_ended:
            return
        if number in _OF_A_TERMINAL:
            os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    us = os.getpid()

    def die_with_us() -> None:
        # The kernel sends it when the thread that forked ends: the main thread, so with the process. This
        # runs between fork and exec, where only what needs no lock of another thread may be called.
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != us:
            os._exit(128 + signal.SIGKILL)

    try:
        return subprocess.Popen(
            command,
            # A group of its own, or Ctrl-C would reach it before it is withdrawn. In the background of its
            # terminal it would be stopped as soon as it read from it.
            process_group=0,
            stdin=subprocess.DEVNULL if os.isatty(0) else None,
            preexec_fn=die_with_us,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise CommandError(f"{command[0]!r} cannot be started: {error}") from error


def _reap_orphans(child: int) -> None:
    """As PID 1 of a container we inherit every orphan in it; the command itself is left to its Popen."""
    if os.getpid() != 1:
        return
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid == child:
            return
        os.waitpid(found.si_pid, 0)
