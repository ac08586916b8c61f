"""A service's options → what HAProxy is told of it, every text of the store's escaped. Pure.

One row for each option. The rows' order is the order of the lines: who may come in is settled before
anything else of a request is looked at.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from discovery.catalog import Service
from discovery.errors import SchemaError
from discovery.option_values import NOBODY, milliseconds, split_headers
from discovery.options import OPTIONS, is_for, parse_option
from discovery.schema import parse_name

FAST_INTERVAL_MS = 1000
NETWORKS_PER_LINE = 16  # HAProxy takes 64 words on a line

_PLAIN = re.compile(r"[A-Za-z0-9_./:,=+@%*~^()-]+")
_CONTROL = re.compile(r"[\0-\x08\x0a-\x1f\x7f]")

_PAGE = 'content-type "text/plain; charset=utf-8" string "{text}\\n" hdr X-Content-Type-Options nosniff'

# A name only: an address, or a name with its final dot, is no valid SNI (RFC 6066, 3). There is always one,
# for without one 3.0 would send that of the TLS session it resumes.
_SNI = (
    "http-request set-var(txn.sni) 'req.fhdr(host),lower,field(1,:),regsub([.]$,)' "
    "if { req.fhdr(host) -m reg -i '^([a-z0-9_-]+[.])*[a-z][a-z0-9_-]*[.]?(:|$)' }"
)


@dataclass(frozen=True, slots=True)
class Checks:
    """How servers are checked where no option says otherwise.

    ``interval_ms`` is the time between two checks of one server. A service's own interval is taken
    ``stretch`` times, which keeps the number of checks bounded when there are very many servers.
    """

    interval_ms: int
    stretch: int = 1


@dataclass(frozen=True, slots=True)
class Directives:
    """What HAProxy is told of one service.

    ``sections`` are whole lines to stand before its section, ``lines`` those of the section, without
    indentation and before any of its other rules. ``server`` are the words behind a server's address, the
    same for `default-server` and the runtime's `add server`. ``checked`` is whether they turn checks on, as
    `enable health` has to after `add server`. ``after_add`` is a runtime command that has to follow `add
    server`, to be ended by the name of the section; mostly empty.
    """

    sections: tuple[str, ...]
    lines: tuple[str, ...]
    server: str
    checked: bool
    after_add: str = ""


def directives(service: Service, checks: Checks | None) -> Directives:
    """What HAProxy is told of ``service``; no servers are checked when ``checks`` is None.

    Options that its scheme cannot have are without effect (``options.misuses`` tells which), but for those
    that keep people out: they let nobody in. Raises SchemaError for a name or value that keeps no contract:
    the second line of defence, behind schema.py.
    """
    parse_name(service.name)
    options = {name: parse_option(name, text) for name, text in service.options.items()}
    fit = {name: text for name, text in options.items() if is_for(OPTIONS[name], service.scheme, text)}
    for name in options.keys() - fit.keys():
        if OPTIONS[name].stand_in is not None:
            fit["allow"] = NOBODY
    lines: list[str] = []
    for name, row in _LINES.items():
        if name in fit:
            lines += row(service, fit[name])
    server = [row(service, fit[name]) for name, row in _SERVER.items() if name in fit]
    checked = checks is not None and fit.get("check") != "none"
    if checks is not None and checked:
        server.insert(0, _check_words(service, fit, checks))
    if service.scheme == "http":
        # A server that was added at runtime never reuses a connection without these words (2.6.12).
        server.append("pool-purge-delay 5s pool-max-conn -1")
    return Directives(
        tuple(_userlist(service.name, fit.get("auth", NOBODY))),
        tuple(lines),
        " ".join(filter(None, server)),
        checked,
        # 2.6 gives a server that was added at runtime its cookie only when this is said again.
        "enable dynamic-cookie backend" if "sticky" in fit else "",
    )


# ---- escaping ---------------------------------------------------------------------------------------


def quote(text: str) -> str:
    """``text`` as one word of the configuration, exactly as it is: nothing in it ends, opens or expands.

    Raises SchemaError when it has a control character other than the tab, or cannot be encoded.
    """
    if _CONTROL.search(text):
        raise SchemaError("has a control character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SchemaError("is no text that can be encoded") from None
    if _PLAIN.fullmatch(text):
        return text
    # Between single quotes nothing is special; a single quote itself stands between two such texts.
    return "'" + text.replace("'", "'\\''") + "'"


def quote_format(text: str) -> str:
    """``text`` as one word where HAProxy reads a log-format: no ``%`` in it has a meaning either."""
    return quote(text.replace("%", "%%"))


# ---- lines of the section ---------------------------------------------------------------------------


def _allow(service: Service, text: str) -> Iterator[str]:
    if text == NOBODY:
        yield _refusal(service)
        return
    networks = text.split(",")
    for first in range(0, len(networks), NETWORKS_PER_LINE):
        yield f"acl allowed src {' '.join(networks[first : first + NETWORKS_PER_LINE])}"
    yield f"{_refusal(service)} unless allowed"


def _refusal(service: Service) -> str:
    if service.scheme == "tcp":
        return "tcp-request content reject"
    page = _PAGE.format(text=f"403: service {service.name} is not for this client")
    return f"http-request deny deny_status 403 {page}"


def _auth(service: Service, text: str) -> Iterator[str]:
    if text == NOBODY:
        yield _refusal(service)
    else:
        yield f"http-request auth realm {service.name} unless {{ http_auth(auth:{service.name}) }}"


def _userlist(name: str, text: str) -> Iterator[str]:
    if text == NOBODY:
        return
    yield f"userlist auth:{name}"
    for part in text.split(","):
        user, _, hashed = part.partition(":")
        yield f"    user {quote(user)} password {quote(hashed)}"


def _protocol(service: Service, text: str) -> Iterator[str]:
    if text == "https":
        yield f"http-request set-var(txn.sni) str({service.name})"
        yield _SNI


def _balance(_service: Service, text: str) -> Iterator[str]:
    yield f"balance {text}"
    if text in ("source", "uri"):
        # The other kind of hash takes no servers at runtime, and moves nearly all clients with each change.
        yield "hash-type consistent"


def _sticky(service: Service, _text: str) -> Iterator[str]:
    # The value is a hash of the server's address and this key: the same on every edge and after a reload.
    # The key is no secret. It keeps the cookie of one service from fitting another.
    yield f"cookie discovery_{service.name} insert indirect nocache httponly dynamic"
    yield f"dynamic-cookie-key discovery:{service.name}"


def _check(service: Service, text: str) -> Iterator[str]:
    if text.startswith("http:"):
        path = quote(text.removeprefix("http:"))
        yield "option httpchk"
        yield f"http-check send meth GET uri {path} ver HTTP/1.1 hdr Host {service.name}"
        yield "http-check expect status 200-399"


def _plain(keyword: str) -> Callable[[Service, str], Iterator[str]]:
    """A line of the keyword and the value."""

    def row(_service: Service, text: str) -> Iterator[str]:
        yield f"{keyword} {text}"

    return row


def _set_headers(rule: str) -> Callable[[Service, str], Iterator[str]]:
    def row(_service: Service, text: str) -> Iterator[str]:
        for name, value in split_headers(text):
            yield f"{rule} set-header {quote(name)} {quote_format(value)}"

    return row


_LINES: Mapping[str, Callable[[Service, str], Iterator[str]]] = {
    "allow": _allow,
    "auth": _auth,
    "protocol": _protocol,
    "request_headers": _set_headers("http-request"),
    "response_headers": _set_headers("http-response"),
    "balance": _balance,
    "sticky": _sticky,
    "check": _check,
    "check_timeout": _plain("timeout check"),
    "timeout_connect": _plain("timeout connect"),
    "timeout_server": _plain("timeout server"),
    "timeout_tunnel": _plain("timeout tunnel"),
    "retries": _plain("retries"),
}


# ---- words of a server ------------------------------------------------------------------------------


def _check_words(service: Service, options: Mapping[str, str], checks: Checks) -> str:
    own = options.get("check_interval")
    interval_ms = checks.interval_ms if own is None else milliseconds(own) * checks.stretch
    words = [
        f"check inter {interval_ms}ms fastinter {min(FAST_INTERVAL_MS, interval_ms)}ms",
        f"downinter {interval_ms}ms",
        f"rise {options.get('check_rise', '2')} fall {options.get('check_fall', '2')}",
    ]
    # A check of a server that was made at runtime does not follow the server's own words by itself.
    if options.get("protocol") == "https":
        words.append(f"check-ssl check-sni {service.name}")
    if "proxy_protocol" in options:
        words.append("check-send-proxy")
    return " ".join(words)


def _server_protocol(_service: Service, text: str) -> str:
    # HAProxy reaches instances by address and knows no authority for them: nothing to verify against.
    tls = "ssl verify none sni var(txn.sni) alpn http/1.1"
    return {"https": tls, "h2": "proto h2"}.get(text, "")


_SERVER: Mapping[str, Callable[[Service, str], str]] = {
    "maxconn": lambda _service, text: f"maxconn {text}",
    "protocol": _server_protocol,
    "proxy_protocol": lambda _service, text: {"v1": "send-proxy", "v2": "send-proxy-v2"}[text],
}
