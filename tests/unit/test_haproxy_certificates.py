"""Certificates as they are found, judged, and told to HAProxy."""

import dataclasses
import os
import ssl
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.catalog import Problem
from discovery.errors import ApplyError, SchemaError
from discovery.haproxy.certificate_commands import (
    COMMAND_BYTES,
    certificate_commands,
    fingerprint_shown,
    run_certificate_commands,
)
from discovery.haproxy.certificates import (
    DEFAULT,
    FILE_BYTES,
    LIST,
    Certificate,
    certificate_files,
    default_of,
    is_secret,
    parse_certificate,
    read_certificates,
)
from tests.lab.need import need
from tests.lab.tls import Pem, make

# Later than any certificate that is made while the tests run, which takes a while.
NOW = time.time() + 6 * 3600
DAY = 86_400.0


@pytest.fixture(scope="session")
def one() -> Pem:
    return make("one.example")


@pytest.fixture(scope="session")
def two() -> Pem:
    return make("two.example", "*.two.example")


def write(directory: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (directory / name).write_text(text)


def reasons(problems: tuple[Problem, ...]) -> dict[str, str]:
    return {problem.subject: problem.reason for problem in problems}


# ---- one certificate --------------------------------------------------------------------------------


def test_key_and_certificate_may_stand_in_any_order_and_company(one: Pem, two: Pem) -> None:
    """Comments, blank lines, Windows' line ends, parameters: what HAProxy gets is the same."""
    plain = parse_certificate("x", one.whole)
    lined = one.key.replace("\n", "\r\n") + "\n\nBag Attributes\n  é\n" + one.chain.replace("\n", " \n")
    parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    for text in (lined, parameters + one.whole, one.whole.strip()):
        assert parse_certificate("x", text) == plain
    assert parse_certificate("x", one.chain, one.key) == plain
    assert parse_certificate("x", one.whole, two.key) == plain, "its own key is preferred"
    assert plain.text == one.whole.replace("\n\n", "\n")
    assert "\n\n" not in plain.text
    assert plain.text.endswith("\n")
    assert plain.fingerprint == one.fingerprint
    assert plain.file == "x.pem"


def test_a_chain_is_kept_in_its_order(one: Pem, two: Pem) -> None:
    certificate = parse_certificate("x", one.chain + two.chain + one.key)
    assert certificate.text == one.chain + two.chain + one.key
    assert certificate.fingerprint == one.fingerprint
    with pytest.raises(SchemaError, match="not that of the first certificate"):
        parse_certificate("x", two.chain + one.chain + one.key)


def test_the_same_text_is_the_same_object(one: Pem, two: Pem) -> None:
    was = parse_certificate("x", one.whole)
    assert parse_certificate("x", "\n" + one.whole, was=was) is was
    assert parse_certificate("x", two.whole, was=was) != was


@pytest.mark.parametrize("days", [30, 20_000])
def test_validity_is_read(days: int) -> None:
    """Beyond 2049 the time is written in another form."""
    certificate = parse_certificate("x", make("x.example", days=days).whole)
    assert certificate.not_after - certificate.not_before == days * DAY
    assert abs(certificate.not_before - time.time()) < DAY


def test_validity_may_begin_in_the_century_before(one: Pem) -> None:
    der = ssl.PEM_cert_to_DER_cert(one.chain)
    start = der.index(b"\x17\x0d") + 2
    old = ssl.DER_cert_to_PEM_cert(der[:start] + b"500102030405Z" + der[start + 13 :])
    certificate = parse_certificate("x", old + one.key)
    assert certificate.not_before == datetime(1950, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
    assert certificate.not_after > time.time()


def encrypted(key: str, *options: str) -> str:
    command = [need("openssl"), "pkey", *options, "-aes128", "-passout", "pass:hunter2"]
    return subprocess.run(command, input=key, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda one, two: "", "holds no certificate"),
        (lambda one, two: one.key, "holds no certificate"),
        (lambda one, two: one.chain, r"no private key in it, nor in x\.key"),
        (lambda one, two: one.chain + two.key, "not that of the first certificate"),
        (lambda one, two: one.chain + make("x", kind="rsa:2048").key, "not that of the first certificate"),
        (lambda one, two: one.whole[:-40], "is not complete"),
        (lambda one, two: one.key + one.chain[:200], "is not complete"),
        (lambda one, two: one.chain + one.key.replace("M", "*", 1), "no base64"),
        (lambda one, two: one.chain + one.key.replace("MIG", "AAA"), "OpenSSL refuses it"),
        (lambda one, two: one.chain.replace("MII", "AAA") + one.key, "OpenSSL refuses it"),
        (lambda one, two: one.chain + encrypted(one.key), "is encrypted"),
        (lambda one, two: one.chain + encrypted(one.key, "-traditional"), "is encrypted"),
        (lambda one, two: make("x", kind="rsa:512").whole, "OpenSSL refuses it: ee key too small"),
    ],
)
def test_a_broken_one_is_refused_without_a_word_of_its_key(
    change: Callable[[Pem, Pem], str], reason: str, one: Pem, two: Pem
) -> None:
    with pytest.raises(SchemaError, match=reason) as caught:
        parse_certificate("x", change(one, two))
    lines = one.key.splitlines()[1:-1]
    assert not any(line in str(caught.value) for line in lines)
    assert len(str(caught.value)) < 200


