"""Settings: precedence, errors that name the setting, nothing secret shown."""

import json
from pathlib import Path

import pytest

from discovery.config import SETTINGS, load
from discovery.errors import ConfigError
from discovery.views import configuration_json, configuration_rows


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_flag_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = write(
        tmp_path / "discovery.toml",
        'state_dir = "/file"\n[dns]\nzone = "file"\nttl_seconds = 9\n[proxy]\nhttp = ["*:81", "*:82"]\n',
    )
    environ = {"DISCOVERY_STATE": "/environment", "DISCOVERY_ZONE": "environment"}
    loaded = load({"state_dir": "/flag"}, environ, file)
    assert loaded.settings.state_dir == Path("/flag")
    assert loaded.settings.dns.zone == ("environment",)
    assert loaded.settings.dns.ttl_seconds == 9
    assert loaded.settings.proxy.http == ("*:81", "*:82")
    assert loaded.settings.registrator.ttl_seconds == 30
    assert loaded.origins["state_dir"] == "flag --state"
    assert loaded.origins["dns.zone"] == "environment DISCOVERY_ZONE"
    assert loaded.origins["dns.ttl_seconds"] == f"file {file}"
    assert loaded.origins["registrator.ttl_seconds"] == "default"


def test_lists_are_comma_separated_in_flags_and_environment() -> None:
    loaded = load({"roles": "proxy, dns"}, {"DISCOVERY_UPSTREAM": "10.0.0.1,10.0.0.2:5353"}, None)
    assert loaded.settings.roles == ("proxy", "dns")
    assert loaded.settings.dns.upstream == ("10.0.0.1", "10.0.0.2:5353")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[dns]\nzon = 'x'\n", ["dns.zon", "did you mean dns.zone?"]),
        ("[stroe]\nurl = 'x'\n", ["stroe", "did you mean store?"]),
        ("rols = ['dns']\n", ["rols", "did you mean roles?"]),
        ("[dns]\nttl_seconds = 'soon'\n", ["dns.ttl_seconds", "integer", "discovery.toml"]),
        ("[registrator]\nttl_seconds = 0\n", ["registrator.ttl_seconds", "greater than 0"]),
        ("roles = ['cook']\n", ["roles", "'registrator', 'proxy', 'dns' or 'status'"]),
        ("proxy = 1\n", ["proxy"]),
        ("dns = \n", ["--config", "is no TOML"]),
        ("template = 1\n", ["template", "[[template]]"]),
    ],
)
def test_a_wrong_file_names_the_setting_and_the_mend(tmp_path: Path, text: str, names: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        load({}, {}, write(tmp_path / "discovery.toml", text))
    for name in names:
        assert name in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml cannot be read"):
        load({}, {}, tmp_path / "absent.toml")


def test_every_setting_has_a_flag_a_variable_and_a_description_of_its_own() -> None:
    assert len({setting.flag for setting in SETTINGS}) == len(SETTINGS)
    assert len({setting.environment for setting in SETTINGS}) == len(SETTINGS)
    assert all(setting.field.description for setting in SETTINGS)


def test_no_secret_is_shown() -> None:
    loaded = load({"store.password": "hush", "store.url": "etcd3://me:hush@h1:2379,h2:2379"}, {}, None)
    shown = configuration_json(loaded)
    assert "hush" not in shown
    assert json.loads(shown)["store.url"]["value"] == "etcd3://me:…@h1:2379,h2:2379"
    assert {key: value for key, value, _ in configuration_rows(loaded)}["store.password"] == "(hidden)"


def test_the_default_store_is_a_file_tree_in_the_state_directory(tmp_path: Path) -> None:
    settings = load({"state_dir": str(tmp_path)}, {}, None).settings
    assert settings.store_url == f"file://{tmp_path}"
    assert settings.private_dir.parent == tmp_path
    assert settings.private_dir.name.startswith("."), "or the file store would take it for keys"
