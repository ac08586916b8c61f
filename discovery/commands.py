"""Child processes that end: every one has a time-out, and its whole process group goes with it."""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import IO

from discovery.errors import CommandError

OUTPUT_BYTES = 1024 * 1024
_PIPE_BYTES = 64 * 1024
"""All that a pipe can hold, read at once."""
_TAIL = 2000
_POLL_SECONDS = 0.05
_REAP_SECONDS = 1.0


def run(command: str | Sequence[str], timeout_seconds: float) -> str:
    """Run a command (a str by the shell) and return what it printed, stdout and stderr together.

    Of a longer output the last OUTPUT_BYTES are returned. The command is done when it ends itself; what it
    left in the background, a daemon say, goes on. Raises CommandError with the end of its output when it
    exits other than 0, cannot be started, or takes longer than ``timeout_seconds``; then the whole process
    group is killed.
    """
    shown = command if isinstance(command, str) else " ".join(command)
    try:
        child = subprocess.Popen(
            command,
            shell=isinstance(command, str),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except (OSError, ValueError, IndexError) as error:
        # ValueError: a NUL or a lone surrogate among the words; IndexError: no words at all.
        raise CommandError(f"{shown!r} cannot be started: {error}") from error
    assert child.stdout is not None  # as asked for above
    try:
        output, ended = _read_until_end(child, child.stdout, time.monotonic() + timeout_seconds)
    finally:
        # Whether it ended, took too long or we are interrupted: a child is never left behind.
        if child.poll() is None:
            _kill(child)
        child.stdout.close()
    text = output.decode(errors="backslashreplace")
    said = f": {text[-_TAIL:].strip()}" if text.strip() else ""
    if not ended:
        raise CommandError(f"{shown!r} took longer than {timeout_seconds:g} s and was killed{said}")
    if child.returncode != 0:
        raise CommandError(f"{shown!r} ended with status {child.returncode}{said}", child.returncode)
    return text


def _read_until_end(child: subprocess.Popen[bytes], output: IO[bytes], deadline: float) -> tuple[bytes, bool]:
    """The end of what the child prints, and whether it ended by the deadline.

    Not ``communicate``: that waits for everyone who holds the pipe, be it a daemon or one who left the
    process group, time-out or not.
    """
    tail = bytearray()
    # Not ``select``, which knows no descriptor above 1023.
    poll = select.poll()
    poll.register(output, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        # Asked before the pipe is, so that all it printed before it ended is read.
        ended = child.poll() is not None
        if poll.poll(0 if ended else min(_POLL_SECONDS, left) * 1000):
            chunk = os.read(output.fileno(), _PIPE_BYTES)
            if not chunk:
                return bytes(tail), _ends(child, deadline)
            tail += chunk
            del tail[:-OUTPUT_BYTES]
        if ended:
            return bytes(tail), True
    return bytes(tail), False


def _ends(child: subprocess.Popen[bytes], deadline: float) -> bool:
    try:
        child.wait(max(0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def _kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    # One that hangs in the kernel, on a dead network disk say, cannot be waited for.
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_REAP_SECONDS)