@settings(deadline=None)
@given(st.data())
def test_whatever_is_in_a_file_it_is_a_certificate_or_refused(one: Pem, data: st.DataObject) -> None:
    text = one.whole
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 80, len(text))))
    changed = text[:start] + data.draw(st.text(max_size=20)) + text[end:]
    try:
        certificate = parse_certificate("x", changed)
    except SchemaError:
        return
    assert "\n\n" not in certificate.text
    assert set(certificate.text) <= set(one.whole + "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz+/=")


def test_a_key_is_not_shown(one: Pem) -> None:
    assert "PRIVATE" not in repr(parse_certificate("x", one.whole))


# ---- a directory ------------------------------------------------------------------------------------


def test_pairs_and_whole_files_are_found(one: Pem, two: Pem, tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "a.example.pem": one.whole,
            "b.example.crt": two.chain,
            "b.example.key": two.key,
            "c.pem": one.chain,
            "c.key": one.key,
            # What others keep beside them.
            "b.example.chain.pem": one.chain,
            "b.example.dhparam.pem": "-----BEGIN DH PARAMETERS-----\nAA==\n-----END DH PARAMETERS-----\n",
            ".a.example.pem.swp": "",
            ".hidden.pem": "",
            "README": "",
            "a.example.pem.bak": "",
        },
    )
    (tmp_path / "accounts.pem").mkdir()
    found = read_certificates(tmp_path, NOW, {})
    assert found.problems == ()
    assert {name: each.fingerprint for name, each in found.usable.items()} == {
        "a.example": one.fingerprint,
        "b.example": two.fingerprint,
        "c": one.fingerprint,
    }
    assert list(found.usable) == sorted(found.usable)


