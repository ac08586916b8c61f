"""Settings as options of commands, and what commands make of them: configuration, store, catalog."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from discovery import logs
from discovery.catalog import Catalog
from discovery.config import SETTINGS, Configuration, Setting, load
from discovery.stores import StoreOptions, open_store
from discovery.stores.base import Store

F = TypeVar("F", bound=Callable[..., Any])

EVERYWHERE = ("state_dir", "store.", "log.")
COMMON = (*EVERYWHERE, "node.")
PROXY = ("proxy.",)
ENGINE = ("docker.url", "docker.ca_file", "docker.cert_file", "docker.key_file")
ALL = tuple(setting.key for setting in SETTINGS)


def with_settings(*prefixes: str) -> Callable[[F], F]:
    """Give a command the flags of all settings whose key begins so, and ``--config``."""

    def decorate(command: F) -> F:
        for setting in reversed(SETTINGS):
            if setting.key.startswith(prefixes):
                command = _option(setting)(command)
        return click.option(
            "--config", "config_file", type=click.Path(path_type=Path), help="TOML file with settings"
        )(command)

    return decorate


def _option(setting: Setting) -> Callable[[F], F]:
    text = f"{setting.field.description} [{setting.key}]"
    if setting.is_switch:
        return click.option(*setting.flags, _parameter(setting), is_flag=True, default=None, help=text)
    return click.option(*setting.flags, _parameter(setting), metavar="VALUE", help=text)


def _parameter(setting: Setting) -> str:
    return setting.key.replace(".", "__")


def load_configuration(context: click.Context) -> Configuration:
    """Settings from all sources; a flag after the command wins over the same before it."""
    given: dict[str, Any] = {}
    each: click.Context | None = context
    while each is not None:
        given = {name: value for name, value in each.params.items() if value is not None} | given
        each = each.parent
    flags = {s.key: given[_parameter(s)] for s in SETTINGS if _parameter(s) in given}
    file = given.get("config_file") or os.environ.get("DISCOVERY_CONFIG")
    configuration = load(flags, os.environ, Path(file) if file else None)
    logs.configure(configuration.settings.log.level, configuration.settings.log.format)
    return configuration


@contextmanager
def open_configured(configuration: Configuration) -> Iterator[Store]:
    """The store of the settings, closed at the end."""
    settings = configuration.settings
    options = StoreOptions(
        timeout_seconds=settings.store.timeout_seconds,
        ca_file=settings.store.ca_file,
        cert_file=settings.store.cert_file,
        key_file=settings.store.key_file,
        username=settings.store.username,
        password=settings.store.password,
    )
    with closing(open_store(settings.store_url, options)) as store:
        yield store


def read_catalog(store: Store) -> Catalog:
    """What the store says now."""
    from discovery.builder import CatalogBuilder
    from discovery.schema import SERVICES

    return CatalogBuilder().reset(store.snapshot(SERVICES))
