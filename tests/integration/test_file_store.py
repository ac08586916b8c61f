"""The file store as people and other processes use it: shells, editors, crashes, lost directories."""

import fcntl
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from discovery.errors import DiscoveryError, SessionLost, StoreRefused, StoreUnavailable
from discovery.stores.base import Store
from discovery.stores.file import FileStore
from tests.contract.mirror import Mirror, eventually

WEB = "/services/web/hosts/0"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(directory: Path) -> Iterator[FileStore]:
    with closing(FileStore(directory)) as store:
        yield store


def sh(directory: Path, script: str) -> None:
    subprocess.run(["sh", "-euc", script], cwd=directory, check=True, timeout=60)


def values(store: Store, prefix: str = "/") -> dict[str, str]:
    return {key: entry.value for key, entry in store.snapshot(prefix).entries.items()}


def python(code: str, *arguments: str) -> "subprocess.Popen[str]":
    """Another process, with ``store`` on the directory that is its first argument."""
    head = (
        "import sys, time\nfrom pathlib import Path\nfrom discovery.stores.file import FileStore\n"
        "store = FileStore(Path(sys.argv[1]))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", head + code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# ---- people -----------------------------------------------------------------------------------------


def test_echo_registers_and_rm_ends_it(directory: Path, store: Store) -> None:
    with Mirror(store, "/") as mirror:
        mirror.step()
        sh(directory, f"mkdir -p services/web/hosts; echo 127.0.0.1:8000 > .{WEB}")
        mirror.until_values({WEB: "127.0.0.1:8000"})
        sh(directory, f"echo 127.0.0.1:8001 > .{WEB}")
        mirror.until_values({WEB: "127.0.0.1:8001"})
        sh(directory, f"rm .{WEB}")
        mirror.until_values({})


def test_what_is_put_can_be_read_with_cat(directory: Path, store: Store) -> None:
    store.put({WEB: "127.0.0.1:8000"})
    assert (directory / WEB[1:]).read_text() == "127.0.0.1:8000\n"


def test_mkdir_p_and_a_write_at_once_lose_nothing(directory: Path, store: Store) -> None:
    """The directories are not yet watched when the files come."""
    with Mirror(store, "/services/") as mirror:
        mirror.step()
        sh(
            directory,
            "for n in $(seq 300); do mkdir -p services/s$n/hosts services/s$n/options;"
            " echo 10.0.0.1:$n > services/s$n/hosts/0; done",
        )
        mirror.until_values({f"/services/s{n}/hosts/0": f"10.0.0.1:{n}" for n in range(1, 301)})
        sh(directory, "rm -r services/s1*")
        left = [n for n in range(1, 301) if not str(n).startswith("1")]
        mirror.until_values({f"/services/s{n}/hosts/0": f"10.0.0.1:{n}" for n in left})


def test_directories_moved_in_about_and_out(directory: Path, store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside/hosts"
    outside.mkdir(parents=True)
    (outside / "0").write_text("127.0.0.1:1\n")
    with Mirror(store, "/") as mirror:
        mirror.step()
        sh(directory, "mkdir -p services; mv ../outside services/web")
        mirror.until_values({WEB: "127.0.0.1:1"})
        sh(directory, "echo 127.0.0.1:2 > services/web/hosts/1; mv services/web services/new")
        new = {"/services/new/hosts/0": "127.0.0.1:1", "/services/new/hosts/1": "127.0.0.1:2"}
        mirror.until_values(new)
        sh(directory, "mv services/new ../outside")
        mirror.until_values({})
        sh(
            directory,
            "echo 127.0.0.1:3 > ../outside/hosts/2; mkdir -p services/new; echo tcp > services/new/scheme",
        )
        mirror.until_values({"/services/new/scheme": "tcp"})
    assert values(store) == {"/services/new/scheme": "tcp"}


@pytest.mark.parametrize(
    "edit",
    [
        "sed -i s/8000/8001/ 0",
        "echo 127.0.0.1:8001 > .0.swp; mv .0.swp 0",
        "cp 0 0~; echo 127.0.0.1:8001 > 0; rm 0~",
        "mv 0 0~; echo 127.0.0.1:8001 > 0; rm 0~",
        "touch 4913; rm 4913; printf 127.0.0.1:8001 > 0",
        "ln 0 1; echo 127.0.0.1:8001 > 2; mv 2 0; rm 1",
    ],
)
def test_the_ways_editors_write(directory: Path, store: Store, edit: str) -> None:
    store.put({WEB: "127.0.0.1:8000"})
    with Mirror(store, "/") as mirror:
        mirror.step()
        sh(directory / "services/web/hosts", edit)
        mirror.until_values({WEB: "127.0.0.1:8001"})


def test_a_file_being_written_is_not_taken_for_empty(directory: Path, store: Store) -> None:
    """`curl … > FILE` empties it long before it writes."""
    store.put({WEB: "127.0.0.1:8000"})
    seen = []
    with Mirror(store, "/") as mirror:
        mirror.step()
        sh(directory, f"{{ sleep 0.3; echo 127.0.0.1:8001; }} > .{WEB}")
        while mirror.values != {WEB: "127.0.0.1:8001"}:
            seen += [change.entry and change.entry.value for change in mirror.step().changes]
    assert seen == ["127.0.0.1:8001"]


def test_a_file_that_stays_empty_is_empty(directory: Path, store: Store) -> None:
    store.put({WEB: "127.0.0.1:8000"})
    with Mirror(store, "/") as mirror:
        sh(directory, f": > .{WEB}")
        mirror.until_values({WEB: ""})


def test_writes_within_one_tick_of_the_clock_are_told_apart(directory: Path, store: Store) -> None:
    """Same inode, same size and, on kernels before 6.13, the same time stamps."""
    store.put({WEB: "0"})
    path = directory / WEB[1:]
    for number in range(300):
        path.write_text(f"{number:03}\n")
        assert values(store) == {WEB: f"{number:03}"}


def test_a_change_without_an_event_is_found(directory: Path, store: Store) -> None:
    """Writing through a map makes none until it is unmapped."""
    store.put({WEB: "127.0.0.1:8000"})
    with (
        (directory / WEB[1:]).open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as mapped,
        Mirror(store, "/") as mirror,
    ):
        mirror.step()
        mapped[:14] = b"127.0.0.1:8001"
        mapped.flush()
        mirror.until_values({WEB: "127.0.0.1:8001"}, 60)


def test_what_is_no_readable_file_is_reported_and_nothing_else_suffers(
    directory: Path, store: Store, tmp_path: Path
) -> None:
    store.put({WEB: "127.0.0.1:8000"})
    hosts = directory / "services/web/hosts"
    (tmp_path / "secret/below").mkdir(parents=True)
    (tmp_path / "secret/below/file").write_text("secret")
    (tmp_path / "secret/file").write_text("secret")
    os.mkfifo(hosts / "fifo")
    (hosts / "dangling").symlink_to("nowhere")
    (hosts / "link").symlink_to(tmp_path / "secret/file")
    (directory / "services/linked").symlink_to(tmp_path / "secret")
    (hosts / "long").write_bytes(b"x" * (64 * 1024 + 1))
    (hosts / "just").write_bytes(b"x" * (64 * 1024) + b"\n")
    (hosts / ".hidden").write_text("x")
    Path(os.fsdecode(os.fsencode(hosts) + b"/\xff")).write_text("x")
    with socket.socket(socket.AF_UNIX) as listener:
        descriptor = os.open(hosts, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{descriptor}/socket")
        os.close(descriptor)
    with Mirror(store, "/") as mirror:
        mirror.step()
        errors = {key.rpartition("/")[2]: entry.error for key, entry in mirror.entries.items() if entry.error}
        assert errors == {
            "fifo": "is a FIFO",
            "socket": "is a socket",
            "dangling": "is a symbolic link, which is not followed",
            "link": "is a symbolic link, which is not followed",
            "linked": "is a symbolic link, which is not followed",
            "long": "is longer than 64 KiB",
            "\\xff": "its name is no UTF-8",
        }
        assert all(
            mirror.entries[key].value == ""
            for key in mirror.entries
            if key.endswith(("link", "fifo", "long"))
        )
        assert mirror.values[WEB] == "127.0.0.1:8000"
        assert len(mirror.values["/services/web/hosts/just"]) == 64 * 1024
        assert store.snapshot("/services/linked/").entries == {}
        assert store.snapshot("/services/linked/below/").entries == {}
        with pytest.raises(StoreRefused, match="linked"):
            store.put({"/services/linked/x": "1"})
        sh(directory, "rm services/web/hosts/fifo; echo 127.0.0.1:1 > services/web/hosts/fifo")
        mirror.until(lambda: mirror.values.get("/services/web/hosts/fifo") == "127.0.0.1:1")
    assert sorted(path.name for path in (tmp_path / "secret").iterdir()) == ["below", "file"]


def test_a_key_and_a_directory_cannot_share_a_name(store: Store) -> None:
    store.put({WEB: "1"})
    with pytest.raises(StoreRefused, match="/services/web"):
        store.put({"/services/web": "1"})
    with pytest.raises(StoreRefused, match="hosts/0"):
        store.put({f"{WEB}/x": "1"})
    with pytest.raises(StoreRefused, match="64 KiB"):
        store.put({WEB: "x" * 70_000})
    assert values(store) == {WEB: "1"}


def test_nothing_is_left_beside_the_tree(directory: Path, store: Store) -> None:
    store.put({WEB: "1"})
    session = store.session(60)
    session.put({"/services/a/hosts/0": "1"})
    with pytest.raises(StoreRefused):
        session.put({"/services/b/hosts/0": "1", "/services/web": "1"})
    session.keepalive()
    session.close()
    names = sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))
    assert names == [".lock", ".sessions", "services", "services/web", "services/web/hosts", WEB[1:]]


# ---- the directory ----------------------------------------------------------------------------------


def test_it_is_made_at_first_use(directory: Path, store: Store) -> None:
    assert not directory.exists()
    assert values(store) == {}
    assert directory.stat().st_mode & 0o777 == 0o755


def test_one_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreRefused, match="file"):
        FileStore(tmp_path / "file/store").snapshot("/")
    with pytest.raises(StoreRefused, match="file"):
        FileStore(tmp_path / "file").put({WEB: "1"})
    with pytest.raises(DiscoveryError, match="/proc"):
        FileStore(Path("/proc/none/store")).session(1)


