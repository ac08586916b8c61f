"""The proxy role: keeps one HAProxy running as the newest Catalog says."""

import fcntl
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog

from discovery.catalog import Catalog, Problem
from discovery.errors import ApplyError, ConfigError, DiscoveryError
from discovery.haproxy.accept import AcceptRequest, HeldFile
from discovery.haproxy.certificates import Certificate, read_certificates
from discovery.haproxy.controller import Controller
from discovery.haproxy.disk import Disk
from discovery.haproxy.engine import Engine, OldWorker
from discovery.haproxy.external import External
from discovery.haproxy.heldstate import HeldServices
from discovery.haproxy.massloss import MassLoss, MassLossGuard
from discovery.haproxy.model import Model, build
from discovery.haproxy.pace import Pacer
from discovery.haproxy.process import Process
from discovery.haproxy.program import haproxy_version
from discovery.haproxy.report import PROXY, ProxyStatus
from discovery.haproxy.settings import ProxySettings
from discovery.pathwatch import PathWatch
from discovery.retry import Backoff

log = structlog.get_logger(__name__)

LOOK_SECONDS = 0.5
SETTLED_SECONDS = 10.0
"""A HAProxy that ends sooner than this after it was mended fails again and again."""
AUDIT_SECONDS = 30.0
"""How often the whole worker is compared with what it should be."""
OLD_WORKERS_SECONDS = 5.0
"""How often old workers are looked at."""
CERTIFICATES_SECONDS = 3600.0
"""How often certificates are read without being told: time alone makes them expire."""
UNCHECKED = Problem(
    None,
    "health checks",
    "there are too many instances for the files HAProxy may open, so they are not checked; raise LimitNOFILE",
    "reported",
)


