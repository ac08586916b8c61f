"""Child processes that end: every one has a time-out, and its whole process group goes with it."""

import os
import signal
import subprocess
from collections.abc import Sequence

from discovery.errors import CommandError

_TAIL = 2000


def run(command: str | Sequence[str], timeout_seconds: float) -> str:
    """Run a command (a str by the shell) and return what it printed, stdout and stderr together.

    Raises CommandError with the end of its output when it exits other than 0, cannot be started, or takes
    longer than ``timeout_seconds``; then the whole process group is killed.
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
    except OSError as error:
        raise CommandError(f"{shown!r} cannot be started: {error}") from error
    with child:
        try:
            output, _ = child.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            raise CommandError(f"{shown!r} took longer than {timeout_seconds:g} s and was killed") from None
    text = output.decode(errors="backslashreplace")
    if child.returncode != 0:
        raise CommandError(f"{shown!r} ended with status {child.returncode}: {text[-_TAIL:].strip()}")
    return text