@pytest.mark.parametrize("loss", ["mv store lost", "mv store lost; mkdir store"], ids=["gone", "unmounted"])
def test_a_directory_that_is_lost_is_not_an_empty_store(
    directory: Path, store: Store, tmp_path: Path, loss: str
) -> None:
    store.put({WEB: "127.0.0.1:8000"})
    session = store.session(60)
    with Mirror(store, "/") as mirror:
        mirror.step()
        sh(tmp_path, loss)
        with pytest.raises(StoreUnavailable, match="store"):
            mirror.until(lambda: False)
        assert mirror.values == {WEB: "127.0.0.1:8000"}
        for attempt in (
            lambda: store.snapshot("/"),
            lambda: store.put({WEB: "2"}),
            session.keepalive,
            lambda: next(store.watch("/", mirror.revision)),
        ):
            with pytest.raises(StoreUnavailable, match="mount it again"):
                attempt()
    sh(tmp_path, "rmdir store || true; mv lost store")
    sh(directory, "echo tcp > services/web/scheme; rm services/web/hosts/0")
    seen: set[str] = set()
    watch = store.watch("/", mirror.revision)
    while seen != {WEB, "/services/web/scheme"}:
        seen |= {change.key for change in next(watch).changes}
    assert values(store) == {"/services/web/scheme": "tcp"}
    session.keepalive()


