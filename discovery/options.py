"""The options a service may carry, each with its check and its one line of documentation. Pure.

An option comes from a container (``SERVICE_<OPTION>``, through its instance's attributes) or from an operator
(``discovery set NAME OPTION VALUE``); the operator's wins. ``scheme`` and ``host_port`` are not here:
they are keys of their own, which an operator may override under the same names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import get_args

from discovery.catalog import Scheme
from discovery.errors import SchemaError
from discovery.option_values import (
    NOBODY,
    Parser,
    check,
    duration,
    headers,
    hosts,
    integer,
    networks,
    one_of,
    users,
)

HTTP: tuple[Scheme, ...] = ("http",)
ANY: tuple[Scheme, ...] = get_args(Scheme)


@dataclass(frozen=True, slots=True)
class Option:
    """``parse`` gives the canonical text of a valid value and raises SchemaError for any other.

    ``values`` tells them in short. ``schemes`` are those of the services it is for; ``http_values`` are
    values that only a service of scheme http can have. A ``secret`` value is shown nowhere. A change of one
    that is not ``at_runtime`` changes the section of the service. ``stand_in`` is in force in place of a bad
    value without a good predecessor: leaving out what keeps people out would let them in.
    """

    name: str
    parse: Parser
    documentation: str
    values: str
    schemes: tuple[Scheme, ...] = ANY
    http_values: frozenset[str] = frozenset()
    secret: bool = False
    at_runtime: bool = False
    stand_in: str | None = None


_ALL = (
    Option(
        "path",
        one_of("strip", "keep"),
        "whether /NAME is taken off the path before the service sees it (strip, the default) or left on",
        "`strip`, `keep`",
        HTTP,
        at_runtime=True,
    ),
    Option(
        "hosts",
        hosts,
        "further host names that lead to the service; `*` stands for one whole first label",
        "names, comma-separated",
        HTTP,
        at_runtime=True,
    ),
    Option(
        "redirect",
        one_of("https"),
        "plain http requests are redirected to https, on edges that have it",
        "`https`",
        HTTP,
        at_runtime=True,
    ),
    Option(
        "balance",
        one_of("roundrobin", "leastconn", "source", "random", "uri"),
        "how an instance is chosen: in turn (default), the least busy, by client, at random, or by path",
        "`roundrobin`, `leastconn`, `source`, `random`, `uri` (http only)",
        http_values=frozenset({"uri"}),
    ),
    Option(
        "sticky",
        one_of("cookie"),
        "a client stays with its instance by the cookie discovery_NAME, on every edge the same",
        "`cookie`",
        HTTP,
    ),
    Option(
        "weight",
        integer(0, 256),
        "the share of requests; 0 takes no new ones; an operator's is for all instances of the service",
        "0 to 256",
        at_runtime=True,
    ),
    Option(
        "maxconn",
        integer(1, 1_000_000),
        "how many connections each edge has to one instance at most; more wait for their turn",
        "1 to 1000000",
    ),
    Option(
        "check",
        check,
        "how an edge checks instances: by connecting (default), by a GET that must answer 2xx or 3xx, or not",
        "`tcp`, `http:/path`, `none`",
    ),
    Option("check_interval", duration("500ms", "1h"), "time between two checks; default 2s", "duration"),
    Option(
        "check_timeout",
        duration("100ms", "1m"),
        "how long a check waits for an answer once it is connected; default 2s",
        "duration",
    ),
    Option("check_rise", integer(1, 100), "successful checks in a row to be up again; default 2", "1 to 100"),
    Option("check_fall", integer(1, 100), "failed checks in a row to be down; default 2", "1 to 100"),
    Option(
        "timeout_connect",
        duration("10ms", "1m"),
        "how long connecting to an instance may take; default 5s",
        "duration",
    ),
    Option(
        "timeout_server",
        duration("100ms", "24h"),
        "how long an instance may be silent; default 50s for http, 1h for tcp",
        "duration",
    ),
    Option(
        "timeout_tunnel",
        duration("100ms", "168h"),
        "how long both sides of a WebSocket or tcp connection may be silent; default 1h",
        "duration",
    ),
    Option(
        "retries",
        integer(0, 10),
        "how often a failed connection is tried again; default 3, the last time on another instance",
        "0 to 10",
    ),
    Option(
        "protocol",
        one_of("http", "https", "h2"),
        "how an edge speaks to instances: http/1.1, the same over TLS without verification, or cleartext h2",
        "`http`, `https`, `h2`",
        HTTP,
    ),
    Option(
        "proxy_protocol",
        one_of("v1", "v2"),
        "instances are told the client's address by the PROXY protocol of this version",
        "`v1`, `v2`",
    ),
    Option(
        "request_headers",
        headers,
        "headers set on every request to the service",
        "`Name: value`, several separated by `\\|`",
        HTTP,
        secret=True,
    ),
    Option(
        "response_headers",
        headers,
        "headers set on every response of the service",
        "`Name: value`, several separated by `\\|`",
        HTTP,
    ),
    Option(
        "allow",
        networks,
        "clients of these networks only; others get 403, or for tcp are cut off",
        "addresses or CIDRs, comma-separated; `nobody`",
        stand_in=NOBODY,
    ),
    Option(
        "auth",
        users,
        "users and crypt(3) hashes ($5$, $6$, $2y$, $y$), as `openssl passwd -6` makes; others get 401",
        "`user:hash`, comma-separated; `nobody`",
        HTTP,
        secret=True,
        stand_in=NOBODY,
    ),
)

OPTIONS: Mapping[str, Option] = {option.name: option for option in _ALL}

_NEED_CHECKS = ("check_interval", "check_timeout", "check_rise", "check_fall")
HIDDEN = "(hidden)"


def parse_option(name: str, text: str) -> str:
    """The canonical text of option ``name``; SchemaError for an unknown option or a bad value."""
    option = OPTIONS.get(name)
    if option is None:
        near = get_close_matches(name, OPTIONS, n=1)
        raise SchemaError("unknown option" + (f", did you mean {near[0]}?" if near else ""))
    return option.parse(text)


def stand_in(name: str) -> dict[str, str]:
    """What is in force for a bad value of ``name`` without a good predecessor; mostly nothing."""
    option = OPTIONS.get(name)
    return {} if option is None or option.stand_in is None else {name: option.stand_in}


def shown(name: str, text: str) -> str:
    """The value of an option for people, logs and JSON; a secret one is hidden."""
    option = OPTIONS.get(name)
    if option is None or (option.secret and text != option.stand_in):
        return HIDDEN
    return text


def shaping(options: Mapping[str, str]) -> dict[str, str]:
    """Those of a service's options that its section of the configuration depends on."""
    return {name: text for name, text in options.items() if name in OPTIONS and not OPTIONS[name].at_runtime}


def is_for(option: Option, scheme: Scheme, text: str) -> bool:
    """Whether a service of this scheme can have the value ``text`` of ``option``."""
    return scheme in option.schemes and (scheme == "http" or text not in option.http_values)


def misuses(scheme: Scheme, options: Mapping[str, str]) -> dict[str, str]:
    """By option, why a valid value is without effect on a service of this scheme with these options."""
    found = {}
    for name, text in options.items():
        option = OPTIONS.get(name)
        if option is None or is_for(option, scheme, text):
            continue
        what = f"{name}={text}" if scheme in option.schemes else name
        reason = f"{what} is for services of scheme {option.schemes[0]}, this one is {scheme}"
        found[name] = reason + ("; nobody is let in" if option.stand_in is not None else "")
    if options.get("check") == "none":
        idle = [name for name in _NEED_CHECKS if name in options]
        found |= {name: f"{name} is without effect, for check is none" for name in idle}
    return found
