"""The engines that the contract suite runs over: one class each, and its line in ENGINES.

An engine opens any number of Stores on the same data, each as another process would see it, and does what
an operator would do behind the stores' backs. What an engine has no counterpart for is skipped with the
reason.
"""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from discovery.stores import open_store
from discovery.stores.base import Store
from tests.lab.etcd import Etcd

T = TypeVar("T")


class Lab:
    """What the tests of one run share, such as a server: made once each, ended with the run."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self._directory = directory
        self._stack = stack
        self._shared: dict[str, object] = {}

    def shared(self, name: str, make: Callable[[Path], contextlib.AbstractContextManager[T]]) -> T:
        """``make(directory)`` entered at the first call for ``name``; the same thing ever after."""
        if name not in self._shared:
            directory = self._directory / name
            directory.mkdir()
            self._shared[name] = self._stack.enter_context(make(directory))
        return self._shared[name]  # type: ignore[return-value]

    def fresh(self, prefix: str) -> Path:
        """An empty directory for one test."""
        directory = self._directory / prefix.strip("/")
        directory.mkdir()
        return directory


class Engine:
    """One engine as one test sees it. All keys of the test are below ``prefix``, which ends in ``/``."""

    ttl_seconds = 1.0
    """A short TTL that the engine keeps as it is."""

    def __init__(self, lab: Lab, prefix: str) -> None:
        self.lab = lab
        self.prefix = prefix

    def open(self) -> Store:
        """A new Store on the engine's data; the caller closes it."""
        raise NotImplementedError

    def remove_directory(self, key: str) -> None:
        """Remove ``key`` and all below it at once, as an operator would."""
        pytest.skip("has no directories")

    def put_bytes(self, key: str, value: bytes) -> None:
        """Write any bytes, as an operator would."""
        pytest.skip("holds text only")


class MemoryEngine(Engine):
    def open(self) -> Store:
        return open_store(f"memory:{self.prefix.strip('/')}")


class FileEngine(Engine):
    def __init__(self, lab: Lab, prefix: str) -> None:
        super().__init__(lab, prefix)
        self.directory = lab.fresh(prefix)

    def open(self) -> Store:
        return open_store(f"file://{self.directory}")

    def remove_directory(self, key: str) -> None:
        shutil.rmtree(f"{self.directory}{key.rstrip('/')}")

    def put_bytes(self, key: str, value: bytes) -> None:
        path = Path(f"{self.directory}{key}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value)


class Etcd2Engine(Engine):
    def __init__(self, lab: Lab, prefix: str) -> None:
        super().__init__(lab, prefix)
        self.etcd = lab.shared("etcd2", Etcd)

    def open(self) -> Store:
        return open_store(self.etcd.url(2))

    def remove_directory(self, key: str) -> None:
        self.etcd.ctl(2, "rm", "--recursive", key)

    def put_bytes(self, key: str, value: bytes) -> None:
        pytest.skip("etcd v2 itself makes U+FFFD of bytes that are no text")


class Etcd3Engine(Engine):
    ttl_seconds = 2.0
    """etcd's least, with its default election time-out."""

    def __init__(self, lab: Lab, prefix: str) -> None:
        super().__init__(lab, prefix)
        self.etcd = lab.shared("etcd3", Etcd)

    def open(self) -> Store:
        return open_store(self.etcd.url(3))

    def remove_directory(self, key: str) -> None:
        self.etcd.ctl(3, "del", "--prefix", f"{key.rstrip('/')}/")

    def put_bytes(self, key: str, value: bytes) -> None:
        self.etcd.ctl(3, "put", key, value.decode(errors="surrogateescape"))


ENGINES: dict[str, Callable[[Lab, str], Engine]] = {
    "memory": MemoryEngine,
    "file": FileEngine,
    "etcd2": Etcd2Engine,
    "etcd3": Etcd3Engine,
}