def test_a_directory_that_comes_back_during_a_watch_is_watched(
    directory: Path, store: Store, tmp_path: Path
) -> None:
    store.put({WEB: "1"})
    with Mirror(store, "/") as mirror:
        mirror.step()
        sh(tmp_path, "cp -a store copy; mv store lost; mv copy store")
        sh(directory, f"echo 2 > .{WEB}")
        mirror.until_values({WEB: "2"})
        sh(directory, f"echo 3 > .{WEB}")
        mirror.until_values({WEB: "3"})


# ---- other processes --------------------------------------------------------------------------------


def test_a_killed_process_leaves_keys_that_expire(directory: Path, store: Store) -> None:
    child = python(
        "session = store.session(1.5)\nsession.put({'/a': '1', '/d/b': '2'})\nprint('put', flush=True)\n"
        "while True:\n    time.sleep(0.3)\n    session.keepalive()\n",
        str(directory),
    )
    try:
        assert child.stdout is not None
        child.stdout.readline()
        with Mirror(store, "/") as mirror:
            assert mirror.values == {"/a": "1", "/d/b": "2"}
            for _ in range(2):
                assert mirror.step().changes == ()
            child.send_signal(signal.SIGKILL)
            child.wait()
            assert mirror.step().changes == ()
            mirror.until_values({})
        eventually(lambda: not (directory / "a").exists() and not list((directory / ".sessions").iterdir()))
    finally:
        child.kill()
        child.communicate()


def test_processes_that_write_at_once(directory: Path, store: Store) -> None:
    code = (
        "name = sys.argv[2]\nsession = store.session(60)\nprint('up', flush=True)\nsys.stdin.readline()\n"
        "for n in range(40):\n"
        "    session.put({f'/s/{name}/{n % 10}': str(n), '/s/shared': f'{name} {n}'})\n"
        "    if n % 3 == 0: session.delete([f'/s/{name}/{n % 10}'])\n"
        "print('done', flush=True)\nsys.stdin.readline()\nsession.close()\n"
    )
    children = [python(code, str(directory), name) for name in "ab"]
    try:
        for word in ("up\n", "done\n"):
            with Mirror(store, "/s/") as mirror:
                for child in children:
                    assert child.stdout is not None and child.stdin is not None
                    assert child.stdout.readline() == word
                    child.stdin.write("\n")
                    child.stdin.flush()
                if word == "up\n":
                    mirror.until(
                        lambda mirror=mirror: all(mirror.values.get(f"/s/{n}/8") == "38" for n in "ab")  # type: ignore[misc]
                    )
                else:
                    mirror.until_values({})
        assert [child.wait(20) for child in children] == [0, 0]
        assert values(store) == {}
    finally:
        for child in children:
            child.kill()
            child.communicate()


