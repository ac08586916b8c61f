"""A command announced while it runs: withdrawn before it is stopped, and when it ends by itself."""

import contextlib
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from discovery.errors import CommandError
from discovery.registrator import Registrator
from discovery.workers import Workers

WITHDRAW_SECONDS = 3.0
"""How long the command's end waits for the withdrawal at most; the keys then expire by themselves.

Much less than the 10 s after which `docker stop` kills: the command needs its share of them.
"""

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run_announced(command: Sequence[str], registrator: Registrator) -> int:
    """Run a command and a registrator beside it; the exit status as a shell gives it, 128 + n for signal n.

    The first SIGTERM or SIGINT withdraws and is then passed on to the command; every later one, and SIGHUP,
    is passed on at once. When the command ends by itself the registrator withdraws. Call it from the main
    thread. Raises CommandError when the command cannot be started.
    """
    # The handler only takes a note: an Event must not be set in one, for it may interrupt that Event's wait.
    received: deque[int] = deque()
    workers = Workers(on_failure=lambda: None)
    with _noting_signals(received):
        child = _start(command)
        workers.start("registrator", registrator.run)
        final = _run_until_signalled(child, received, lambda: workers.failure is not None)
        workers.stop(WITHDRAW_SECONDS)
        if final is not None:
            child.send_signal(final)
        while not _has_ended(child):
            while received:
                child.send_signal(received.popleft())
    if workers.failure is not None:
        raise workers.failure
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    try:
        # A group of its own, or Ctrl-C would reach it before it is withdrawn.
        return subprocess.Popen(command, process_group=0)
    except OSError as error:
        raise CommandError(f"{command[0]!r} cannot be started: {error}") from error


def _run_until_signalled(
    child: subprocess.Popen[bytes], received: deque[int], has_failed: Callable[[], bool]
) -> int | None:
    """The signal that is to end the command; None when it has ended by itself."""
    while not _has_ended(child):
        if has_failed():
            return signal.SIGTERM
        while received:
            number = received.popleft()
            if number != signal.SIGHUP:
                return number
            child.send_signal(number)
    return None


def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended, after waiting for it for a moment."""
    try:
        child.wait(timeout=0.1)
    except subprocess.TimeoutExpired:
        return False
    return True


@contextlib.contextmanager
def _noting_signals(received: deque[int]) -> Iterator[None]:
    before = {
        number: signal.signal(number, lambda got, _frame: received.append(got)) for number in _PASSED_ON
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
