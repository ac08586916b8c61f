"""Keys and values of the store ↔ services: the one place that knows the key contract. Pure.

Everything read is untrusted. A reader never fails on it: what does not keep the contract becomes a
Problem, and the rest is as if it were not there.
"""

import ipaddress
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, get_args

from discovery.catalog import Attributes, Consequence, Instance, Problem, Protocol, Scheme, Service
from discovery.errors import SchemaError
from discovery.options import parse_option, stand_in
from discovery.stores.base import Entry

SERVICES = "/services/"
EDGES = "/edges/"

VALUE_BYTES = 64 * 1024
"""A longer value is refused unread."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?")
_ID = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.:-]{0,198}[A-Za-z0-9_])?")
_SHOWN = 100

_LEAVES = ("scheme", "host_port")
_INSTANCES: Mapping[Protocol, str] = {"tcp": "hosts/", "udp": "udp/"}
ATTRIBUTES = "attributes/"
_DIRECTORIES = (*_INSTANCES.values(), ATTRIBUTES, "options/")

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


def instance_keys(name: str, instance: Instance) -> dict[str, str]:
    """The keys that belong to this one instance."""
    prefix = service_prefix(name)
    return {
        f"{prefix}{_INSTANCES[instance.protocol]}{instance.id}": instance.address,
        f"{prefix}attributes/{instance.id}": encode_attributes(instance.attributes),
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
    return rest.startswith(tuple(_INSTANCES.values()))


def address_rests(id_: str) -> tuple[str, ...]:
    """What may follow `/services/<name>/` in the key of this instance's address."""
    return tuple(directory + id_ for directory in _INSTANCES.values())


def split_key(key: str) -> tuple[str, str]:
    """``/services/<name>/<rest>`` → name and rest, each as it stands, maybe empty, unchecked."""
    name, _, rest = key.removeprefix(SERVICES).partition("/")
    return name, rest


@dataclass(frozen=True, slots=True)
class Claim:
    """The age of a service's claim to its host_port, in revisions of the keys that make it.

    ``created`` is of the oldest; that key may have named another port before. ``modified`` is of the last
    one written.
    """

    created: int
    modified: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """What the entries of one service say.

    ``service`` is None when there is none to serve, ``claim`` when it has no host_port.
    """

    service: Service | None
    problems: tuple[Problem, ...] = ()
    claim: Claim | None = None


def decode_service(name: str, entries: Mapping[str, Entry], last: Service | None = None) -> Decoded:
    """The service that these entries (by key below ``/services/<name>/``) describe.

    A bad instance is left out. Bad attributes, a bad scheme, host_port or option keep the value of
    ``last``, the service as it was before; without one they are as if absent, but for a bad scheme where
    nothing else tells the scheme: it leaves the whole service out, for guessing would serve it wrongly.
    """
    try:
        parse_name(name)
    except SchemaError as error:
        problem = Problem(None, f"{SERVICES}{printable(name)}", str(error))
        return Decoded(None, (problem,) if entries else ())
    return _Decoder(name, entries, last).decode()