class HAProxy:
    """An Applier. First ``start``, then ``apply`` and ``supervise`` in a thread each, at last ``stop``."""

    name = PROXY

    def __init__(self, settings: ProxySettings, on_change: Callable[[], None] = lambda: None) -> None:
        """``on_change`` is called when ``apply`` is to be called again, as when templates changed.

        Raises ConfigError when there is no usable HAProxy.
        """
        self._settings = settings
        program = haproxy_version(settings.haproxy)
        external = settings.mode == "external"
        self._engine: Engine = External(settings, program) if external else Process(settings, program)
        self._disk = Disk(settings, self._engine.check)
        pacer = Pacer(settings.reload_interval_seconds, settings.reload_spread_seconds)
        self._controller = Controller(self._engine, self._disk, pacer, on_change)
        self._on_change = on_change
        self._guard = MassLossGuard(
            settings.mass_loss_window_seconds,
            settings.mass_loss_seconds,
            settings.mass_loss_share,
            epoch_seconds=time.time() - time.monotonic(),
        )
        self._held_file = HeldFile(settings.directory)
        self._held_services = HeldServices(settings.directory)
        self._accept = AcceptRequest(settings.directory)
        self._certificates: Mapping[str, Certificate] = {}
        self._certificate_problems: tuple[Problem, ...] = ()
        self._certificates_read: float | None = None
        watched = [] if settings.certs is None else [settings.certs]
        self._watches = (
            PathWatch(settings.templates[:-1], self._controller.templates_changed),
            PathWatch(watched, self._certificates_changed),
        )
        self._lock = threading.Lock()
        self._directory_lock: int | None = None
        self._stopping = False
        self._model: Model | None = None
        self._wanted: Catalog | None = None
        self._revision: int | None = None
        self._loss: MassLoss | None = None
        self._audited = self._old_workers_seen = time.monotonic()
        self._old_workers: tuple[OldWorker, ...] = ()
        self._trouble: str | None = None

    @property
    def status(self) -> ProxyStatus:
        """What it is doing now. For any thread."""
        pid, controller = self._engine.pid, self._controller
        return ProxyStatus(
            pid is not None,
            pid,
            self._engine.version or "",
            self._revision,
            dict(controller.reloads),
            controller.reload_seconds,
            tuple(controller.last_reloads),
            controller.changes,
            controller.waiting,
            self._old_workers,
            self._loss,
            controller.certificates,
        )

    # -- beginning and end

    def start(self) -> None:
        """Take over the HAProxy that runs, or start it on the last good configuration, if there is one.

        A last good configuration that cannot be started is logged, and tried again by ``supervise``. Raises
        ConfigError when the state directory cannot be used or belongs to another agent.
        """
        self._take_directory()
        with self._lock:
            self._resume_held()
            if not self._controller.adopt() and self._disk.has_good:
                try:
                    self._controller.start_last_good("start")
                except ApplyError as error:
                    self._log_trouble(error)
        for watch in self._watches:
            watch.start()

    def stop(self, *, leave_running: bool = False) -> None:
        """End HAProxy cleanly, in bounded time; or leave it to the next agent."""
        with self._lock:
            self._stopping = True
        self._controller.follow()
        with self._lock:
            if leave_running:
                self._engine.release()
            else:
                self._engine.stop()
        for watch in self._watches:
            watch.stop()
        if self._directory_lock is not None:
            os.close(self._directory_lock)
            self._directory_lock = None

    def _take_directory(self) -> None:
        directory = self._settings.directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
            self._directory_lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._directory_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            mend = "stop it, or give this one another --state"
            raise ConfigError("state_dir", f"another agent runs HAProxy in {directory}", mend) from None
        except OSError as error:
            reason = f"{directory} cannot be used: {error.strerror}"
            raise ConfigError("state_dir", reason, "name a directory that can be written") from error

    # -- following the catalog

    def apply(self, catalog: Catalog) -> tuple[Problem, ...]:
        """Make HAProxy run as the catalog says; what of it could not be, such as a port already in use.

        Raises Postponed when a part of it waits for a reload whose time has not come; RenderError or
        ApplyError when HAProxy could not be made to: what could not be changed runs as it did before.
        """
        with self._lock:
            if self._stopping:
                raise ApplyError("the proxy is stopping")
            self._wanted = catalog
            return self._apply(catalog)

    def _apply(self, catalog: Catalog) -> tuple[Problem, ...]:
        believed = self._guard.admit(catalog, time.monotonic())
        self._tell_held()
        self._model = build(believed, self._settings, self._model)
        applied = self._controller.bring(replace(self._model, certificates=self._current_certificates()))
        self._revision = catalog.revision
        self._trouble = None
        problems = [*applied.problems, *self._certificate_problems]
        if self._disk.checks(applied, self._controller.running.layout) is None:
            problems.append(UNCHECKED)
        if (loss := self._guard.problem()) is not None:
            problems.append(loss)
        return tuple(problems)

    # -- certificates

    def _current_certificates(self) -> Mapping[str, Certificate]:
        """The certificates to serve; read again when they may have changed."""
        path, now = self._settings.certs, time.monotonic()
        if path is None or not self._settings.https:
            return {}
        if self._certificates_read is None or now - self._certificates_read > CERTIFICATES_SECONDS:
            self._certificates_read = now
            read = read_certificates(path, time.time(), self._certificates)
            self._certificates, self._certificate_problems = read.usable, read.problems
        return self._certificates

    def _certificates_changed(self) -> None:
        self._certificates_read = None
        self._on_change()

    # -- keeping it alive

    def supervise(self, stop: threading.Event) -> None:
        """Look after HAProxy until ``stop``: when it ended, start it at once, then with growing waits."""
        backoff = Backoff(first_seconds=0.5, most_seconds=30)
        mended: float | None = None
        while not stop.is_set():
            if not self._engine.wait_for_end(LOOK_SECONDS):
                self._look_after()
            elif not self._should_run:
                stop.wait(LOOK_SECONDS)
            else:
                if mended is not None and time.monotonic() - mended < SETTLED_SECONDS:
                    stop.wait(backoff.next_seconds())
                else:
                    backoff.reset()
                self._mend()
                mended = time.monotonic()

    def _look_after(self) -> None:
        """What is to be done now and then while it runs."""
        self._engine.trim_log()
        self._controller.follow()
        now = time.monotonic()
        due = self._controller.due
        if due is not None and now >= due:
            self._on_change()
        with self._lock:
            self._watch_held(now)
        if now - self._audited >= AUDIT_SECONDS:
            self._audited = now
            with self._lock:
                if not self._stopping:
                    self._controller.audit()
        if now - self._old_workers_seen >= OLD_WORKERS_SECONDS:
            self._old_workers_seen = now
            try:
                self._old_workers = self._engine.old_workers()
            except ApplyError as error:
                log.debug("haproxy_old_workers_unknown", error=str(error))

    def _watch_held(self, now: float) -> None:
        """Let go of what is held when a person says so, when checks find it dead, or when its time is up."""
        if self._accept.take():
            log.warning("mass_loss_accepted", instances=len(self._guard.held))
            self._guard.accept()
            self._on_change()
        if not self._guard.held:
            return
        try:
            states = self._controller.states(tuple({name for name, _ in self._guard.held}))
        except ApplyError as error:
            log.warning("held_instances_not_looked_at", error=str(error))
            return
        found = {
            (name, id_): state
            for (name, id_), each in self._guard.held.items()
            if (state := states.get(name, {}).get(each.instance.address)) is not None
        }
        dead = [key for key, state in found.items() if state.is_checked and not state.is_up]
        self._guard.failed(dead)
        self._guard.unchecked([key for key, state in found.items() if not state.is_checked])
        due = self._guard.due(now)
        if dead or due == 0:
            self._on_change()

    def _tell_held(self) -> None:
        loss = self._guard.loss
        if loss is None:
            self._held_file.clear()
        else:
            if loss != self._loss:
                # First: a next agent that finds the other file finds this one too.
                self._held_services.save(self._guard.held)
            self._held_file.write(loss)
        self._loss = loss

    def _resume_held(self) -> None:
        """Go on holding what a former agent held, as it was told."""
        try:
            loss = self._held_file.read()
        except ApplyError as error:
            log.warning("held_instances_forgotten", error=str(error))
            loss = None
        if loss is None:
            self._held_file.clear()
            return
        self._guard.resume(self._held_services.load(), loss, time.monotonic())
        self._loss = self._guard.loss
        log.warning("mass_loss_resumed", instances=len(self._guard.held))

    @property
    def _should_run(self) -> bool:
        return not self._stopping and self._disk.has_good

    def _mend(self) -> None:
        """Start HAProxy as it ran last; if that cannot be, as the newest catalog wants it."""
        with self._lock:
            if not self._should_run or self._engine.pid is not None:
                return
            if self._trouble is None:
                log.error("haproxy_ended", log=str(self._settings.log_file))
            try:
                try:
                    self._controller.start_last_good("ended")
                    self._trouble = None
                except ApplyError:
                    # Perhaps another program took a port meanwhile; that service is then left out.
                    if self._wanted is None:
                        raise
                    self._apply(self._wanted)
            except DiscoveryError as error:
                self._log_trouble(error)

    def _log_trouble(self, error: DiscoveryError) -> None:
        if self._trouble != str(error):
            log.error("haproxy_not_started", error=str(error))
        self._trouble = str(error)
