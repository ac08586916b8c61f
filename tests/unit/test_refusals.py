"""One service that a store refuses holds up no other."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.errors import StoreRefused, StoreUnavailable
from discovery.refusals import MOST_SECONDS, Refusals


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Store:
    """Refuses whatever has a key of a bad service in it."""

    def __init__(self, *bad: str) -> None:
        self.bad = set(bad)
        self.held: set[str] = set()
        self.calls = 0

    def write(self, keys: list[str]) -> None:
        self.calls += 1
        if any(key.split("/")[2] in self.bad for key in keys):
            raise StoreRefused("no")
        self.held |= set(keys)


def keys(*services: str) -> list[str]:
    return [f"/services/{service}/{rest}" for service in services for rest in ("scheme", "hosts/0")]


def test_all_at_once_where_nothing_is_refused() -> None:
    store, refusals = Store(), Refusals(Clock())
    assert refusals.write(keys("a", "b"), store.write) == {"a", "b"}
    assert (store.calls, refusals.problems) == (1, ())
    assert refusals.write([], store.write) == set()


def test_the_one_to_blame_is_set_aside_and_tried_again() -> None:
    clock = Clock()
    store, refusals = Store("s13"), Refusals(clock)
    many = [f"s{number}" for number in range(100)]
    assert refusals.write(keys(*many), store.write) == {*many} - {"s13"}
    assert store.calls < 20
    assert [problem.service for problem in refusals.problems] == ["s13"]
    assert refusals.is_set_aside("/services/s13/scheme")
    assert not refusals.is_set_aside("/services/s1/scheme")
    assert not refusals.is_due(clock.now)
    # Tried alone it is refused again: still no reason to stop all others.
    clock.now += MOST_SECONDS
    assert refusals.is_due(clock.now)
    assert not refusals.is_set_aside("/services/s13/scheme")
    assert refusals.write(keys("s13"), store.write) == set()
    assert refusals.is_set_aside("/services/s13/scheme")
    clock.now += MOST_SECONDS
    store.bad.clear()
    assert refusals.write(keys("s13"), store.write) == {"s13"}
    assert refusals.problems == ()


def test_a_store_that_refuses_everything_is_not_a_services_fault() -> None:
    store, refusals = Store("a", "b", "c"), Refusals(Clock())
    with pytest.raises(StoreRefused):
        refusals.write(keys("a", "b", "c"), store.write)
    assert refusals.problems == ()
    assert not refusals.is_set_aside("/services/a/scheme")


def test_other_errors_pass_through() -> None:
    def fail(_: list[str]) -> None:
        raise StoreUnavailable("away")

    with pytest.raises(StoreUnavailable):
        Refusals(Clock()).write(keys("a", "b"), fail)


def test_what_runs_no_more_is_forgotten() -> None:
    clock = Clock()
    store, refusals = Store("a"), Refusals(clock)
    refusals.write(keys("a", "b"), store.write)
    refusals.keep_only(["b"])
    assert refusals.problems == ()
    assert not refusals.is_due(clock.now + MOST_SECONDS)


@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30), min_size=1))
def test_however_many_are_bad_all_others_are_written_in_the_end(bad: set[int], wanted: set[int]) -> None:
    clock = Clock()
    store, refusals = Store(*(f"s{number}" for number in bad)), Refusals(clock)
    left = {f"s{number}" for number in wanted}
    for _ in range(200):
        tried = [each for each in sorted(left) if not refusals.is_set_aside(f"/services/{each}/scheme")]
        with suppress(StoreRefused):
            left -= refusals.write(keys(*tried), store.write)
        if left == {f"s{number}" for number in wanted & bad}:
            break
    assert left == {f"s{number}" for number in wanted & bad}
    assert not any(key.split("/")[2] in store.bad for key in store.held)
