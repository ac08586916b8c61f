"""``file:///DIR`` — the embedded store: a plain tree of files, for one machine.

``echo 127.0.0.1:8000 > DIR/services/web/hosts/0`` is a registration and ``rm`` ends it; any number of
processes may share the directory. See file_tree.py for what is in it, file_lease.py for how keys expire.

Writing a key's file anew, by whatever means, takes it over from the session that owned it. An entry's
``created`` is its file's mtime, which our own writes carry on, and anyone else's set anew.
"""

import contextlib
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import structlog

from discovery.errors import ConfigError, SessionLost, StoreError, StoreUnavailable
from discovery.stores import StoreOptions
from discovery.stores.base import Changes, Session, Snapshot
from discovery.stores.file_lease import BootClock, Lease, boot_clock, encode
from discovery.stores.file_mirror import Mirror, read_lease
from discovery.stores.file_tree import Identity, Tree, translated
from discovery.stores.file_watch import TreeWatch

log = structlog.get_logger(__name__)


def open_url(url: str, options: StoreOptions) -> "FileStore":
    """The store in the directory that ``file:///DIR`` names, percent-decoded."""
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc or parts.query or parts.fragment or not path.strip("/").strip() or "\0" in path:
        raise ConfigError("store.url", f"{url!r} names no directory", "use file:///DIR, an absolute path")
    if not path.startswith("/"):
        raise ConfigError("store.url", f"{url!r} is relative", f"use file://{Path(path).absolute()}")
    return FileStore(Path("/" + path.strip("/")), timeout_seconds=options.timeout_seconds)


class FileStore:
    """A store in ``directory``, which is made at first use; see ``base.Store``.

    ``timeout_seconds`` bounds the wait for another process that is writing.
    """

    def __init__(
        self, directory: Path, *, timeout_seconds: float = 5.0, clock: BootClock | None = None
    ) -> None:
        self.url = f"file://{directory}"
        self._tree = Tree(directory, timeout_seconds)
        self._clock = clock
        self._opening = threading.Lock()
        self._opened: tuple[Mirror, TreeWatch] | None = None
        self._closed = False
        self._expiry_failed: str | None = None

    def snapshot(self, prefix: str) -> Snapshot:
        """See ``base.Store``."""
        mirror, _, fresh = self._open()
        snapshot = mirror.snapshot(prefix, look=not fresh)
        self._remove_expired(mirror)
        return snapshot

    def watch(
        self,
        prefix: str,
        revision: int,
        patience_seconds: float | None = None,  # noqa: ARG002 - its watch asks nothing besides
    ) -> Iterator[Changes]:
        """See ``base.Store``. A thread and inotify are held while anyone watches."""
        mirror, tree_watch, _ = self._open()
        return self._follow(mirror, tree_watch, prefix, revision)

    def session(self, ttl_seconds: float) -> Session:
        """See ``base.Store``."""
        self._check_open()
        return _FileSession(self._tree, self._clock or boot_clock(), ttl_seconds)

    def put(self, values: Mapping[str, str]) -> None:
        """See ``base.Store``; when this returns, they are on the disk."""
        self._check_open()
        with self._tree.locked():
            self._tree.commit(self._tree.stage(values, durable=True))

    def delete(self, keys: Iterable[str]) -> None:
        """See ``base.Store``."""
        self._check_open()
        with self._tree.locked():
            for key in keys:
                self._tree.remove(key)

    def close(self) -> None:
        """See ``base.Store``."""
        self._closed = True
        self._tree.close()
        if self._opened is not None:
            self._opened[0].history.wake()

    def _open(self) -> tuple[Mirror, TreeWatch, bool]:
        """The mirror, its keeper, and whether this very call has made it, by looking at everything."""
        with self._opening:
            self._check_open()
            fresh = self._opened is None
            if self._opened is None:
                self._tree.check()
                mirror = Mirror(self._tree, self._clock or boot_clock())
                tree_watch = TreeWatch(self._tree, mirror, lambda: self._remove_expired(mirror))
                self._opened = mirror, tree_watch
            return *self._opened, fresh

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"{self.url}: the store is closed")

    def _follow(self, mirror: Mirror, tree_watch: TreeWatch, prefix: str, revision: int) -> Iterator[Changes]:
        def check() -> None:
            self._check_open()
            tree_watch.check()

        with tree_watch.running():
            yield from mirror.history.follow(prefix, revision, check)

    def _remove_expired(self, mirror: Mirror) -> None:
        """Remove the files of expired leases, unless someone else is at it; nobody sees them any more."""
        expired = mirror.expired()
        if not expired:
            return
        try:
            with self._tree.try_locked() as held:
                for id_ in expired if held else ():
                    self._remove_if_expired(id_, expired[id_])
                if held:
                    self._tree.sweep()
            self._expiry_failed = None
        except StoreError as error:
            # A reader may lack the right to; whoever writes will do it.
            if self._expiry_failed is None:
                log.warning("expired_keys_not_removed", path=self._tree.root, error=str(error))
            self._expiry_failed = str(error)

    def _remove_if_expired(self, id_: str, lease: Lease) -> None:
        path = Path(self._tree.sessions, id_)
        with translated(path):
            try:
                if read_lease(str(path)) != lease:
                    return
            except (FileNotFoundError, ValueError):
                return
            for key, identity in lease.keys.items():
                self._tree.remove(key, identity)
            path.unlink(missing_ok=True)
        log.info("session_expired", path=str(path), keys=len(lease.keys))


