"""What the proxy role is told: addresses, the HAProxy to run, where its files are. Pure."""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

from discovery.catalog import Scheme
from discovery.errors import ConfigError

MOST_HELD_PORTS = 1000
"""In one range: each port is a listener, and takes a file in every worker."""

_PORT = re.compile(r"[1-9][0-9]{0,4}")
_HELD = re.compile(r"(http|tcp):([1-9][0-9]{0,4})(?:-([1-9][0-9]{0,4}))?")
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./:@%+,=~\[\]-]+")

# sun_path holds 108 bytes, and HAProxy binds a socket as PATH.PID.tmp before it renames it.
SOCKET_PATH_BYTES = 108 - len("/haproxy/master.sock.1234567.tmp\0")


@dataclass(frozen=True, slots=True)
class HeldPorts:
    """Ports ``first`` to ``last`` that are listened on before a service of ``scheme`` claims one of them."""

    scheme: Scheme
    first: int
    last: int

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last

    def __str__(self) -> str:
        return f"{self.scheme}:{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """Settings of the proxy role; one that cannot be raises ConfigError naming its key in the file.

    ``http`` and ``https`` are addresses to listen on, ``ip:port`` or ``*:port``; ``https`` needs ``certs``,
    a PEM file or a directory of them. ``bind_address`` is where the services' own ports are listened on.
    ``templates`` are directories, of which an earlier one hides its namesakes in a later one; the last is
    the packaged one. ``reserved_ports`` tells which setting of ours uses a port that no service can have.

    In mode ``external`` HAProxy is run by somebody else, whom ``reload_cmd`` tells to load our files; in a
    ``check_cmd`` their place is ``{{src}}``. ``held_ports`` overlap neither each other nor ports of our own.
    A loss of more than ``mass_loss_share`` of all instances within ``mass_loss_window_seconds`` is held back
    for ``mass_loss_seconds``.
    """

    state_dir: Path
    templates: tuple[Path, ...]
    http: tuple[str, ...] = ("*:80",)
    https: tuple[str, ...] = ()
    certs: Path | None = None
    bind_address: str = "*"
    haproxy: str = "haproxy"
    reserved_ports: Mapping[int, str] = field(default_factory=dict)
    user: str = "haproxy"
    mode: Literal["managed", "external"] = "managed"
    check_cmd: str | None = None
    reload_cmd: str | None = None
    command_timeout_seconds: float = 60.0
    reload_interval_seconds: float = 2.0
    reload_spread_seconds: float = 0.5
    spare_backends: int = 50
    held_ports: tuple[HeldPorts, ...] = ()
    mass_loss_share: float = 0.5
    mass_loss_seconds: float = 600.0
    mass_loss_window_seconds: float = 30.0
    hard_stop_after_seconds: int = 3600
    max_reloads: int = 20
    check_timeout_seconds: float = 60.0
    start_timeout_seconds: float = 60.0
    stop_timeout_seconds: float = 10.0

    def __post_init__(self) -> None:
        for setting, addresses in (("proxy.http", self.http), ("proxy.https", self.https)):
            for address in addresses:
                split_address(address, setting)
        bind_host(self.bind_address, "proxy.bind_address")
        if not self.http and not self.https:
            raise ConfigError("proxy.http", "there is no address to listen on", "give one such as *:80")
        if self.https and self.certs is None:
            raise ConfigError(
                "proxy.https", "needs certificates", "name a PEM file or directory in proxy.certs"
            )
        for setting, path in (("state_dir", self.state_dir), ("proxy.certs", self.certs)):
            if path is not None and not (path.is_absolute() and _PLAIN_PATH.fullmatch(str(path))):
                mend = "give an absolute path without spaces and quotes, for HAProxy has to read it"
                raise ConfigError(setting, f"{str(path)!r} cannot be used", mend)
        if len(str(self.state_dir).encode()) > SOCKET_PATH_BYTES:
            mend = f"a path of at most {SOCKET_PATH_BYTES} bytes can hold HAProxy's sockets"
            raise ConfigError("state_dir", f"{str(self.state_dir)!r} is too long", mend)
        self._check_commands()
        _check_held_ports(self.held_ports, self._own_ports())

    def _check_commands(self) -> None:
        external = self.mode == "external"
        if external and self.reload_cmd is None:
            mend = 'such as "systemctl reload-or-restart haproxy"'
            raise ConfigError("proxy.reload_cmd", "an external HAProxy has to be told to reload", mend)
        for setting, command in (("proxy.check_cmd", self.check_cmd), ("proxy.reload_cmd", self.reload_cmd)):
            if command is not None and not external:
                raise ConfigError(setting, "is for an external HAProxy", 'set proxy.mode to "external" too')

    def _own_ports(self) -> dict[int, str]:
        own = dict(self.reserved_ports)
        for setting, addresses in (("proxy.http", self.http), ("proxy.https", self.https)):
            own |= {split_address(address, setting)[1]: setting for address in addresses}
        return own

    @property
    def directory(self) -> Path:
        """The directory that is this role's alone."""
        return self.state_dir / "haproxy"

    @property
    def config(self) -> Path:
        """The configuration HAProxy is started with; the same path for ever, whatever it leads to."""
        return self.directory / "current" / "haproxy.cfg"

    @property
    def master_socket(self) -> Path:
        """The socket of HAProxy's master process."""
        return self.directory / "master.sock"

    @property
    def admin_socket(self) -> Path:
        """The runtime socket of HAProxy's newest worker."""
        return self.directory / "admin.sock"

    @property
    def server_state(self) -> Path:
        """Where the servers' state is kept from one worker to the next."""
        return self.directory / "server-state"

    @property
    def log_file(self) -> Path:
        """What HAProxy writes for people; bounded in size."""
        return self.directory / "haproxy.log"


