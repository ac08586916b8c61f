"""Hundreds of HTTP clients in a process of their own, written in C: they leave the CPU to what is measured.

``wrk`` counts errors without saying which, and takes any answer for a good one.
"""

import json
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.lab.need import need

PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Target:
    """A request, and how the body of its answer must begin.

    For an ``optional`` one 404 will do, and 503: a store may show a service before its instances.
    """

    host: str
    path: str
    expected: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Account:
    """What became of the requests. ``last`` is when, in time.monotonic(), the last one was sent that each
    address answered; ``failures`` are counted by kind, the first few told in ``first_failures``. ``absent``
    are the answers 404 and 503 among those of optional targets."""

    keep_alive: int
    closing: int
    absent: int
    connections: int
    idle_closes: int
    seconds: float
    p50_ms: float
    p99_ms: float
    longest_ms: float
    failures: Mapping[str, int]
    first_failures: Sequence[str]
    last: Mapping[str, float]

    @property
    def answered(self) -> int:
        """Requests that got the right answer."""
        return self.keep_alive + self.closing

    @property
    def failed(self) -> int:
        """Requests that did not."""
        return sum(self.failures.values())


def build(directory: Path) -> Path:
    """The program, made in ``directory``."""
    program = directory / "http_load"
    source = Path(__file__).with_name("http_load.c")
    flags = ["-O2", "-D_GNU_SOURCE", "-o", str(program), str(source)]
    subprocess.run([need("gcc"), *flags], check=True, timeout=60)
    return program


class HttpLoad:
    """Clients that ask as fast as ``pause_seconds`` lets them while the block runs; then ``account``."""

    def __init__(
        self,
        program: Path,
        port: int,
        targets: Sequence[Target],
        *,
        keep_alive: int,
        closing: int,
        pause_seconds: float,
        most_seconds: float,
    ) -> None:
        self.account: Account | None = None
        self._arguments = [program, port, keep_alive, closing, pause_seconds * 1e6, most_seconds]
        self._targets = "".join(
            f"{each.host} {each.path} {each.expected} {each.optional:d}\n" for each in targets
        )

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [str(argument) for argument in self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin
        self._process.stdin.write(self._targets)
        self._process.stdin.close()
        self._process.stdin = None
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind:
            self._process.kill()
            self._process.communicate(timeout=PATIENCE_SECONDS)
        elif self.account is None:
            self.end()

    def end(self) -> Account:
        """No more requests; those under way are waited for. What became of all."""
        self._process.send_signal(signal.SIGTERM)
        printed, _ignored = self._process.communicate(timeout=PATIENCE_SECONDS)
        assert self._process.returncode == 0, self._process.returncode
        self.account = Account(**json.loads(printed))
        return self.account
