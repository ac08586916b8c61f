from pathlib import Path

import pytest

from discovery.errors import ConfigError
from discovery.stores import StoreOptions
from discovery.stores.endpoints import Endpoint, parse_target, tls_context

NONE = StoreOptions()


def test_reads_hosts_ports_and_addresses() -> None:
    target = parse_target("etcd3://a,b:4001,[2001:db8::1],[::1]:99/", NONE)
    assert target.endpoints == (
        Endpoint("a", 2379),
        Endpoint("b", 4001),
        Endpoint("2001:db8::1", 2379),
        Endpoint("::1", 99),
    )
    assert target.url == "etcd3://a:2379,b:4001,[2001:db8::1]:2379,[::1]:99"
    assert not target.tls


def test_decodes_credentials_and_shows_none_of_them() -> None:
    target = parse_target("etcd3://me%40home:p%3Aw%2F@h:1", NONE)
    assert (target.username, target.password) == ("me@home", "p:w/")
    assert target.url == "etcd3://h:1"
    assert "p:w/" not in repr(target)


def test_credentials_of_the_options_serve_without_any_in_the_url() -> None:
    options = StoreOptions(username="u", password="p")
    assert parse_target("etcd3://h", options).username == "u"
    assert parse_target("etcd3://v:q@h", options).password == "q"


def test_tls_by_scheme_or_by_any_file() -> None:
    assert parse_target("etcd3+https://h", NONE).tls
    assert parse_target("etcd2://h", StoreOptions(ca_file=Path("ca.pem"))).tls


@pytest.mark.parametrize(
    "rest",
    [
        "",
        ",",
        "h:0",
        "h:65536",
        "h:x",
        "h:1:2",
        "::1",
        "[::1",
        "[::1]x",
        "[h]:1",
        "a b",
        "h:1/path",
        "h?q=1",
        "u@h",
    ],
)
def test_refuses_what_is_malformed_and_says_the_mend(rest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_target(f"etcd3://{rest}", NONE)
    assert caught.value.setting == "store.url"
    assert caught.value.mend


@pytest.mark.parametrize("rest", ["u:secret@", "u:secret@h:x", "u:secret@h/p", "u:sec/secret@h"])
def test_an_error_never_tells_the_password(rest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_target(f"etcd3://{rest}", NONE)
    assert "secret" not in str(caught.value)


def test_a_tls_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    with pytest.raises(ConfigError, match=r"store.ca_file: .*missing.pem cannot be used: No such file"):
        tls_context(StoreOptions(ca_file=tmp_path / "missing.pem"))
    with pytest.raises(ConfigError, match=r"store.cert_file: .*junk.pem cannot be used"):
        tls_context(StoreOptions(cert_file=junk))
    with pytest.raises(ConfigError, match=r"store.key_file"):
        tls_context(StoreOptions(key_file=junk))
