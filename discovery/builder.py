"""Builds Catalogs from a store's entries, one change at the cost of that change. Pure: no clock, no effects.

It mirrors the entries by service, decodes again only the services a change touches, and settles who gets
a contested host_port. A service that comes out equal stays the same object.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from discovery.catalog import Catalog, Problem, Service
from discovery.schema import SERVICES, Decoded, decode_service, split_key
from discovery.stores.base import Changes, Entry, Snapshot


class CatalogBuilder:
    """A mirror of everything under ``/services/`` and the newest Catalog made of it. Not thread-safe."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, Entry]] = {}
        self._decoded: dict[str, Decoded] = {}
        self._problems: dict[str, tuple[Problem, ...]] = {}
        self._claims: dict[int, dict[str, int]] = {}
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
        for name in tuple(affected):
            affected |= self._decode(name)
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

    def _decode(self, name: str) -> set[str]:
        """Decode one service anew; the names of all services whose claim to a port this may decide."""
        old = self._decoded.pop(name, None)
        rivals = self._withdraw_claim(name, old)
        entries = self._entries.get(name)
        if not entries:
            return rivals
        decoded = decode_service(name, entries, old.service if old else None)
        self._decoded[name] = decoded
        if decoded.service is not None and decoded.service.host_port is not None:
            claims = self._claims.setdefault(decoded.service.host_port, {})
            rivals |= claims.keys()
            claims[name] = decoded.claimed or 0
        return rivals

    def _withdraw_claim(self, name: str, decoded: Decoded | None) -> set[str]:
        if decoded is None or decoded.service is None or decoded.service.host_port is None:
            return set()
        claims = self._claims[decoded.service.host_port]
        del claims[name]
        if not claims:
            del self._claims[decoded.service.host_port]
        return set(claims)

    def _settle(self, name: str) -> Service | None:
        """The service as served, without its port if an older claim holds that; records problems."""
        decoded = self._decoded.get(name, Decoded(None))
        service, problems = decoded.service, decoded.problems
        if service is not None and service.host_port is not None:
            claims = self._claims[service.host_port]
            winner = min(claims, key=lambda rival: (claims[rival], rival))
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
