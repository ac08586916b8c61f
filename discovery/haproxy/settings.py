"""What the proxy role is told: addresses, the HAProxy to run, where its files are. Pure."""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from discovery.errors import ConfigError

_PORT = re.compile(r"[1-9][0-9]{0,4}")
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./:@%+,=~\[\]-]+")

# sun_path holds 108 bytes, and HAProxy binds a socket as PATH.PID.tmp before it renames it.
SOCKET_PATH_BYTES = 108 - len("/haproxy/master.sock.1234567.tmp\0")


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """Settings of the proxy role; one that cannot be raises ConfigError naming its key in the file.

    ``http`` and ``https`` are addresses to listen on, ``ip:port`` or ``*:port``; ``https`` needs ``certs``,
    a PEM file or a directory of them. ``bind_address`` is where the services' own ports are listened on.
    ``templates`` are directories, of which an earlier one hides its namesakes in a later one; the last is
    the packaged one. ``reserved_ports`` tells which setting of ours uses a port that no service can have.
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
    hard_stop_after_seconds: int = 600
    max_reloads: int = 50
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
