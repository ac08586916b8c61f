"""What a container asks its registrator to check, by the conventions of gliderlabs' registrator. Pure.

    SERVICE_CHECK_HTTP      a path: GET it; 2xx and 3xx are good
    SERVICE_CHECK_CMD       a command inside the container: exit status 0 is good
    SERVICE_CHECK_TCP       anything but empty: connect
    SERVICE_CHECK_INTERVAL  `10s`, `1m30s`, `500ms`, or a number of seconds; default 10s
    SERVICE_CHECK_TIMEOUT   of one attempt; default 2s
    SERVICE_CHECK_RISE      good ones in a row until it is registered again; default 2
    SERVICE_CHECK_FALL      bad ones in a row until it is withdrawn; default 3

Of several kinds the first in this order is done. The first good check of all registers at once.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from discovery.errors import SchemaError
from discovery.schema import printable
from discovery.sources.reach import Reached

DEFAULT_INTERVAL_SECONDS = 10.0
DEFAULT_TIMEOUT_SECONDS = 2.0
DEFAULT_RISE = 2
DEFAULT_FALL = 3

LEAST_INTERVAL_SECONDS = 0.1
MOST_SECONDS = 86_400.0
MOST_ROW = 100
COMMAND_CHARACTERS = 4096
PATH_CHARACTERS = 2000

WORDS = (
    "check_http",
    "check_cmd",
    "check_tcp",
    "check_interval",
    "check_timeout",
    "check_rise",
    "check_fall",
)

UNSUPPORTED = (
    "check_https",
    "check_script",
    "check_ttl",
    "check_grpc",
    "check_http_method",
    "check_initial_status",
)
"""Checks of the convention that an agent of Consul would run, and nobody here does."""

T = TypeVar("T")

_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:h|ms|m|s))+")
_PART = re.compile(r"([0-9.]+)(h|ms|m|s)")


@dataclass(frozen=True, slots=True)
class Check:
    """How to see whether one registered port serves; everything is validated.

    ``path`` is that of an ``http`` check, empty otherwise; ``command`` is the argument vector of a
    ``command`` check, empty otherwise. A check of the network goes to ``host`` and ``port``, the address
    that is registered. ``own_host`` and ``own_port`` are the container's own, where it has one that its
    node can reach: there no docker-proxy accepts connections for a server that does not run.
    """

    kind: Literal["http", "tcp", "command"]
    container_id: str
    host: str
    port: int
    own_host: str | None = None
    own_port: int | None = None
    path: str = ""
    command: tuple[str, ...] = ()
    interval_seconds: float = DEFAULT_INTERVAL_SECONDS
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    rise: int = DEFAULT_RISE
    fall: int = DEFAULT_FALL


@dataclass(slots=True)
class Reading:
    """What the words of one port say about checks.

    ``check`` is for the registrator, ``options`` are for the edges, ``problems`` are words with the reason
    why they do not count.
    """

    check: Check | None = None
    options: dict[str, str] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)


def read_check(
    words: Mapping[str, str], container_id: str, reached: Reached, *, protocol: str, commands: bool
) -> Reading:
    """What the words of a port ask to be checked; ``commands`` allows those inside the container.

    A bad word costs itself only. A port of UDP has no check but a command, for silence says nothing there.
    """
    reading = Reading()
    kind, path, command = _kind(words, reading, protocol, commands)
    numbers = {
        "check_interval": _take(words, "check_interval", _interval, reading),
        "check_timeout": _take(words, "check_timeout", parse_seconds, reading),
        "check_rise": _take(words, "check_rise", _row, reading),
        "check_fall": _take(words, "check_fall", _row, reading),
    }
    if kind in ("http", "tcp"):
        reading.options["check"] = f"http:{path}" if kind == "http" else "tcp"
    if protocol == "tcp":
        reading.options |= {name: _text(name, it) for name, it in numbers.items() if it is not None}
    if kind is not None:
        own = reached.own
        reading.check = Check(
            kind,
            container_id,
            reached.host,
            reached.port,
            own_host=own.host if own else None,
            own_port=own.port if own else None,
            path=path,
            command=command,
            interval_seconds=numbers["check_interval"] or DEFAULT_INTERVAL_SECONDS,
            timeout_seconds=numbers["check_timeout"] or DEFAULT_TIMEOUT_SECONDS,
            rise=int(numbers["check_rise"] or DEFAULT_RISE),
            fall=int(numbers["check_fall"] or DEFAULT_FALL),
        )
    for name in UNSUPPORTED:
        if words.get(name):
            reading.problems.append((name, "such a check is not made here"))
    return reading


def _kind(
    words: Mapping[str, str], reading: Reading, protocol: str, commands: bool
) -> tuple[Literal["http", "tcp", "command"] | None, str, tuple[str, ...]]:
    """Which check is made, with its path or command: the first of http, command, tcp that is good."""
    if protocol == "tcp" and (path := _take(words, "check_http", _path, reading)) is not None:
        return "http", path, ()
    if words.get("check_cmd") and not commands:
        reading.problems.append(
            ("check_cmd", "commands in containers are not allowed (docker.check_commands)")
        )
    elif (command := _take(words, "check_cmd", _command, reading)) is not None:
        return "command", "", command
    if protocol == "tcp" and words.get("check_tcp"):
        return "tcp", "", ()
    return None, "", ()


def _take(words: Mapping[str, str], name: str, parse: Callable[[str], T], reading: Reading) -> T | None:
    text = words.get(name, "").strip()
    if not text:
        return None
    try:
        return parse(text)
    except SchemaError as error:
        reading.problems.append((name, str(error)))
        return None


def parse_seconds(text: str) -> float:
    """``10s``, ``1m30s``, ``500ms``, ``1.5h`` or a plain number of seconds → seconds, at most a day."""
    if not re.fullmatch(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", text) and not _DURATION.fullmatch(text):
        raise SchemaError(f"{printable(text)!r} is no time, write for example 10s or 500ms")
    parts = _PART.findall(text) or [(text, "s")]
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not 0.001 <= seconds <= MOST_SECONDS:
        raise SchemaError(f"{printable(text)!r} is no time from 1ms to 24h")
    return float(seconds)


def _interval(text: str) -> float:
    seconds = parse_seconds(text)
    if seconds < LEAST_INTERVAL_SECONDS:
        raise SchemaError(f"{printable(text)!r} is too often, at least 100ms lie between two checks")
    return seconds


def _row(text: str) -> float:
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= MOST_ROW):
        raise SchemaError(f"{printable(text)!r} is no number from 1 to {MOST_ROW}")
    return int(text)


def _path(text: str) -> str:
    """An absolute path with its query, in printable ASCII without spaces: it becomes part of a request."""
    if not re.fullmatch(r"/[!-~]*", text) or len(text) > PATH_CHARACTERS:
        raise SchemaError(f"{printable(text)!r} is no path, it begins with / and has no spaces")
    return text


def _command(text: str) -> tuple[str, ...]:
    """As HEALTHCHECK has it: a JSON array is the argument vector, anything else is for the shell."""
    if len(text) > COMMAND_CHARACTERS or "\0" in text:
        raise SchemaError(f"is no command of at most {COMMAND_CHARACTERS} characters")
    if text.startswith("["):
        try:
            words = json.loads(text)
        except (ValueError, RecursionError):
            words = None
        if isinstance(words, list) and words and all(isinstance(word, str) and word for word in words):
            return tuple(words)
        raise SchemaError("is no JSON array of texts")
    return ("/bin/sh", "-c", text)


def _text(name: str, number: float) -> str:
    """As an option has it: a count, or a time in whole seconds or else milliseconds."""
    if name in ("check_rise", "check_fall"):
        return str(int(number))
    return f"{int(number)}s" if number == int(number) else f"{max(1, round(number * 1000))}ms"
