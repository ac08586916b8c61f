"""What the proxy role needs of a HAProxy, whoever runs it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class OldWorker:
    """A worker that takes no new connections, and what keeps it: connections left by backend, most first.

    ``connections`` is None when it cannot be asked.
    """

    pid: int
    connections: int | None = None
    backends: tuple[tuple[str, int], ...] = ()


class Engine(Protocol):
    """One HAProxy on the configuration at ``settings.config``. What fails raises ApplyError.

    Only ``pid``, ``wait_for_end`` and ``old_workers`` are for other threads than the one that commands.
    """

    @property
    def pid(self) -> int | None:
        """A process that is there as long as this HAProxy is; None when there is none."""
        ...

    @property
    def version(self) -> str | None:
        """HAProxy's version, None when that is not known."""
        ...

    def check(self, config: Path) -> None:
        """Have a configuration checked. Raises ConfigRefused, ApplyError when it cannot be."""
        ...

    def adopt(self) -> bool:
        """Take over one that runs already; False if there is none fit for it."""
        ...

    def start(self) -> None:
        """Have it run on the current configuration, and return when it serves."""
        ...

    def reload(self) -> None:
        """Have a new worker load the current configuration; return when it alone takes connections.

        Raises ReloadFailed when the former worker goes on as before, any other ApplyError when that is not
        known.
        """
        ...

    def ask(self, command: str) -> str:
        """The newest worker's answer to one line of runtime commands."""
        ...

    def old_workers(self) -> tuple[OldWorker, ...]:
        """The workers that were replaced, and are not gone yet."""
        ...

    def wait_for_end(self, timeout_seconds: float) -> bool:
        """Whether it ended within this time."""
        ...

    def stop(self) -> None:
        """End it, in bounded time, where that is ours to do."""
        ...

    def clear(self) -> None:
        """Leave nothing of one that ended."""
        ...

    def release(self) -> None:
        """Let go of it; it goes on."""
        ...

    def trim_log(self) -> None:
        """Keep what it logs for us within bounds."""
        ...
