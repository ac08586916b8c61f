"""Keys and values of the store: with `decode` the one place that knows the key contract. Pure."""

import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

from discovery.catalog import Attributes, Instance, Protocol, Scheme
from discovery.errors import SchemaError

SERVICES = "/services/"
EDGES = "/edges/"

VALUE_BYTES = 64 * 1024
"""A longer value is refused unread."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?")
_ID = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.:-]{0,198}[A-Za-z0-9_])?")
_SHOWN = 100

INSTANCES: Mapping[Protocol, str] = {"tcp": "hosts/", "udp": "udp/"}
ATTRIBUTES = "attributes/"

T = TypeVar("T")


# ---- values -----------------------------------------------------------------------------------------


def parse_name(text: str) -> str:
    """``text`` if it is a service name: one lowercase DNS label, underscores allowed inside (design 1.1)."""
    if not _NAME.fullmatch(text):
        raise SchemaError("a name is 1 to 63 of a-z 0-9 - _, beginning and ending with a letter or digit")
    return text


def to_name(text: str) -> str:
    """The nearest service name to any text, such as an image's or a container's name.

    Raises SchemaError when nothing of it can stay.
    """
    name = re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")[:63].strip("-_")
    if not name:
        raise SchemaError(f"no service name can be made of {printable(text)!r}")
    return name


def parse_id(text: str) -> str:
    """``text`` if it is a safe instance id: up to 200 of letters, digits and ``_ . : -``."""
    if not _ID.fullmatch(text):
        raise SchemaError(
            "an instance id is 1 to 200 of A-Z a-z 0-9 _ . : -, with a letter, digit or _ at both ends"
        )
    return text


def parse_scheme(text: str) -> Scheme:
    """``http`` or ``tcp``."""
    for scheme in get_args(Scheme):
        if text == scheme:
            return text  # type: ignore[return-value]  # it is one of the literal's own words
    raise SchemaError(f"unknown scheme {printable(text)!r}, it is http or tcp")


def parse_port(text: str) -> int:
    """A TCP port, 1 to 65535."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise SchemaError(f"{printable(text)!r} is no port from 1 to 65535")
    return int(text)


def parse_address(text: str) -> tuple[str, int]:
    """``ip:port`` or ``[ipv6]:port`` → canonical address and port. Host names are refused.

    ``[::ffff:a.b.c.d]`` (RFC 4291, 2.5.5.2) is the IPv4 address a.b.c.d. A name
    that does not resolve would stop HAProxy's whole configuration.
    """
    host, separator, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        address = None
    if not separator or address is None or bracketed != (address.version == 6) or "%" in host:
        raise SchemaError(f"{printable(text)!r} is no address, it is ip:port or [ipv6]:port")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if address.is_unspecified or address.is_multicast:
        raise SchemaError(f"nothing can be reached at {printable(text)!r}")
    return str(address), parse_port(port)


def parse_attributes(text: str) -> Attributes:
    """The JSON object of ``attributes/<id>``. Unknown members are ignored, so that newer writers are read."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise SchemaError("is no JSON") from None
    if not isinstance(data, dict):
        raise SchemaError("is no JSON object")
    return Attributes(
        scheme=_member(data, "scheme", str, parse_scheme),
        host_port=_member(data, "host_port", int, lambda number: parse_port(str(number))),
        weight=_member(data, "weight", int, _parse_weight),
        node=_member(data, "node", str, printable),
        container=_member(data, "container", str, printable),
        image=_member(data, "image", str, printable),
        tags=_member(data, "tags", list, lambda tags: tuple(printable(_text(tag)) for tag in tags)) or (),
        options=_member(data, "options", dict, _parse_texts) or {},
        extra=_member(data, "extra", dict, _parse_texts) or {},
        draining=_member(data, "draining", bool, lambda flag: flag) or False,
    )


def read_attributes(text: str) -> Attributes:
    """The same for who has no use for what is wrong with them: then they say nothing."""
    try:
        return parse_attributes(text)
    except SchemaError:
        return Attributes()


def _member(data: dict[str, Any], name: str, kind: type[Any], parse: Callable[[Any], T]) -> T | None:
    value = data.get(name)
    if value is None:
        return None
    # bool is an int to isinstance, but `"weight": true` is a mistake.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise SchemaError(f"{name} is {type(value).__name__}, not {kind.__name__}")
    try:
        return parse(value)
    except SchemaError as error:
        raise SchemaError(f"{name}: {error}") from None


def _parse_weight(weight: int) -> int:
    if not 0 <= weight <= 256:
        raise SchemaError("a weight is 0 to 256")
    return weight


def _parse_texts(values: dict[str, Any]) -> Mapping[str, str]:
    return {name: _text(value) for name, value in values.items()}


def _text(value: object) -> str:
    """A text, or a number for one; anything nested is refused, for its depth is the writer's choice."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise SchemaError(f"holds a {type(value).__name__}, not only texts")
    return str(value)


def printable(text: str) -> str:
    """``text`` for people and logs: control characters escaped, at most 100 characters."""
    shown = text[: _SHOWN + 1].encode("unicode_escape").decode("ascii") if not text.isprintable() else text
    return shown if len(shown) <= _SHOWN else shown[: _SHOWN - 1] + "…"


# ---- writing ----------------------------------------------------------------------------------------


def service_prefix(name: str) -> str:
    """The directory of one service, with its final slash."""
    return f"{SERVICES}{name}/"


def address_key(name: str, instance: Instance) -> str:
    """The key that holds an instance's address."""
    return f"{service_prefix(name)}{INSTANCES[instance.protocol]}{instance.id}"


def instance_keys(name: str, instance: Instance) -> dict[str, str]:
    """The keys that belong to this one instance."""
    return {
        address_key(name, instance): instance.address,
        f"{service_prefix(name)}{ATTRIBUTES}{instance.id}": encode_attributes(instance.attributes),
    }


def shared_keys(name: str, instance: Instance) -> dict[str, str]:
    """The keys that an instance shares with all others of its service; none for one that no edge serves."""
    if instance.protocol != "tcp":
        return {}
    prefix, attributes = service_prefix(name), instance.attributes
    keys: dict[str, str] = {f"{prefix}scheme": attributes.scheme or "http"}
    if attributes.host_port is not None:
        keys[f"{prefix}host_port"] = str(attributes.host_port)
    return keys


def encode_attributes(attributes: Attributes) -> str:
    """The inverse of parse_attributes, without members that say nothing, in one fixed order."""
    members = {
        "scheme": attributes.scheme,
        "host_port": attributes.host_port,
        "weight": attributes.weight,
        "node": attributes.node,
        "container": attributes.container,
        "image": attributes.image,
        "tags": list(attributes.tags) or None,
        "options": dict(attributes.options) or None,
        "extra": dict(attributes.extra) or None,
        "draining": attributes.draining or None,
    }
    return json.dumps({name: value for name, value in members.items() if value is not None})


# ---- reading ----------------------------------------------------------------------------------------


def is_instance(rest: str) -> bool:
    """Whether what follows `/services/<name>/` is the key of an instance's address."""
    return rest.startswith(tuple(INSTANCES.values()))


def address_rests(id_: str) -> tuple[str, ...]:
    """What may follow `/services/<name>/` in the key of this instance's address."""
    return tuple(directory + id_ for directory in INSTANCES.values())


def split_key(key: str) -> tuple[str, str]:
    """``/services/<name>/<rest>`` → name and rest, each as it stands, maybe empty, unchecked."""
    name, _, rest = key.removeprefix(SERVICES).partition("/")
    return name, rest
