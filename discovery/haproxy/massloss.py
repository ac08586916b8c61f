"""What to believe when most instances vanish at once: a loss of that size is mostly the store's. Pure.

Keys that expire together say that their owners could not renew them, not that the instances died. So a loss
of more than a share of all instances within a short time is held back: the catalog keeps them, for as long as
HAProxy's own checks find them living, for a bounded time, and until a person accepts the loss. What is there
passes through at once, whatever is held.

Outages of the store are another matter, see ``discovery.outage``: that guard knows of the outage and holds
every removal for one TTL; this one knows only how much is gone, and asks the checks.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from discovery.catalog import Catalog, Instance, Problem, Service

Key = tuple[str, str]
"""Name of the service, id of the instance."""

SHOWN_NAMES = 5


@dataclass(frozen=True, slots=True)
class Held:
    """An instance that is gone from the store and still served.

    ``service`` is its service as it was when it had the instance last. The times are of the guard's clock:
    when it was lost, since when it is held (only the size of a loss shows what it is), until when at most.
    """

    service: Service
    instance: Instance
    lost_seconds: float
    since_seconds: float
    until_seconds: float


@dataclass(frozen=True, slots=True)
class MassLoss:
    """A loss that is held back: the ids of the instances by service, both in order.

    The times are Unix time: when the first of them was lost, and when the last is let go at the latest.
    """

    since_seconds: float
    until_seconds: float
    instances: Mapping[str, tuple[str, ...]]

    @property
    def count(self) -> int:
        """How many instances are held."""
        return sum(map(len, self.instances.values()))


@dataclass(slots=True)
class _Lost:
    """An instance that vanished within the window. ``claimed``: its address has since become another's."""

    service: Service
    instance: Instance
    at_seconds: float
    claimed: bool = False


