"""Stores behind one protocol, chosen by URL."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit

from discovery.errors import ConfigError
from discovery.stores.base import Store


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """What a store may need besides its URL.

    ``timeout_seconds`` bounds one call, over all endpoints tried. TLS is used when any of the files is
    given, or with ``etcd2+https://`` or ``etcd3+https://``.
    """

    timeout_seconds: float = 5.0
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    username: str | None = None
    password: str | None = None


# Named by module, so that a store's libraries are loaded only when it is used.
_MODULES = {
    "memory": "memory",
    "file": "file",
    "etcd2": "etcd2",
    "etcd2+https": "etcd2",
    "etcd3": "etcd3",
    "etcd3+https": "etcd3",
}


def open_store(url: str, options: StoreOptions | None = None) -> Store:
    """The store that ``url`` names; opening does not yet talk to it.

    Raises ConfigError for a URL that names no store or is malformed.
    """
    scheme = urlsplit(url).scheme
    if scheme not in _MODULES:
        known = "file:///DIR, etcd3://HOST:PORT[,HOST:PORT…], etcd2://HOST:PORT or memory:"
        raise ConfigError("store.url", f"{_shown(url)!r} names no store", f"use {known}")
    module = import_module(f"discovery.stores.{_MODULES[scheme]}")
    opener: Callable[[str, StoreOptions], Store] = module.open_url
    return opener(url, options or StoreOptions())


def _shown(url: str) -> str:
    """``url`` without user and password."""
    head, separator, tail = url.rpartition("@")
    return f"{head.split('://')[0]}://…@{tail}" if separator else url
