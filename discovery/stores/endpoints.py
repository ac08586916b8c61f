"""Where an etcd is, from its URL and options: endpoints, TLS, user and password. Shared by both versions."""

import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote

from discovery.errors import ConfigError

if TYPE_CHECKING:
    from discovery.stores import StoreOptions

DEFAULT_PORT = 2379
SETTING = "store.url"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server: a name or an address (IPv6 without brackets) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Target:
    """The endpoints of one store, in the order given, and how to talk to them. ``url`` has no password."""

    url: str
    endpoints: tuple[Endpoint, ...]
    tls: bool
    username: str | None
    password: str | None = field(repr=False)


def parse_target(url: str, options: "StoreOptions") -> Target:
    """``SCHEME[+https]://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]…]`` and options → Target.

    User and password are percent-decoded, and win over those of the options. TLS is used with ``+https``
    or when the options name any TLS file. Raises ConfigError when the URL is malformed; no password is
    ever part of its text.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise _malformed("it has no ://", scheme)
    place, _, path = rest.partition("/")
    credentials, at, hosts = place.rpartition("@")
    if path or "?" in hosts or "#" in hosts:
        raise _malformed("nothing may follow the hosts", scheme)
    endpoints = tuple(dict.fromkeys(_endpoint(text.strip(), scheme) for text in hosts.split(",")))
    username, password = options.username, options.password
    if at:
        name, colon, word = credentials.partition(":")
        username, password = unquote(name), unquote(word) if colon else password
    if username == "" or (username is None and password is not None):
        raise _malformed("a password needs a user", scheme)
    if username is not None and password is None:
        raise _malformed(f"the user {username!r} needs a password", scheme)
    shown = f"{scheme}://" + ",".join(str(endpoint) for endpoint in endpoints)
    files = (options.ca_file, options.cert_file, options.key_file)
    return Target(shown, endpoints, scheme.endswith("+https") or any(files), username, password)


def _endpoint(text: str, scheme: str) -> Endpoint:
    host, port = text, str(DEFAULT_PORT)
    if text.startswith("["):
        host, closed, tail = text[1:].partition("]")
        if not closed or (tail and not tail.startswith(":")) or ":" not in host:
            raise _malformed(f"{text!r} is no [IPv6]:PORT", scheme)
        port = tail[1:] if tail else port
    elif ":" in text:
        host, _, port = text.partition(":")
        if ":" in port:
            raise _malformed(f"{text!r} has too many colons; IPv6 is written in brackets", scheme)
    if not host or any(character.isspace() or not character.isprintable() for character in host):
        raise _malformed(f"{text!r} names no host", scheme)
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise _malformed(f"{port!r} is no port from 1 to 65535", scheme)
    return Endpoint(host, int(port))


def _malformed(reason: str, scheme: str) -> ConfigError:
    return ConfigError(SETTING, reason, f"write {scheme}://HOST:{DEFAULT_PORT}[,HOST:{DEFAULT_PORT}…]")


def tls_context(options: "StoreOptions") -> ssl.SSLContext:
    """What TLS needs: the given authority, else the system's, and the client certificate if given.

    Raises ConfigError naming the file that cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise _unusable("store.ca_file", str(options.ca_file), error, "a PEM certificate") from error
    if options.cert_file is None:
        if options.key_file is not None:
            raise ConfigError("store.key_file", "there is no certificate for it", "set store.cert_file")
        return context
    try:
        # An empty password: an encrypted key is an error, not a question on the terminal.
        context.load_cert_chain(options.cert_file, options.key_file, password="")
    except (OSError, ssl.SSLError) as error:
        files = " and ".join(str(file) for file in (options.cert_file, options.key_file) if file)
        wanted = "a PEM certificate and its unencrypted key"
        raise _unusable("store.cert_file", files, error, wanted) from error
    return context


def _unusable(setting: str, files: str, error: OSError, wanted: str) -> ConfigError:
    reason = error.strerror if error.strerror and not isinstance(error, ssl.SSLError) else "its content"
    return ConfigError(setting, f"{files} cannot be used: {reason}", f"name {wanted}")
