"""The proxy role: keeps one HAProxy running as the newest Catalog says."""

import fcntl
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field

import structlog

from discovery import files
from discovery.catalog import Catalog, Problem, diff
from discovery.errors import ApplyError, ConfigError, DiscoveryError
from discovery.haproxy import ports
from discovery.haproxy.generations import Generations
from discovery.haproxy.model import Model, build
from discovery.haproxy.process import Process, ReloadFailed
from discovery.haproxy.program import check, haproxy_version, inspect_machine
from discovery.haproxy.render import CONFIG, Renderer, binds_of, front_binds
from discovery.haproxy.runtime import NO_STATE, keep_state
from discovery.haproxy.settings import ProxySettings, join_address
from discovery.pathwatch import PathWatch
from discovery.retry import Backoff
from discovery.templating import Templates

log = structlog.get_logger(__name__)

LOOK_SECONDS = 0.5
SETTLED_SECONDS = 10.0
"""A HAProxy that ends sooner than this after it was mended fails again and again."""
SHOWN_NAMES = 10
UNCHECKED = Problem(
    None,
    "health checks",
    "there are too many instances for the files HAProxy may open, so they are not checked; raise LimitNOFILE",
    "reported",
)


@dataclass(frozen=True, slots=True)
class ProxyStatus:
    """What the proxy role is doing. ``revision`` is the one confirmed running, None before the first.

    ``reloads`` counts, by reason, how often HAProxy was started or reloaded since this agent began.
    """

    running: bool
    pid: int | None
    version: str
    revision: int | None = None
    reloads: Mapping[str, int] = field(default_factory=dict)
    last_reload_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class _Running:
    """What HAProxy is known to run. ``certain`` is False when it may be something else by now.

    ``binds`` are the addresses it may be listening on; ``catalog`` is None when another agent made it.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    binds: frozenset[tuple[str, int]] = frozenset()
    catalog: Catalog | None = None
    certain: bool = False


class HAProxy:
    """An Applier. First ``start``, then ``apply`` and ``supervise`` in a thread each, at last ``stop``."""

    name = "haproxy"

    def __init__(self, settings: ProxySettings, on_change: Callable[[], None] = lambda: None) -> None:
        """``on_change`` is called when templates changed, so that ``apply`` is to be called again.

        Raises ConfigError when there is no usable HAProxy.
        """
        self._settings = settings
        self._program = haproxy_version(settings.haproxy)
        self._renderer = Renderer(settings, inspect_machine(settings), Templates(*settings.templates))
        self._generations = Generations(settings.directory)
        self._process = Process(settings, self._program)
        self._on_change = on_change
        self._watch = PathWatch(settings.templates[:-1], self._templates_changed)
        self._templates_are_stale = threading.Event()
        self._lock = threading.Lock()
        self._directory_lock: int | None = None
        self._stopping = False
        self._running = _Running()
        self._model: Model | None = None
        self._wanted: Catalog | None = None
        self._trouble: str | None = None
        self._reloads: Counter[str] = Counter()
        self._last_reload_seconds: float | None = None

    @property
    def status(self) -> ProxyStatus:
        """What it is doing now. For any thread."""
        pid, catalog = self._process.pid, self._running.catalog
        revision = catalog.revision if catalog else None
        reloads = dict(self._reloads)
        return ProxyStatus(
            pid is not None, pid, self._program.version, revision, reloads, self._last_reload_seconds
        )

    # -- beginning and end

    def start(self) -> None:
        """Take over the HAProxy that runs, or start it on the last good configuration, if there is one.

        A last good configuration that cannot be started is logged, and tried again by ``supervise``. Raises
        ConfigError when the state directory cannot be used or belongs to another agent.
        """
        self._take_directory()
        with self._lock:
            current, good = self._generations.current(), self._generations.good()
            has_good = self._generations.roll_back()
            if self._process.adopt():
                # An agent that was killed in the middle of a change leaves it open which one runs.
                self._running = _Running(good, binds_of(current) | binds_of(good), certain=current == good)
            elif has_good:
                try:
                    self._start_last_good("start")
                except ApplyError as error:
                    self._log_trouble(error)
        self._watch.start()

    def stop(self, *, leave_running: bool = False) -> None:
        """End HAProxy cleanly, in bounded time; or leave it to the next agent."""
        with self._lock:
            self._stopping = True
            if leave_running:
                self._process.release()
            else:
                self._process.stop()
        self._watch.stop()
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

        Raises RenderError or ApplyError when it could not be made to; it runs as it did before.
        """
        with self._lock:
            if self._stopping:
                raise ApplyError("the proxy is stopping")
            self._wanted = catalog
            return self._apply(catalog)

    def _apply(self, catalog: Catalog) -> tuple[Problem, ...]:
        templates_changed = self._templates_are_stale.is_set()
        if templates_changed:
            self._templates_are_stale.clear()
            self._renderer.clear()
        alive = self._process.pid is not None
        if not alive:
            # What is left of one that ended may still hold the ports that are tested now.
            self._process.clear()
        self._model = build(catalog, self._settings, self._model)
        # By port alone, so that HAProxy may go from * to one address of the host.
        held = {port for _, port in self._running.binds} if alive else set()
        model = self._model.without(_taken_ports(self._model, held))
        texts = self._renderer.render(model)
        self._refuse_taken_ports(binds_of(texts), held)
        if not (alive and self._running.certain and texts == self._running.files):
            reason = self._reason(catalog, texts) if alive else "start"
            self._bring_up(catalog, model, texts, reason)
        self._running = _Running(texts, binds_of(texts), catalog, certain=True)
        self._trouble = None
        return model.problems if self._renderer.has_checks(model) else (*model.problems, UNCHECKED)

    def _refuse_taken_ports(self, binds: Iterable[tuple[str, int]], held: Set[int]) -> None:
        """Raise ApplyError if one cannot be listened on: the check would pass, the reload stop all others."""
        fronts = {bind: setting for (setting, _), bind in front_binds(self._settings).items()}
        for bind in sorted(binds):
            if bind[1] not in held and (reason := ports.why_not(*bind)):
                where = fronts.get(bind, CONFIG)
                raise ApplyError(
                    f"{where}: {join_address(*bind)} {reason} (free it, or name another address)"
                )

    def _reason(self, catalog: Catalog, texts: Mapping[str, str]) -> str:
        """Why HAProxy, which runs, has to be reloaded: one of a few words, to be counted."""
        was = self._running.catalog
        if not self._running.certain:
            return "unknown_state"
        if was is None:
            return "adopted"
        if diff(was, catalog):
            return "services"
        return "ports" if binds_of(texts) != self._running.binds else "templates"

    def _bring_up(self, catalog: Catalog, model: Model, texts: Mapping[str, str], reason: str) -> None:
        """Check the new configuration, swap it in, have HAProxy run it; else back to the last good one."""
        began = time.monotonic()
        candidate = self._generations.stage(texts)
        check(self._program, candidate / CONFIG, self._settings.check_timeout_seconds)
        self._generations.promote()
        try:
            if reason == "start":
                self._save_state(NO_STATE)
                self._process.start()
            else:
                self._save_state(self._former_state(model))
                self._process.reload()
        except ApplyError as error:
            self._generations.roll_back()
            if not isinstance(error, ReloadFailed):
                either = self._running.binds | binds_of(texts)
                self._running = _Running(self._running.files, either, self._running.catalog, certain=False)
            raise
        try:
            self._generations.confirm()
        except ApplyError as error:
            # It runs all the same; only an agent started after this one would begin with an older one.
            log.warning("haproxy_generation_not_kept", error=str(error))
        self._count(reason, time.monotonic() - began)
        changes = diff(self._running.catalog or Catalog(), catalog)
        log.info(
            "haproxy_reloaded",
            reason=reason,
            revision=catalog.revision,
            seconds=round(time.monotonic() - began, 3),
            added=_shown(changes.added),
            removed=_shown(changes.removed),
            changed=_shown(changes.changed),
        )

    def _former_state(self, model: Model) -> str:
        try:
            return keep_state(self._process.server_state(), model)
        except ApplyError as error:
            log.warning("haproxy_server_state_lost", error=str(error))
            return NO_STATE

    def _save_state(self, text: str) -> None:
        files.replace(self._settings.server_state, text, mode=0o600)

    def _templates_changed(self) -> None:
        self._templates_are_stale.set()
        self._on_change()

    # -- keeping it alive

    def supervise(self, stop: threading.Event) -> None:
        """Start HAProxy again whenever it ended, until ``stop``: at once, then with growing waits."""
        backoff = Backoff(first_seconds=0.5, most_seconds=30)
        mended: float | None = None
        while not stop.is_set():
            if not self._process.wait_for_end(LOOK_SECONDS):
                self._process.trim_log()
            elif not self._should_run:
                stop.wait(LOOK_SECONDS)
            else:
                if mended is not None and time.monotonic() - mended < SETTLED_SECONDS:
                    stop.wait(backoff.next_seconds())
                else:
                    backoff.reset()
                self._mend()
                mended = time.monotonic()

    @property
    def _should_run(self) -> bool:
        return not self._stopping and self._generations.has_good

    def _mend(self) -> None:
        """Start HAProxy as it ran last; if that cannot be, as the newest catalog wants it."""
        with self._lock:
            if not self._should_run or self._process.pid is not None:
                return
            if self._trouble is None:
                log.error("haproxy_ended", log=str(self._settings.log_file))
            try:
                try:
                    self._start_last_good("ended")
                except ApplyError:
                    # Perhaps another program took a port meanwhile; that service is then left out.
                    if self._wanted is None:
                        raise
                    self._apply(self._wanted)
            except DiscoveryError as error:
                self._log_trouble(error)

    def _start_last_good(self, reason: str) -> None:
        began = time.monotonic()
        if not self._generations.roll_back():
            raise ApplyError("there is no good configuration to start HAProxy with")
        try:
            self._save_state(NO_STATE)
        except ApplyError as error:
            # A full disk must not keep the edge down; HAProxy starts with what state there is, or none.
            log.warning("haproxy_server_state_lost", error=str(error))
        self._process.start()
        texts = self._generations.good()
        catalog = self._running.catalog if texts == self._running.files else None
        self._running = _Running(texts, binds_of(texts), catalog, certain=True)
        self._trouble = None
        self._count(reason, time.monotonic() - began)

    def _log_trouble(self, error: DiscoveryError) -> None:
        if self._trouble != str(error):
            log.error("haproxy_not_started", error=str(error))
        self._trouble = str(error)

    def _count(self, reason: str, seconds: float) -> None:
        self._reloads[reason] += 1
        self._last_reload_seconds = seconds


def _taken_ports(model: Model, held: Set[int]) -> dict[int, str]:
    """Ports of services that cannot be listened on, with the reason; those ``held`` already are ours."""
    return {
        each.port: reason
        for each in model.listeners
        if each.port not in held and (reason := ports.why_not(each.host, each.port))
    }


def _shown(names: tuple[str, ...]) -> str:
    shown = ",".join(names[:SHOWN_NAMES])
    return shown + (f",… ({len(names)})" if len(names) > SHOWN_NAMES else "")