def test_links_are_followed_as_companions_make_them(one: Pem, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    write(tmp_path / "x", {"fullchain.pem": one.chain, "key.pem": one.key})
    (tmp_path / "x.crt").symlink_to("./x/fullchain.pem")
    (tmp_path / "x.key").symlink_to("./x/key.pem")
    assert read_certificates(tmp_path, NOW, {}).usable["x"].fingerprint == one.fingerprint


def test_of_two_files_of_one_name_the_pem_is_used(one: Pem, two: Pem, tmp_path: Path) -> None:
    write(tmp_path, {"x.pem": one.whole, "x.crt": two.chain, "x.key": two.key})
    found = read_certificates(tmp_path, NOW, {})
    assert found.usable["x"].fingerprint == one.fingerprint
    assert found.problems == (Problem(None, "x.crt", "x.pem is used instead"),)


def test_a_single_file_may_be_named(one: Pem, tmp_path: Path) -> None:
    write(tmp_path, {"my cert.pem": one.chain, "my cert.key": one.key, "other.pem": "nonsense"})
    found = read_certificates(tmp_path / "my cert.pem", NOW, {})
    assert (list(found.usable), found.problems) == (["my-cert"], ())


def test_broken_ones_are_told_and_the_others_are_used(one: Pem, tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "good.pem": one.whole,
            "empty.pem": "",
            "lonely.key": one.key,
            "*.example.pem": one.whole,
            "new\nline.pem": one.whole,
            "large.pem": one.whole + "#" * FILE_BYTES,
        },
    )
    os.mkfifo(tmp_path / "pipe.pem")
    (tmp_path / "nowhere.crt").symlink_to("gone")
    found = read_certificates(tmp_path, NOW, {})
    assert list(found.usable) == ["good"]
    shown = reasons(found.problems)
    assert shown.keys() == {
        "empty.pem", "lonely.key", "*.example.pem", "new\\nline.pem", "large.pem", "pipe.pem", "nowhere.crt"
    }  # fmt: skip
    assert shown["empty.pem"] == "holds no certificate"
    assert "lonely.crt" in shown["lonely.key"]
    assert "characters" in shown["*.example.pem"]
    assert shown["large.pem"] == "large.pem is larger than 128 KiB"
    assert shown["pipe.pem"] == "is no regular file"
    assert shown["nowhere.crt"] == "nowhere.crt cannot be read: No such file or directory"
    assert {problem.consequence for problem in found.problems} == {"left out"}


def test_one_that_breaks_is_kept_and_one_that_is_taken_away_is_not(
    one: Pem, two: Pem, tmp_path: Path
) -> None:
    write(tmp_path, {"a.pem": one.whole, "b.pem": two.whole, "c.pem": two.whole})
    before = read_certificates(tmp_path, NOW, {}).usable
    write(tmp_path, {"a.pem": two.chain + one.key, "c.pem": one.whole})
    (tmp_path / "b.pem").unlink()
    after = read_certificates(tmp_path, NOW, before)
    assert after.usable["a"] is before["a"]
    assert after.usable.keys() == {"a", "c"}
    assert after.usable["c"].fingerprint == one.fingerprint
    assert [(each.subject, each.consequence) for each in after.problems] == [
        ("a.pem", "kept at its last good value")
    ]
    write(tmp_path, {"a.pem": one.whole})
    assert read_certificates(tmp_path, NOW, after.usable).problems == ()


def test_out_of_date_is_told_and_used(one: Pem, tmp_path: Path) -> None:
    write(tmp_path, {"x.pem": one.whole})
    for now, reason in ((NOW + 31 * DAY, "has expired at 20"), (NOW - DAY, "is not valid before 20")):
        found = read_certificates(tmp_path, now, {})
        assert found.usable.keys() == {"x"}
        assert found.problems[0].reason.startswith(reason)
        assert found.problems[0].consequence == "reported"


