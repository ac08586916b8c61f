"""The command line of gliderlabs' registrator: replace the image, keep the arguments."""

import pytest
from click.testing import CliRunner

from discovery.cli import cli
from discovery.config import load
from discovery.errors import ConfigError
from discovery.gliderlabs import store_url, translate


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("-ip 10.0.0.5", "--ip 10.0.0.5"),
        ("--ip=10.0.0.5", "--ip 10.0.0.5"),
        ("-ip=", ""),
        ("-internal", "--internal"),
        ("--internal=true -explicit=1", "--internal --explicit"),
        ("-internal=false -explicit=0", ""),
        ("-tags=a,b -ttl 60 -ttl-refresh=20", "--tags a,b --ttl 60 --ttl-refresh 20"),
        ("-ttl 0 -ttl-refresh=0 -resync 0", ""),
        ("-resync 600", "--resync 600"),
        ("-cleanup --cleanup=true -cleanup=false", ""),
        ("-deregister always --deregister=always", ""),
        ("-retry-attempts -1 -retry-interval=2000", ""),
        ("-ttl", "--ttl"),
        ("etcd://h:2379", "etcd://h:2379"),
        ("--node n1 -h --docker unix:///x", "--node n1 -h --docker unix:///x"),
        ("--tag x -iptables", "--tag x -iptables"),
        ("-ttl 5 -- -ttl 5", "--ttl 5 -- -ttl 5"),
        ("", ""),
    ],
)
def test_flags(theirs: str, ours: str) -> None:
    assert translate(theirs.split()) == ours.split()


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        (["-deregister", "on-success"], "only `always`"),
        (["-deregister=never"], "only `always`"),
        (["-useIpFromLabel", "x"], "SERVICE_NETWORK"),
    ],
)
def test_what_has_no_place_here_is_refused_with_the_reason(theirs: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        translate(theirs)


@pytest.mark.parametrize(
    ("registry", "store"),
    [
        ("etcd://10.0.0.1:2379", "etcd2://10.0.0.1:2379"),
        ("etcd://10.0.0.1:2379/services", "etcd2://10.0.0.1:2379"),
        ("etcd://10.0.0.1:2379/services/", "etcd2://10.0.0.1:2379"),
        ("etcd:///services", "etcd2://127.0.0.1:2379"),
        ("etcd3://a:2379,b:2379", "etcd3://a:2379,b:2379"),
        ("etcd2+https://a:2379", "etcd2+https://a:2379"),
        ("file:///var/lib/x", "file:///var/lib/x"),
    ],
)
def test_a_registry_is_a_store(registry: str, store: str) -> None:
    assert store_url(registry, None) == store
    assert store_url(registry, store) == store


@pytest.mark.parametrize(
    "registry", ["consul://h:8500", "consulkv://h/p", "zookeeper://h/p", "skydns2://h/p", "h"]
)
def test_any_other_registry_is_refused_and_the_mend_named(registry: str) -> None:
    with pytest.raises(ConfigError, match="--store, such as etcd3://"):
        store_url(registry, None)


def test_other_prefixes_and_two_stores_are_refused() -> None:
    with pytest.raises(ConfigError, match="keys are below /services"):
        store_url("etcd://h:2379/other", None)
    with pytest.raises(ConfigError, match="give one"):
        store_url("etcd://h:2379", "etcd3://h:2379")


def test_no_password_is_shown() -> None:
    for registry, store in (
        ("consul://u:hush@h", None),
        ("etcd://u:hush@h/x", None),
        ("file:///x", "etcd3://u:hush@h"),
    ):
        with pytest.raises(ConfigError) as raised:
            store_url(registry, store)
        assert "hush" not in str(raised.value)


def test_its_command_line_leads_to_a_clear_error() -> None:
    result = CliRunner().invoke(cli, ["registrator", "-ip", "10.0.0.5", "-cleanup", "consul://h:8500"])
    assert isinstance(result.exception, ConfigError)
    assert "'consul://h:8500' is no store of ours" in str(result.exception)


def test_its_flags_are_settings() -> None:
    """Each flag of the convention that is a setting, by the name that people know."""
    result = CliRunner().invoke(cli, ["registrator", "--help"])
    for flag in ("--ip", "--internal", "--explicit", "--tags", "--ttl", "--ttl-refresh", "--resync"):
        assert f"{flag} " in result.output or f"{flag}\n" in result.output


def test_tags_and_conventions_are_read() -> None:
    settings = load(
        {"docker.tags": r"a,b\,c,", "docker.conventions": "registrator, compose"}, {}, None
    ).settings
    assert settings.docker.tags == ("a", "b,c")
    assert settings.docker.conventions == ("registrator", "compose")
    for wrong in ("traefik", ""):
        with pytest.raises(ConfigError, match=r"docker\.conventions"):
            load({"docker.conventions": wrong}, {}, None)
    with pytest.raises(ConfigError, match=r"docker\.tags"):
        load({"docker.tags": "x" * 5000}, {}, None)
