"""Builds Catalogs from a store's entries, one change at the cost of that change. Pure: no clock, no effects.

It mirrors the entries by service, decodes again only the services a change touches, and settles who gets
a contested host_port. A service that comes out equal stays the same object.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from discovery.catalog import Catalog, Problem, Service
from discovery.decode import Claim, Decoded, decode_service
from discovery.schema import SERVICES, split_key
from discovery.stores.base import Changes, Entry, Snapshot


class CatalogBuilder:
    """A mirror of everything under ``/services/`` and the newest Catalog made of it. Not thread-safe."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, Entry]] = {}
        self._decoded: dict[str, Decoded] = {}
        self._problems: dict[str, tuple[Problem, ...]] = {}
        # By port: who claims it, each with the age of the claim, and who has it.
        self._claims: dict[int, dict[str, int]] = {}
        self._winners: dict[int, str] = {}
        self._catalog = Catalog()

    def reset(self, snapshot: Snapshot) -> Catalog:
        """The catalog of a whole snapshot; what is the same as before stays the same object."""
        grouped: dict[str, dict[str, Entry]] = {}
        for key, entry in snapshot.entries.items():
            name, rest = split_key(key)
            old = self._entries.get(name, {}).get(rest)
            grouped.setdefault(name, {})[rest] = _keep_claim(old, entry)
        touched = {
            name
            for name in grouped.keys() | self._entries.keys()
            if grouped.get(name) != self._entries.get(name)
        }
        self._entries = grouped
        return self._rebuild(touched, snapshot.revision)

    def apply(self, changes: Changes) -> Catalog:
        """The catalog after these changes."""
        touched = set()
        for change in changes.changes:
            name, rest = split_key(change.key)
            entries = self._entries.setdefault(name, {})
            if change.entry is None:
                entries.pop(rest, None)
            else:
                entries[rest] = _keep_claim(entries.get(rest), change.entry)
            if not entries:
                del self._entries[name]
            touched.add(name)
        return self._rebuild(touched, changes.revision)

    def _rebuild(self, touched: Iterable[str], revision: int) -> Catalog:
        affected = set(touched)
        ports = set[int]()
        for name in affected:
            ports |= self._decode(name)
        for port in ports:
            affected |= self._elect(port)
        before = self._catalog.services
        changed: dict[str, Service | None] = {}
        problems_before = dict(self._problems)
        for name in affected:
            service = self._settle(name)
            if service != before.get(name):
                changed[name] = service
        self._catalog = Catalog(
            revision,
            _overlay(before, changed),
            self._catalog.problems if problems_before == self._problems else self._all_problems(),
        )
        return self._catalog

    def _decode(self, name: str) -> set[int]:
        """Decode one service anew; the ports whose claims this may change."""
        old = self._decoded.pop(name, Decoded(None))
        old_port = old.service.host_port if old.service else None
        old_age = self._withdraw_claim(name, old_port)
        entries = self._entries.get(name)
        new = decode_service(name, entries, old.service) if entries else Decoded(None)
        if entries:
            self._decoded[name] = new
        port = new.service.host_port if new.service else None
        if port is not None and new.claim is not None:
            self._claims.setdefault(port, {})[name] = _age(new.claim, old.service, port, old_age)
        return {each for each in (old_port, port) if each is not None}

    def _withdraw_claim(self, name: str, port: int | None) -> int | None:
        """The age of the claim that ``name`` had to ``port``, if it had one."""
        if port is None:
            return None
        age = self._claims[port].pop(name)
        if not self._claims[port]:
            del self._claims[port]
        return age

    def _elect(self, port: int) -> set[str]:
        """Give ``port`` to the oldest claim; all who claim it if that is another than before."""
        claims = self._claims.get(port, {})
        winner = min(claims, key=lambda name: (claims[name], name), default=None)
        if winner == self._winners.get(port):
            return set()
        self._winners.pop(port, None)
        if winner is not None:
            self._winners[port] = winner
        return set(claims)

    def _settle(self, name: str) -> Service | None:
        """The service as served, without its port if an older claim holds that; records problems."""
        decoded = self._decoded.get(name, Decoded(None))
        service, problems = decoded.service, decoded.problems
        if service is not None and service.host_port is not None:
            winner = self._winners[service.host_port]
            if winner != name:
                reason = f"port {service.host_port} belongs to service {winner}, whose claim is older"
                problems = (*problems, Problem(name, f"{SERVICES}{name}/host_port", reason))
                service = replace(service, host_port=None)
        if problems:
            self._problems[name] = problems
        else:
            self._problems.pop(name, None)
        return service

    def _all_problems(self) -> tuple[Problem, ...]:
        return tuple(problem for name in sorted(self._problems) for problem in self._problems[name])


def _age(claim: Claim, before: Service | None, port: int, age_before: int | None) -> int:
    """How old a claim to ``port`` is for a service that was ``before``, with a claim of ``age_before``.

    A service that goes on claiming its port does not lose it with the node that claimed it first. One that
    was seen to turn to another port claims that since then, however old its key is. A reader that starts
    later knows the keys' age only.
    """
    if before is None:
        return claim.created
    if before.host_port != port or age_before is None:
        return claim.modified
    return age_before


def _keep_claim(old: Entry | None, new: Entry) -> Entry:
    """``new``, as old as the value it repeats.

    etcd v2 makes a key anew with each ``set``; a shell loop that repeats its claim to a port must not
    lose it to another loop for that.
    """
    if old is not None and old.value == new.value and old.created < new.created:
        return replace(new, created=old.created)
    return new


def _overlay(services: Mapping[str, Service], changed: Mapping[str, Service | None]) -> Mapping[str, Service]:
    """``services`` with changes; the very same mapping when there are none.

    The copy is of references only, 0.1 ms for 10,000 services.
    """
    if not changed:
        return services
    merged = dict(services)
    for name, service in changed.items():
        if service is None:
            merged.pop(name, None)
        else:
            merged[name] = service
    return merged