@pytest.mark.parametrize("gone", ["the directory", "the files"])
def test_nothing_left_is_what_a_missing_volume_looks_like(gone: str, one: Pem, tmp_path: Path) -> None:
    directory = tmp_path / "certs"
    directory.mkdir()
    write(directory, {"x.pem": one.whole})
    before = read_certificates(directory, NOW, {}).usable
    (directory / "x.pem").unlink()
    if gone == "the directory":
        directory.rmdir()
    after = read_certificates(directory, NOW, before)
    assert after.usable == before
    assert [each.consequence for each in after.problems] == ["kept at its last good value"]
    never = read_certificates(directory, NOW, {})
    assert never.usable == {}
    assert [each.consequence for each in never.problems] == ["left out"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_told(one: Pem, tmp_path: Path) -> None:
    write(tmp_path, {"x.pem": one.whole, "y.pem": one.whole})
    (tmp_path / "x.pem").chmod(0)
    found = read_certificates(tmp_path, NOW, {})
    assert reasons(found.problems) == {"x.pem": "x.pem cannot be read: Permission denied"}


# ---- what HAProxy is given --------------------------------------------------------------------------


def some(name: str, text: str = "") -> Certificate:
    return Certificate(name, f"{text or name}\n", 0, 0, "")


def by_name(*certificates: Certificate) -> dict[str, Certificate]:
    return {each.name: each for each in certificates}


def test_files_begin_with_the_default() -> None:
    assert certificate_files({}) == {}
    assert default_of({}) is None
    files = certificate_files(by_name(some("b"), some("a")))
    assert files == {
        "a.pem": "a\n", "b.pem": "b\n", DEFAULT: "a\n", LIST: "certs.default !*\na.pem\nb.pem\n"
    }  # fmt: skip
    assert [name for name in (*files, "haproxy.cfg", "hosts.map") if not is_secret(name)] == [
        LIST, "haproxy.cfg", "hosts.map"
    ]  # fmt: skip
    assert certificate_files(by_name(some("a"), some("default")))[DEFAULT] == "default\n"


def test_commands_by_case() -> None:
    a, b, renewed = some("a"), some("b"), some("b", "B")
    assert certificate_commands(by_name(a), by_name(a)) == ()
    assert certificate_commands({}, {}) == ()
    assert certificate_commands({}, by_name(a)) is None
    assert certificate_commands(by_name(a), {}) is None
    assert certificate_commands(by_name(a), by_name(a, b)) == (
        "new ssl cert b.pem",
        "set ssl cert b.pem <<\nb\n",
        "commit ssl cert b.pem",
        "add ssl crt-list certs.list b.pem",
    )
    assert certificate_commands(by_name(a, b), by_name(a, renewed)) == (
        "set ssl cert b.pem <<\nB\n",
        "commit ssl cert b.pem",
    )
    assert certificate_commands(by_name(a, b), by_name(b)) == (
        "set ssl cert certs.default <<\nb\n",
        "commit ssl cert certs.default",
        "del ssl crt-list certs.list a.pem",
        "del ssl cert a.pem",
    )


def test_one_too_large_for_a_command_takes_a_reload() -> None:
    a = some("a")
    room = COMMAND_BYTES - len("set ssl cert b.pem <<\n\n") - 1
    assert certificate_commands(by_name(a), by_name(a, some("b", "x" * room)))
    assert certificate_commands(by_name(a), by_name(a, some("b", "x" * (room + 1)))) is None
    assert certificate_commands(by_name(a, some("b", "x" * 20_000)), by_name(a)), "it can go"


class Worker:
    """A worker's certificates as its runtime socket changes them: refuses what a real one refuses."""

    def __init__(self, certificates: Mapping[str, Certificate]) -> None:
        self.texts = {n: t for n, t in certificate_files(certificates).items() if n != LIST}
        self.listed = set(self.texts)
        self.transaction: tuple[str, str] | None = None
        self.asked: list[str] = []
        self.refuses: dict[str, str] = {}
        self.is_old = False

    def ask(self, command: str) -> str:
        self.asked.append(command)
        line, _, payload = command.partition(" <<\n")
        words = line.split()
        if (said := self.refuses.get(line)) is not None:
            return said
        verb, file = " ".join(words[:3]), words[-1]
        return getattr(self, "_" + verb.replace(" ssl ", "_").replace("-", "_"))(file, payload)

    def _new_cert(self, file: str, _: str) -> str:
        if file in self.texts:
            return f"Certificate '{file}' already exists!\n\n"
        self.texts[file] = ""
        return f"New empty certificate store '{file}'!\n"

    def _set_cert(self, file: str, payload: str) -> str:
        assert file in self.texts
        if self.transaction is not None and self.transaction[0] != file:
            about = self.transaction[0]
            if self.is_old:
                self.transaction = (about, payload)
                return f"Transaction updated for certificate {about}!\n"
            return f"The ongoing transaction is about '{about}' but you are trying to set '{file}'\n"
        self.transaction = (file, payload)
        return f"Transaction created for certificate {file}!\n"

    def _commit_cert(self, file: str, _: str) -> str:
        assert self.transaction is not None
        assert self.transaction[0] == file
        self.texts[file] = self.transaction[1]
        self.transaction = None
        return f"Committing {file}\nSuccess!\n"

    def _abort_cert(self, file: str, _: str) -> str:
        if self.transaction is None:
            return "No ongoing transaction!\n"
        assert self.transaction[0] == file
        self.transaction = None
        return f"Transaction aborted for certificate '{file}'!\n"

    def _add_crt_list(self, file: str, _: str) -> str:
        assert self.texts[file], "an empty one cannot be served"
        self.listed.add(file)
        return f"Inserting certificate '{file}' in crt-list 'certs.list'.\nSuccess!\n"

    def _del_crt_list(self, file: str, _: str) -> str:
        assert file != DEFAULT
        self.listed.remove(file)
        return f"Entry '{file}' deleted in crtlist 'certs.list'!\n"

    def _del_cert(self, file: str, _: str) -> str:
        if file in self.listed:
            return f"Can't remove the certificate: certificate '{file}' in use, can't be deleted!\n"
        del self.texts[file]
        return f"Certificate '{file}' deleted!\n"


SETS = st.dictionaries(
    st.sampled_from(["a", "b", "c", "default", "z"]), st.sampled_from(["1", "2", "3"]), min_size=1
).map(lambda texts: by_name(*(some(name, f"{name}{text}") for name, text in texts.items())))


@settings(deadline=None)
@given(SETS, SETS)
def test_commands_lead_from_any_set_to_any_other(
    running: dict[str, Certificate], wanted: dict[str, Certificate]
) -> None:
    worker, fresh = Worker(running), Worker(wanted)
    commands = certificate_commands(running, wanted)
    assert commands is not None
    run_certificate_commands(commands, worker.ask)
    assert (worker.texts, worker.listed, worker.transaction) == (fresh.texts, fresh.listed, None)
    assert bool(commands) is (running != wanted)


@pytest.mark.parametrize(
    "line", ["set ssl cert b.pem", "commit ssl cert b.pem", "add ssl crt-list certs.list b.pem"]
)
@pytest.mark.parametrize("said", ["", "Can't load the payload\nCan't update b.pem!\n"])
def test_a_refusal_leaves_no_transaction_open(line: str, said: str) -> None:
    worker = Worker(by_name(some("a")))
    worker.refuses[line] = said
    commands = certificate_commands(by_name(some("a")), by_name(some("a"), some("b", "SECRET")))
    with pytest.raises(ApplyError, match=line) as caught:
        run_certificate_commands(commands or (), worker.ask)
    assert worker.transaction is None
    assert "SECRET" not in str(caught.value)
    worker.refuses.clear()
    run_certificate_commands(commands or (), worker.ask)
    assert worker.texts["b.pem"] == "SECRET\n", "it can be tried again"


@pytest.mark.parametrize("is_old", [True, False])
def test_a_transaction_of_a_killed_agent_is_aborted(is_old: bool) -> None:
    a, b = some("a"), some("b")
    worker = Worker(by_name(a, b))
    worker.is_old = is_old
    worker.ask("set ssl cert a.pem <<\nold\n")
    renewed = by_name(a, dataclasses.replace(b, text="B\n"))
    run_certificate_commands(certificate_commands(by_name(a, b), renewed) or (), worker.ask)
    assert (worker.texts["a.pem"], worker.texts["b.pem"]) == ("a\n", "B\n")


def test_fingerprints_are_read() -> None:
    digits = "CE7C71BD8B056E6073DDCF07AE381F8F35766626"
    assert fingerprint_shown(f"Filename: a.pem\nSHA1 FingerPrint: {digits}\nSubject: /CN=a\n") == digits
    assert fingerprint_shown("Can't display the certificate: Not found\n") is None
