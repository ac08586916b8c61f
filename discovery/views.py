"""What is known, as people and machines read it: JSON documents, tables, differences. Pure."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import unified_diff

from rich.table import Column, Table
from rich.text import Text

from discovery.catalog import Catalog, Instance, Problem, Service
from discovery.config import SETTINGS, Configuration
from discovery.haproxy.massloss import MassLoss, clock_text
from discovery.options import shown as shown_option

SHOWN_IDS = 10


def services_document(catalog: Catalog, problems: Sequence[Problem]) -> dict[str, object]:
    """The JSON document of what is served and what is not, services in the order of their names."""
    return {
        "revision": catalog.revision,
        "services": [_service(catalog.services[name]) for name in sorted(catalog.services)],
        "quarantined": [
            {
                "service": problem.service,
                "subject": problem.subject,
                "reason": problem.reason,
                "consequence": problem.consequence,
            }
            for problem in problems
        ],
    }


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


def services_tables(catalog: Catalog) -> Iterator[Table]:
    """A table of the services and, if there are any, one of the problems."""
    rows = []
    for name in sorted(catalog.services):
        service = catalog.services[name]
        addresses = "\n".join(map(_address, (*service.instances, *service.udp))) or "none"
        scheme = service.scheme if service.routed else "udp"
        rows.append((name, scheme, str(service.host_port or ""), addresses))
    yield _table(("service", "scheme", "host port", "instances"), rows)
    if catalog.problems:
        problems = ((each.subject, each.reason, each.consequence) for each in catalog.problems)
        yield _table(("not as written", "why", "consequence"), problems)


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
