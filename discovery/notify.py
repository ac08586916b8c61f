"""What a supervisor such as systemd is told of us: ready, stopping, in which state, alive (sd_notify(3)).

Datagrams of ``NAME=value`` lines to the socket that ``NOTIFY_SOCKET`` names. What PyPI has for it is as
short as this and no longer kept, or needs systemd's library.
"""

import socket
import threading
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass

import structlog

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
"""How often our state is looked at; oftener where the watchdog asks for it."""

EXTEND_SECONDS = 30.0
"""By how much a start that is still waiting, for a store say, is prolonged each time that it is looked at."""

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


@dataclass(frozen=True, slots=True)
class Report:
    """How we are: ``status`` is a line for people, ``stuck`` names the threads that make no progress."""

    ready: bool
    status: str
    stuck: tuple[str, ...] = ()


class Notifier:
    """Tells the supervisor that listens at ``address``, a path or ``@name``; without one it tells nobody.

    ``watchdog_seconds`` is after which silence the supervisor takes us for dead, None when it never does.
    """

    def __init__(self, address: str | None = None, watchdog_seconds: float | None = None) -> None:
        address = address or ""
        self.enabled = address.startswith(("/", "@"))
        self.watchdog_seconds = watchdog_seconds if self.enabled else None
        # An abstract socket's name begins with a NUL, which no environment can hold.
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def tell(self, *lines: str) -> None:
        """Send lines such as ``READY=1`` as one message. One that cannot be sent is dropped."""
        if not self.enabled or not lines:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(LOOK_SECONDS)
                sender.connect(self._address)
                sender.send("\n".join(" ".join(line.split()) for line in lines).encode())
        except OSError as error:
            log.debug("supervisor_not_told", reason=str(error))


def take_notifier(environ: MutableMapping[str, str], pid: int) -> Notifier:
    """The notifier that the environment asks for, whose variables are removed from it.

    Removed, for a child that inherits them, HAProxy or an announced command, would speak for us. A watchdog
    that is meant for another process, as ``WATCHDOG_PID`` says, is none of ours.
    """
    address, microseconds, for_pid = (environ.pop(name, None) for name in _VARIABLES)
    watched = microseconds is not None and microseconds.isdigit() and for_pid in (None, str(pid))
    return Notifier(address, int(microseconds or 0) / 1e6 or None if watched else None)


def keep_told(notifier: Notifier, report: Callable[[], Report], stop: threading.Event) -> None:
    """Tell the supervisor until ``stop`` how we are.

    READY once, when the report first says so; until then the time to start is prolonged. STATUS whenever it
    changes. The watchdog is fed while no thread is stuck, and no longer: then the supervisor restarts us.
    """
    if not notifier.enabled:
        return
    every_seconds = min(LOOK_SECONDS, (notifier.watchdog_seconds or LOOK_SECONDS) / 3)
    ready, status = False, ""
    stuck: tuple[str, ...] = ()
    while not stop.is_set():
        found = report()
        lines = [f"STATUS={found.status}"] if found.status != status else []
        if not found.stuck:
            lines += ["WATCHDOG=1"] if notifier.watchdog_seconds else []
            lines += [] if ready or found.ready else [f"EXTEND_TIMEOUT_USEC={EXTEND_SECONDS * 1e6:.0f}"]
        if found.ready and not ready:
            ready = True
            lines.append("READY=1")
        if found.stuck and found.stuck != stuck:
            log.error("watchdog_not_fed", threads=",".join(found.stuck))
        status, stuck = found.status, found.stuck
        notifier.tell(*lines)
        stop.wait(every_seconds)
    notifier.tell("STOPPING=1")
