"""Active checks: many at once in one thread, each with its own rhythm, none in the way of another.

Network checks are an event loop's work, for a thread each would be a thousand threads on a large node, and in
a small pool a few servers that hang would hold up everyone's. Commands take a few quick calls of the engine,
made by a small pool; no thread waits while a command runs.
"""

import asyncio
import contextlib
import os
import random
import threading
from collections.abc import Callable, Coroutine, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import structlog

from discovery.errors import SourceError
from discovery.schema import printable
from discovery.sources.checks import DEFAULT_FALL, DEFAULT_RISE, Check

log = structlog.get_logger(__name__)

MOST_AT_ONCE = 256
"""Connections at one time: well below the descriptors that a process may have by default."""

ENGINE_THREADS = 4
COMMAND_POLL_SECONDS = 0.1
CLOSED_SECONDS = 0.2
"""How soon docker-proxy closes a connection that it accepted for a server that does not listen."""

T = TypeVar("T")


class Commands(Protocol):
    """Runs commands in containers; each method is a short call that raises SourceError."""

    def start_command(self, container_id: str, command: tuple[str, ...]) -> str:
        """Start it, and return what it is asked for by."""
        ...

    def exit_status(self, command_id: str) -> int | None:
        """Its exit status, None while it runs."""
        ...


class Health:
    """Up after ``rise`` good checks in a row, at first after one; down after ``fall`` bad ones. Pure."""

    def __init__(self, rise: int = DEFAULT_RISE, fall: int = DEFAULT_FALL) -> None:
        self.up = False
        self._rise = rise
        self._fall = fall
        self._needed = 1
        self._row = 0

    def observe(self, good: bool) -> None:
        """Take one result into account."""
        self._row = self._row + 1 if good != self.up else 0
        if self._row >= self._needed:
            self.up = good
            self._needed = self._fall if good else self._rise
            self._row = 0


