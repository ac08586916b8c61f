"""Asks engine and store what `discovery explain` needs; either may be out of reach, and that is said."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace

from discovery import roles
from discovery.builder import CatalogBuilder
from discovery.errors import SchemaError, SourceError, StoreError
from discovery.explain import (
    Explanation,
    explain_container,
    explain_request,
    explain_service,
    explanation_document,
    explanation_lines,
    is_known,
)
from discovery.haproxy.settings import split_address
from discovery.node import find_node
from discovery.schema import SERVICES, parse_name
from discovery.settings import Settings
from discovery.sources.container import Container, read_container
from discovery.sources.docker_engine import Engine
from discovery.sources.rules import direct_networks
from discovery.stores.base import Snapshot, Store

ENGINE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """Explanations of everything that goes by a name; ``unknown`` is what could not be asked, and why."""

    explanations: tuple[Explanation, ...]
    unknown: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """The answer for people."""
        yield from self.unknown
        for explanation in self.explanations:
            yield from explanation_lines(explanation)

    def document(self) -> dict[str, object]:
        """The answer for machines."""
        explanations = [explanation_document(each) for each in self.explanations]
        return {"explanations": explanations, "unknown": list(self.unknown)}


@dataclass(frozen=True, slots=True)
class _Asked:
    """The container of a name, None without one; all that run; the networks of macvlan and ipvlan."""

    container: Container | None
    running: Mapping[str, Container]
    direct: frozenset[str]


def inquire(
    subject: str, settings: Settings, open_store: Callable[[], AbstractContextManager[Store]]
) -> Answer:
    """What there is to say of a container's name or id, a service's name, or a URL, in this order.

    A text with ``/`` or ``:`` can only be a URL; one with a dot is taken for a host where nothing else has
    that name. Raises ConfigError for a node without an address, SchemaError for what is no URL.
    """
    is_url = "/" in subject or ":" in subject
    unknown: list[str] = []
    snapshot: Snapshot | None = None
    try:
        with open_store() as store:
            snapshot = store.snapshot(SERVICES)
    except StoreError as error:
        unknown.append(f"the store cannot be asked: {error}")
    asked = None
    if not is_url:
        try:
            asked = _ask_engine(settings, subject)
        except SourceError as error:
            unknown.append(f"the engine cannot be asked: {error}")
    explanations = []
    if asked is not None and asked.container is not None:
        explanations.append(_explain_container(settings, asked, asked.container, snapshot))
    if snapshot is not None:
        explanations += _explain_catalog(settings, subject, snapshot, is_url or not explanations)
    return Answer(tuple(explanations), tuple(unknown))


def _explain_container(
    settings: Settings, asked: _Asked, container: Container, snapshot: Snapshot | None
) -> Explanation:
    node = find_node(settings.node.name, settings.node.address)
    rules = replace(roles.docker_rules(settings, node), direct=asked.direct)
    stored = None
    if snapshot is not None:
        stored = {key: entry.value.strip() for key, entry in snapshot.entries.items()}
    return explain_container(container, asked.running, rules, stored)


def _explain_catalog(
    settings: Settings, subject: str, snapshot: Snapshot, may_be_url: bool
) -> list[Explanation]:
    catalog = CatalogBuilder().reset(snapshot)
    if _is_name(subject) and is_known(catalog, subject):
        return [explain_service(catalog, subject)]
    if may_be_url and ("." in subject or "/" in subject or ":" in subject):
        proxy = settings.proxy
        listened = [("proxy.http", each) for each in proxy.http]
        listened += [("proxy.https", each) for each in proxy.https if proxy.certs is not None]
        ports = frozenset(split_address(address, setting)[1] for setting, address in listened)
        return [explain_request(catalog, subject, ports)]
    return []


def _is_name(text: str) -> bool:
    try:
        return parse_name(text) == text
    except SchemaError:
        return False


def _ask_engine(settings: Settings, name: str) -> _Asked:
    with closing(Engine(roles.docker_address(settings), ENGINE_SECONDS)) as engine:
        document = engine.inspect(name)
        if document is None:
            return _Asked(None, {}, frozenset())
        container = read_container(document)
        running = {}
        for listed in engine.list():
            found = engine.inspect(listed["Id"])
            if found is not None and (other := _readable(found)) is not None:
                running[other.id] = other
        try:
            direct = direct_networks(engine.networks())
        except SourceError:
            # A socket proxy may hide them; the registrator does without as well.
            direct = frozenset()
        return _Asked(container, running, direct)


def _readable(document: Mapping[str, object]) -> Container | None:
    try:
        return read_container(document)
    except SchemaError:
        return None
