"""The options a service may carry, each with its check and its one line of documentation. Pure.

An option comes from a container (``SERVICE_<OPTION>``, through its instance's attributes) or from an operator
(``discovery set NAME OPTION VALUE``); the operator's wins. ``scheme`` and ``host_port`` are not here:
they are keys of their own, which an operator may override under the same names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from discovery.errors import SchemaError


@dataclass(frozen=True, slots=True)
class Option:
    """``parse`` gives the canonical text of a valid value and raises SchemaError for any other."""

    name: str
    parse: Callable[[str], str]
    documentation: str


def one_of(*choices: str) -> Callable[[str], str]:
    """A parser that accepts exactly these words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise SchemaError(f"must be {' or '.join(choices)}")
        return text

    return parse


OPTIONS: Mapping[str, Option] = {
    option.name: option
    for option in (
        Option(
            "path",
            one_of("strip", "keep"),
            "whether /NAME is taken off the path before the service sees it (strip) or left on (keep)",
        ),
    )
}


def parse_option(name: str, text: str) -> str:
    """The canonical text of option ``name``; SchemaError for an unknown option or a bad value."""
    option = OPTIONS.get(name)
    if option is None:
        near = get_close_matches(name, OPTIONS, n=1)
        raise SchemaError("unknown option" + (f", did you mean {near[0]}?" if near else ""))
    return option.parse(text)