class _Target:
    """One check that goes on, and what came of it so far."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self.health = Health(check.rise, check.fall)
        self.reason: str | None = "it is not checked yet"
        self.checked = False
        self.task: asyncio.Task[None] | None = None
        self.running: str | None = None
        """A command that did not end in its time; the next is not started before it has."""


class _Bad(Exception):
    """What a check found; ``str()`` is the reason."""


class Checker:
    """Checks what it is told to ``watch``, in a thread of its own, until it is closed; any thread may ask.

    ``wake`` is called, from that thread, when something went up or down, and when all have a first result.
    Without ``commands`` a check by command is never good.
    """

    def __init__(self, wake: Callable[[], None], commands: Commands | None = None) -> None:
        self._wake = wake
        self._commands = commands
        self._targets: dict[Hashable, _Target] = {}
        self._loop = asyncio.new_event_loop()
        self._slots = asyncio.Semaphore(MOST_AT_ONCE)
        self._pool = ThreadPoolExecutor(ENGINE_THREADS, thread_name_prefix="check-command")
        self._failure: BaseException | None = None
        self._closed = False
        self._settled = threading.Event()
        self._settled.set()
        self._thread = threading.Thread(target=self._run, name="checks", daemon=True)
        self._thread.start()

    def watch(self, checks: Mapping[Hashable, Check]) -> None:
        """Check these from now on, and nothing else. What is checked already under its key goes on.

        Raises what ended a check by a bug, for that is not to be taken for a verdict.
        """
        if self._failure is not None:
            raise self._failure
        if self._closed:
            return
        gone = [target for key, target in self._targets.items() if checks.get(key) != target.check]
        kept = {key: target for key, target in self._targets.items() if checks.get(key) == target.check}
        new = {key: _Target(check) for key, check in checks.items() if key not in kept}
        if not gone and not new:
            return
        self._targets = {**kept, **new}
        if new:
            self._settled.clear()
        # A source may be closed under a look: then the loop has ended.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._adopt, gone, list(new.values()))

    def up(self, key: Hashable) -> bool:
        """Whether it serves, by its checks so far."""
        target = self._targets.get(key)
        return target is not None and target.health.up

    def reason(self, key: Hashable) -> str | None:
        """Why the last check was not good; None when it was."""
        target = self._targets.get(key)
        return target.reason if target is not None else "it is not checked"

    def wait_settled(self, timeout_seconds: float) -> bool:
        """Whether, after that time at most, everything that is watched has been checked once."""
        return self._settled.wait(timeout_seconds)

    def close(self) -> None:
        """End all checks and the thread."""
        self._closed = True
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=5)
        self._pool.shutdown(wait=False, cancel_futures=True)

    # -- in the thread

    def _run(self) -> None:
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._cancel_all())
        finally:
            self._loop.close()

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _adopt(self, gone: list[_Target], new: list[_Target]) -> None:
        for target in gone:
            target.checked = True
            if target.task is not None:
                target.task.cancel()
        for target in new:
            if not target.checked:
                target.task = self._loop.create_task(self._follow(target))
                target.task.add_done_callback(self._note_failure)
        self._note_settled()

    def _note_failure(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failure = failure
            self._wake()

    async def _follow(self, target: _Target) -> None:
        check = target.check
        while True:
            try:
                await self._once(target)
                reason = None
            except _Bad as bad:
                reason = str(bad)
            except SourceError as error:
                # Nothing is known of the container then.
                log.debug("check_not_done", container=check.container_id, reason=str(error))
                await asyncio.sleep(check.interval_seconds)
                continue
            self._observe(target, reason)
            # Not all in step, though a node starts them all at once.
            await asyncio.sleep(check.interval_seconds * random.uniform(0.9, 1.1))

    def _observe(self, target: _Target, reason: str | None) -> None:
        was = target.health.up
        first, target.checked = not target.checked, True
        target.reason = reason
        target.health.observe(reason is None)
        if target.health.up != was:
            check = target.check
            log.info("check_changed", address=_address(check), up=target.health.up, reason=reason)
            self._wake()
        if first:
            self._note_settled()

    def _note_settled(self) -> None:
        if not self._settled.is_set() and all(target.checked for target in self._targets.values()):
            self._settled.set()
            self._wake()

    # -- one check

    async def _once(self, target: _Target) -> None:
        """Return when it is good; _Bad otherwise."""
        check = target.check
        if check.kind == "command":
            await self._command(target)
            return
        async with self._slots:
            try:
                # Of the whole check: a server that sends a byte now and then must not stretch it.
                async with asyncio.timeout(check.timeout_seconds):
                    await _look(check)
            except TimeoutError:
                raise _Bad(f"no answer within {check.timeout_seconds:g} s") from None

    async def _command(self, target: _Target) -> None:
        check, commands = target.check, self._commands
        if commands is None:
            raise _Bad("checks by command are not allowed (registrator.allow_exec_checks)")
        if target.running is not None:
            if await self._call(commands.exit_status, target.running) is None:
                raise _Bad("the command of an earlier check still runs")
            target.running = None
        started = await self._call(commands.start_command, check.container_id, check.command)
        deadline = self._loop.time() + check.timeout_seconds
        while (status := await self._call(commands.exit_status, started)) is None:
            if self._loop.time() >= deadline:
                target.running = started
                raise _Bad(f"the command does not end within {check.timeout_seconds:g} s")
            await asyncio.sleep(COMMAND_POLL_SECONDS)
        if status != 0:
            raise _Bad(f"the command ends with status {status}")

    def _call(self, function: Callable[..., T], *arguments: object) -> Coroutine[Any, Any, T]:
        async def call() -> T:
            return await self._loop.run_in_executor(self._pool, function, *arguments)

        return call()


async def _look(check: Check) -> None:
    reader, writer, proxied = await _connect(check)
    try:
        if check.kind == "http":
            await _get(check, reader, writer)
        elif proxied and await _is_closed(reader):
            raise _Bad("the connection is closed at once")
    except OSError as error:
        raise _Bad(f"no answer: {_reason(error)}") from error
    finally:
        writer.transport.abort()


async def _connect(check: Check) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bool]:
    """A connection to the container's own address, else to the registered one; whether docker-proxy's."""
    own, registered = (check.own_host, check.own_port), (check.host, check.port)
    if check.own_host is not None and check.own_port is not None and own != registered:
        try:
            async with asyncio.timeout(check.timeout_seconds / 2):
                return *(await asyncio.open_connection(check.own_host, check.own_port)), False
        except ConnectionRefusedError as error:
            raise _Bad(f"no connection: {_reason(error)}") from error
        except (OSError, TimeoutError):
            # Other networks of the engine cannot be reached from inside a container, for one.
            pass
    try:
        return *(await asyncio.open_connection(check.host, check.port)), bool(check.container_id)
    except OSError as error:
        raise _Bad(f"no connection: {_reason(error)}") from error


async def _is_closed(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(CLOSED_SECONDS):
            return await reader.read(1) == b""
    except TimeoutError:
        return False


async def _get(check: Check, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A GET that must be answered by 2xx or 3xx."""
    writer.write(
        f"GET {check.path} HTTP/1.1\r\nHost: {_address(check)}\r\n"
        "User-Agent: discovery-check\r\nAccept: */*\r\nConnection: close\r\n\r\n".encode()
    )
    try:
        line = await reader.readline()
    except ValueError as error:
        raise _Bad("the answer's first line has no end") from error
    words = line.decode("latin-1").split(None, 2)
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdecimal():
        raise _Bad(f"no answer of HTTP: {printable(line.decode('latin-1').strip())!r}")
    if not 200 <= int(words[1]) < 400:
        raise _Bad(f"GET {printable(check.path)} says {words[1]}")


def _reason(error: OSError) -> str:
    # The event loop's own text is of its calls.
    return os.strerror(error.errno) if error.errno else str(error)


def _address(check: Check) -> str:
    return f"[{check.host}]:{check.port}" if ":" in check.host else f"{check.host}:{check.port}"