def test_an_echo_takes_a_key_over(directory: Path, store: Store) -> None:
    session = store.session(60)
    session.put({WEB: "127.0.0.1:8000", "/services/web/hosts/1": "127.0.0.1:8001"})
    sh(directory, f"echo 127.0.0.1:9000 > .{WEB}")
    session.delete([WEB])
    assert WEB in values(store)
    session.close()
    assert values(store) == {WEB: "127.0.0.1:9000"}


def test_a_key_written_over_and_over_is_nobody_elses(directory: Path, store: Store) -> None:
    """Its age is carried on and its inode may come back; it still is another file."""
    session = store.session(60)
    session.put({WEB: "127.0.0.1:8000"})
    path = directory / WEB[1:]
    inode = path.stat().st_ino
    for _ in range(20):
        store.put({WEB: "127.0.0.1:8000"})
        if path.stat().st_ino == inode:
            break
    session.close()
    assert values(store) == {WEB: "127.0.0.1:8000"}


def test_a_session_knows_itself_that_it_has_expired(directory: Path, store: Store) -> None:
    """Nobody has looked meanwhile."""
    session = store.session(0.3)
    session.put({WEB: "1"})
    expiry = time.monotonic() + 0.3
    eventually(lambda: time.monotonic() > expiry)
    assert (directory / WEB[1:]).exists()
    for attempt in (session.keepalive, lambda: session.put({WEB: "2"}), lambda: session.delete([WEB])):
        with pytest.raises(SessionLost):
            attempt()


def test_a_lease_that_is_removed_loses_the_session_not_the_keys(directory: Path, store: Store) -> None:
    session = store.session(60)
    session.put({WEB: "1"})
    sh(directory, "rm .sessions/*")
    for attempt in (session.keepalive, session.close, lambda: session.put({WEB: "2"})):
        with pytest.raises(SessionLost):
            attempt()
    assert values(store) == {WEB: "1"}
    with closing(FileStore(directory)) as again:
        new = again.session(60)
        new.put({WEB: "1"})
        new.close()
    assert values(store) == {}


def test_leases_of_another_boot_have_expired(directory: Path, store: Store) -> None:
    store.session(3600).put({WEB: "1"})
    (path,) = (directory / ".sessions").iterdir()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"boot_id": "another"}))
    with closing(FileStore(directory)) as reader:
        assert values(reader) == {}
    assert not (directory / WEB[1:]).exists()


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"boot_id": "x", "expires": 0, "keys": {"/../../etc/passwd": [1, 2]}}', "[" * 100_000],
)
def test_a_lease_that_is_none_ends_nothing(directory: Path, store: Store, content: str) -> None:
    store.session(3600).put({WEB: "1"})
    (path,) = (directory / ".sessions").iterdir()
    path.write_text(content)
    os.mkfifo(directory / ".sessions/fifo")
    with closing(FileStore(directory)) as reader:
        assert values(reader) == {WEB: "1"}


def test_while_another_holds_the_lock_readers_still_see_expiry_and_writers_give_up(directory: Path) -> None:
    store = FileStore(directory, timeout_seconds=0.2)
    store.session(1.0).put({WEB: "1"})
    with (directory / ".lock").open() as lock, Mirror(store, "/") as mirror:
        fcntl.flock(lock, fcntl.LOCK_EX)
        mirror.until_values({})
        assert (directory / WEB[1:]).exists()
        assert values(store) == {}
        with pytest.raises(StoreUnavailable, match="held by another process"):
            store.put({WEB: "2"})
        fcntl.flock(lock, fcntl.LOCK_UN)
        eventually(lambda: not mirror.step().changes and not (directory / WEB[1:]).exists())


def test_a_closed_store_ends_its_watches(directory: Path, store: Store) -> None:
    before = threading.active_count()
    errors: list[DiscoveryError] = []
    started = threading.Event()

    def follow() -> None:
        try:
            for _ in store.watch("/", store.snapshot("/").revision):
                started.set()
        except DiscoveryError as error:
            errors.append(error)

    thread = threading.Thread(target=follow)
    thread.start()
    assert started.wait(20)
    store.close()
    thread.join(20)
    assert [type(error) for error in errors] == [StoreUnavailable]
    eventually(lambda: threading.active_count() <= before)
    with pytest.raises(StoreUnavailable, match="closed"):
        store.snapshot("/")
