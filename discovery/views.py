"""What is known, as people and machines read it: JSON documents, tables, differences. Pure."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from difflib import unified_diff

from rich.table import Column, Table
from rich.text import Text

from discovery.catalog import Catalog, Instance, Problem, Service
from discovery.config import SETTINGS, Configuration
from discovery.haproxy.massloss import MassLoss, clock_text
from discovery.haproxy.report import ProxyStatus, Waiting
from discovery.options import shown as shown_option
from discovery.status.ask import NodeReport

SHOWN_IDS = 10


def services_document(catalog: Catalog, on_this_node: Sequence[Problem]) -> dict[str, object]:
    """The JSON document of what is served and what is not, services in the order of their names.

    ``on_this_node`` is what is not besides the catalog's own problems.
    """
    return {
        "revision": catalog.revision,
        "services": [_service(catalog.services[name]) for name in sorted(catalog.services)],
        "quarantined": _problems(catalog, on_this_node),
    }


def _problems(catalog: Catalog | None, on_this_node: Sequence[Problem]) -> list[dict[str, object]]:
    """Every problem once; those of the catalog are of the store, and the same on every node."""
    everywhere = catalog.problems if catalog else ()
    known = set(everywhere)
    return [
        *(_problem(each, "store") for each in everywhere),
        *(_problem(each, "node") for each in on_this_node if each not in known),
    ]


def _problem(problem: Problem, origin: str) -> dict[str, object]:
    return {
        "service": problem.service,
        "subject": problem.subject,
        "reason": problem.reason,
        "consequence": problem.consequence,
        "origin": origin,
    }


def problems_document(
    node: str,
    store: str,
    catalog: Catalog | None,
    on_this_node: Sequence[Problem],
    proxy: ProxyStatus | None,
) -> dict[str, object]:
    """The JSON document of what is not as written, and of what waits, as one node sees it."""
    loss = proxy.loss if proxy else None
    return {
        "node": node,
        "store": store,
        "revision": catalog.revision if catalog else None,
        "problems": _problems(catalog, on_this_node),
        "waiting": _waiting(proxy.waiting if proxy else None),
        "held": list(loss.instances) if loss else [],
    }


def agent_document(report: NodeReport | None, why_not: str) -> dict[str, object]:
    """The JSON document of whether this node's agent could be asked."""
    return {
        "node": report.node if report else None,
        "waiting": _waiting(report.waiting if report else None),
        "error": None if report else why_not,
    }


def node_lines(report: NodeReport | None, why_not: str) -> Iterator[str]:
    """What is to be said of this node beyond the tables."""
    if report is None:
        yield f"{why_not}; what this node makes of it is not known here"
        return
    waiting = report.waiting
    if waiting is not None and waiting.is_urgent:
        names = ", ".join(
            [*waiting.services[:SHOWN_IDS], *(["…"] if len(waiting.services) > SHOWN_IDS else [])]
        )
        yield (
            f"{report.node}: a reload of HAProxy is due at {clock_text(waiting.due_seconds)}"
            f" ({', '.join(waiting.reasons)}){': ' if names else ''}{names}"
        )


def _waiting(waiting: Waiting | None) -> dict[str, object] | None:
    if waiting is None:
        return None
    return {
        "reasons": list(waiting.reasons),
        "services": list(waiting.services),
        "since": time_text(waiting.since_seconds),
        "due": time_text(waiting.due_seconds),
        "urgent": waiting.is_urgent,
    }


def proxy_document(proxy: ProxyStatus, error: str | None) -> dict[str, object]:
    """The JSON document of what HAProxy does; ``error`` is why it could not be changed the last time."""
    loss = proxy.loss
    return {
        "running": proxy.running,
        "pid": proxy.pid,
        "version": proxy.version,
        "revision": proxy.revision,
        "error": error,
        "waiting": _waiting(proxy.waiting),
        "held": None
        if loss is None
        else {
            "since": time_text(loss.since_seconds),
            "until": time_text(loss.until_seconds),
            "instances": {name: list(ids) for name, ids in loss.instances.items()},
        },
        "changes": proxy.changes,
        "reloads": dict(proxy.reloads),
        "last_reloads": [
            {
                "at": time_text(each.at_seconds),
                "reasons": list(each.reasons),
                "seconds": round(each.took_seconds, 3),
            }
            for each in proxy.last_reloads
        ],
        "old_workers": [
            {"pid": each.pid, "connections": each.connections, "backends": dict(each.backends)}
            for each in proxy.old_workers
        ],
        "certificates": [
            {"name": name, "not_after": time_text(not_after)}
            for name, not_after in sorted(proxy.certificates.items())
        ],
    }


