"""The etcd3 store against real servers that ask for TLS, or for a user and a password."""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from discovery.errors import StoreError, StoreRefused
from discovery.stores import StoreOptions, open_store
from discovery.stores.base import Changes, Store
from tests.lab.etcd import Etcd, etcd35
from tests.lab.need import need
from tests.lab.wait import until

PREFIX = "/services/"


# ---- TLS --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificates:
    """An authority of our own, and what it signed."""

    directory: Path

    def __call__(self, name: str) -> Path:
        return self.directory / name

    def make(self, authority: str, *names: str) -> None:
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        self._openssl(
            *["req", "-x509", *key, "-subj", f"/CN={authority}"],
            *["-addext", "basicConstraints=critical,CA:true", "-addext", "keyUsage=keyCertSign"],
            *["-keyout", f"{authority}.key", "-out", f"{authority}.pem"],
        )
        for name in names:
            self._openssl(
                *["req", "-x509", *key, "-subj", f"/CN={name}"],
                *["-CA", f"{authority}.pem", "-CAkey", f"{authority}.key"],
                *["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:false"],
                *["-addext", "extendedKeyUsage=serverAuth,clientAuth"],
                *["-keyout", f"{name}.key", "-out", f"{name}.pem"],
            )

    def _openssl(self, *arguments: str) -> None:
        done = subprocess.run(
            [need("openssl"), *arguments], cwd=self.directory, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = Certificates(tmp_path_factory.mktemp("certificates"))
    made.make("ca", "server", "client")
    made.make("stranger")
    return made


@pytest.fixture(scope="module")
def tls_server(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    server = [f"--cert-file={certificates('server.pem')}", f"--key-file={certificates('server.key')}"]
    client = ["--client-cert-auth", f"--trusted-ca-file={certificates('ca.pem')}"]
    directory = tmp_path_factory.mktemp("etcd")
    with Etcd(directory, enable_v2=False, extra=[*server, *client], scheme="https") as etcd:
        yield etcd


def tls(certificates: Certificates, ca: str = "ca", client: str | None = "client") -> StoreOptions:
    return StoreOptions(
        ca_file=certificates(f"{ca}.pem"),
        cert_file=certificates(f"{client}.pem") if client else None,
        key_file=certificates(f"{client}.key") if client else None,
    )


def changed(watch: Iterator[Changes]) -> list[str]:
    """The keys of the next changes."""
    deadline = time.monotonic() + 30
    for changes in watch:
        if changes.changes:
            return [one.key for one in changes.changes]
        assert time.monotonic() < deadline, "no changes in time"
    raise AssertionError("the watch ended")


def test_tls_with_a_client_certificate(tls_server: Etcd, certificates: Certificates) -> None:
    before = watching_threads()
    with closing(open_store(f"etcd3://{tls_server.endpoint}", tls(certificates))) as store:
        watch = store.watch(PREFIX, store.snapshot(PREFIX).revision)
        session = store.session(30)
        session.put({f"{PREFIX}a": "1"})
        session.keepalive()
        assert changed(watch) == [f"{PREFIX}a"]
        session.close()
        assert changed(watch) == [f"{PREFIX}a"]
        watch.close()  # type: ignore[attr-defined]  # it is a generator
        until(lambda: watching_threads() <= before, "the watch's threads end, over TLS too")


def watching_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("etcd3-watch")}


def refusal(store: Store) -> str:
    with closing(store), pytest.raises(StoreError) as caught:
        store.snapshot(PREFIX)
    return str(caught.value)


def test_a_server_of_a_strange_authority_is_not_trusted(tls_server: Etcd, certificates: Certificates) -> None:
    text = refusal(open_store(tls_server.url(3), tls(certificates, ca="stranger")))
    assert f"TLS with etcd at {tls_server.endpoint} fails: its certificate is not trusted" in text


def test_a_missing_client_certificate_is_told_so(tls_server: Etcd, certificates: Certificates) -> None:
    text = refusal(open_store(tls_server.url(3), tls(certificates, client=None)))
    assert tls_server.endpoint in text
    assert "certificate" in text.lower()


def test_plain_text_to_a_tls_server_hints_at_tls(tls_server: Etcd) -> None:
    assert "etcd3+https" in refusal(open_store(f"etcd3://{tls_server.endpoint}"))


def test_tls_to_a_plain_server_is_told_so(secured: Etcd) -> None:
    assert "TLS" in refusal(open_store(f"etcd3+https://{secured.endpoint}"))


# ---- user and password ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["etcd", "etcd 3.5"])
def secured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    binary = etcd35() if request.param == "etcd 3.5" else None
    with Etcd(tmp_path_factory.mktemp("etcd"), enable_v2=False, binary=binary) as etcd:
        etcd.ctl(3, "user", "add", "root:r00t-word")
        etcd.ctl(3, "user", "grant-role", "root", "root")
        etcd.ctl(3, "user", "add", "reg:w@rd/1")
        etcd.ctl(3, "role", "add", "services")
        etcd.ctl(3, "role", "grant-permission", "services", "--prefix=true", "readwrite", PREFIX)
        etcd.ctl(3, "user", "grant-role", "reg", "services")
        etcd.ctl(3, "auth", "enable")
        yield etcd


def test_tokens_are_renewed_unnoticed(secured: Etcd) -> None:
    # Simple tokens live in the server's memory, so a restart makes every one of them invalid.
    url = f"etcd3://reg:w%40rd%2F1@{secured.endpoint}"
    with closing(open_store(url, StoreOptions(timeout_seconds=30))) as store:
        session = store.session(60)
        session.put({f"{PREFIX}a": "1"})
        watch = store.watch(PREFIX, store.snapshot(PREFIX).revision)
        session.put({f"{PREFIX}b": "1"})
        assert changed(watch) == [f"{PREFIX}b"]
        for act in (
            lambda: session.put({f"{PREFIX}c": "1"}),
            session.keepalive,
            lambda: store.snapshot(PREFIX),
        ):
            secured.stop()
            secured.start()
            act()
        assert changed(watch) == [f"{PREFIX}c"]
        session.close()


def test_a_wrong_password_is_refused_and_not_told(secured: Etcd) -> None:
    store = open_store(f"etcd3://reg:wrong-secret@{secured.endpoint}")
    assert "secret" not in store.url
    with closing(store), pytest.raises(StoreRefused, match="invalid user ID or password") as caught:
        store.snapshot(PREFIX)
    assert secured.endpoint in str(caught.value)
    assert "secret" not in str(caught.value)


def test_no_user_is_told_so(secured: Etcd) -> None:
    with closing(open_store(secured.url(3))) as store:
        with pytest.raises(StoreRefused, match="asks for a user and password"):
            store.snapshot(PREFIX)
        with pytest.raises(StoreRefused, match="asks for a user and password"):
            changed(store.watch(PREFIX, 1))


def test_what_the_user_may_not_do_is_refused(secured: Etcd) -> None:
    options = StoreOptions(username="reg", password="w@rd/1")
    with closing(open_store(secured.url(3), options)) as store:
        store.put({f"{PREFIX}a": "1"})
        for act in (
            lambda: store.put({"/elsewhere/a": "1"}),
            lambda: store.snapshot("/elsewhere/"),
            lambda: changed(store.watch("/elsewhere/", 1)),
        ):
            with pytest.raises(StoreRefused, match="permission denied"):
                act()
        store.delete([f"{PREFIX}a"])


def test_a_password_that_no_one_asks_for_does_no_harm(tmp_path: Path) -> None:
    with Etcd(tmp_path) as etcd, closing(open_store(f"etcd3://reg:w@{etcd.endpoint}")) as store:
        store.put({f"{PREFIX}a": "1"})
        assert store.snapshot(PREFIX).entries
        # Once the server does ask, the store answers.
        etcd.ctl(3, "user", "add", "root:r")
        etcd.ctl(3, "user", "grant-role", "root", "root")
        etcd.ctl(3, "user", "add", "reg:w")
        etcd.ctl(3, "user", "grant-role", "reg", "root")
        etcd.ctl(3, "auth", "enable")
        assert store.snapshot(PREFIX).entries
