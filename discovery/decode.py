"""The entries of a service → the service: how keys are read, and what is made of those that are wrong. Pure.

Everything read is untrusted. A reader never fails on it: what does not keep the contract becomes a
Problem, and the rest is as if it were not there.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from discovery.catalog import Attributes, Consequence, Instance, Problem, Protocol, Scheme, Service
from discovery.errors import SchemaError
from discovery.options import parse_option, stand_in
from discovery.schema import (
    ATTRIBUTES,
    INSTANCES,
    SERVICES,
    VALUE_BYTES,
    parse_address,
    parse_attributes,
    parse_id,
    parse_name,
    parse_port,
    parse_scheme,
    printable,
    service_prefix,
)
from discovery.stores.base import Entry

_LEAVES = ("scheme", "host_port")
_DIRECTORIES = (*INSTANCES.values(), ATTRIBUTES, "options/")

T = TypeVar("T")


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
        for id_, entry in self._below(INSTANCES[protocol]):
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
