"""The command line of gliderlabs' registrator → ours: an image is replaced, its arguments stay. Pure.

    registrator -ip 10.0.0.5 -ttl 60 -ttl-refresh=20 -internal etcd://10.0.0.1:2379/services

Its flags take one dash or two, and `=` or a word of their own before the value.
"""

import re
from urllib.parse import urlsplit

from discovery.errors import ConfigError

_SWITCHES = ("internal", "explicit")
_VALUES = ("ip", "tags", "ttl", "ttl-refresh", "resync")
_NONE_AT_ZERO = ("ttl", "ttl-refresh", "resync")
"""Its 0 is "not set"; here keys always expire and everything is compared again now and then."""

_ALWAYS_SO = ("cleanup",)
_MEANINGLESS = ("retry-attempts", "retry-interval")
"""A store that does not answer is waited for, however long it takes."""

_REFUSED = ("deregister", "useIpFromLabel")
_NAMES = (*_SWITCHES, *_VALUES, *_ALWAYS_SO, *_MEANINGLESS, *_REFUSED)
_FLAG = re.compile(rf"--?({'|'.join(_NAMES)})(?:=(.*))?", re.DOTALL)
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_STORES = ("file", "memory", "etcd2", "etcd3", "etcd2+https", "etcd3+https")
_PREFIX = "/services"
_MEND = "name a store by --store, such as etcd3://HOST:2379"


def translate(arguments: list[str]) -> list[str]:
    """Our arguments for these; those of our own stay as they are. ConfigError for what has no place here."""
    found: list[str] = []
    rest = list(arguments)
    while rest and rest[0] != "--":
        word = rest.pop(0)
        match = _FLAG.fullmatch(word)
        if match is None:
            found.append(word)
            continue
        name, value = match[1], match[2]
        if name in (*_SWITCHES, *_ALWAYS_SO):
            if name in _SWITCHES and value in (None, *_TRUE):
                found.append(f"--{name}")
        elif value is None and not rest:
            found.append(f"--{name}")  # without its value, which is for the parser to say
        else:
            found += _with_value(name, rest.pop(0) if value is None else value)
    return found + rest


def _with_value(name: str, value: str) -> list[str]:
    if name == "useIpFromLabel":
        mend = "SERVICE_NETWORK names the network to take the address of"
        raise ConfigError(f"--{name}", "there is no such rule", mend)
    if name == "deregister":
        if value != "always":
            reason = f"{value!r} would keep keys of containers that have failed; only `always` is done"
            raise ConfigError("--deregister", reason, "leave it out")
        return []
    unset = value == "" or (name in _NONE_AT_ZERO and value == "0")
    return [] if name in _MEANINGLESS or unset else [f"--{name}", value]


def store_url(registry: str, store: str | None) -> str:
    """The store that a registry URI means. ConfigError when it means none, or another than ``store``.

    `etcd://` is the API of etcd 2, which is all that gliderlabs' registrator speaks: a server that it works
    with has it.
    """
    scheme, _, rest = registry.partition("://")
    shown, other = (re.sub("//.*@", "//…@", url or "") for url in (registry, store))
    if scheme in _STORES:
        url = registry
    elif scheme == "etcd":
        path = urlsplit(registry).path.rstrip("/")
        if path not in ("", _PREFIX):
            raise ConfigError("REGISTRY", f"{shown!r}: keys are below {_PREFIX} here", _MEND)
        url = f"etcd2://{rest.partition('/')[0] or '127.0.0.1:2379'}"
    else:
        raise ConfigError("REGISTRY", f"{shown!r} is no store of ours", _MEND)
    if store is not None and store != url:
        raise ConfigError("REGISTRY", f"{shown!r} is another store than --store {other}", "give one")
    return url
