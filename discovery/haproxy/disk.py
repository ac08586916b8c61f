"""The configuration on disk: made of models, checked before HAProxy sees it, and kept as what runs."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from discovery import files
from discovery.catalog import Scheme
from discovery.errors import ApplyError, ConfigRefused, DiscoveryError, RenderError
from discovery.haproxy.blame import bisect, blame, blame_certificates
from discovery.haproxy.directives import Checks
from discovery.haproxy.generations import Generations
from discovery.haproxy.layout import HeldRange, Layout, held_ranges, numbers_of, place
from discovery.haproxy.model import Model
from discovery.haproxy.ports import Bind, Reservation, reserve
from discovery.haproxy.program import inspect_machine
from discovery.haproxy.quarantine import Quarantine
from discovery.haproxy.render import CONFIG, Renderer, binds_of, front_binds
from discovery.haproxy.runtime import alerts
from discovery.haproxy.settings import ProxySettings, bind_host, join_address
from discovery.templating import Templates

log = structlog.get_logger(__name__)

_MOST_REFUSALS = 20
"""Rounds of finding who is at fault; each may find several."""


@dataclass(frozen=True, slots=True)
class Written:
    """A configuration that HAProxy accepts, in ``candidate/``; ``model`` is as much as is in it."""

    model: Model
    layout: Layout
    texts: Mapping[str, str]


class Disk:
    """All files of one HAProxy. For any thread."""

    def __init__(self, settings: ProxySettings, check: Callable[[Path], None]) -> None:
        """``check`` raises ConfigRefused for a configuration that HAProxy refuses."""
        self._settings = settings
        self._check = check
        self._machine = inspect_machine(settings)
        # What is written must not be ahead of what HAProxy was given to load.
        templates = Templates(*settings.templates, auto_reload=False)
        self._renderer = Renderer(settings, self._machine, templates)
        self._generations = Generations(settings.directory)
        self._quarantine = Quarantine()
        self._lock = threading.RLock()
        # What the good generation was made of, None when another agent made it.
        self._good: Layout | None = None
        self._bound: frozenset[int] = frozenset()
        self._is_behind = False

    # -- what can be done

    @property
    def knows_servers(self) -> bool:
        """See Renderer."""
        return self._renderer.knows_servers

    @property
    def spares(self) -> Mapping[Scheme, int]:
        """How many spare sections a configuration has by mode.

        None with a backend template of the user's own, which may say something else for every service.
        """
        if not self.knows_servers:
            return {}
        count = self._settings.spare_backends
        schemes = {each.scheme for each in self._settings.held_ports}
        return {"http": count, "tcp": count if "tcp" in schemes else 0}

    @property
    def capacity(self) -> int:
        """How many servers beyond those of a configuration may be added to its worker."""
        return self._machine.spare_descriptors

    def checks(self, model: Model, running: Layout | None = None) -> Checks | None:
        """How the servers of a model are checked: as they are now, while that will do."""
        former = running.checks if running is not None else None
        wanted = self._renderer.checks(model, are_on=former is not None)
        return former if wanted and former else wanted

    def admit(self, model: Model) -> Model:
        """See Quarantine."""
        return self._quarantine.admit(model)

    @property
    def bind_host(self) -> str:
        """Where services' own ports are listened on: ``*`` or an address without brackets."""
        return bind_host(self._settings.bind_address, "proxy.bind_address")

    @property
    def bound_ports(self) -> frozenset[int]:
        """The ports that HAProxy, when it runs, may be listening on."""
        return self._bound

    # -- making a configuration

    @contextmanager
    def prepare(self, model: Model, running: Layout | None, *, alive: bool) -> Iterator[Written]:
        """Write a configuration that HAProxy accepts, and keep its ports free for it until the end.

        ``model`` is as it was before ``admit``, ``running`` what HAProxy runs if that is known, and ``alive``
        whether it runs at all. Raises RenderError or ApplyError for what is no single service's fault.
        """
        with self._lock, ExitStack() as reservations:
            bound = self._bound if alive else frozenset[int]()
            listeners = {(each.host, each.port) for each in model.listeners}
            held = set(self._held_binds())
            fronts = {bind: setting for (setting, _), bind in front_binds(self._settings).items()}
            refused = self._reserve(reservations, listeners | held | fronts.keys(), bound)
            _refuse(refused, fronts)
            model = model.without({bind[1]: why for bind, why in refused.items() if bind in listeners | held})
            written = self._written(model, running, self._ranges(refused))
            others = dict.fromkeys(binds_of(written.texts) - listeners - held - fronts.keys(), CONFIG)
            _refuse(self._reserve(reservations, others, bound), others)
            yield written

    def _reserve(
        self, reservations: ExitStack, binds: Iterable[Bind], bound: frozenset[int]
    ) -> Mapping[Bind, str]:
        """Keep these ports for HAProxy; those that cannot be had, with the reason."""
        # By port alone, so that HAProxy may go from * to one address of the host. A hold shares a port with
        # our own user only, and an external HAProxy may be another's.
        wanted = [bind for bind in binds if bind[1] not in bound]
        reservation: Reservation = reserve(wanted, hold=self._settings.mode == "managed")
        reservations.enter_context(reservation)
        return reservation.refused

    def _held_binds(self) -> Iterator[Bind]:
        host = self.bind_host
        for each in self._settings.held_ports:
            for port in range(each.first, each.last + 1):
                yield host, port

    def _ranges(self, refused: Iterable[Bind]) -> tuple[HeldRange, ...]:
        host = self.bind_host
        return held_ranges(self._settings.held_ports, host, {port for _, port in refused})

    def _written(self, model: Model, running: Layout | None, held: tuple[HeldRange, ...]) -> Written:
        """Write and check; a service that is at fault goes into quarantine."""
        for _ in range(_MOST_REFUSALS):
            admitted = self._quarantine.admit(model)
            layout = self._placed(admitted, running, held)
            try:
                return Written(admitted, layout, self._checked(layout))
            except RenderError as error:
                if error.service is None or not self._refuse({error.service: str(error)}, model, running):
                    raise
            except ConfigRefused as error:
                bad = blame_certificates(error.message, layout.certificates)
                if bad and self._quarantine.refuse_certificates(bad, model, running):
                    log.error("certificates_quarantined", names=",".join(sorted(bad)))
                elif not self._refuse(self._culprits(error, admitted, layout), model, running):
                    raise
        raise ApplyError("HAProxy refuses the configuration, and too many services seem to be at fault")

    def _placed(self, model: Model, running: Layout | None, held: tuple[HeldRange, ...]) -> Layout:
        numbers = None if running else numbers_of(self._generations.good().get(CONFIG, ""))
        return place(
            model,
            self._renderer.checks(model, are_on=running is not None and running.checks is not None),
            spares=self.spares,
            held=held,
            before=running,
            numbers=numbers,
        )

    def _checked(self, layout: Layout) -> Mapping[str, str]:
        texts = self._renderer.render(layout)
        candidate = self._generations.stage(texts)
        self._check(candidate / CONFIG)
        return texts

    def _refuse(self, reasons: Mapping[str, str], model: Model, running: Layout | None) -> bool:
        for service, reason in reasons.items():
            log.error("service_quarantined", service=service, reason=reason)
        return self._quarantine.refuse(reasons, model, running)

    def _culprits(self, error: ConfigRefused, model: Model, layout: Layout) -> Mapping[str, str]:
        """The services that HAProxy refuses, with what it says of them."""
        text = self._renderer.render(layout)[CONFIG]
        found = blame(text, error.message) & model.backends.keys()
        if not found or not self._is_accepted(model, layout, found):
            found = bisect(tuple(model.backends), lambda out: self._is_accepted(model, layout, out))
        return {name: f"HAProxy refuses it: {alerts(error.message)}" for name in sorted(found)}

    def _is_accepted(self, model: Model, layout: Layout, left_out: frozenset[str]) -> bool:
        rest = model.without_services(left_out)
        try:
            self._checked(place(rest, layout.checks, spares=self.spares, held=layout.held))
        except ConfigRefused:
            return False
        return True

    # -- what is there

    def promote(self) -> None:
        """Make the candidate what HAProxy loads next."""
        self._generations.promote()

    def confirm(self, written: Written) -> None:
        """It runs: it is the good one now."""
        with self._lock:
            self._good = written.layout
            self._bound = _ports(written.texts)
            self._is_behind = False
            try:
                self._generations.confirm()
            except ApplyError as error:
                # It runs all the same; only an agent started after this one would begin with an older one.
                log.warning("haproxy_generation_not_kept", error=str(error))

    def roll_back(self) -> bool:
        """Make the last good generation what HAProxy loads next; whether it was that before.

        After this HAProxy may be listening on the ports of either.
        """
        with self._lock:
            current, good = self._generations.current(), self._generations.good()
            self._generations.roll_back()
            self._bound |= _ports(current) | _ports(good)
            return current == good

    @property
    def has_good(self) -> bool:
        """Whether there is a good generation."""
        return self._generations.has_good

    def recognize(self, model: Model) -> Layout | None:
        """The layout of the good generation if it is what we would make of this model, else None."""
        with self._lock:
            good = self._generations.good()
            held = self._ranges([bind for bind in self._held_binds() if bind[1] not in self._bound])
            layout = self._placed(self._quarantine.admit(model), None, held)
            try:
                return layout if self._renderer.render(layout) == good else None
            except RenderError:
                return None

    def follow(self, model: Model, running: Layout, is_current: Callable[[], bool]) -> None:
        """Write what runs by now, unchecked, for nothing is in it that was not checked.

        Costs nothing when it is there already. ``is_current`` tells whether it still runs when its turn
        comes.
        """
        with self._lock:
            if running is self._good or not is_current():
                return
            try:
                layout = self._placed(model, running, running.held)
                self._generations.stage(self._renderer.render(layout))
                self._generations.promote()
                self._generations.confirm()
                self._good = running
            except DiscoveryError as error:
                if not self._is_behind:
                    log.warning("haproxy_configuration_behind", error=str(error))
                self._is_behind = True
            else:
                self._is_behind = False

    def texts(self, model: Model) -> Mapping[str, str]:
        """The files as a new worker would get them; ports in use are not looked for. Raises RenderError."""
        with self._lock:
            return self._renderer.render(self._placed(model, None, self._ranges(())))

    def would_differ(self, model: Model, running: Layout) -> bool:
        """Whether a new worker would get other files than those that are on disk."""
        with self._lock:
            layout = self._placed(self._quarantine.admit(model), running, running.held)
            try:
                return self._renderer.render(layout) != self._generations.good()
            except RenderError:
                # Whose fault it is, and that the others go on without, is found in ``prepare``.
                return True

    def forget_templates(self) -> None:
        """Templates changed: read them anew, and try again what was refused."""
        with self._lock:
            self._renderer.clear()
            self._quarantine.clear()

    def save_state(self, text: str) -> None:
        """Write the servers' state that the next worker begins with."""
        files.replace(self._settings.server_state, text, mode=0o600)


def _ports(texts: Mapping[str, str]) -> frozenset[int]:
    return frozenset(port for _, port in binds_of(texts))


def _refuse(refused: Mapping[Bind, str], places: Mapping[Bind, str]) -> None:
    """Raise ApplyError for the first port that cannot be had: the check would pass, the reload stop all."""
    for bind, where in places.items():
        if bind in refused:
            mend = "free it, or name another address"
            raise ApplyError(f"{where}: {join_address(*bind)} {refused[bind]} ({mend})")
