"""Parsers of option values: a text → its canonical text, or a SchemaError that tells the mend. Pure.

No error repeats a value of which a part could be a secret, and every value is bounded in length and number.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator

from discovery.errors import SchemaError

Parser = Callable[[str], str]

NOBODY = "nobody"
"""A value of ``allow`` and ``auth`` that lets nobody in."""

MOST_HOSTS = 64
MOST_NETWORKS = 256
MOST_USERS = 64
MOST_HEADERS = 32
HEADERS_CHARACTERS = 4096

_UNITS_MS = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_DURATION = re.compile(r"(0|[1-9][0-9]{0,8})(ms|s|m|h)")
_INTEGER = re.compile(r"0|[1-9][0-9]{0,9}")
_PATH = re.compile(r"/[!-~]{0,1023}")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")  # RFC 9110, 5.6.2
_FIELD_VALUE = re.compile(r"[!-~](?:[\t -~]*[!-~])?")  # RFC 9110, 5.5, without obs-text
_USER = re.compile(r"[A-Za-z0-9._@+-]{1,64}")

# What would break the framing or routing of a message, belongs to one connection (RFC 9110, 7.6.1), or is
# the edge's own word.
_REFUSED_HEADERS = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
        *("content-length", "expect", "host", "http2-settings", "proxy-authenticate", "proxy-authorization"),
        *("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-prefix", "x-forwarded-proto"),
    }
)

# HAProxy verifies the hash with every request, on the thread that serves everybody else as well. What takes
# longer than some 20 ms is refused: more than 20,000 rounds of SHA-2, a bcrypt cost above 8 and a yescrypt
# above mkpasswd's own default.
_B64 = r"[./0-9A-Za-z]"
_ROUNDS = r"(?:rounds=(?:[1-9][0-9]{3}|1[0-9]{4}|20000)\$)?"
_HASH = re.compile(
    rf"\$5\${_ROUNDS}{_B64}{{1,16}}\${_B64}{{43}}"
    rf"|\$6\${_ROUNDS}{_B64}{{1,16}}\${_B64}{{86}}"
    rf"|\$2y\$0[4-8]\${_B64}{{53}}"
    rf"|\$y\$j[789][5T]\${_B64}{{1,86}}\${_B64}{{43}}"
)
_COSTLY = re.compile(r"\$(?:[56]\$rounds=|2y\$|y\$)")


# ---- plain ones -------------------------------------------------------------------------------------


def one_of(*choices: str) -> Parser:
    """A parser that accepts exactly these words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise SchemaError(f"must be {' or '.join(choices)}")
        return text

    return parse


def integer(least: int, most: int) -> Parser:
    """A parser of whole numbers from ``least`` to ``most``."""

    def parse(text: str) -> str:
        if not _INTEGER.fullmatch(text) or not least <= int(text) <= most:
            raise SchemaError(f"must be a whole number from {least} to {most}")
        return text

    return parse


def duration(least: str, most: str) -> Parser:
    """A parser of durations such as ``500ms``, ``2s``, ``5m``, ``1h`` between two of them."""
    bounds = range(milliseconds(least), milliseconds(most) + 1)

    def parse(text: str) -> str:
        if not _DURATION.fullmatch(text) or milliseconds(text) not in bounds:
            raise SchemaError(f"must be a duration from {least} to {most}, such as 500ms, 2s, 5m")
        value_ms = milliseconds(text)
        unit = next(unit for unit, size_ms in _UNITS_MS.items() if value_ms % size_ms == 0)
        return f"{value_ms // _UNITS_MS[unit]}{unit}"

    return parse


def milliseconds(text: str) -> int:
    """The length of a valid duration."""
    number = text.rstrip("hms")
    return int(number) * _UNITS_MS[text[len(number) :]]


def check(text: str) -> str:
    """``tcp``, ``none`` or ``http:`` and a path."""
    if text in ("tcp", "none"):
        return text
    kind, _, path = text.partition(":")
    if kind != "http" or not _PATH.fullmatch(path) or "#" in path:
        raise SchemaError("must be tcp, none, or http: and a path such as http:/health, percent-encoded")
    return text


# ---- lists ------------------------------------------------------------------------------------------


def hosts(text: str) -> str:
    """Comma-separated host names, the first label maybe ``*``; lowercased, without a final dot.

    A name of one label is refused: it would take the first label of every host, maybe another service's name.
    """
    names = tuple(dict.fromkeys(_host(part.strip()) for part in _split(text, ",", MOST_HOSTS, "host name")))
    return ",".join(names)


