"""Asks the agent of this node what it makes of the store; for the commands, which know the store alone."""

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, get_args

from discovery.catalog import Consequence, Problem
from discovery.errors import AgentUnavailable
from discovery.haproxy.report import Waiting
from discovery.haproxy.settings import join_address

ANSWER_BYTES = 8 * 1024 * 1024
TEXT_LENGTH = 2000


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What one node says: its name, the store it follows, what it cannot do as written, and what waits.

    ``problems`` are without those that every node sees; ``held`` are the services of a mass loss, which the
    store need not know any more.
    """

    node: str
    store: str
    problems: tuple[Problem, ...] = ()
    waiting: Waiting | None = None
    held: tuple[str, ...] = ()

    def knows(self, service: str) -> bool:
        """Whether this node has something to say of a service, though the store may not."""
        return service in self.held or any(each.service == service for each in self.problems)

    def of(self, service: str | None) -> "NodeReport":
        """What concerns this service, and the node as a whole; everything for None."""
        if service is None:
            return self
        problems = tuple(each for each in self.problems if each.service in (service, None))
        waiting = self.waiting
        if waiting is not None and waiting.services and service not in waiting.services:
            waiting = None
        return replace(self, problems=problems, waiting=waiting)


def _without_user(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def ask_agent(address: tuple[str, int], store: str, timeout_seconds: float) -> NodeReport:
    """What the agent whose status role is served at an address says; one that is any address is our own.

    ``timeout_seconds`` bounds each step. Raises AgentUnavailable, for one that follows another store, too.
    """
    report = _ask(address, timeout_seconds)
    # Whoever uses it.
    if _without_user(report.store) != _without_user(store):
        raise AgentUnavailable(f"the agent of {report.node} follows another store, {report.store}")
    return report


def _ask(address: tuple[str, int], timeout_seconds: float) -> NodeReport:
    host, port = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address[0], address[0]), address[1]
    connection = http.client.HTTPConnection(host, port, timeout=timeout_seconds)
    try:
        connection.request("GET", "/problems")
        response = connection.getresponse()
        body = response.read(ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise AgentUnavailable(f"no agent answers at {join_address(host, port)}: {reason}") from error
    finally:
        connection.close()
    try:
        if response.status != http.client.OK:
            raise ValueError(f"it answers {response.status}")
        return decode(json.loads(body))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"what answers at {join_address(host, port)} is no agent of this version"
        raise AgentUnavailable(reason) from error


def decode(document: Mapping[str, Any]) -> NodeReport:
    """A document of ``views.problems_document``. Raises ValueError and the like for anything else."""
    problems = tuple(
        Problem(
            None if each["service"] is None else _text(each["service"]),
            _text(each["subject"]),
            _text(each["reason"]),
            _consequence(each["consequence"]),
        )
        for each in document["problems"]
        if each["origin"] == "node"
    )
    return NodeReport(
        _text(document["node"]),
        _text(document["store"]),
        problems,
        _waiting(document["waiting"]),
        tuple(map(_text, document["held"])),
    )


def _waiting(document: Mapping[str, Any] | None) -> Waiting | None:
    if document is None:
        return None
    return Waiting(
        tuple(map(_text, document["reasons"])),
        tuple(map(_text, document["services"])),
        datetime.fromisoformat(document["since"]).timestamp(),
        datetime.fromisoformat(document["due"]).timestamp(),
        bool(document["urgent"]),
    )


def _consequence(text: object) -> Consequence:
    for each in get_args(Consequence):
        if each == text:
            found: Consequence = each
            return found
    raise ValueError(f"{text!r} is no consequence")


def _text(value: object) -> str:
    """A text that may be shown on a terminal: whoever listens there may be anybody."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    text = value[:TEXT_LENGTH]
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
