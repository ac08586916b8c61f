"""MassLossGuard, with times of our own."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.catalog import Attributes, Catalog, Instance, Service
from discovery.haproxy.massloss import Key, MassLoss, MassLossGuard

WINDOW_SECONDS = 30.0
HOLD_SECONDS = 600.0


def instance(id_: str, address: str | None = None, *, draining: bool = False) -> Instance:
    """One at an address that follows from its id, or at the last byte of it that is given."""
    host = f"10.0.0.{address or id_}"
    return Instance(id_, host, 80, Attributes(draining=draining))


def service(name: str, *ids: Any, number: int = 0, **more: Any) -> Service:
    """``number`` keeps the addresses of one service apart from those of others."""
    instances = tuple(
        replace(each, host=f"10.0.{number}.{each.host.rpartition('.')[2]}")
        for each in (each if isinstance(each, Instance) else instance(str(each)) for each in ids)
    )
    return Service(name, instances=tuple(sorted(instances, key=lambda each: each.id)), **more)


def catalog(*services: Service, revision: int = 1) -> Catalog:
    return Catalog(revision, {each.name: each for each in services})


def guard_with(*services: Service, **more: Any) -> MassLossGuard:
    guard = MassLossGuard(WINDOW_SECONDS, HOLD_SECONDS, **more)
    guard.admit(catalog(*services), 0)
    return guard


def ids(of: Catalog, name: str = "web") -> list[str]:
    found = of.services.get(name)
    return [each.id for each in found.instances] if found else []


WEB = service("web", *range(10, 20))
"""Ten instances."""


# ---- what is a mass loss -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "held"),
    [
        (range(10, 20), range(10, 15), 0),
        (range(10, 20), range(10, 14), 6),
        (range(10, 20), (), 10),
        (range(10, 19), (), 0),
        (range(10, 31), range(10, 20), 11),
        (range(10, 31), range(10, 21), 0),
        # Each of ten made anew under another id, at another address: as many are there as are gone.
        (range(10, 20), range(20, 30), 0),
        (range(10, 20), range(20, 29), 10),
    ],
)
def test_more_than_half_of_ten_or_more_is_a_mass_loss(before: range, after: range, held: int) -> None:
    guard = guard_with(service("web", *before))
    told = guard.admit(catalog(service("web", *after)), 1)
    assert len(guard.held) == held
    assert len(ids(told)) == len(after) + held
    assert guard.problem() is None if held == 0 else guard.problem() is not None


@pytest.mark.parametrize(("share", "least", "lost", "held"), [(0.2, 5, 2, 2), (0.2, 5, 1, 0), (1.0, 5, 5, 0)])
def test_share_and_least_are_given(share: float, least: int, lost: int, held: int) -> None:
    guard = guard_with(service("web", *range(10, 15)), share=share, least=least)
    guard.admit(catalog(service("web", *range(10 + lost, 15))), 1)
    assert len(guard.held) == held


def test_removed_services_count_by_their_instances() -> None:
    many = service("many", *range(10, 18), number=1)
    few = service("few", 1, 2, number=2)
    guard = guard_with(many, few)
    told = guard.admit(catalog(few, revision=2), 1)
    assert told.revision == 2
    assert told.services["many"] == many
    assert told.services["few"] is few


def test_losses_add_up_within_the_window_and_all_of_them_come_back() -> None:
    guard = guard_with(WEB)
    assert len(ids(guard.admit(catalog(service("web", *range(13, 20))), 1))) == 7
    assert len(ids(guard.admit(catalog(service("web", *range(15, 20))), 15))) == 5
    assert ids(guard.admit(catalog(service("web", *range(16, 20))), 30.9)) == ids(catalog(WEB))
    assert guard.held["web", "10"].lost_seconds == 1
    assert guard.held["web", "10"].until_seconds == 30.9 + HOLD_SECONDS


def test_losses_further_apart_than_the_window_are_none_of_that_size() -> None:
    guard = guard_with(WEB)
    guard.admit(catalog(service("web", *range(13, 20))), 1)
    # Three of ten are too long ago; three of seven are no majority.
    assert ids(guard.admit(catalog(service("web", *range(16, 20))), 31)) == ["16", "17", "18", "19"]
    assert not guard.held


def test_what_was_draining_before_it_went_is_no_loss() -> None:
    guard = guard_with(WEB)
    leaving = [instance(str(each), draining=each < 18) for each in range(10, 20)]
    guard.admit(catalog(service("web", *leaving)), 1)
    assert ids(guard.admit(catalog(service("web", 18, 19)), 2)) == ["18", "19"]
    assert not guard.held


def test_what_drains_is_not_among_the_living_either() -> None:
    leaving = [instance(str(each), draining=each >= 20) for each in range(10, 30)]
    guard = guard_with(service("web", *leaving))
    guard.admit(catalog(service("web", *leaving[6:])), 1)
    assert len(guard.held) == 6, "six of the ten that served"


def test_one_that_moved_counts_and_is_held_unless_its_address_was_taken() -> None:
    guard = guard_with(WEB)
    # Container 10 is now 30, on the same published port.
    told = guard.admit(catalog(service("web", instance("30", "10"))), 1)
    assert ids(told) == [*map(str, range(11, 20)), "30"]
    assert ("web", "10") not in guard.held


# ---- how it ends -------------------------------------------------------------------------------------


def held_guard(**more: Any) -> tuple[MassLossGuard, Catalog]:
    """A guard that holds all ten since second 1, and the catalog without them."""
    guard = guard_with(WEB, **more)
    empty = catalog(revision=2)
    assert ids(guard.admit(empty, 1)) == ids(catalog(WEB))
    return guard, empty


def test_hold_ends_with_its_time() -> None:
    guard, empty = held_guard()
    assert guard.due(1) == HOLD_SECONDS
    assert guard.due(10_000) == 0
    assert len(ids(guard.admit(empty, HOLD_SECONDS + 0.9))) == 10
    assert guard.admit(empty, HOLD_SECONDS + 1) is empty
    assert (guard.due(700), dict(guard.held), guard.problem(), guard.loss) == (None, {}, None, None)


def test_hold_that_is_shorter_than_the_window_is_not_begun_again() -> None:
    guard = MassLossGuard(WINDOW_SECONDS, 5)
    guard.admit(catalog(WEB), 0)
    empty = catalog()
    assert len(ids(guard.admit(empty, 1))) == 10
    assert guard.admit(empty, 6) is empty
    assert guard.admit(empty, 7) is empty


def test_accept_lets_go_at_once_and_of_what_was_lost_before() -> None:
    guard, empty = held_guard()
    guard.accept()
    assert not guard.held
    assert guard.admit(empty, 2) is empty
    assert guard.admit(empty, 3) is empty


def test_accept_is_of_one_loss_not_of_the_next() -> None:
    guard, _ = held_guard()
    guard.accept()
    guard.admit(catalog(WEB), 2)
    assert len(ids(guard.admit(catalog(), 3))) == 10


def test_those_whose_check_failed_are_gone_for_good() -> None:
    guard, empty = held_guard()
    guard.failed([("web", "10"), ("web", "99"), ("api", "10")])
    assert ids(guard.admit(empty, 2)) == [*map(str, range(11, 20))]
    guard.failed([("web", str(each)) for each in range(11, 20)])
    assert guard.admit(empty, 3) is empty


def test_what_really_died_does_not_make_the_next_loss_a_great_one() -> None:
    guard = guard_with(WEB)
    guard.admit(catalog(service("web", *range(16, 20))), 1)
    guard.failed([("web", str(each)) for each in range(10, 16)])
    assert ids(guard.admit(catalog(service("web", *range(17, 20))), 2)) == ["17", "18", "19"]


def test_those_without_a_check_are_held_for_one_window() -> None:
    guard, empty = held_guard()
    guard.unchecked([("web", "10"), ("web", "11"), ("api", "1")])
    guard.unchecked([("web", "10")])
    assert guard.due(1) == WINDOW_SECONDS
    assert len(ids(guard.admit(empty, 30.9))) == 10
    assert ids(guard.admit(empty, 31)) == [*map(str, range(12, 20))]


def test_what_comes_back_is_as_the_store_has_it() -> None:
    guard, _ = held_guard()
    back = service("web", instance("10", "99"), 11)
    told = guard.admit(catalog(back), 2)
    assert told.services["web"].instances[:2] == back.instances
    assert len(guard.held) == 8
    everything = catalog(WEB, revision=4)
    assert guard.admit(everything, 3) is everything


def test_no_time_to_hold_is_no_guard() -> None:
    guard = MassLossGuard(WINDOW_SECONDS, 0)
    guard.admit(catalog(WEB), 0)
    empty = catalog()
    assert guard.admit(empty, 1) is empty


# ---- what is held, beside what is there --------------------------------------------------------------


def test_address_that_another_service_has_now_is_not_sent_the_traffic_of_this_one() -> None:
    guard, _ = held_guard()
    stranger = service("api", instance("1", "10"))
    told = guard.admit(catalog(stranger), 2)
    assert ids(told) == [*map(str, range(11, 20))]
    assert told.services["api"] is stranger
    # Nor once the stranger went away.
    assert "10" not in ids(guard.admit(catalog(), 3))


def test_address_claimed_before_the_loss_was_of_that_size() -> None:
    guard = guard_with(WEB)
    guard.admit(catalog(service("web", *range(13, 20))), 1)
    stranger = service("api", instance("1", "10"))
    guard.admit(catalog(service("web", *range(13, 20)), stranger), 2)
    told = guard.admit(catalog(stranger), 3)
    assert ids(told) == [*map(str, range(11, 20))]


def test_address_claimed_long_after_the_loss() -> None:
    guard, _ = held_guard()
    guard.admit(catalog(revision=3), WINDOW_SECONDS + 1)
    stranger = catalog(service("api", instance("1", "10")))
    assert ids(guard.admit(stranger, WINDOW_SECONDS + 2)) == [*map(str, range(11, 20))]


def test_two_names_of_one_address_are_no_strangers() -> None:
    alias = service("alias", *range(10, 20))
    guard = guard_with(WEB, alias)
    assert len(guard.admit(catalog(), 1).services) == 2
    told = guard.admit(catalog(alias), 2)
    assert ids(told) == ids(told, "alias")


def test_service_takes_its_port_back_unless_another_has_it() -> None:
    mine = replace(WEB, host_port=9000)
    guard = guard_with(mine)
    assert guard.admit(catalog(), 1).services["web"] == mine
    other = service("api", 1, number=1, host_port=9000)
    told = guard.admit(catalog(other), 2)
    assert told.services["web"] == replace(mine, host_port=None)
    assert told.services["api"] is other
    free = catalog(replace(other, host_port=None))
    assert guard.admit(free, 3).services["web"] == mine


def test_of_two_held_services_the_one_that_had_the_port_last_has_it() -> None:
    first = service("zeta", *range(10, 20), host_port=9000)
    second = service("alpha", *range(10, 20), number=1, host_port=9000)
    for lost_first, lost_last in ((first, second), (second, first)):
        guard = guard_with(lost_first)
        guard.admit(catalog(), 1)
        guard.admit(catalog(lost_last), 2)
        told = guard.admit(catalog(), 3)
        assert told.services[lost_last.name].host_port == 9000
        assert told.services[lost_first.name].host_port is None


def test_service_without_instances_is_what_they_said_it_was_but_for_what_is_said_now() -> None:
    was = replace(WEB, scheme="tcp", host_port=9000, options={"path": "keep", "weight": "3"})
    guard = guard_with(was)
    # The instances' attributes are gone with them, and with those what they told of the service.
    left = Service("web", "http", None, (), {"path": "strip"})
    told = guard.admit(catalog(left), 1).services["web"]
    assert told == replace(was, options={"path": "strip", "weight": "3"})
    told = guard.admit(catalog(replace(left, host_port=9001)), 2).services["web"]
    assert told.host_port == 9001


def test_service_is_what_it_was_when_it_was_seen_last() -> None:
    guard = guard_with(replace(WEB, options={"weight": "1"}))
    guard.admit(catalog(service("web", *range(13, 20), options={"weight": "2"})), 1)
    told = guard.admit(catalog(), 2).services["web"]
    assert told == replace(WEB, options={"weight": "2"})


def test_service_with_instances_is_what_they_say() -> None:
    was = replace(WEB, host_port=9000, options={"path": "keep"})
    guard = guard_with(was)
    left = service("web", 10, host_port=9001)
    told = guard.admit(catalog(left), 1).services["web"]
    assert told == replace(WEB, host_port=9001)


def test_servers_of_another_scheme_are_none_of_a_service() -> None:
    guard = guard_with(WEB)
    guard.admit(catalog(), 1)
    changed = service("web", 50, scheme="tcp")
    after = catalog(changed)
    assert guard.admit(after, 2) is after
    assert not guard.held


# ---- sharing -----------------------------------------------------------------------------------------


def test_while_nothing_is_wrong_the_catalog_is_the_same() -> None:
    guard = MassLossGuard(WINDOW_SECONDS, HOLD_SECONDS)
    for number in range(10, 14):
        given_catalog = catalog(service("web", *range(10, 20)), service("api", number, number=1))
        assert guard.admit(given_catalog, number) is given_catalog


@pytest.mark.parametrize("host_port", [None, 9000])
def test_what_did_not_change_stays_the_same_object_while_something_is_held(host_port: int | None) -> None:
    api = service("api", 1, number=1)
    guard = guard_with(replace(WEB, host_port=host_port), api)
    first = guard.admit(catalog(api), 1)
    assert first.services["api"] is api
    # Only the revision moves on, as it does with every key elsewhere.
    only_revision = Catalog(7, guard._services)
    second = guard.admit(only_revision, 2)
    assert (second.revision, second.services is first.services) == (7, True)
    third = guard.admit(catalog(api, service("new", 1, number=2)), 3)
    assert third.services["web"] is first.services["web"]
    guard.failed([("web", "10")])
    fourth = guard.admit(catalog(api), 4)
    assert fourth.services["web"] is not first.services["web"]
    assert fourth.services["api"] is api


# ---- another life ------------------------------------------------------------------------------------


def test_what_was_lost_while_the_agent_was_down_is_held_too() -> None:
    guard = MassLossGuard(WINDOW_SECONDS, HOLD_SECONDS)
    guard.restore(catalog(WEB))
    assert ids(guard.admit(catalog(), 5)) == ids(catalog(WEB))


def test_first_catalog_is_no_loss() -> None:
    first = catalog()
    assert MassLossGuard(WINDOW_SECONDS, HOLD_SECONDS).admit(first, 5) is first


# ---- what people are told ----------------------------------------------------------------------------


def test_problem_tells_what_since_when_until_when_and_the_mend() -> None:
    services = [service(f"s{number}", 1, 2, number=number) for number in range(6)]
    guard = guard_with(*services, epoch_seconds=3600.0)
    guard.admit(catalog(), 1)
    problem = guard.problem()
    assert problem is not None
    assert problem.consequence == "kept at its last good value"
    for part in (
        "12 instances of 6 services (s0, s1, s2, s3, s4, …)",
        "at 01:00:01 UTC",
        "until 01:10:01 UTC",
        "`discovery proxy accept`",
    ):
        assert part in problem.reason
    loss = guard.loss
    assert loss is not None
    assert (loss.since_seconds, loss.until_seconds, loss.count) == (3601, 4201, 12)
    assert loss.instances["s0"] == ("1", "2")
    guard.admit(catalog(), 300)
    assert guard.problem() == problem, "the text does not change with the time, or it would be news for ever"


# ---- properties --------------------------------------------------------------------------------------

NAMES = ("web", "api", "db")
States = Mapping[str, Mapping[int, bool]]
worlds = st.dictionaries(
    st.sampled_from(NAMES), st.dictionaries(st.integers(1, 6), st.booleans(), max_size=6), max_size=3
)
steps = st.lists(
    st.tuples(
        worlds, st.floats(0, 25), st.sampled_from(["", "", "", "accept", "failed", "unchecked"]), st.randoms()
    ),
    max_size=15,
)
HOLD = 60.0


def world(states: States, shared: Mapping[str, Service]) -> Catalog:
    services = {}
    for name, instances in states.items():
        # Two of the services share their addresses, so that claims collide.
        number = 0 if name == "db" else NAMES.index(name)
        made = service(
            name,
            *(instance(str(id_), draining=not up) for id_, up in instances.items()),
            number=number,
            host_port=9000 + len(instances) % 2,
        )
        services[name] = shared[name] if shared.get(name) == made else made
    taken: set[int | None] = set()
    for name in sorted(services):
        if services[name].host_port in taken:
            services[name] = replace(services[name], host_port=None)
        taken.add(services[name].host_port)
    return Catalog(1, services)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_nothing_is_invented_hidden_or_held_beyond_its_time(
    given_steps: list[tuple[States, float, str, Any]],
) -> None:
    guard = MassLossGuard(20.0, HOLD, least=4)
    now_seconds, shared = 0.0, dict[str, Service]()
    absent_since: dict[Key, float] = {}
    known: dict[Key, Instance] = {}
    gone_for_good: set[Key] = set()
    for states, seconds, action, random in given_steps:
        now_seconds += seconds
        before = list(guard.held)
        if action == "accept":
            guard.accept()
            assert not guard.held
            gone_for_good |= absent_since.keys()
        elif before and action:
            chosen = random.sample(before, random.randint(0, len(before)))
            if action == "failed":
                guard.failed(chosen)
                gone_for_good |= set(chosen)
            else:
                guard.unchecked(chosen)
        raw = world(states, shared)
        shared = dict(raw.services)
        present = {(name, each.id): each for name, of in shared.items() for each in of.instances}
        for key in known:
            if key not in present:
                absent_since.setdefault(key, now_seconds)
        for key in present:
            absent_since.pop(key, None)
            gone_for_good.discard(key)
        told = guard.admit(raw, now_seconds)
        shown = {(name, each.id): each for name, of in told.services.items() for each in of.instances}
        held = guard.held
        # What is there passes through, as it is.
        assert {key: shown[key] for key in present} == present
        assert shown.keys() == present.keys() | held.keys()
        assert not held.keys() & present.keys()
        # What is not there was, as it was, and not longer ago than can be.
        for key, each in held.items():
            assert shown[key] == each.instance == known[key]
            assert not each.instance.attributes.draining
            assert key not in gone_for_good
            assert now_seconds - absent_since[key] < 20.0 + HOLD
            assert now_seconds < each.until_seconds <= each.since_seconds + HOLD
        # No port has two services, and nobody's is taken away.
        ports = [of.host_port for of in told.services.values() if of.host_port is not None]
        assert len(ports) == len(set(ports))
        for name, of in raw.services.items():
            if name not in {held_name for held_name, _ in held}:
                assert told.services[name] is of
            assert of.host_port is None or told.services[name].host_port == of.host_port
            assert [each.id for each in told.services[name].instances] == sorted(
                each.id for each in told.services[name].instances
            )
        assert held or told is raw
        assert (guard.due(now_seconds) is None) == (not held)
        # The same question has the same answer.
        assert guard.admit(raw, now_seconds).services is told.services
        known.update(present)


# ---- a former life -----------------------------------------------------------------------------------

LOSS = MassLoss(1100.0, 1700.0, {"web": tuple(str(id_) for id_ in range(10, 19))})
"""Of WEB all but one instance was held; in Unix time, which is 1000 s ahead of the guard's clock."""


