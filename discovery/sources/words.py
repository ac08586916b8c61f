"""What a container says about itself in its environment and labels. Pure.

Only ``SERVICE_*``, ``VIRTUAL_*`` and three labels of compose are ever kept, so that nothing else of an
environment can be stored or logged. A label wins over a variable of the same name.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_SERVICE = "SERVICE_"
_VIRTUAL = "VIRTUAL_"
_COMPOSE = "com.docker.compose."
_LARGEST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Compose:
    """The place of a container in a compose project. ``one_off`` ones are made by `compose run`."""

    project: str
    service: str
    one_off: bool = False


@dataclass(frozen=True, slots=True)
class Words:
    """What was said; names are lowercase and without their prefix.

    ``general`` and ``by_port`` are of ``SERVICE_X`` and ``SERVICE_<port>_X``, ``virtual`` of ``VIRTUAL_X``.
    """

    general: Mapping[str, str] = field(default_factory=dict)
    by_port: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    virtual: Mapping[str, str] = field(default_factory=dict)
    compose: Compose | None = None

    def of(self, port: int) -> Mapping[str, str]:
        """What holds for a port: what names it wins over what is general."""
        return {**self.general, **self.by_port.get(port, {})}


def read_words(environment: Iterable[str], labels: Mapping[str, str]) -> Words:
    """The words of ``NAME=value`` lines and of labels. A line without ``=`` says nothing."""
    said = {name: value for name, equals, value in (line.partition("=") for line in environment) if equals}
    general: dict[str, str] = {}
    by_port: dict[int, dict[str, str]] = {}
    virtual: dict[str, str] = {}
    # In the order of their names, so that of two that differ in case only it is always the same that wins.
    for key, value in [*sorted(said.items()), *sorted(labels.items())]:
        if key.startswith(_VIRTUAL):
            virtual[key.removeprefix(_VIRTUAL).lower()] = value
        if not key.startswith(_SERVICE):
            continue
        name = key.removeprefix(_SERVICE).lower()
        first, separator, rest = name.partition("_")
        if separator and _is_port(first):
            by_port.setdefault(int(first), {})[rest] = value
        else:
            general[name] = value
    return Words(general, by_port, virtual, _compose(labels))


def _compose(labels: Mapping[str, str]) -> Compose | None:
    project, service = labels.get(f"{_COMPOSE}project"), labels.get(f"{_COMPOSE}service")
    if not project or not service:
        return None
    return Compose(project, service, labels.get(f"{_COMPOSE}oneoff", "").lower() == "true")


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= _LARGEST_PORT