def time_text(unix_seconds: float) -> str:
    """The time in UTC, as ISO 8601 has it, to the millisecond."""
    text = datetime.fromtimestamp(unix_seconds, UTC).isoformat(timespec="milliseconds")
    return text.removesuffix("+00:00") + "Z"


def _service(service: Service) -> dict[str, object]:
    return {
        "name": service.name,
        "scheme": service.scheme,
        "host_port": service.host_port,
        "options": {name: shown_option(name, text) for name, text in service.options.items()},
        "instances": [_instance(instance) for instance in service.instances],
        "udp": [_instance(instance) for instance in service.udp],
    }


def _instance(instance: Instance) -> dict[str, object]:
    attributes = instance.attributes
    return {
        "id": instance.id,
        "address": instance.address,
        "node": attributes.node,
        "container": attributes.container,
        "draining": attributes.draining,
    }


def only(catalog: Catalog, name: str | None) -> Catalog:
    """The catalog of this one service and its problems; the whole one for None."""
    if name is None:
        return catalog
    services = {name: catalog.services[name]} if name in catalog.services else {}
    problems = tuple(problem for problem in catalog.problems if problem.service == name)
    return Catalog(catalog.revision, services, problems)


def services_tables(catalog: Catalog, on_this_node: Sequence[Problem], node: str) -> Iterator[Table]:
    """A table of the services and, if there are any, one of the problems.

    ``on_this_node`` is what is not as written besides the catalog's own problems, on the node of this name.
    """
    rows = []
    for name in sorted(catalog.services):
        service = catalog.services[name]
        addresses = "\n".join(map(_address, (*service.instances, *service.udp))) or "none"
        scheme = service.scheme if service.routed else "udp"
        rows.append((name, scheme, str(service.host_port or ""), addresses))
    yield _table(("service", "scheme", "host port", "instances"), rows)
    known = set(catalog.problems)
    problems = [(each, "everywhere") for each in catalog.problems]
    problems += [(each, node) for each in on_this_node if each not in known]
    if problems:
        cells = ((each.subject, each.reason, each.consequence, where) for each, where in problems)
        yield _table(("not as written", "why", "consequence", "where"), cells)


def loss_lines(loss: MassLoss) -> Iterator[str]:
    """What is held back, since when and until when, then a line for each service."""
    yield (
        f"{loss.count} instances vanished from the store at {clock_text(loss.since_seconds)}, and are served"
        f" until {clock_text(loss.until_seconds)} while HAProxy's checks find them living:"
    )
    for name, ids in loss.instances.items():
        more = f", … ({len(ids)})" if len(ids) > SHOWN_IDS else ""
        yield f"  {name}: {', '.join(ids[:SHOWN_IDS])}{more}"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Cells as they are: nothing in them is markup, such as [fd00::5]:80, and nothing is cut off."""
    table = Table(*(Column(heading, overflow="fold") for heading in headings), box=None)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _address(instance: Instance) -> str:
    where = instance.attributes.node
    return (
        instance.address
        + (f"  on {where}" if where else "")
        + (" (udp)" if instance.protocol == "udp" else "")
        + (" (draining)" if instance.attributes.draining else "")
    )


def configuration_rows(configuration: Configuration) -> Iterator[tuple[str, str, str]]:
    """Key, value and origin of every setting; secrets are not shown."""
    for setting in SETTINGS:
        value: object = configuration.settings
        for part in setting.key.split("."):
            value = getattr(value, part)
        shown = ", ".join(value) if isinstance(value, tuple) else "" if value is None else str(value)
        hidden = setting.secret and value is not None
        yield (
            setting.key,
            "(hidden)" if hidden else _without_password(shown),
            configuration.origins[setting.key],
        )


def _without_password(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    credentials, at, place = rest.rpartition("@")
    return f"{scheme}://{credentials.partition(':')[0]}:…@{place}" if separator and at else text


def configuration_table(configuration: Configuration) -> Table:
    """Every setting for people."""
    return _table(("setting", "value", "from"), configuration_rows(configuration))


def configuration_json(configuration: Configuration) -> str:
    """Every setting for machines."""
    rows = configuration_rows(configuration)
    return json.dumps({key: {"value": value, "from": origin} for key, value, origin in rows}, indent=2)


def files_difference(running: Mapping[str, str], rendered: Mapping[str, str]) -> str:
    """A unified diff over files by name; empty when they are the same."""
    parts = []
    for name in sorted(running.keys() | rendered.keys()):
        before, after = running.get(name, ""), rendered.get(name, "")
        lines = unified_diff(
            before.splitlines(keepends=True),
            after.splitlines(keepends=True),
            f"running/{name}",
            f"rendered/{name}",
        )
        parts.append("".join(lines))
    return "".join(parts)
