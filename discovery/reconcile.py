"""What the store should hold for this node's instances, compared with what it holds. Pure.

Two kinds of keys are ours to keep. The keys of an instance belong to it alone. The shared keys of a service,
scheme and host_port, belong to all its instances on all nodes, so they are treated with restraint:

- absent, they are written;
- present with another value, they are written only by an instance that newly appears (the newest wins), and
  never in reply to another writer, so that two that disagree do not fight;
- they are deleted with our last instance only when no other instance of the service is left.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from discovery.catalog import Registration
from discovery.schema import instance_keys, service_prefix, shared_keys, split_key

Seen = Callable[[str], Mapping[str, str]]
"""The keys of one service as the store was last seen, by what follows `/services/<name>/`."""

HOSTS = "hosts/"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do about the difference.

    ``puts`` and ``deletes`` are ours to do at once. ``restores`` are keys that were there and that somebody
    removed or overwrote; when to put them back is for the caller to say. ``cedes`` are keys we wrote and
    somebody else has since taken over: they are to be left alone.
    """

    puts: dict[str, str] = field(default_factory=dict)
    restores: dict[str, str] = field(default_factory=dict)
    deletes: list[str] = field(default_factory=list)
    cedes: list[str] = field(default_factory=list)


def is_shared(key: str) -> bool:
    """Whether a key belongs to a service rather than to one instance."""
    return "/" not in split_key(key)[1]


def plan(
    registrations: Iterable[Registration],
    held: Mapping[str, str],
    seen: Seen,
    settled: Callable[[str], bool],
) -> Plan:
    """The difference between what ``registrations`` want and what the store holds.

    ``held`` is what our session wrote. A key is ``settled`` when the store has been seen since we last wrote
    it: before that, what was seen of it may be older than what we wrote, and proves nothing.
    """
    return _Planner(held, seen, settled).plan(registrations)


class _Planner:
    """One comparison; a class only for what its steps share."""

    def __init__(self, held: Mapping[str, str], seen: Seen, settled: Callable[[str], bool]) -> None:
        self.held = held
        self.seen = seen
        self.settled = settled
        self.result = Plan()

    def plan(self, registrations: Iterable[Registration]) -> Plan:
        own: dict[str, str] = {}
        shared: dict[str, str] = {}
        claimed: set[str] = set()
        appeared: set[str] = set()
        for service, instance in ((each.service, each.instance) for each in registrations):
            own.update(instance_keys(service, instance))
            appears = self._appears(f"{service_prefix(service)}{HOSTS}{instance.id}", instance.address)
            for key, value in shared_keys(service, instance).items():
                # A scheme that is only the default gives way to one that was asked for.
                said = not key.endswith("/scheme") or instance.attributes.scheme is not None
                if said or key not in shared:
                    shared[key] = value
                if appears:
                    appeared.add(key)
                    claimed.update([key] if said else [])
        for key, value in own.items():
            self._keep_own(key, value)
        for key, value in shared.items():
            self._keep_shared(key, value, claimed=key in claimed, appeared=key in appeared)
        for key in self.held.keys() - own.keys() - shared.keys():
            self._withdraw(key, own)
        return self.result

    def _appears(self, hosts_key: str, address: str) -> bool:
        """Whether an instance is new, rather than written before or left from our former life."""
        return hosts_key not in self.held and self._there(hosts_key) != address

    def _keep_own(self, key: str, value: str) -> None:
        if self.held.get(key) != value:
            self.result.puts[key] = value
        elif self.settled(key) and self._there(key) != value:
            self.result.restores[key] = value

    def _keep_shared(self, key: str, value: str, *, claimed: bool, appeared: bool) -> None:
        there, wrote = self._there(key), self.held.get(key)
        if wrote is not None and not self.settled(key):
            there = wrote
        if there == value:
            return
        if there is None:
            (self.result.puts if appeared else self.result.restores)[key] = value
        elif claimed or there == wrote:
            self.result.puts[key] = value
        elif wrote is not None:
            self.result.cedes.append(key)

    def _withdraw(self, key: str, own: Mapping[str, str]) -> None:
        if self.settled(key) and self._there(key) not in (None, self.held[key]):
            self.result.cedes.append(key)
        elif not is_shared(key) or not self._has_others(split_key(key)[0], own):
            self.result.deletes.append(key)

    def _has_others(self, service: str, own: Mapping[str, str]) -> bool:
        """Whether the service has instances besides those that we withdraw."""
        hosts = (f"{service_prefix(service)}{rest}" for rest in self.seen(service) if rest.startswith(HOSTS))
        return any(key in own or key not in self.held for key in hosts)

    def _there(self, key: str) -> str | None:
        service, rest = split_key(key)
        return self.seen(service).get(rest)
