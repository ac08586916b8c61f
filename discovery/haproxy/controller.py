"""Brings models into a running HAProxy.

What can be changed in the running worker is changed there, and seen to be changed; the rest waits for a
reload. The configuration on disk follows a moment later, so that whatever starts next comes up in the same
state.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import structlog

from discovery.errors import ApplyError, Postponed
from discovery.haproxy import ports
from discovery.haproxy.disk import Disk, Written
from discovery.haproxy.engine import Engine
from discovery.haproxy.layout import Layout
from discovery.haproxy.model import Model
from discovery.haproxy.pace import Pacer
from discovery.haproxy.plan import Means, Plan, plan
from discovery.haproxy.process import ReloadFailed
from discovery.haproxy.report import Reload, Waiting, unserved
from discovery.haproxy.state import NO_STATE, States, carry_over, has_strangers, misfits, observed
from discovery.haproxy.worker import Worker

log = structlog.get_logger(__name__)

SHOWN_NAMES = 10
SHOWN_RELOADS = 20


@dataclass(frozen=True, slots=True)
class Running:
    """What HAProxy is known to run: its worker, and what that was made of and changed to since.

    ``layout`` is None when that is not known, and ``why`` says in a word why not. Something of ``model``
    waits for a reload as long as it is not ``complete``.
    """

    worker: int = 0
    layout: Layout | None = None
    model: Model | None = None
    is_complete: bool = False
    why: str = "start"


class Controller:
    """One HAProxy that is made to run what is wanted. Not thread-safe, but for what says so."""

    def __init__(self, engine: Engine, disk: Disk, pacer: Pacer, on_change: Callable[[], None]) -> None:
        """``on_change`` is called when ``bring`` is to be called again."""
        self.running = Running()
        self.reloads: Counter[str] = Counter()
        self.changes = 0
        self.reload_seconds = 0.0
        self.last_reloads: tuple[Reload, ...] = ()
        # When a reload is due that nobody waits for, by the monotonic clock.
        self.due: float | None = None
        self._engine = engine
        self._worker = Worker(engine.ask)
        self._disk = disk
        self._pacer = pacer
        self._on_change = on_change
        self._waits: Waiting | None = None
        # How often templates changed, how often they had when they were read, and when HAProxy was given what
        # they make.
        self._templates_seen = 0
        self._templates_read = 0
        self._templates_loaded = 0

    # -- beginning

    def adopt(self) -> bool:
        """Take over the HAProxy that a former agent left; False if there is none."""
        is_certain = self._disk.roll_back()
        if not self._engine.adopt():
            return False
        # An agent that was killed in the middle of a change leaves it open which one runs.
        self.running = Running(why="adopted" if is_certain else "unknown_state")
        return True

    def start_last_good(self, reason: str) -> None:
        """Start HAProxy as it ran last. Raises ApplyError."""
        began = time.monotonic()
        self._disk.roll_back()
        try:
            self._disk.save_state(NO_STATE)
        except ApplyError as error:
            # A full disk must not keep the edge down; HAProxy starts with what state there is, or none.
            log.warning("haproxy_server_state_lost", error=str(error))
        self._engine.start()
        self.running = Running(why="adopted")
        self._count((reason,), time.monotonic() - began)
        # What changed since the files were written is found by applying again.
        self._on_change()

    # -- changing what runs

    def bring(self, model: Model) -> Model:
        """Make HAProxy run a model; what of it could be, with a problem for each part that could not.

        Raises Postponed when a part of it waits for a reload whose time has not come; RenderError or
        ApplyError when HAProxy could not be made to: what could not be changed runs as it did before.
        """
        alive = self._engine.pid is not None
        if not alive:
            # What is left of one that ended may still hold the ports that are tested now.
            self._engine.clear()
            self.running = Running(why="start")
        if self._templates_seen != self._templates_loaded:
            # Before anything is admitted: what was refused by the old ones may be taken by the new.
            self._templates_read = self._templates_seen
            self._disk.forget_templates()
        wanted = model.without(self._taken_ports(model, alive=alive))
        if self.running.layout is None and self.running.why == "adopted":
            self._recognize(wanted)
        reasons, is_urgent = self._change(self._disk.admit(wanted))
        if not reasons:
            self._pacer.not_wanted()
            self.due = self._waits = None
            return self._disk.admit(wanted)
        now = time.monotonic()
        wait_seconds = self._pacer.wait_seconds(now, is_urgent=is_urgent) if alive else 0
        if wait_seconds:
            self._wait(reasons, wait_seconds, is_urgent=is_urgent)
        if wait_seconds and is_urgent:
            raise Postponed(f"waits for a reload ({', '.join(reasons)})", wait_seconds)
        if wait_seconds:
            self.due = now + wait_seconds
            return self._disk.admit(wanted)
        self.due = None
        try:
            return self._bring_up(wanted, reasons, alive=alive)
        finally:
            self._pacer.done(time.monotonic())
            self._waits = None

    @property
    def waiting(self) -> Waiting | None:
        """What waits for a reload now. For any thread."""
        waits, running = self._waits, self.running
        if waits is None or running.layout is None or running.model is None:
            return waits
        return replace(waits, services=unserved(running.layout, running.model))

    @property
    def certificates(self) -> Mapping[str, float]:
        """Until when, in Unix time, each certificate that is served is valid. For any thread."""
        layout = self.running.layout
        return {} if layout is None else {name: each.not_after for name, each in layout.certificates.items()}

    def _wait(self, reasons: tuple[str, ...], wait_seconds: float, *, is_urgent: bool) -> None:
        now = time.time()
        since_seconds = self._waits.since_seconds if self._waits else now
        self._waits = Waiting(reasons, (), since_seconds, now + wait_seconds, is_urgent)

    def templates_changed(self) -> None:
        """Templates are to be read anew with the next ``bring``. For any thread."""
        self._templates_seen += 1
        self._on_change()

    def _taken_ports(self, model: Model, *, alive: bool) -> dict[int, str]:
        """Ports that no listener can be opened on, with the reason; those HAProxy has already are ours."""
        bound = self._disk.bound_ports if alive else frozenset[int]()
        host = self._disk.bind_host
        return {
            port: reason
            for port in (*(each.port for each in model.listeners), *model.ports)
            if port not in bound and (reason := ports.why_not(host, port))
        }

    def _change(self, wanted: Model) -> tuple[tuple[str, ...], bool]:
        """Change the running worker as far as that goes; why the rest needs a reload, and how urgently."""
        running = self.running
        if running.layout is None:
            return (running.why,), True
        checks = self._disk.checks(wanted, running.layout)
        means = Means(
            checks, self._disk.spares, can_add=self._disk.knows_servers, capacity=self._disk.capacity
        )
        try:
            planned = self._planned(running.layout, wanted, means)
            if planned.has_commands:
                planned = self._carry_out(planned, wanted, means)
                self.changes += 1
        except ApplyError as error:
            log.warning("haproxy_change_failed", error=str(error))
            self.running = Running(why="unverified")
            return ("unverified",), True
        reasons, is_urgent = planned.reasons, planned.is_urgent
        if not planned.layout.bound_ports.issuperset(wanted.ports):
            # It was another program's when HAProxy began to hold the range, and is free by now.
            reasons, is_urgent = (*reasons, "held_port"), True
        self.running = Running(running.worker, planned.layout, wanted, is_complete=not is_urgent)
        if self._templates_seen != self._templates_loaded and self._templates_matter(wanted, planned.layout):
            reasons, is_urgent = (*reasons, "templates"), True
            self.running = replace(self.running, is_complete=False)
        return reasons, is_urgent

    def _planned(self, running: Layout, wanted: Model, means: Means) -> Plan:
        """The plan, which uses no slot again that is still in use."""
        planned = plan(running, wanted, means)
        busy = self._worker.busy(planned.reused) if planned.reused else frozenset()
        return plan(running, wanted, replace(means, busy=busy)) if busy else planned

    def _carry_out(self, planned: Plan, wanted: Model, means: Means) -> Plan:
        """Do what is planned, and once more what did not come out so; the plan that was carried out."""
        left = self._worker.carry_out(planned, self.running.worker)
        if left is None:
            return planned
        planned = self._planned(left, wanted, means)
        if self._worker.carry_out(planned, self.running.worker) is not None:
            raise ApplyError("HAProxy's servers are not as they were told to be")
        return planned

    def _templates_matter(self, wanted: Model, running: Layout) -> bool:
        """Whether HAProxy would get other files by the templates as they are now."""
        if self._disk.would_differ(wanted, running):
            return True
        self._templates_loaded = self._templates_read
        return False

    def _recognize(self, wanted: Model) -> None:
        """Go on with a worker that a former agent made, if it is as we would have made it."""
        layout = self._disk.recognize(wanted)
        try:
            if layout is not None and self._worker.is_as(layout):
                self.running = Running(self._worker.pid(), layout, wanted)
        except ApplyError as error:
            log.warning("haproxy_not_recognized", error=str(error))

    def _bring_up(self, wanted: Model, reasons: tuple[str, ...], *, alive: bool) -> Model:
        """Check the new configuration, swap it in, have HAProxy run it; else back to the last good one."""
        began = time.monotonic()
        before = self.running
        seen = self._templates_seen
        if seen != self._templates_loaded:
            self._disk.forget_templates()
        with self._disk.prepare(wanted, before.layout, alive=alive) as prepared:
            # What cannot be written, as on a full disk, is known before anything is changed.
            self._disk.save_state(self._former_state(prepared) if alive else NO_STATE)
            self._disk.promote()
            try:
                if alive:
                    self._engine.reload()
                else:
                    self._engine.start()
            except ApplyError as error:
                self._disk.roll_back()
                if not isinstance(error, ReloadFailed):
                    self.running = Running(why="unknown_state")
                raise
        self._disk.confirm(prepared)
        self._templates_loaded = seen
        self.running = Running(self._worker.pid(), prepared.layout, prepared.model, is_complete=True)
        self._straighten()
        self._count(reasons, time.monotonic() - began)
        log.info(
            "haproxy_reloaded",
            reason=",".join(reasons),
            seconds=round(time.monotonic() - began, 3),
            services=len(prepared.model.backends),
            **_shown_changes(before.model, prepared.model),
        )
        return prepared.model

    def _former_state(self, prepared: Written) -> str:
        try:
            return carry_over(self._engine.ask("show servers state"), self.running.layout, prepared.layout)
        except ApplyError as error:
            log.warning("haproxy_server_state_lost", error=str(error))
            return NO_STATE

    def _straighten(self) -> None:
        """See whether the worker's servers are as they should be, and note what is really there if not."""
        running = self.running
        if running.layout is None or not self._disk.knows_servers:
            return
        states = self._worker.states()
        wrong = misfits(running.layout.sections.values(), states)
        if wrong:
            log.warning("haproxy_servers_differ", sections=_shown(wrong))
            self._on_change()
        if any(has_strangers(states.get(name, {})) for name in wrong):
            self.running = Running(why="unverified")
        elif wrong:
            self.running = replace(running, layout=observed(running.layout, wrong, states), is_complete=False)

    def _count(self, reasons: tuple[str, ...], seconds: float) -> None:
        self.reloads[reasons[0]] += 1
        self.reload_seconds += seconds
        reload = Reload(time.time(), reasons, seconds)
        self.last_reloads = (*self.last_reloads, reload)[-SHOWN_RELOADS:]

    # -- looking after what runs

    def states(self, services: tuple[str, ...]) -> States:
        """The servers of these services as the worker has them, by service and address of the server."""
        layout = self.running.layout
        if layout is None:
            return {}
        places = {layout.places[name]: name for name in services if name in layout.places}
        found = self._worker.states(tuple(places))
        return {
            name: {
                state.address: state for state in found.get(place, {}).values() if not state.in_maintenance
            }
            for place, name in places.items()
        }

    def audit(self) -> None:
        """See whether the worker is the one we know, with the servers we know; else have it mended."""
        layout = self.running.layout
        if layout is None:
            return
        try:
            if self._worker.pid() != self.running.worker:
                log.warning("haproxy_reloaded_by_another")
                self.running = Running(why="unknown_state")
                self._on_change()
            else:
                self._straighten()
                self._mend(layout)
        except ApplyError as error:
            log.warning("haproxy_not_audited", error=str(error))

    def _mend(self, layout: Layout) -> None:
        try:
            commands = self._worker.mend(layout)
        except ApplyError:
            self.running = Running(why="unverified")
            self._on_change()
            raise
        if commands:
            log.warning("haproxy_mended", commands=_shown(commands))

    def follow(self) -> None:
        """Let the configuration on disk follow what runs. For any thread."""
        running = self.running
        if self._templates_seen != self._templates_loaded:
            return  # they have not been loaded, and may be broken
        if running.layout is not None and running.model is not None and running.is_complete:
            self._disk.follow(running.model, running.layout, lambda: self.running is running)


def _shown_changes(before: Model | None, after: Model) -> dict[str, str]:
    known = before.backends if before else {}
    return {
        "added": _shown(tuple(name for name in after.backends if name not in known)),
        "removed": _shown(tuple(name for name in known if name not in after.backends)),
        "changed": _shown(
            tuple(name for name, each in after.backends.items() if known.get(name, each) is not each)
        ),
    }


def _shown(names: tuple[str, ...]) -> str:
    shown = ",".join(names[:SHOWN_NAMES])
    return shown + (f",… ({len(names)})" if len(names) > SHOWN_NAMES else "")
