"""Whose keys are whose: the comparison, and what is decided where others hold or want the same ones."""

from collections.abc import Collection, Iterable, Mapping

import pytest

from discovery.catalog import Attributes, Instance, Registration
from discovery.contests import CONTEST_SECONDS, OVERWRITES, Contests
from discovery.decode import decode_service
from discovery.reconcile import Plan, plan
from discovery.stores.base import Entry

P = "/services/web/"
ME = "n1:web:80"
MINE, THEIRS = "192.0.2.7:8000", "192.0.2.8:8000"
H, A, SCHEME = f"{P}hosts/{ME}", f"{P}attributes/{ME}", f"{P}scheme"
WEB = Registration("web", Instance(ME, "192.0.2.7", 8000))
CLAIM = f"{A}:192.0.2.7:8000"
THEIR_CLAIM = f"{A}:192.0.2.8:8000"


def compare(
    registrations: Iterable[Registration],
    held: Mapping[str, str],
    there: Mapping[str, str],
    former: Mapping[str, Collection[str]] | None = None,
) -> Plan:
    seen = {key.removeprefix(P): value for key, value in there.items()}
    return plan(registrations, held, lambda _: seen, lambda _: True, former or {})


def test_an_id_that_another_holds_is_left_to_it_and_asked_for() -> None:
    found = compare([WEB], {}, {H: THEIRS, A: "{}", SCHEME: "http"})
    assert found == Plan(puts={CLAIM: "{}"}, taken={H: THEIRS})
    # Once asked, nothing more is done.
    asked = {CLAIM: "{}"}
    again = compare([WEB], asked, {H: THEIRS, A: "{}", SCHEME: "http", **asked})
    assert again == Plan(taken={H: THEIRS})
    # And when it is free, it is taken, and no longer asked for.
    free = compare([WEB], asked, {SCHEME: "http", **asked})
    assert free == Plan(puts={H: MINE, A: "{}"}, deletes=[CLAIM])


def test_what_a_former_life_wrote_is_taken_over_whatever_it_said() -> None:
    former = {H: ("192.0.2.7:7999",), A: ("{}",), SCHEME: ("http",)}
    there = {H: "192.0.2.7:7999", A: "{}", SCHEME: "http"}
    assert compare([WEB], {}, there, former) == Plan(puts={H: MINE, A: "{}", SCHEME: "http"})
    # The same id with another value than the one noted is another's.
    assert compare([WEB], {}, {**there, H: THEIRS}, former).taken == {H: THEIRS}
    # Of two that may be there after a crash, either is ours.
    assert compare([WEB], {}, there, {**former, H: ("192.0.2.7:7998", "192.0.2.7:7999")}).taken == {}


def test_what_a_former_life_left_is_removed_by_proof_only() -> None:
    former = {H: (MINE,), A: ("{}",), SCHEME: ("http",)}
    left = {H: MINE, A: "{}", SCHEME: "http"}
    assert sorted(compare([], {}, left, former).removes) == sorted(left)
    # A value that we did not write, a key that we did not write, what is gone already.
    assert compare([], {}, {H: THEIRS}, former) == Plan()
    assert compare([], {}, left, {}) == Plan()
    assert compare([], {}, {}, former) == Plan()
    # Shared keys stay while any other instance is there.
    others = {**left, f"{P}hosts/n2:web:80": "192.0.2.9:1"}
    assert sorted(compare([], {}, others, former).removes) == sorted([H, A])


def test_what_this_session_holds_is_never_removed_as_a_former_lifes() -> None:
    held = {H: MINE, A: "{}"}
    there = {**held, SCHEME: "http"}
    former = {key: (value,) for key, value in there.items()}
    assert compare([WEB], held, there, former) == Plan(puts={SCHEME: "http"})
    assert sorted(compare([], held, there, former).deletes) == sorted(held)


def test_the_holder_of_an_id_hears_of_who_wants_it() -> None:
    held = {H: MINE, A: "{}", SCHEME: "http"}
    found = compare([WEB], held, {**held, THEIR_CLAIM: "{}"})
    assert found == Plan(rivals={H: THEIRS})
    # Not of itself, nor of an instance that there is, whatever its id.
    assert compare([WEB], {**held, THEIR_CLAIM: "{}"}, {**held, THEIR_CLAIM: "{}"}).rivals == {}
    real = {f"{P}hosts/{ME}:x": THEIRS, f"{A}:x": "{}"}
    assert compare([WEB], held, {**held, **real}).rivals == {}


