"""The captured containers of tests/unit/inspect, and what registers them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from discovery.catalog import Registration
from discovery.sources.container import Container, read_container
from discovery.sources.docker import Outcome, Rules
from discovery.sources.rules import direct_networks

DIRECTORY = Path(__file__).parent / "inspect"
NAMES = sorted(path.stem for path in DIRECTORY.glob("*.json"))
NETWORKS: list[dict[str, Any]] = json.loads((DIRECTORY / "networks" / "networks.json").read_text())

NODE = Rules(node="n1", address="192.0.2.7", direct=direct_networks(NETWORKS))
INTERNAL = replace(NODE, internal=True)
V6 = replace(NODE, address="2001:db8::7")


def document(name: str) -> Any:
    """The captured document of one container, a new object each time."""
    return json.loads((DIRECTORY / f"{name}.json").read_text())


def container(
    name: str, *environment: str, labels: dict[str, str] | None = None, **changes: Any
) -> Container:
    """A captured container, with further environment and labels, and changed fields."""
    found = document(name)
    found["Config"]["Env"] = [*(found["Config"]["Env"] or []), *environment]
    found["Config"]["Labels"] = {**(found["Config"]["Labels"] or {}), **(labels or {})}
    return replace(read_container(found), **changes)


ALL = {found.id: found for found in map(container, NAMES)}


def registered(outcome: Outcome) -> dict[str, str]:
    """Addresses by service; `/udp` after the names of those of UDP."""
    return {
        each.service + ("/udp" if each.instance.protocol == "udp" else ""): each.instance.address
        for each in outcome.registrations
    }


def only(outcome: Outcome) -> Registration:
    """The one registration of an outcome without problems."""
    assert not outcome.problems
    (found,) = outcome.registrations
    return found
