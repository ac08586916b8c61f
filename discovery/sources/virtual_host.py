"""The words of nginx-proxy on top of ours: VIRTUAL_HOST, VIRTUAL_PORT, VIRTUAL_PATH, VIRTUAL_PROTO. Pure.

VIRTUAL_HOST   host names of one port, comma-separated, `*.example.com` among them → option `hosts`
VIRTUAL_PORT   which port; default the only one, else 80
VIRTUAL_PROTO  http, https or grpc → option `protocol`
VIRTUAL_PATH   / is the whole host. Any other shares a host with further containers, which is routed by
               host first here: the host is then left to them, and of the path `/<service>` is served on
               every host, with option `path` as VIRTUAL_DEST has it
"""

import re
from collections.abc import Iterable, Mapping

from discovery.errors import SchemaError
from discovery.schema import parse_port, printable
from discovery.sources.container import Port

_PROTOCOLS: Mapping[str, Mapping[str, str]] = {
    "http": {},
    "https": {"protocol": "https"},
    "grpc": {"protocol": "h2"},
}
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
_HOST_CHARACTERS = 253


def virtual_port(virtual: Mapping[str, str], ports: Iterable[Port]) -> int | None:
    """The port that VIRTUAL_HOST is for, of those that can be reached; None without a VIRTUAL_HOST.

    SchemaError when it cannot be told.
    """
    if not virtual.get("host", "").strip():
        return None
    if text := virtual.get("port", "").strip():
        try:
            return parse_port(text)
        except SchemaError as error:
            raise SchemaError(f"VIRTUAL_PORT: {error}") from None
    numbers = {port.number for port in ports if port.protocol == "tcp"}
    if len(numbers) == 1:
        return numbers.pop()
    if 80 in numbers:
        return 80
    which = "several ports, VIRTUAL_PORT must name one" if numbers else "no port that can be reached"
    raise SchemaError(f"VIRTUAL_HOST: it has {which}")


def virtual_options(virtual: Mapping[str, str], service: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The options of the port that VIRTUAL_HOST is for, and words with the reason why they do not count.

    SchemaError when the proxy does not speak what the port does.
    """
    protocol = virtual.get("proto", "").strip().lower() or "http"
    if protocol not in _PROTOCOLS:
        raise SchemaError(f"VIRTUAL_PROTO: {printable(protocol)!r} is not spoken, http, https and grpc are")
    options, problems = dict(_PROTOCOLS[protocol]), list[tuple[str, str]]()
    hosts = []
    for host in dict.fromkeys(text.strip().lower() for text in virtual["host"].split(",")):
        if _HOST.fullmatch(host) and len(host) <= _HOST_CHARACTERS:
            hosts.append(host)
        elif host:
            reason = f"{printable(host)!r} is no host name; of patterns there is *.example.com"
            problems.append(("VIRTUAL_HOST", reason))
    path = virtual.get("path", "").strip() or "/"
    if path == "/":
        options |= {"hosts": ",".join(hosts)} if hosts else {}
    elif path.strip("/") == service:
        options["path"] = "strip" if virtual.get("dest", "").strip() == "/" else "keep"
        problems.append(("VIRTUAL_PATH", f"served at /{service} of every host, not of certain ones only"))
    else:
        reason = (
            f"{printable(path)!r} of a host has no route here, the service is at /{service} of every host"
        )
        problems.append(("VIRTUAL_PATH", reason))
    if virtual.get("host_multiports"):
        problems.append(("VIRTUAL_HOST_MULTIPORTS", "is not understood, VIRTUAL_HOST and VIRTUAL_PORT are"))
    return options, problems