class MassLossGuard:
    """Stands between the catalogs and what is made of them; every catalog passes through ``admit``.

    A loss is an instance that was not draining and is no longer there; one that has another id or is in
    another service is another instance. Not thread-safe.
    """

    def __init__(
        self,
        window_seconds: float,
        hold_seconds: float,
        share: float = 0.5,
        least: int = 10,
        epoch_seconds: float = 0.0,
    ) -> None:
        """More than ``share`` of ``least`` instances or more, lost in ``window_seconds``, is held back.

        Each is held for ``hold_seconds`` at most; 0 holds nothing. ``epoch_seconds`` is the Unix time at
        which the caller's clock was 0; people are told times by it.
        """
        self._window_seconds = window_seconds
        self._hold_seconds = hold_seconds
        self._share = share
        self._least = least
        self._epoch_seconds = epoch_seconds
        self._services: Mapping[str, Service] = {}
        # How many instances there are, without those that drain.
        self._living = 0
        # In the order in which they were lost.
        self._lost: dict[Key, _Lost] = {}
        self._held: dict[str, dict[str, Held]] = {}
        # By address, everything lost or held: who comes up at one of them is not who was there.
        self._places: dict[str, set[Key]] = {}
        # Nothing that is held is due before this time.
        self._soonest_seconds = math.inf
        # The services with held instances as they were made last; those to be made anew, as they changed;
        # and those to be made anew with every change, because theirs depends on who else has their port.
        self._merged: dict[str, Service] = {}
        self._stale: set[str] = set()
        self._with_port: set[str] = set()
        self._admitted: Mapping[str, Service] | None = None

    # -- what is asked of it

    @property
    def held(self) -> Mapping[Key, Held]:
        """What is held now, as of the last ``admit``."""
        return {(name, id_): each for name, ids in self._held.items() for id_, each in ids.items()}

    @property
    def loss(self) -> MassLoss | None:
        """What is held now, for people; None while nothing is."""
        every = [each for ids in self._held.values() for each in ids.values()]
        if not every:
            return None
        return MassLoss(
            self._epoch_seconds + min(each.lost_seconds for each in every),
            self._epoch_seconds + max(each.until_seconds for each in every),
            {name: tuple(sorted(self._held[name])) for name in sorted(self._held)},
        )

    def problem(self) -> Problem | None:
        """What is held, since when, until when, and what ends it; None while nothing is held."""
        loss = self.loss
        if loss is None:
            return None
        more = ["…"] if len(loss.instances) > SHOWN_NAMES else []
        names = ", ".join([*list(loss.instances)[:SHOWN_NAMES], *more])
        return Problem(
            None,
            "mass loss",
            f"{loss.count} instances of {len(loss.instances)} services ({names}) vanished from the store"
            f" at {clock_text(loss.since_seconds)}; while HAProxy's checks find them living they are served,"
            f" until {clock_text(loss.until_seconds)}; `discovery proxy accept` lets them go now",
            "kept at its last good value",
        )

    def due(self, now_seconds: float) -> float | None:
        """In how many seconds to ``admit`` again without a new catalog; None while nothing is held."""
        untils = [each.until_seconds for ids in self._held.values() for each in ids.values()]
        return max(0.0, min(untils) - now_seconds) if untils else None

    # -- what it is told

    def restore(self, catalog: Catalog) -> None:
        """Begin with what was served in a former life, before the first ``admit``."""
        self._follow(catalog.services, 0.0)

    def resume(self, services: Mapping[str, Service], loss: MassLoss, now_seconds: float) -> None:
        """Hold what a former life held, before the first ``admit``: not a second longer.

        ``services`` are those of the loss, with its instances; one that is not among them is gone.
        """
        lost_seconds = loss.since_seconds - self._epoch_seconds
        # Unix time may have jumped meanwhile.
        until_seconds = min(loss.until_seconds - self._epoch_seconds, now_seconds + self._hold_seconds)
        for name, service in services.items():
            for each in service.instances:
                if each.id in loss.instances.get(name, ()):
                    held = Held(service, each, lost_seconds, lost_seconds, until_seconds)
                    self._held.setdefault(name, {})[each.id] = held
                    self._places.setdefault(each.address, set()).add((name, each.id))
                    self._soonest_seconds = min(self._soonest_seconds, until_seconds)
                    self._touch(name)

    def admit(self, catalog: Catalog, now_seconds: float) -> Catalog:
        """The catalog as it should be believed at ``now_seconds`` (of a monotonic clock).

        The very same one while nothing is held. Else one with the held instances, in which every service
        without any is the same object; a service with some is the same object as long as it is equal.
        """
        if catalog.services is not self._services:
            self._follow(catalog.services, now_seconds)
        self._forget(now_seconds)
        if self._is_mass_loss():
            self._hold(now_seconds)
        self._drop_other_schemes()
        if not self._held:
            self._merged.clear()
            self._stale.clear()
            self._with_port.clear()
            return catalog
        return replace(catalog, services=self._with_held())

    def failed(self, instances: Collection[Key]) -> None:
        """HAProxy's checks found these dead: let them go for good. Those that are not held are ignored."""
        for name, id_ in instances:
            if id_ in self._held.get(name, {}):
                self._release((name, id_))

    def unchecked(self, instances: Collection[Key]) -> None:
        """HAProxy does not check these, so nobody vouches for them: hold them for one window only.

        That is the time in which an owner that lives puts its keys again. To let them go at once would make
        an outage of what is most likely a failure of the store; to hold them longer would be a guess.
        """
        for name, id_ in instances:
            each = self._held.get(name, {}).get(id_)
            if each is not None:
                until_seconds = min(each.until_seconds, each.since_seconds + self._window_seconds)
                self._held[name][id_] = replace(each, until_seconds=until_seconds)
                self._soonest_seconds = min(self._soonest_seconds, until_seconds)

    def accept(self) -> None:
        """A person says that the loss is one: let go of everything, at the next ``admit``."""
        for key in [*self._lost, *self.held]:
            self._release(key)

    # -- losses

    def _follow(self, services: Mapping[str, Service], now_seconds: float) -> None:
        """Take note of what is gone and of what is new, at the cost of the services that changed."""
        before, self._services = self._services, services
        self._admitted = None
        new: list[tuple[str, Instance]] = []
        for name, service in services.items():
            was = before.get(name)
            if was is not service:
                self._stale.add(name)
                new += self._compare(name, was, service, now_seconds)
        for name in before.keys() - services.keys():
            self._stale.add(name)
            self._compare(name, before[name], None, now_seconds)
        if self._places:
            # After all losses, for a container that is made anew is a loss and a gain in one catalog.
            self._settle(new)

    def _compare(
        self, name: str, was: Service | None, service: Service | None, now_seconds: float
    ) -> list[tuple[str, Instance]]:
        """Note what one service lost; what is new in it, or at another address than before."""
        old = {each.id: each for each in was.instances} if was else {}
        new = {each.id: each for each in service.instances} if service else {}
        self._living += _count_living(new.values()) - _count_living(old.values())
        for id_, instance in old.items():
            if was is not None and id_ not in new and not instance.attributes.draining:
                self._lost[name, id_] = _Lost(was, instance, now_seconds)
                self._places.setdefault(instance.address, set()).add((name, id_))
        return [
            (name, each) for id_, each in new.items() if id_ not in old or old[id_].address != each.address
        ]

    def _settle(self, new: Iterable[tuple[str, Instance]]) -> None:
        """Strike out those that came back, and those whose address is now another's."""
        claims = []
        for name, instance in new:
            if (name, instance.id) not in self._places.get(instance.address, ()):
                claims.append(instance.address)
            self._release((name, instance.id))
        for address in claims:
            for key in list(self._places.get(address, ())):
                # Its traffic would go to a stranger; but it counts as lost all the same.
                if key in self._lost:
                    self._lost[key].claimed = True
                    self._let_go(key)
                else:
                    self._release(key)

    def _forget(self, now_seconds: float) -> None:
        """Let go of what was held long enough, and of losses that are over."""
        if self._soonest_seconds <= now_seconds:
            for key, each in self.held.items():
                if each.until_seconds <= now_seconds:
                    self._release(key)
            untils = [each.until_seconds for ids in self._held.values() for each in ids.values()]
            self._soonest_seconds = min(untils, default=math.inf)
        for key, lost in list(self._lost.items()):
            if lost.at_seconds > now_seconds - self._window_seconds:
                break
            del self._lost[key]
            if key[1] not in self._held.get(key[0], {}):
                self._leave(key, lost.instance)

    def _is_mass_loss(self) -> bool:
        lost = len(self._lost)
        total = self._living + lost
        return total >= self._least and lost > self._share * total

    def _hold(self, now_seconds: float) -> None:
        if self._hold_seconds <= 0:
            return
        until_seconds = now_seconds + self._hold_seconds
        for (name, id_), lost in self._lost.items():
            ids = self._held.get(name, {})
            if id_ not in ids and not lost.claimed:
                ids[id_] = Held(lost.service, lost.instance, lost.at_seconds, now_seconds, until_seconds)
                self._held[name] = ids
                self._soonest_seconds = min(self._soonest_seconds, until_seconds)
                self._touch(name)

    def _drop_other_schemes(self) -> None:
        """What served http is no server of a service that by now is tcp."""
        for name in self._stale & self._held.keys():
            service = self._services.get(name)
            for id_, each in list(self._held[name].items()):
                if service is not None and service.instances and service.scheme != each.service.scheme:
                    self._release((name, id_))

    def _release(self, key: Key) -> None:
        """It is neither held nor lost any more, so that it cannot be held again."""
        lost = self._lost.pop(key, None)
        held = self._let_go(key)
        gone = held or lost
        if gone is not None:
            self._leave(key, gone.instance)

    def _let_go(self, key: Key) -> Held | None:
        name, id_ = key
        ids = self._held.get(name, {})
        each = ids.pop(id_, None)
        if each is not None:
            self._touch(name)
            if not ids:
                del self._held[name]
        return each

    def _touch(self, name: str) -> None:
        self._stale.add(name)
        self._admitted = None

    def _leave(self, key: Key, instance: Instance) -> None:
        keys = self._places.get(instance.address, set())
        keys.discard(key)
        if not keys:
            self._places.pop(instance.address, None)

    # -- the catalog with what is held

    def _with_held(self) -> Mapping[str, Service]:
        if self._admitted is not None:
            return self._admitted
        ports = {each.host_port for each in self._services.values() if each.host_port is not None}
        for name in self._stale - self._held.keys():
            self._merged.pop(name, None)
            self._with_port.discard(name)
        for name in sorted(self._stale & self._held.keys() | self._with_port, key=self._order):
            service = _merge(self._services.get(name), list(self._held[name].values()), ports)
            if any(each.service.host_port is not None for each in self._held[name].values()):
                self._with_port.add(name)
            if service.host_port is not None:
                ports.add(service.host_port)
            if self._merged.get(name) != service:
                self._merged[name] = service
        self._stale.clear()
        self._admitted = {**self._services, **self._merged}
        return self._admitted

    def _order(self, name: str) -> tuple[float, str]:
        """Of two held services that had one port in turn, the one that had it last comes first."""
        return -max(each.lost_seconds for each in self._held[name].values()), name


def _merge(present: Service | None, held: list[Held], ports: Collection[int]) -> Service:
    """A service with the held instances added; ``ports`` are those that it cannot take back.

    As long as it has instances, they say what the service is. Without any, what they said of it (scheme, port
    and options may be known from instances alone) is believed as well, but for what is said otherwise now.
    """
    last = max(held, key=lambda each: each.lost_seconds).service
    if present is not None and present.instances:
        base = present
    else:
        port = last.host_port if last.host_port not in ports else None
        options: Mapping[str, str] = last.options
        if present is not None:
            port = port if present.host_port is None else present.host_port
            options = {**last.options, **present.options}
        base = replace(last, instances=(), host_port=port, options=options)
    instances = sorted((*base.instances, *(each.instance for each in held)), key=lambda each: each.id)
    return replace(base, instances=tuple(instances))


def _count_living(instances: Iterable[Instance]) -> int:
    return sum(not each.attributes.draining for each in instances)


def clock_text(unix_seconds: float) -> str:
    """The time of day, as people are told it."""
    return f"{datetime.fromtimestamp(unix_seconds, UTC):%H:%M:%S} UTC"
