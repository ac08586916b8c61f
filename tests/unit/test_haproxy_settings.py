"""What the proxy role can be told, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest

from discovery.config import load
from discovery.errors import ConfigError
from discovery.haproxy.settings import HeldPorts, ProxySettings, parse_held_ports
from discovery.roles import proxy_settings


def settings(**more: Any) -> ProxySettings:
    return ProxySettings(Path("/var/lib/discovery"), (Path("templates"),), **more)


def test_held_ports_are_ranges_or_single_ports_of_a_scheme() -> None:
    held = parse_held_ports(("tcp:9000-9099", "http:9100", "tcp:1-1000"))
    assert held == (HeldPorts("tcp", 9000, 9099), HeldPorts("http", 9100, 9100), HeldPorts("tcp", 1, 1000))
    assert 9000 in held[0]
    assert 9099 in held[0]
    assert 9100 not in held[0]
    assert 8999 not in held[0]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("9000-9099", "is no range"),
        ("udp:53", "is no range"),
        ("tcp:9000-", "is no range"),
        ("tcp:09-10", "is no range"),
        ("tcp:0-10", "is no range"),
        ("tcp:9001-9000", "is no range"),
        ("tcp:65000-65536", "is no range"),
        ("tcp:1-1001", "hold at most 1000"),
        ("", "is no range"),
    ],
)
def test_what_is_no_range_of_held_ports_is_refused(entry: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        parse_held_ports((entry,))
    assert caught.value.setting == "proxy.held_ports"


@pytest.mark.parametrize(
    ("held", "more", "said"),
    [
        (("tcp:9000-9099", "http:9099-9199"), {}, "overlap"),
        (("http:9100-9199", "tcp:9000-9100"), {}, "overlap"),
        (("tcp:9000-9099", "tcp:9050"), {}, "overlap"),
        (("tcp:9000", "tcp:9000"), {}, "overlap"),
        (("tcp:80-90",), {}, "port 80, which is used by proxy.http"),
        (("tcp:400-500",), {"https": ("*:443",), "certs": Path("/c")}, "used by proxy.https"),
        (("http:8400-8410",), {"reserved_ports": {8405: "status.listen"}}, "used by status.listen"),
    ],
)
def test_held_ports_are_nobody_elses(held: tuple[str, ...], more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings(held_ports=parse_held_ports(held), **more)


def test_ranges_that_touch_do_not_overlap() -> None:
    assert settings(held_ports=parse_held_ports(("tcp:9100-9199", "http:9000-9099", "tcp:81-90")))


@pytest.mark.parametrize(
    ("more", "setting"),
    [
        ({"mode": "external"}, "proxy.reload_cmd"),
        ({"reload_cmd": "true"}, "proxy.reload_cmd"),
        ({"check_cmd": "true"}, "proxy.check_cmd"),
    ],
)
def test_commands_are_for_an_external_haproxy_which_needs_one(more: dict[str, Any], setting: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(**more)
    assert caught.value.setting == setting
    assert caught.value.mend


def test_every_setting_of_the_proxy_reaches_its_role(tmp_path: Path) -> None:
    flags = {
        "state_dir": str(tmp_path),
        "registrator.ttl_seconds": "20",
        "proxy.user": "root",
        "proxy.mode": "external",
        "proxy.check_cmd": "check {{src}}",
        "proxy.reload_cmd": "reload",
        "proxy.command_timeout_seconds": "7",
        "proxy.reload_interval_seconds": "0",
        "proxy.reload_spread_seconds": "0.25",
        "proxy.spare_backends": "3",
        "proxy.held_ports": "tcp:9000-9099,http:9100",
        "proxy.mass_loss_share": "0.25",
        "proxy.mass_loss_seconds": "60",
        "proxy.old_worker_seconds": "90",
        "proxy.old_workers": "5",
    }
    of = proxy_settings(load(flags, {}, None).settings)
    assert (of.user, of.mode, of.check_cmd, of.reload_cmd) == ("root", "external", "check {{src}}", "reload")
    assert of.command_timeout_seconds == 7
    assert (of.reload_interval_seconds, of.reload_spread_seconds) == (0, 0.25)
    assert (of.spare_backends, of.held_ports) == (3, parse_held_ports(("tcp:9000-9099", "http:9100")))
    assert (of.mass_loss_share, of.mass_loss_seconds, of.mass_loss_window_seconds) == (0.25, 60, 20)
    assert (of.hard_stop_after_seconds, of.max_reloads) == (90, 5)


def test_defaults_of_the_settings_are_those_of_the_role(tmp_path: Path) -> None:
    """Both have defaults, for tests make the role's alone."""
    told = proxy_settings(load({"state_dir": str(tmp_path)}, {}, None).settings)
    alone = ProxySettings(told.state_dir, told.templates, reserved_ports=told.reserved_ports)
    assert told == alone


def test_a_user_that_was_named_must_be_there(tmp_path: Path) -> None:
    loaded = load({"state_dir": str(tmp_path), "proxy.user": "nobody-of-that-name"}, {}, None)
    with pytest.raises(ConfigError) as caught:
        proxy_settings(loaded.settings)
    assert caught.value.setting == "proxy.user"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("proxy.mass_loss_share", "0"),
        ("proxy.mass_loss_share", "1.1"),
        ("proxy.mass_loss_seconds", "inf"),
        ("proxy.mass_loss_seconds", "nan"),
        ("proxy.reload_interval_seconds", "-1"),
        ("proxy.command_timeout_seconds", "0"),
        ("proxy.spare_backends", "-1"),
        ("proxy.old_workers", "0"),
        ("proxy.old_worker_seconds", "3000000"),
        ("proxy.mode", "remote"),
    ],
)
def test_a_value_beyond_its_bounds_names_the_setting(setting: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({setting: value}, {}, None)
    assert caught.value.setting == setting
