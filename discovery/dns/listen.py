"""Binds the addresses that are served: in the agent, so that a port in use is its error."""

import contextlib
import errno
import socket

from discovery.dns.settings import Address, DnsSettings
from discovery.dns.udp import IP_PKTINFO, RECEIVE_BUFFER_BYTES
from discovery.dns.upstreams import family_of
from discovery.errors import ConfigError

Sockets = tuple[socket.socket, ...]
"""The sockets of one address: TCP, which all processes share, then UDP, one for each process."""

WILDCARDS = ("0.0.0.0", "::")
_IP_FREEBIND = 15
_IPV6_FREEBIND = 78
_SO_RCVBUFFORCE = 33
_BACKLOG = 128


def bind_all(settings: DnsSettings, processes: int, sockets: contextlib.ExitStack) -> list[Sockets]:
    """Bind every address, closed by ``sockets``. Raises ConfigError, with nothing left bound."""
    with contextlib.ExitStack() as trial:
        bound = [_bind_address(host, port, processes, trial) for host, port in settings.listen]
        sockets.push(trial.pop_all())
    return bound


def address_of(sockets: Sockets) -> Address:
    """What these are bound to."""
    host, port = sockets[0].getsockname()[:2]
    return host, port


def _bind_address(host: str, port: int, processes: int, sockets: contextlib.ExitStack) -> Sockets:
    """UDP and TCP on one port."""
    for attempt in range(10):
        with contextlib.ExitStack() as trial:
            udp = trial.enter_context(socket.socket(family_of(host), socket.SOCK_DGRAM))
            tcp = trial.enter_context(socket.socket(family_of(host), socket.SOCK_STREAM))
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                if host in WILDCARDS:
                    _tell_destinations(udp)
                _bind(udp, host, port)
                _bind(tcp, host, udp.getsockname()[1])
                tcp.listen(_BACKLOG)
            except OSError as error:
                if port == 0 and attempt < 9 and error.errno == errno.EADDRINUSE:
                    continue
                raise _config_error(host, port, error) from error
            shared = [udp]
            if processes > 1:
                # Set only now: with it before bind we would share the port with any other program of ours.
                udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            for _ in range(1, processes):
                shared.append(trial.enter_context(socket.socket(family_of(host), socket.SOCK_DGRAM)))
                shared[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if host in WILDCARDS:
                    _tell_destinations(shared[-1])
                _bind(shared[-1], host, udp.getsockname()[1])
            for each in shared:
                _grow_receive_buffer(each)
            sockets.push(trial.pop_all())
            return (tcp, *shared)
    raise AssertionError("the last attempt returns or raises")


def _bind(sock: socket.socket, host: str, port: int) -> None:
    # FREEBIND: the bridge may come up after us.
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    sock.setblocking(False)
    sock.bind((host, port))


def _tell_destinations(udp: socket.socket) -> None:
    """Have each message come with the address it was sent to; only those that come from now on do."""
    if udp.family == socket.AF_INET6:
        udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        udp.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)


def _grow_receive_buffer(udp: socket.socket) -> None:
    try:
        udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
    except PermissionError:
        # Not root: as much as net.core.rmem_max allows.
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)


def _config_error(host: str, port: int, error: OSError) -> ConfigError:
    where = f"{host} port {port}"
    if error.errno == errno.EADDRINUSE:
        mend = "see who holds it with `ss -lunpt`, or listen elsewhere"
        return ConfigError("dns.listen", f"{where} is in use by another program", mend)
    if error.errno in (errno.EACCES, errno.EPERM):
        mend = "run as root or with CAP_NET_BIND_SERVICE, or listen on a port above 1023"
        return ConfigError("dns.listen", f"{where} needs more rights than we have", mend)
    return ConfigError("dns.listen", f"{where} cannot be bound: {error.strerror}", "listen elsewhere")