def test_a_claim_is_nothing_to_a_reader() -> None:
    keys = {f"hosts/{ME}": THEIRS, CLAIM.removeprefix(P): "{}"}
    entries = {key: Entry(P + key, value, 1, 1) for key, value in keys.items()}
    decoded = decode_service("web", entries)
    assert decoded.service is not None
    assert [each.address for each in decoded.service.instances] == [THEIRS]
    assert decoded.problems == ()


def test_an_id_of_udp_is_another_key_but_contested_alike() -> None:
    udp = Registration("web", Instance(f"{ME}:udp", "192.0.2.7", 8000, protocol="udp"))
    key = f"{P}udp/{ME}:udp"
    assert compare([udp], {}, {key: THEIRS}).taken == {key: THEIRS}
    assert compare([udp], {}, {}).puts.keys() == {key, f"{A}:udp"}


# ---- contests ---------------------------------------------------------------------------------------


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_what_is_gone_is_put_back_at_once_what_was_overwritten_later(clock: Clock) -> None:
    contests = Contests(clock)
    assert contests.restore({H: MINE, A: "{}"}, {}) == ({H: MINE, A: "{}"}, [])
    assert contests.restore({H: MINE}, {H: THEIRS}) == ({}, [])
    assert "another writer" in contests.problems[0].reason
    assert not contests.is_due(clock.now)
    clock.now += 1.0
    assert contests.is_due(clock.now)
    assert contests.restore({H: MINE}, {H: THEIRS}) == ({H: MINE}, [])
    clock.now += CONTEST_SECONDS
    contests.restore({}, {})
    assert contests.problems == ()


def overwritten(contests: Contests, clock: Clock, mine: str, theirs: str, times: int) -> list[str]:
    """What is ceded in the end of a key that is overwritten so often."""
    ceded: list[str] = []
    for _ in range(times):
        _, ceded = contests.restore({H: mine}, {H: theirs})
        clock.now += 300
        contests.restore({H: mine}, {H: theirs})
        contests.restore({}, {})
    return ceded


def test_one_of_two_that_overwrite_each_other_gives_way(clock: Clock) -> None:
    assert overwritten(Contests(clock), clock, MINE, THEIRS, 2 * OVERWRITES) == []
    assert overwritten(Contests(clock), clock, THEIRS, MINE, OVERWRITES - 1) == []
    assert overwritten(Contests(clock), clock, THEIRS, MINE, OVERWRITES) == [H]


@pytest.mark.parametrize(("key", "mine", "theirs"), [(SCHEME, "tcp", "http"), (A, "{}", "a")])
def test_only_an_id_is_given_up(clock: Clock, key: str, mine: str, theirs: str) -> None:
    contests = Contests(clock)
    for _ in range(2 * OVERWRITES):
        assert contests.restore({key: max(mine, theirs)}, {key: min(mine, theirs)})[1] == []
        clock.now += 300
        assert contests.restore({key: max(mine, theirs)}, {key: min(mine, theirs)})[1] == []
        contests.restore({}, {})


def test_contested_ids_are_reported_while_they_are(clock: Clock) -> None:
    contests = Contests(clock)
    contests.wait_for({H: THEIRS}, {})
    (problem,) = contests.problems
    assert (problem.service, problem.consequence) == ("web", "left out")
    assert THEIRS in problem.reason
    contests.wait_for({}, {H: THEIRS})
    (problem,) = contests.problems
    assert problem.consequence == "reported"
    contests.wait_for({}, {})
    assert contests.problems == ()


def test_attributes_of_a_draining_instance_are_put_alone() -> None:
    held = {H: MINE, A: "{}", SCHEME: "http"}
    draining = Registration("web", Instance(ME, "192.0.2.7", 8000, Attributes(draining=True)))
    assert compare([draining], held, held) == Plan(puts={A: '{"draining": true}'})
