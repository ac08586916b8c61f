"""Signals as a queue that the main thread reads: nothing is done in a handler, and none is lost."""

import contextlib
import select
import signal
import socket
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Self


class Signals:
    """While entered, the given signals are noted instead of acting; in the main thread only.

    SIGHUP stays ignored where it is, as under nohup(1).
    """

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = frozenset(
            number
            for number in numbers
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
        )

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        # The interpreter writes each signal's number there, whichever thread the kernel hands it to.
        self._former_wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._former = {number: signal.signal(number, _nothing) for number in self._numbers}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._former_wakeup)
        self._reader.close()
        self._writer.close()

    def wait(self, timeout_seconds: float) -> list[int]:
        """The signals that came since the last call, in their order; none after the time-out."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        poll.poll(timeout_seconds * 1000)
        with contextlib.suppress(BlockingIOError):
            return [number for number in self._reader.recv(4096) if number in self._numbers]
        return []


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """A signal with a handler is one that the interpreter notes."""