def split_address(text: str, setting: str) -> tuple[str, int]:
    """``ip:port``, ``[ipv6]:port``, ``*:port`` or ``:port`` → host (``*`` for any) and port.

    Raises ConfigError naming ``setting``.
    """
    host, separator, port = text.rpartition(":")
    if not separator or not _PORT.fullmatch(port) or int(port) > 65535:
        raise ConfigError(setting, f"{text!r} is no address to listen on", "it is *:port or ip:port")
    return bind_host(host or "*", setting), int(port)


def bind_host(text: str, setting: str) -> str:
    """``*`` or an IP address in canonical text without brackets. Raises ConfigError naming ``setting``."""
    if text == "*":
        return text
    try:
        return str(ipaddress.ip_address(text[1:-1] if text.startswith("[") and text.endswith("]") else text))
    except ValueError:
        raise ConfigError(
            setting, f"{text!r} is no address to listen on", "it is * or an IP address"
        ) from None


def join_address(host: str, port: int) -> str:
    """The inverse of split_address, as HAProxy reads it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_held_ports(entries: Iterable[str]) -> tuple[HeldPorts, ...]:
    """``http:9100-9199`` or ``tcp:5432`` → the ports to hold. Raises ConfigError naming proxy.held_ports."""
    return tuple(_held(entry) for entry in entries)


def _held(entry: str) -> HeldPorts:
    match = _HELD.fullmatch(entry)
    if match is None:
        raise ConfigError("proxy.held_ports", f"{entry!r} is no range of ports", "it is tcp:9000-9099")
    scheme: Scheme = "tcp" if match[1] == "tcp" else "http"
    first, last = int(match[2]), int(match[3] or match[2])
    if not first <= last <= 65535:
        raise ConfigError("proxy.held_ports", f"{entry!r} is no range of ports", "it is tcp:9000-9099")
    if last - first >= MOST_HELD_PORTS:
        raise ConfigError("proxy.held_ports", f"{entry!r} is too long", f"hold at most {MOST_HELD_PORTS}")
    return HeldPorts(scheme, first, last)


def _check_held_ports(held: tuple[HeldPorts, ...], own: Mapping[int, str]) -> None:
    """Raise ConfigError if two would listen on one port: HAProxy would split its connections among them."""
    ordered = sorted(held, key=lambda each: each.first)
    for one, other in pairwise(ordered):
        if other.first <= one.last:
            raise ConfigError("proxy.held_ports", f"{one} and {other} overlap", "let each port be in one")
    for each in held:
        for port, user in own.items():
            if port in each:
                raise ConfigError("proxy.held_ports", f"{each} has port {port}, which is used by {user}")
