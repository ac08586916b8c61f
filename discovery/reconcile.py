"""What the store should hold for this node's instances, compared with what it holds. Pure.

Two kinds of keys are ours to keep. The keys of an instance belong to it alone. The shared keys of a service,
scheme and host_port, belong to all its instances on all nodes, so they are treated with restraint:

- absent, they are written;
- present with another value, they are written only by an instance that newly appears (the newest wins), and
  never in reply to another writer, so that two that disagree do not fight;
- they are deleted with our last instance only when no other instance of the service is left.

What is ours is known by proof: this session wrote it, or it has the very value that was noted down when we
wrote it in a former session or life. An instance's id that somebody else holds is left to them.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from discovery.catalog import Instance, Registration
from discovery.schema import (
    ATTRIBUTES,
    address_key,
    encode_attributes,
    instance_keys,
    is_instance,
    service_prefix,
    shared_keys,
    split_key,
)

Seen = Callable[[str], Mapping[str, str]]
"""The keys of one service as the store was last seen, by what follows `/services/<name>/`."""

HOSTS = "hosts/"

_NOTHING: Mapping[str, Collection[str]] = {}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do about the difference.

    ``puts`` and ``deletes`` are ours to do at once. ``restores`` are keys that were there and that somebody
    removed or overwrote; when to put them back is for the caller to say. ``cedes`` are keys we wrote and
    somebody else has since taken over: they are to be left alone. ``removes`` are left from a former life.

    ``taken`` are the address keys of instances whose ids others hold, with what they put there; ``rivals``
    are address keys of ours that others want as well, with the address they want to put there.
    """

    puts: dict[str, str] = field(default_factory=dict)
    restores: dict[str, str] = field(default_factory=dict)
    deletes: list[str] = field(default_factory=list)
    cedes: list[str] = field(default_factory=list)
    removes: list[str] = field(default_factory=list)
    taken: dict[str, str] = field(default_factory=dict)
    rivals: dict[str, str] = field(default_factory=dict)


def is_shared(key: str) -> bool:
    """Whether a key belongs to a service rather than to one instance."""
    return "/" not in split_key(key)[1]


def hosts_last(keys: Iterable[str]) -> list[list[str]]:
    """The keys in two parts, without empty ones: an address comes after, and goes before, what is said of it.

    A store without transactions would else show a new tcp service as http for an instant.
    """
    parts: tuple[list[str], list[str]] = ([], [])
    for key in keys:
        parts[is_instance(split_key(key)[1])].append(key)
    return [part for part in parts if part]


def instance_at(key: str) -> tuple[str, str]:
    """The keys of the instance whose address is at ``key``."""
    service, rest = split_key(key)
    return key, f"{service_prefix(service)}{ATTRIBUTES}{rest.partition('/')[2]}"


def plan(
    registrations: Iterable[Registration],
    held: Mapping[str, str],
    seen: Seen,
    settled: Callable[[str], bool],
    former: Mapping[str, Collection[str]] = _NOTHING,
) -> Plan:
    """The difference between what ``registrations`` want and what the store holds.

    ``held`` is what our session wrote, ``former`` what we ever wrote that may be there still. A key is
    ``settled`` when the store has been seen since we last wrote it: before that, what was seen of it may be
    older than what we wrote, and proves nothing.
    """
    return _Planner(held, seen, settled, former).plan(registrations)


class _Planner:
    """One comparison; a class only for what its steps share."""

    def __init__(
        self,
        held: Mapping[str, str],
        seen: Seen,
        settled: Callable[[str], bool],
        former: Mapping[str, Collection[str]],
    ) -> None:
        self.held = held
        self.seen = seen
        self.settled = settled
        self.former = former
        self.result = Plan()

    def plan(self, registrations: Iterable[Registration]) -> Plan:
        own: dict[str, str] = {}
        shared: dict[str, str] = {}
        claimed: set[str] = set()
        appeared: set[str] = set()
        for service, instance in ((each.service, each.instance) for each in registrations):
            key = address_key(service, instance)
            if self._is_taken(key, instance.address):
                self.result.taken[key] = self._there(key) or ""
                own.update(_claim(service, instance))
                continue
            own.update(instance_keys(service, instance))
            appears = self._appears(key, instance.address)
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
        for key in self.former.keys() - self.held.keys() - own.keys() - shared.keys():
            self._clean(key, own)
        self._find_rivals(own)
        return self.result

    def _is_taken(self, key: str, address: str) -> bool:
        """Whether another writer holds the id of an instance that we have not written in this session."""
        if key in self.held or self._there(key) in (None, address):
            return False
        return not self._is_former(key)

    def _is_former(self, key: str) -> bool:
        """Whether what is there was written by us, in a former session or life."""
        there = self._there(key)
        return there is not None and there in self.former.get(key, ())

    def _appears(self, key: str, address: str) -> bool:
        """Whether an instance is new, rather than written before or left from our former life."""
        return key not in self.held and self._there(key) != address

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
            if wrote is None and self._is_former(key):
                # It would end with the session that it belongs to.
                self.result.puts[key] = value
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

    def _clean(self, key: str, own: Mapping[str, str]) -> None:
        """Remove what we wrote in a former life for something that does not run any more."""
        if self._is_former(key) and not (is_shared(key) and self._has_others(split_key(key)[0], own)):
            self.result.removes.append(key)

    def _has_others(self, service: str, own: Mapping[str, str]) -> bool:
        """Whether the service has instances besides those that we withdraw."""
        hosts = (f"{service_prefix(service)}{rest}" for rest in self.seen(service) if rest.startswith(HOSTS))
        return any(key in own or not (key in self.held or self._is_former(key)) for key in hosts)

    def _find_rivals(self, own: Mapping[str, str]) -> None:
        """Claims of others to ids that are ours: see ``_claim``."""
        ids: dict[str, dict[str, str]] = {}
        for key in own:
            service, rest = split_key(key)
            if is_instance(rest):
                ids.setdefault(service, {})[rest.partition("/")[2]] = key
        for service, keys in ids.items():
            seen = self.seen(service)
            for rest in seen:
                if not rest.startswith(ATTRIBUTES) or f"{service_prefix(service)}{rest}" in own:
                    continue
                named = rest.removeprefix(ATTRIBUTES)
                if f"{HOSTS}{named}" in seen:
                    continue
                # `<node>:<container>:<port>`, or any text, and then `:<ip>:<port>`.
                parts = named.split(":")
                for length in range(1, len(parts)):
                    mine = keys.get(":".join(parts[:length]))
                    if mine is not None and not self._is_ours(f"{service_prefix(service)}{rest}"):
                        self.result.rivals[mine] = ":".join(parts[length:])

    def _is_ours(self, key: str) -> bool:
        return key in self.held or self._is_former(key)

    def _there(self, key: str) -> str | None:
        service, rest = split_key(key)
        return self.seen(service).get(rest)


def _claim(service: str, instance: Instance) -> dict[str, str]:
    """What tells the holder of an id that another instance wants it, and tells no reader anything else."""
    wanted = f"{instance.id}:{instance.host}:{instance.port}"
    if len(wanted) > 200:
        return {}
    return {f"{service_prefix(service)}{ATTRIBUTES}{wanted}": encode_attributes(instance.attributes)}
