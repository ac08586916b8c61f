"""OutageGuard, with times of our own."""

from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.outage import OutageGuard
from discovery.stores.base import Change, Changes, Entry, Snapshot

HOLD_SECONDS = 30.0


def entry(key: str, value: str = "x", revision: int = 1) -> Entry:
    return Entry(key, value, revision, revision)


def snapshot(*keys: str, revision: int = 1) -> Snapshot:
    return Snapshot(revision, {key: entry(key) for key in keys})


def gone(*keys: str, revision: int = 2) -> Changes:
    return Changes(revision, tuple(Change(key, None) for key in keys))


def put(*keys: str, revision: int = 2) -> Changes:
    return Changes(revision, tuple(Change(key, entry(key, "new", revision)) for key in keys))


HEARTBEAT = Changes(3)


def guard_with(*keys: str) -> OutageGuard:
    guard = OutageGuard(HOLD_SECONDS)
    assert guard.reset(snapshot(*keys), after_outage=False, now_seconds=0) == snapshot(*keys)
    return guard


def test_without_an_outage_everything_is_believed_at_once() -> None:
    guard = guard_with("/a", "/b")
    assert guard.apply(gone("/a"), now_seconds=0) == gone("/a")
    assert guard.reset(snapshot(), after_outage=False, now_seconds=1).entries == {}
    assert (guard.held, guard.entries) == (0, {})


def test_first_snapshot_of_all_is_believed_even_after_failed_tries() -> None:
    guard = OutageGuard(HOLD_SECONDS)
    assert guard.reset(snapshot("/a"), after_outage=True, now_seconds=0) == snapshot("/a")
    assert guard.held == 0


def test_keys_that_the_store_lost_are_kept_until_the_time_is_up() -> None:
    guard = guard_with("/a", "/b")
    believed = guard.reset(snapshot("/c", revision=9), after_outage=True, now_seconds=100)
    assert (believed.revision, set(believed.entries)) == (9, {"/a", "/b", "/c"})
    assert guard.held == 2
    assert guard.apply(HEARTBEAT, now_seconds=129.9).changes == ()
    assert guard.apply(HEARTBEAT, now_seconds=130) == Changes(3, (Change("/a", None), Change("/b", None)))
    assert guard.apply(HEARTBEAT, now_seconds=131).changes == ()
    assert (guard.held, set(guard.entries)) == (0, {"/c"})


def test_key_that_is_put_again_is_no_longer_held() -> None:
    guard = guard_with("/a", "/b")
    guard.reset(snapshot(), after_outage=True, now_seconds=0)
    assert guard.apply(put("/a"), now_seconds=1) == put("/a")
    assert guard.held == 1
    assert guard.entries["/a"].value == "new"
    assert guard.apply(HEARTBEAT, now_seconds=30).changes == (Change("/b", None),)


def test_removals_told_while_holding_are_held_too() -> None:
    """etcd v2 may expire keys only after it came back."""
    guard = guard_with("/a", "/b")
    guard.reset(snapshot("/a", "/b"), after_outage=True, now_seconds=0)
    assert guard.apply(gone("/a", "/never-there"), now_seconds=10).changes == ()
    assert (guard.held, set(guard.entries)) == (1, {"/a", "/b"})
    assert guard.apply(HEARTBEAT, now_seconds=30).changes == (Change("/a", None),)


def test_release_comes_with_the_changes_of_that_moment_and_never_undoes_them() -> None:
    guard = guard_with("/a", "/b")
    guard.reset(snapshot(), after_outage=True, now_seconds=0)
    believed = guard.apply(put("/a", "/c", revision=7), now_seconds=31)
    assert believed.revision == 7
    assert sorted(change.key for change in believed.changes if change.entry is None) == ["/b"]
    assert set(guard.entries) == {"/a", "/c"}


def test_new_snapshot_while_holding_goes_on_holding() -> None:
    guard = guard_with("/a", "/b")
    guard.reset(snapshot("/b"), after_outage=True, now_seconds=0)
    believed = guard.reset(snapshot(), after_outage=False, now_seconds=10)
    assert set(believed.entries) == {"/a", "/b"}
    assert guard.reset(snapshot(), after_outage=False, now_seconds=30).entries == {}
    assert guard.held == 0


def test_outage_after_outage_does_not_hold_a_key_for_ever() -> None:
    """A guard needs a bound: a store that fails every few seconds must not keep the dead alive."""
    guard = guard_with("/a", "/b")
    guard.reset(snapshot("/b"), after_outage=True, now_seconds=0)
    for now_seconds in (10.0, 20.0):
        assert "/a" in guard.reset(snapshot("/b"), after_outage=True, now_seconds=now_seconds).entries
    assert "/a" not in guard.reset(snapshot("/b"), after_outage=True, now_seconds=30).entries
    # One that is lost later is held as long as any.
    assert "/b" in guard.reset(snapshot(), after_outage=True, now_seconds=40).entries
    assert guard.apply(HEARTBEAT, now_seconds=69.9).changes == ()
    assert guard.apply(HEARTBEAT, now_seconds=70).changes == (Change("/b", None),)


def test_what_was_known_in_a_former_life_is_held_as_well() -> None:
    guard = OutageGuard(HOLD_SECONDS)
    guard.restore({"/a": entry("/a")})
    assert set(guard.reset(snapshot("/b"), after_outage=True, now_seconds=0).entries) == {"/a", "/b"}


def test_guard_that_holds_for_no_time_believes_at_once() -> None:
    guard = OutageGuard(0)
    guard.reset(snapshot("/a"), after_outage=False, now_seconds=0)
    assert guard.reset(snapshot(), after_outage=True, now_seconds=5).entries == {}


steps = st.lists(
    st.tuples(
        st.sampled_from(["changes", "snapshot", "outage"]),
        st.dictionaries(st.sampled_from(["/a", "/b", "/c"]), st.booleans(), max_size=3),
        st.floats(0, 20),
    ),
    max_size=20,
)


@settings(max_examples=200, deadline=None)
@given(steps)
def test_reader_knows_what_the_store_has_and_keeps_no_lost_key_beyond_the_time(
    given_steps: list[tuple[str, dict[str, bool], float]],
) -> None:
    guard = OutageGuard(HOLD_SECONDS)
    store: dict[str, Entry] = {}
    reader: dict[str, Entry] = {}
    lost_at: dict[str, float] = {}
    now_seconds = 0.0
    for revision, (kind, wishes, seconds) in enumerate(given_steps, 1):
        now_seconds += seconds
        changes = []
        for key, there in wishes.items():
            if there:
                store[key] = entry(key, str(revision), revision)
                lost_at.pop(key, None)
            elif store.pop(key, None) is not None:
                lost_at[key] = now_seconds
            changes.append(Change(key, store.get(key)))
        if kind == "changes":
            for change in guard.apply(Changes(revision, tuple(changes)), now_seconds=now_seconds).changes:
                if change.entry is None:
                    reader.pop(change.key, None)
                else:
                    reader[change.key] = change.entry
        else:
            told = Snapshot(revision, dict(store))
            reader = dict(guard.reset(told, after_outage=kind == "outage", now_seconds=now_seconds).entries)
        assert reader == guard.entries
        assert {key: reader[key] for key in store} == store
        assert guard.held == len(reader) - len(store)
        for key in reader.keys() - store.keys():
            assert now_seconds < lost_at[key] + HOLD_SECONDS
