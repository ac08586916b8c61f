"""When a reload may be."""

import pytest

from discovery.haproxy.pace import GATHER_SECONDS, QUIET_SECONDS, Pacer


def pacer(chance: float = 0.0) -> Pacer:
    return Pacer(2.0, 0.5, lambda: chance)


def test_the_first_reload_gathers_what_comes_as_a_burst() -> None:
    assert pacer().wait_seconds(100.0) == pytest.approx(GATHER_SECONDS)


def test_later_wishes_do_not_put_it_off() -> None:
    each = pacer()
    each.wait_seconds(100.0)
    assert each.wait_seconds(100.03) == pytest.approx(GATHER_SECONDS - 0.03)
    assert each.wait_seconds(100.1) == 0


def test_two_reloads_are_apart_and_the_last_change_is_not_dropped() -> None:
    each = pacer()
    each.wait_seconds(100.0)
    each.done(100.5)
    assert each.wait_seconds(100.6) == pytest.approx(1.9)
    assert each.wait_seconds(102.5) == 0


def test_nodes_do_not_reload_at_one_moment() -> None:
    assert pacer(0.5).wait_seconds(100.0) == pytest.approx(GATHER_SECONDS + 0.25)
    assert pacer(1.0).wait_seconds(100.0) == pytest.approx(GATHER_SECONDS + 0.5)


def test_what_nobody_waits_for_waits_long_and_goes_along_with_what_somebody_does() -> None:
    each = pacer()
    assert each.wait_seconds(100.0, is_urgent=False) == pytest.approx(QUIET_SECONDS)
    assert each.wait_seconds(101.0, is_urgent=True) == pytest.approx(GATHER_SECONDS)
    each.done(101.1)
    assert each.wait_seconds(101.2, is_urgent=False) == pytest.approx(QUIET_SECONDS)


def test_what_is_no_longer_wanted_begins_anew() -> None:
    each = pacer()
    each.wait_seconds(100.0)
    each.not_wanted()
    assert each.wait_seconds(200.0) == pytest.approx(GATHER_SECONDS)


def test_without_an_interval_it_is_due_at_once() -> None:
    assert Pacer(0.0, 0.5).wait_seconds(100.0) == 0