def resumed(now_seconds: float, **more: Any) -> MassLossGuard:
    guard = MassLossGuard(WINDOW_SECONDS, more.pop("hold", HOLD_SECONDS), epoch_seconds=1000.0, **more)
    guard.resume({"web": WEB}, LOSS, now_seconds)
    return guard


def test_what_a_former_life_held_is_held_until_it_would_have_been_let_go() -> None:
    guard = resumed(200)
    assert guard.loss == LOSS
    assert ids(guard.admit(catalog(), 200)) == [str(id_) for id_ in range(10, 19)]
    assert ids(guard.admit(catalog(), 699)) != []
    assert ids(guard.admit(catalog(), 701)) == []
    assert guard.loss is None


def test_what_came_back_meanwhile_is_not_held_nor_what_a_stranger_stands_for() -> None:
    guard = resumed(200)
    stranger = service("api", instance("1", "11"))
    believed = guard.admit(catalog(service("web", 10), stranger), 200)
    assert guard.held.keys() == {("web", str(id_)) for id_ in range(12, 19)}
    assert ids(believed) == ["10", *(str(id_) for id_ in range(12, 19))]
    assert believed.services["api"] is stranger


def test_a_clock_that_jumped_holds_nothing_for_longer_than_any_loss() -> None:
    guard = resumed(-50_000)
    assert ids(guard.admit(catalog(), -50_000)) != []
    assert ids(guard.admit(catalog(), -50_000 + HOLD_SECONDS + 1)) == []


def test_nothing_is_resumed_where_nothing_is_to_be_held() -> None:
    assert ids(resumed(200, hold=0.0).admit(catalog(), 200)) == []


def test_what_was_resumed_is_let_go_by_the_checks_and_by_a_person() -> None:
    guard = resumed(200)
    guard.admit(catalog(), 200)
    guard.failed([("web", "10")])
    assert "10" not in ids(guard.admit(catalog(), 201))
    guard.accept()
    assert ids(guard.admit(catalog(), 202)) == []
