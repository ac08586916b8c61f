"""Whether a port can be listened on, found out before HAProxy tries: there a failure stops every listener."""

import errno
import socket

_REASONS = {
    errno.EADDRINUSE: "is used by another program on this host",
    errno.EACCES: "needs the right to bind ports below 1024",
    errno.EADDRNOTAVAIL: "cannot be bound, for this host does not have the address {host}",
}


def why_not(host: str, port: int) -> str | None:
    """Why nothing can listen on TCP ``host:port`` (``*`` for every IPv4 address) now; None if it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            # As HAProxy does, past connections in TIME_WAIT; but no SO_REUSEPORT, which another HAProxy has.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(("" if host == "*" else host, port))
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, f"cannot be bound: {error.strerror}")
        return reason.format(host=host)
    return None