def _host(text: str) -> str:
    name = text.lower().removesuffix(".")
    labels = name.removeprefix("*.").split(".")
    if len(name) > 253 or not all(map(_LABEL.fullmatch, labels)):
        mend = "it is labels of letters, digits, - and _ with dots between (xn--… for others)"
        raise SchemaError(f"{_shown(text)} is no host name, {mend}; only the first may be *")
    if labels[-1].isdigit():
        raise SchemaError(f"{_shown(text)} is no host name; an address names no service")
    if len(name.split(".")) < 2:
        raise SchemaError(f"{_shown(text)} is one label only, give the whole name with its domain")
    return name


def networks(text: str) -> str:
    """Comma-separated addresses and CIDRs, IPv4 or IPv6; or ``nobody``."""
    if text == NOBODY:
        return text
    parts = _split(text, ",", MOST_NETWORKS, "network")
    return ",".join(dict.fromkeys(_network(part.strip()) for part in parts))


def _network(text: str) -> str:
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        raise SchemaError(f"{_shown(text)} is no network, it is a CIDR such as 10.0.0.0/8") from None
    # A number alone is an address to the library, a netmask or scope is more than HAProxy is told.
    if "%" in text or not re.fullmatch(r"[0-9A-Fa-f.:]+(/[0-9]{1,3})?", text):
        raise SchemaError(f"{_shown(text)} is no network, it is a CIDR such as 10.0.0.0/8")
    if interface.ip != interface.network.network_address:
        raise SchemaError(f"{_shown(text)} has host bits set, the network is {interface.network}")
    return str(interface.network)


def users(text: str) -> str:
    """Comma-separated ``user:hash``, the hash one that crypt(3) and so HAProxy verifies; or ``nobody``."""
    if text == NOBODY:
        return text
    found: dict[str, str] = {}
    for part in _split(text, ",", MOST_USERS, "user"):
        user, separator, hashed = part.strip().partition(":")
        if not separator or not _USER.fullmatch(user):
            raise SchemaError("must be user:hash, comma-separated; a user is of letters, digits, . _ @ + -")
        if not _HASH.fullmatch(hashed):
            raise SchemaError(f"the password of {user} {_bad_hash(hashed)}")
        if user in found:
            raise SchemaError(f"names user {user} twice")
        found[user] = hashed
    return ",".join(f"{user}:{hashed}" for user, hashed in found.items())


def _bad_hash(hashed: str) -> str:
    if _COSTLY.match(hashed):
        return (
            "is a hash that is malformed or takes too long to verify with every request; bounds are "
            "rounds=20000, bcrypt cost 08, yescrypt j9T; `openssl passwd -6` makes a good one"
        )
    return "is no crypt(3) hash of kind $5$, $6$, $2y$ or $y$; make one with `openssl passwd -6`"


def headers(text: str) -> str:
    """``Name: value``, several separated by ``|``. No value is repeated in an error."""
    if len(text) > HEADERS_CHARACTERS:
        raise SchemaError(f"is longer than {HEADERS_CHARACTERS} characters")
    found: dict[str, str] = {}
    for name, value in split_headers("|".join(_split(text, "|", MOST_HEADERS, "header"))):
        if not _TOKEN.fullmatch(name):
            raise SchemaError("must be `Name: value`, several separated by |; a name is a token of RFC 9110")
        if name.lower() in _REFUSED_HEADERS:
            raise SchemaError(f"may not set {name}, which is the edge's own")
        if not _FIELD_VALUE.fullmatch(value):
            raise SchemaError(f"the value of {name} must be one or more printable ASCII characters")
        if name.lower() in found:
            raise SchemaError(f"names {name} twice")
        found[name.lower()] = f"{name}: {value}"
    return "|".join(found.values())


def split_headers(text: str) -> Iterator[tuple[str, str]]:
    """Name and value of each header in a text as ``headers`` reads it."""
    for part in text.split("|"):
        name, _, value = part.partition(":")
        yield name.strip(" \t"), value.strip(" \t")


def _split(text: str, separator: str, most: int, what: str) -> list[str]:
    parts = text.split(separator, most)
    if len(parts) > most:
        raise SchemaError(f"is more than {most} entries")
    if not all(part.strip(" \t") for part in parts):
        raise SchemaError(f"a {what} is missing; entries are separated by {separator}")
    return parts


def _shown(text: str) -> str:
    """A part of a value for people, printable and short."""
    return repr(text if len(text) <= 60 else text[:59] + "…")
