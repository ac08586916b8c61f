"""Ports for HAProxy to listen on: found free, and kept free until it listens.

A port that HAProxy cannot bind stops all its listeners for seconds, so one that is only tested is not
enough: until HAProxy gets there, another program may have taken it. A reservation is a socket for each
port that is bound but never listens. Of two sockets on one port Linux asks that both allow it, when one
is bound and again when it listens, and that for a port that is shared (SO_REUSEPORT) both are of one user.
So ours shares the port with HAProxy, which asks for that, and with nobody else of those that ask for less.

What it cannot keep out is a program of the same user that shares ports as well. What it would keep out
too is a HAProxy of another user than ours, or one that is told ``noreuseport``: ask for no hold there.
"""

import errno
import resource
import socket
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from discovery.errors import ApplyError

Bind = tuple[str, int]
"""Host (``*`` for every IPv4 address, or an address without brackets) and TCP port."""

RETRIES = 3

_REASONS = {
    errno.EADDRINUSE: "is used by another program on this host",
    errno.EACCES: "needs the right to bind ports below 1024",
    errno.EADDRNOTAVAIL: "cannot be bound, for this host does not have the address {host}",
}
_OURS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
"""Errors that say nothing of the port."""


class Reservation:
    """Ports that nobody but our HAProxy can take, until ``close``; a context manager.

    ``refused`` tells of each port that cannot be listened on why not. ``held`` are those that are kept;
    any other was free when it was looked at, and that is all.
    """

    def __init__(self, refused: Mapping[Bind, str], holds: Mapping[Bind, socket.socket]) -> None:
        self.refused = refused
        self._holds = dict(holds)

    @property
    def held(self) -> frozenset[Bind]:
        """The ports that are kept at this moment."""
        return frozenset(self._holds)

    def close(self) -> None:
        """Let go of all; what HAProxy listens on by now it keeps."""
        while self._holds:
            self._holds.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def reserve(binds: Iterable[Bind], *, hold: bool = True) -> Reservation:
    """Look at each of ``binds`` and, unless ``hold`` is False, keep what is free for HAProxy.

    Ports that our HAProxy listens on already must not be among them. Takes one descriptor a port, of at most
    a quarter of what this process may open; ports beyond are only looked at. Raises ApplyError when the
    kernel has no socket left to look with.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4 if hold else 0
    ordered = sorted(set(binds))
    refused: dict[Bind, str] = {}
    holds: dict[Bind, socket.socket] = {}
    try:
        lost = _take(ordered, most, holds, refused)
        for _ in range(RETRIES):
            lost = _take(lost, most, holds, refused)
        # Still somebody's, or this kernel knows no such holds: then a look must do.
        _take(lost, 0, holds, refused)
    except BaseException:
        for bound in holds.values():
            bound.close()
        raise
    return Reservation(refused, holds)


def _take(
    binds: Sequence[Bind], most: int, holds: dict[Bind, socket.socket], refused: dict[Bind, str]
) -> list[Bind]:
    """Add each of ``binds`` to ``holds``, which may have ``most``, or to ``refused``.

    Returns those that were free, and that somebody came to before they were kept.
    """
    taken: dict[Bind, socket.socket] = {}
    try:
        # Step by step for all of them: *:80 and 127.0.0.1:80 of one configuration must not meet each other.
        for bind in binds:
            try:
                bound = _bound(bind)
            except OSError as error:
                refused[bind] = _reason(bind, error)
                continue
            if len(holds) + len(taken) < most:
                taken[bind] = bound
            else:
                bound.close()
    finally:
        holds.update(taken)
    for bound in taken.values():
        # Bound as HAProxy binds, past connections that linger; only now is nobody else let in.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    ports = {port for host, port in taken if not _lets_haproxy_in((host, port))}
    lost = [bind for bind in taken if bind[1] in ports]
    for bind in lost:
        holds.pop(bind).close()
    return lost


def _lets_haproxy_in(bind: Bind) -> bool:
    try:
        _bound(bind, shared=True).close()
    except OSError as error:
        _reason(bind, error)
        return False
    return True


def _bound(bind: Bind, *, shared: bool = False) -> socket.socket:
    """A socket bound as HAProxy binds, past connections in TIME_WAIT. Raises OSError.

    Without ``shared`` it meets every listener on the port, another HAProxy's too.
    """
    host, port = bind
    trial = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
        trial.bind(("" if host == "*" else host, port))
    except OSError:
        trial.close()
        raise
    return trial


def _reason(bind: Bind, error: OSError) -> str:
    """What an error of binding says of the port. Raises ApplyError when it says nothing of it."""
    if error.errno in _OURS:
        raise ApplyError(f"port {bind[1]} cannot be looked at: {error.strerror}") from error
    reason = _REASONS.get(error.errno or 0, f"cannot be bound: {error.strerror}")
    return reason.format(host=bind[0])


def why_not(host: str, port: int) -> str | None:
    """Why nothing can listen on TCP ``host:port`` now; None if it can. Raises ApplyError as ``reserve``."""
    return reserve([(host, port)], hold=False).refused.get((host, port))
