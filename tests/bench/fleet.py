"""A fleet of services that changes at random, and instances that really answer, thousands of them.

Every instance has an address of its own in 127.0.0.0/8, which tells its service, and none is used twice: so
an answer tells who gave it, and a late one, of an instance that is gone, is seen.
"""

import json
import random
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from discovery.schema import SERVICES
from tests.bench.http_load import Target
from tests.lab.haproxy import free_port
from tests.lab.need import need

_FIRST_BLOCK = 16
_SERVICES_A_BLOCK = 250
_MOST_SERIALS = 250
WEIGHTS = (1, 2, 3, 5)
PORTS = 3


@contextmanager
def answering(directory: Path) -> Iterator[tuple[int, ...]]:
    """Ports that all of 127.0.0.0/8 answers on, each with its own address: one HAProxy, for speed."""
    ports = tuple(free_port() for _ in range(PORTS))
    binds = "".join(f"    bind 0.0.0.0:{port}\n" for port in ports)
    config = directory / "answering.cfg"
    config.write_text(
        "global\n    maxconn 8000\n    nbthread 1\n"
        "defaults\n    mode http\n    timeout client 60s\n    timeout server 60s\n    timeout connect 5s\n"
        f"frontend named\n{binds}"
        "    http-request return status 200 content-type text/plain lf-string %[dst]\n"
    )
    with subprocess.Popen([need("haproxy"), "-f", str(config), "-db"], stderr=subprocess.DEVNULL) as process:
        try:
            yield ports
        finally:
            process.kill()


@dataclass(frozen=True, slots=True)
class Step:
    """One change, as one write to the store: ``puts`` or ``deletes``."""

    kind: str
    service: str
    puts: Mapping[str, str] = field(default_factory=dict)
    deletes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Member:
    host: str
    port: int
    weight: int = 1
    draining: bool = False

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