class _FileSession:
    """See ``base.Session``."""

    def __init__(self, tree: Tree, clock: BootClock, ttl_seconds: float) -> None:
        self.ttl_seconds = ttl_seconds
        self._tree = tree
        self._clock = clock
        self._path = Path(tree.sessions, secrets.token_hex(8))
        self._claims: dict[str, Identity] = {}
        self._expires = 0.0
        self._closed = False
        with tree.locked():
            self._write_lease(clock.now() + ttl_seconds)

    def put(self, values: Mapping[str, str]) -> None:
        """See ``base.Session``."""
        with self._live():
            staged = self._tree.stage(values, durable=False)
            try:
                # Claimed before they are there: a crash in between leaves nothing that would not expire.
                self._claims.update({each.key: each.identity for each in staged})
                self._write_lease(self._expires)
            except StoreError:
                self._tree.unstage(staged)
                raise
            self._tree.commit(staged)

    def delete(self, keys: Iterable[str]) -> None:
        """See ``base.Session``; a key that another has taken over is left to it."""
        with self._live():
            for key in keys:
                identity = self._claims.pop(key, None)
                if identity is not None:
                    self._tree.remove(key, identity)

    def keepalive(self) -> None:
        """See ``base.Session``."""
        with self._live():
            self._write_lease(self._clock.now() + self.ttl_seconds)

    def close(self) -> None:
        """See ``base.Session``; closing a closed session does nothing."""
        if self._closed:
            return
        with self._live():
            for key, identity in self._claims.items():
                self._tree.remove(key, identity)
            with translated(self._path):
                self._path.unlink()
        self._closed = True

    @contextlib.contextmanager
    def _live(self) -> Iterator[None]:
        """Under the lock, with the lease alive. Raises SessionLost."""
        if self._closed:
            raise SessionLost("the session was closed")
        with self._tree.locked():
            with translated(self._path):
                exists = self._path.exists()
            if not exists or self._clock.now() >= self._expires:
                raise SessionLost(f"{self._path}: the session's keys have expired")
            yield

    def _write_lease(self, expires: float) -> None:
        data = encode(Lease(self._clock.boot_id, expires, self._claims))
        beside, _ = self._tree.write_beside(data, None, durable=False)
        with translated(self._path):
            Path(beside).rename(self._path)
        self._expires = expires
