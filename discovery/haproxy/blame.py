"""Which services are at fault when HAProxy refuses a configuration as a whole. Pure.

HAProxy takes all of a configuration or nothing, so one bad line keeps every other service from changing.
``blame`` reads what it says; where it names nobody, or not all, ``bisect`` finds them by trying.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from discovery.haproxy.certificates import DEFAULT, Certificate, default_of

SECTIONS = {
    *("backend", "cache", "crt-store", "defaults", "fcgi-app", "frontend", "global", "http-errors", "listen"),
    *("log-forward", "log-profile", "mailers", "peers", "program", "resolvers", "ring", "traces", "userlist"),
}
"""The words that begin a section, wherever on a line they are first."""
SERVICE = "service:"
PORT = "port:"

_LINE = re.compile(r"\[(?:[^]\s]*/)?haproxy\.cfg:(\d+)\]")
# Not what follows a slash: that is the name of a server, which may be anything.
_NAME = re.compile(r"(?<![\w./:-])[\w.:-]+")

_PARTS = re.compile(r"(?=\[(?:ALERT|WARNING|NOTICE|DIAG)\] )")
_FILE = re.compile(r"'([^'/\s]+?)(?:\.key)?'")


class _Section(NamedTuple):
    first_line: int
    name: str
    service: str | None


def blame(config: str, message: str) -> frozenset[str]:
    """The services that ``message``, what HAProxy printed when it refused ``config``, is about.

    An alert with a line number is about the service whose section has that line; one without, or whose line
    is nobody's, about those whose sections it names. Warnings and notices are about nothing. A section is a
    service's when it is named ``service:NAME``, or is a frontend ``port:N`` with that as default_backend.
    Empty when nobody is found; what is found is a suspicion only, for one fault may hide another.
    """
    sections = list(_sections(config))
    owners = {section.name: section.service for section in sections if section.service}
    found: set[str | None] = set()
    for alert in _alerts(message):
        by_line = {_service_at(sections, int(number)) for number in _LINE.findall(alert)} - {None}
        found |= by_line or {owners.get(name.rstrip(".:")) for name in _NAME.findall(alert)}
    return frozenset(service for service in found if service)


def blame_certificates(message: str, certificates: Mapping[str, Certificate]) -> frozenset[str]:
    """The names of the certificates that ``message``, as for ``blame``, is about.

    There are none as long as HAProxy's OpenSSL agrees with ours, by which they have been judged.
    """
    files = {each.file: name for name, each in certificates.items()}
    default = default_of(certificates)
    if default is not None:
        files[DEFAULT] = default.name
    quoted = (match for alert in _alerts(message) for match in _FILE.findall(alert))
    return frozenset(files[file] for file in quoted if file in files)


def bisect(
    suspects: Sequence[str], is_accepted: Callable[[frozenset[str]], bool], most_checks: int = 64
) -> frozenset[str]:
    """Which of ``suspects`` to leave out so that the rest is accepted: no more than needed.

    ``is_accepted(left_out)`` tells whether the configuration without these services is; it is taken for
    granted that with all of them it is not, and called at most ``most_checks`` times: once, and then for
    each culprit among n suspects up to log2(n) + 2 times. When that is not enough, more are left out than
    needed. Of two that are at odds with each other the one that comes first in ``suspects`` is left out.
    Empty when leaving out all of them is no help, for then the fault is elsewhere.
    """
    if not suspects or most_checks < 1 or not is_accepted(frozenset(suspects)):
        return frozenset()
    checks = 1
    culprits: frozenset[str] = frozenset()
    # Always accepted: without the culprits and the first `enough` suspects. Not: and the first `few`.
    few, enough = 0, len(suspects)
    while checks < most_checks:
        if enough - few > 1:
            middle = (few + enough) // 2
            checks += 1
            if is_accepted(culprits.union(suspects[:middle])):
                enough = middle
            else:
                few = middle
            continue
        # It takes the last one of these, and perhaps others before it.
        enough -= 1
        culprits |= {suspects[enough]}
        checks += enough > 0
        if enough == 0 or is_accepted(culprits):
            return culprits
        few = 0
    return culprits.union(suspects[:enough])


def _sections(config: str) -> Iterator[_Section]:
    """The sections in their order, line numbers from 1."""
    first_line, kind, name, service = 0, "", "", None
    for number, line in enumerate(config.split("\n"), start=1):
        words = line.split(maxsplit=2)
        if words and words[0] in SECTIONS:
            yield _Section(first_line, name, service)
            first_line, kind, name = number, words[0], words[1] if len(words) > 1 else ""
            service = name.removeprefix(SERVICE) if name.startswith(SERVICE) else None
        elif kind == "frontend" and name.startswith(PORT) and words[:1] == ["default_backend"]:
            target = words[1] if len(words) > 1 else ""
            service = target.removeprefix(SERVICE) if target.startswith(SERVICE) else None
    yield _Section(first_line, name, service)


def _service_at(sections: Sequence[_Section], number: int) -> str | None:
    """Whose section has this line."""
    return sections[bisect_right(sections, number, key=lambda section: section.first_line) - 1].service


def _alerts(message: str) -> list[str]:
    """The parts of HAProxy's output that say why it refuses; all lines of a text that is no such output."""
    # 3.0 goes on in lines of their own, and what ran HAProxy may have put words before it all.
    return [part for part in _PARTS.split(message) if part.startswith("[ALERT]")] or message.splitlines()