class Fleet:
    """Services ``s0``, ``s1``, …, as the store is to hold them. The same seed gives the same changes."""

    def __init__(self, services: int, instances: int, ports: Sequence[int], seed: int = 1) -> None:
        self.services: dict[str, dict[str, _Member]] = {}
        self._instances = instances
        self._ports = ports
        self._random = random.Random(seed)
        self._serials: dict[str, int] = {}
        self._blocks: dict[str, int] = {}
        for number in range(services):
            self.new_service(f"s{number}", instances)

    def entries(self) -> dict[str, str]:
        """Every key, as for a store that is filled anew."""
        keys: dict[str, str] = {}
        for name, members in self.services.items():
            keys[f"{SERVICES}{name}/scheme"] = "http"
            for id_, member in members.items():
                keys |= self._keys(name, id_, member)
        return keys

    def wanted(self) -> dict[str, int]:
        """The weights of the instances that are to take requests, by the address that HAProxy shows."""
        return {
            member.address: member.weight
            for members in self.services.values()
            for member in members.values()
            if not member.draining
        }

    def hosts(self, service: str) -> dict[str, int]:
        """The weight of each instance of one service, 0 when it drains, by its IP address."""
        members = self.services[service].values()
        return {member.host: 0 if member.draining else member.weight for member in members}

    def targets(self, services: Iterable[str], *, optional: bool = False) -> list[Target]:
        """Requests to these services, each by host and by path; any instance of it may answer.

        ``optional`` ones need not be there.
        """
        asked = []
        for name in services:
            asked.append(Target(f"{name}.example", "/", self._prefix(name), optional))
            asked.append(Target("example", f"/{name}/", self._prefix(name), optional))
        return asked

    # -- changes

    def step(self, name: str) -> Step:
        """A random change of a service that leaves it an instance that takes requests."""
        members = self.services[name]
        live = [id_ for id_, member in members.items() if not member.draining]
        drained = [id_ for id_, member in members.items() if member.draining]
        # About as many come as go, in the order of real life: what is removed mostly drained before.
        if drained and self._random.random() < 0.5:
            return self.remove(name, self._random.choice(drained))
        kinds = ["reweight", "move"]
        if len(members) <= self._instances:
            kinds += ["add", "add"]
        if len(live) > 1:
            kinds += ["drain", "remove"]
        kind = self._random.choice(kinds)
        if kind == "add":
            return self.add(name)
        chosen = self._random.choice(live)
        make = {"reweight": self.reweight, "move": self.move, "drain": self.drain, "remove": self.remove}
        return make[kind](name, chosen)

    def add(self, name: str) -> Step:
        """One more instance."""
        id_, member = self._member(name)
        self.services[name][id_] = member
        return Step("add", name, self._keys(name, id_, member))

    def remove(self, name: str, id_: str) -> Step:
        """One instance less."""
        del self.services[name][id_]
        keys = (f"{SERVICES}{name}/hosts/{id_}", f"{SERVICES}{name}/attributes/{id_}")
        return Step("remove", name, deletes=keys)

    def drain(self, name: str, id_: str) -> Step:
        """An instance that is to take nothing new."""
        self.services[name][id_].draining = True
        return Step("drain", name, self._attributes(name, id_))

    def move(self, name: str, id_: str) -> Step:
        """An instance whose id another has now, at another address, as a container that was started anew."""
        member = self.services[name][id_]
        elsewhere = self._member(name)[1]
        member.host, member.port = elsewhere.host, elsewhere.port
        return Step("move", name, {f"{SERVICES}{name}/hosts/{id_}": member.address})

    def reweight(self, name: str, id_: str) -> Step:
        """Another weight of an instance."""
        member = self.services[name][id_]
        member.weight = self._random.choice([weight for weight in WEIGHTS if weight != member.weight])
        return Step("reweight", name, self._attributes(name, id_))

    def new_service(self, name: str, instances: int, host_port: int | None = None) -> Step:
        """A service more, of http, or of tcp when it has a port. A name that comes again keeps its block."""
        self.services[name] = dict(self._member(name) for _ in range(instances))
        keys = {f"{SERVICES}{name}/scheme": "tcp" if host_port else "http"}
        if host_port is not None:
            keys[f"{SERVICES}{name}/host_port"] = str(host_port)
        for id_, member in self.services[name].items():
            keys |= self._keys(name, id_, member)
        return Step("new service", name, keys)

    def remove_service(self, name: str) -> Step:
        """A service less."""
        keys = [f"{SERVICES}{name}/scheme", f"{SERVICES}{name}/host_port"]
        for id_ in self.services.pop(name):
            keys += [f"{SERVICES}{name}/hosts/{id_}", f"{SERVICES}{name}/attributes/{id_}"]
        return Step("remove service", name, deletes=tuple(keys))

    # -- the parts

    def _prefix(self, name: str) -> str:
        number = self._blocks.setdefault(name, len(self._blocks))
        block, place = divmod(number, _SERVICES_A_BLOCK)
        return f"127.{_FIRST_BLOCK + block}.{place + 1}."

    def _member(self, name: str) -> tuple[str, _Member]:
        serial = self._serials.get(name, 0)
        self._serials[name] = serial + 1
        assert serial < _MOST_SERIALS, f"{name} has used all its addresses"
        return f"i{serial}", _Member(f"{self._prefix(name)}{serial + 1}", self._random.choice(self._ports))

    def _keys(self, name: str, id_: str, member: _Member) -> dict[str, str]:
        keys = {f"{SERVICES}{name}/hosts/{id_}": member.address}
        return keys if (member.weight, member.draining) == (1, False) else keys | self._attributes(name, id_)

    def _attributes(self, name: str, id_: str) -> dict[str, str]:
        member = self.services[name][id_]
        said = {"weight": member.weight} | ({"draining": True} if member.draining else {})
        return {f"{SERVICES}{name}/attributes/{id_}": json.dumps(said)}