class _Decoder:
    """One reading of one service; a class only for what its steps share."""

    def __init__(self, name: str, entries: Mapping[str, Entry], last: Service | None) -> None:
        self.name = name
        self.entries = entries
        self.last = last
        self.problems: list[Problem] = []

    def decode(self) -> Decoded:
        self._report_unknown_keys()
        instances, udp = self._instances("tcp"), self._instances("udp")
        # Newest first: where instances disagree, the newest is believed.
        newest = sorted(instances, key=lambda each: (-self.entries[f"hosts/{each.id}"].created, each.id))
        routed = any(key in _LEAVES or key.startswith(("hosts/", "options/")) for key in self.entries)
        scheme = self._scheme(newest)
        if not (routed or udp) or scheme is None:
            return Decoded(None, tuple(self.problems))
        host_port = self._host_port(newest)
        options = self._options(newest)
        service = Service(self.name, scheme, host_port, tuple(instances), options, tuple(udp), routed)
        claim = None if host_port is None else self._claim(host_port, instances)
        return Decoded(service, tuple(self.problems), claim)

    # -- the parts

    def _instances(self, protocol: Protocol) -> list[Instance]:
        instances = []
        for id_, entry in self._below(_INSTANCES[protocol]):
            try:
                host, port = self._read(entry, parse_address)
                parse_id(id_)
            except SchemaError as error:
                self._problem(entry.key, str(error))
                continue
            instances.append(Instance(id_, host, port, self._attributes(id_), protocol))
        return sorted(instances, key=lambda instance: instance.id)

    def _attributes(self, id_: str) -> Attributes:
        entry = self.entries.get(f"attributes/{id_}")
        if entry is None:
            return Attributes()
        try:
            return self._read(entry, parse_attributes)
        except SchemaError as error:
            known = (*self.last.instances, *self.last.udp) if self.last else ()
            last = next((each for each in known if each.id == id_), None)
            self._problem(entry.key, str(error), "kept at its last good value" if last else "left out")
            return last.attributes if last else Attributes()

    def _scheme(self, newest: list[Instance]) -> Scheme | None:
        """Operator's option > key > newest instance > http; None when only a bad word is to be had."""
        word, bad = self._shared("scheme", parse_scheme)
        said = next((i.attributes.scheme for i in newest if i.attributes.scheme), None)
        scheme = word or said or (None if bad else "http")
        self._report_disagreement("scheme", scheme, newest)
        return scheme

    def _host_port(self, newest: list[Instance]) -> int | None:
        """Operator's option > key > newest instance."""
        port, _ = self._shared("host_port", parse_port)
        port = port or next((i.attributes.host_port for i in newest if i.attributes.host_port), None)
        self._report_disagreement("host_port", port, newest)
        return port

    def _shared(self, what: str, parse: Callable[[str], T]) -> tuple[T | None, bool]:
        """What option or key say, and whether one of them is bad: the last good value stands for it."""
        last: T | None = getattr(self.last, what, None)
        bad = False
        for key in (f"options/{what}", what):
            if (entry := self.entries.get(key)) is None:
                continue
            try:
                return self._read(entry, parse), bad
            except SchemaError as error:
                self._problem(
                    entry.key, str(error), "left out" if last is None else "kept at its last good value"
                )
                bad = True
            if last is not None:
                return last, bad
        return None, bad

    def _claim(self, port: int, instances: list[Instance]) -> Claim:
        """How old the claim to ``port`` is: as old as the first key that makes it."""
        words = [key for key in ("options/host_port", "host_port") if key in self.entries]
        keys = [f"attributes/{i.id}" for i in instances if i.attributes.host_port == port]
        keys += [key for key in words if self._says_port(key, port)]
        # None makes it: it is kept for a bad word, which then stands for it.
        entries = [self.entries[key] for key in keys or words]
        return Claim(min(entry.created for entry in entries), max(entry.modified for entry in entries))

    def _says_port(self, key: str, port: int) -> bool:
        try:
            return self._read(self.entries[key], parse_port) == port
        except SchemaError:
            return False

    def _options(self, newest: list[Instance]) -> Mapping[str, str]:
        options: dict[str, str] = {}
        for instance in reversed(newest):
            reasons = []
            for option, text in instance.attributes.options.items():
                try:
                    options[option] = parse_option(option, text)
                except SchemaError as error:
                    reasons.append(f"option {printable(option)}: {error}")
                    options = stand_in(option) | options
            if reasons:
                more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
                self._problem(f"{service_prefix(self.name)}attributes/{instance.id}", reasons[0] + more)
        for option, entry in self._below("options/"):
            if option in _LEAVES:
                continue
            try:
                options[option] = self._read(entry, partial(parse_option, option))
            except SchemaError as error:
                last = self.last.options.get(option) if self.last else None
                options = stand_in(option) | options | ({} if last is None else {option: last})
                self._problem(
                    entry.key, str(error), "left out" if last is None else "kept at its last good value"
                )
        return options

    # -- reading and reporting

    def _read(self, entry: Entry, parse: Callable[[str], T]) -> T:
        if entry.error is not None:
            raise SchemaError(f"cannot be read: {printable(entry.error)}")
        if len(entry.value.encode(errors="replace")) > VALUE_BYTES:
            raise SchemaError(f"is longer than {VALUE_BYTES // 1024} KiB")
        # `echo` and editors end a file with a newline; it is not part of the value.
        return parse(entry.value.strip(" \t\r\n"))

    def _below(self, directory: str) -> Iterator[tuple[str, Entry]]:
        for key in sorted(self.entries):
            if key.startswith(directory):
                yield key.removeprefix(directory), self.entries[key]

    def _problem(self, key: str, reason: str, consequence: Consequence = "left out") -> None:
        self.problems.append(Problem(self.name, printable(key), reason, consequence))

    def _report_unknown_keys(self) -> None:
        for key, entry in sorted(self.entries.items()):
            if key not in _LEAVES and not key.startswith(_DIRECTORIES):
                self._problem(entry.key, "is no key of the contract")

    def _report_disagreement(self, what: str, chosen: object, newest: list[Instance]) -> None:
        for instance in newest:
            said = getattr(instance.attributes, what)
            if said is not None and said != chosen:
                reason = f"instance {instance.id} says {what} {said}, in force is {chosen}"
                self._problem(f"{service_prefix(self.name)}{what}", reason, "reported")
