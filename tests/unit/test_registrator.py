"""The registrator on the memory store: what it writes, keeps, puts back and leaves alone."""

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from discovery.catalog import Attributes, Instance, Problem, Registration, Scheme
from discovery.contests import MOST_CONTEST_SECONDS, OVERWRITES
from discovery.errors import SourceError
from discovery.journal import Journal
from discovery.reconcile import Plan, plan
from discovery.registrator import Registrator
from discovery.stores.base import Store
from discovery.stores.memory import Memory, MemoryStore
from tests.lab.cuttable import CuttableStore
from tests.lab.thread import in_thread
from tests.lab.wait import until

TTL_SECONDS = 30.0
LONG_SECONDS = 3600.0
"""With such a TTL nothing happens because of it."""


def web(
    id_: str = "n1:web:80", port: int = 8000, *, scheme: Scheme | None = None, host_port: int | None = None
) -> Registration:
    return Registration(
        "web", Instance(id_, "192.0.2.7", port, Attributes(scheme=scheme, host_port=host_port))
    )


# ---- the comparison, without a store ----------------------------------------------------------------

H, A = "/services/web/hosts/", "/services/web/attributes/"
ME = "n1:web:80"
SCHEME, PORT = "/services/web/scheme", "/services/web/host_port"
HELD = {f"{H}{ME}": "192.0.2.7:8000", f"{A}{ME}": "{}"}
OTHER = {f"{H}n2:web:80": "192.0.2.8:8000"}


def compare(
    registrations: Iterable[Registration], held: Mapping[str, str], there: Mapping[str, str], *unsettled: str
) -> Plan:
    seen = {key.removeprefix("/services/web/"): value for key, value in there.items()}
    return plan(
        registrations,
        held,
        lambda service: seen if service == "web" else {},
        lambda key: key not in unsettled,
    )


def test_an_empty_store_gets_everything() -> None:
    assert compare([web(host_port=9000)], {}, {}) == Plan(
        puts={f"{H}{ME}": "192.0.2.7:8000", f"{A}{ME}": '{"host_port": 9000}', SCHEME: "http", PORT: "9000"}
    )


def test_what_is_there_is_left_alone() -> None:
    assert compare([web()], {**HELD, SCHEME: "http"}, {**HELD, SCHEME: "http"}) == Plan()
    # Somebody else's scheme is as good as ours.
    assert compare([web()], HELD, {**HELD, SCHEME: "http"}) == Plan()


def test_keys_from_a_former_life_are_taken_over() -> None:
    assert compare([web()], {}, {**HELD, SCHEME: "http"}) == Plan(puts=HELD)


def test_a_moved_instance_is_written_again() -> None:
    moved = compare([web(port=8001)], HELD, {**HELD, SCHEME: "http"})
    assert moved == Plan(puts={f"{H}{ME}": "192.0.2.7:8001"})


def test_removed_and_overwritten_keys_are_restored_once_that_is_sure() -> None:
    assert compare([web()], HELD, {SCHEME: "http"}) == Plan(restores=HELD)
    changed = {**HELD, f"{H}{ME}": "192.0.2.66:1", SCHEME: "http"}
    assert compare([web()], HELD, changed) == Plan(restores={f"{H}{ME}": "192.0.2.7:8000"})
    assert compare([web()], HELD, changed, f"{H}{ME}") == Plan()


def test_the_newest_wins_a_shared_key_and_nobody_fights_for_it() -> None:
    there = {**OTHER, SCHEME: "http", PORT: "9000"}
    newest = compare([web(scheme="tcp", host_port=9001)], {}, there)
    assert {key: newest.puts[key] for key in (SCHEME, PORT)} == {SCHEME: "tcp", PORT: "9001"}
    held = {**HELD, f"{A}{ME}": '{"scheme": "tcp", "host_port": 9001}', SCHEME: "tcp", PORT: "9001"}
    overruled = compare([web(scheme="tcp", host_port=9001)], held, {**held, **there})
    assert overruled == Plan(cedes=[SCHEME, PORT])


def test_a_default_scheme_overrules_nobody() -> None:
    assert SCHEME not in compare([web()], {}, {**OTHER, SCHEME: "tcp"}).puts
    both = [web(scheme="tcp"), web("n1:web2:80", 8001)]
    for order in itertools.permutations(both):
        assert compare(order, {}, {}).puts[SCHEME] == "tcp"


def test_a_shared_key_that_vanishes_is_put_back_by_survivors() -> None:
    assert compare([web()], HELD, HELD) == Plan(restores={SCHEME: "http"})
    held = {**HELD, SCHEME: "http"}
    assert compare([web()], held, HELD) == Plan(restores={SCHEME: "http"})
    assert compare([web()], held, HELD, SCHEME) == Plan()


def test_the_last_instance_takes_the_shared_keys_with_it() -> None:
    held = {**HELD, SCHEME: "http"}
    assert sorted(compare([], held, held).deletes) == sorted(held)


def test_others_keep_the_shared_keys() -> None:
    held = {**HELD, SCHEME: "http"}
    left = compare([], held, {**held, **OTHER})
    assert sorted(left.deletes) == sorted(HELD)
    # And when they are gone as well, so are the keys.
    assert compare([], {SCHEME: "http"}, {SCHEME: "http"}) == Plan(deletes=[SCHEME])


def test_what_another_took_over_is_not_deleted() -> None:
    theirs = {**HELD, f"{H}{ME}": "192.0.2.8:1"}
    assert compare([], HELD, theirs) == Plan(deletes=[f"{A}{ME}"], cedes=[f"{H}{ME}"])
    # Unless it may be our own, older write that was seen.
    assert sorted(compare([], HELD, theirs, f"{H}{ME}").deletes) == sorted(HELD)


# ---- the whole, on a store --------------------------------------------------------------------------


class StubSource:
    """What a test says runs."""

    name = "stub"
    relist_seconds = 60.0

    def __init__(self, *registrations: Registration) -> None:
        self.problems: tuple[Problem, ...] = ()
        self._answer: tuple[Registration, ...] | Exception = registrations
        self._changed = threading.Event()

    def say(self, *registrations: Registration) -> None:
        self._answer = registrations
        self._changed.set()

    def repeat(self) -> None:
        """Say the same again, for a word that is too old does not count."""
        self._changed.set()

    def fail(self, error: Exception) -> None:
        self._answer = error
        self._changed.set()

    def registrations(self) -> tuple[Registration, ...]:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def wait(self, timeout_seconds: float) -> bool:
        changed = self._changed.wait(timeout_seconds)
        if changed:
            self._changed.clear()
        return changed

    def close(self) -> None:
        self._changed.set()


class Clock:
    """The real one, which a test may put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


class Scene:
    """A memory store, its clock, and any number of registrators on it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = MemoryStore(Memory(self.clock))

    def keys(self) -> dict[str, str]:
        return {key: entry.value for key, entry in self.store.snapshot("/services/").entries.items()}

    def until_keys(self, condition: Callable[[dict[str, str]], Any], what: str) -> None:
        until(lambda: bool(condition(self.keys())), what, detail=lambda: str(self.keys()))

    @contextmanager
    def running(
        self, source: StubSource, store: Store | None = None, ttl_seconds: float = TTL_SECONDS
    ) -> Iterator[Registrator]:
        registrator = Registrator(store or self.store, source, ttl_seconds=ttl_seconds, clock=self.clock)
        with in_thread(registrator.run):
            yield registrator


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_registers_follows_and_withdraws(scene: Scene) -> None:
    source = StubSource(web())
    with scene.running(source) as registrator:
        scene.until_keys(lambda keys: keys == {**HELD, SCHEME: "http"}, "registered")
        source.say(web(port=8001), web("n1:web2:80", 8002))
        scene.until_keys(lambda keys: keys.get(f"{H}n1:web2:80") == "192.0.2.7:8002", "followed")
        assert scene.keys()[f"{H}{ME}"] == "192.0.2.7:8001"
        until(lambda: registrator.status.registered == 2, "status")
        source.say()
        scene.until_keys(lambda keys: not keys, "gone")
        source.say(web())
        scene.until_keys(len, "back")
    assert not scene.keys()
    assert registrator.status.registered == 0


def test_nothing_is_written_while_the_source_knows_nothing(scene: Scene) -> None:
    source = StubSource()
    source.fail(SourceError("no engine"))
    with scene.running(source) as registrator:
        until(lambda: registrator.status.error == "no engine", "reported")
        assert not scene.keys()
        source.say(web())
        scene.until_keys(len, "registered once it answers")
        until(lambda: registrator.status.error is None, "recovered")


def test_keys_outlive_a_short_outage_of_the_source_but_not_a_long_one(scene: Scene) -> None:
    source = StubSource(web())
    store = CuttableStore(scene.store)
    with scene.running(source, store) as registrator:
        scene.until_keys(len, "registered")
        source.fail(SourceError("no engine"))
        until(lambda: registrator.status.error is not None, "outage noticed")
        # Within relist (60 s) and grace (60 s): kept alive, beyond the TTL of 30 s.
        for _ in range(5):
            before = store.keepalives
            scene.clock.ahead += 20
            until(lambda before=before: store.keepalives > before, "kept alive")  # type: ignore[misc]
        assert scene.keys()
        scene.clock.ahead += 25
        until(lambda: "left to expire" in str(registrator.status.error), "it gives up")
        before = store.keepalives
        scene.clock.ahead += 25
        scene.until_keys(lambda keys: not keys, "expired")
        assert store.keepalives == before
        source.say(web())
        scene.until_keys(len, "registered again")


def test_what_others_delete_or_overwrite_is_put_back(scene: Scene) -> None:
    with scene.running(StubSource(web(host_port=9000)), ttl_seconds=LONG_SECONDS) as registrator:
        scene.until_keys(lambda keys: PORT in keys, "registered")
        full = scene.keys()
        began = time.monotonic()
        until(
            lambda: time.monotonic() - began > 3,
            "it has verified what it wrote: now only the watch can tell it",
        )
        scene.store.delete(list(full))
        scene.until_keys(lambda keys: keys == full, "put back")
        scene.store.put({f"{H}{ME}": "192.0.2.66:1"})
        scene.until_keys(lambda keys: keys == full, "put back")
        until(lambda: any(ME in problem.subject for problem in registrator.status.problems), "reported")


def test_a_lost_session_is_made_anew(scene: Scene) -> None:
    with scene.running(StubSource(web())):
        scene.until_keys(len, "registered")
        before = scene.store.snapshot("/services/").entries[f"{H}{ME}"].created
        scene.clock.ahead += TTL_SECONDS + 1
        until(
            lambda: (
                (entry := scene.store.snapshot("/services/").entries.get(f"{H}{ME}")) is not None
                and entry.created > before
            ),
            "everything is put again",
        )


def test_survivors_put_shared_keys_back(scene: Scene) -> None:
    other = StubSource(web("n2:web:80", 8001, scheme="tcp", host_port=9000))
    with scene.running(StubSource(web(scheme="tcp", host_port=9000)), ttl_seconds=LONG_SECONDS):
        scene.until_keys(lambda keys: PORT in keys, "registered")
        with scene.running(other):
            scene.until_keys(lambda keys: f"{H}n2:web:80" in keys, "registered")
            scene.store.delete([SCHEME])
            scene.until_keys(lambda keys: keys.get(SCHEME) == "tcp", "put back")
        # Whoever owned the shared keys is perhaps gone now.
        scene.until_keys(lambda keys: (keys.get(SCHEME), keys.get(PORT)) == ("tcp", "9000"), "put back")
        scene.until_keys(lambda keys: f"{H}n2:web:80" not in keys, "the other is gone")


def test_the_newest_instance_sets_the_shared_keys_once(scene: Scene) -> None:
    with scene.running(StubSource(web(host_port=9000))):
        scene.until_keys(lambda keys: keys.get(PORT) == "9000", "registered")
        with scene.running(StubSource(web("n2:web:80", 8001, host_port=9001))):
            scene.until_keys(lambda keys: keys.get(PORT) == "9001", "the newest wins")
            scene.store.put({"/services/web/hosts/0": "192.0.2.9:1"})
            revision = scene.store.snapshot("/services/").entries[PORT].modified
        scene.until_keys(lambda keys: keys.get(PORT) == "9000", "the survivor's is back")
        assert scene.store.snapshot("/services/").entries[PORT].modified > revision


def test_another_nodes_instance_keeps_the_shared_keys(scene: Scene) -> None:
    scene.store.put(OTHER)
    source = StubSource(web(), Registration("kept", web().instance))
    with scene.running(source):
        scene.until_keys(lambda keys: SCHEME in keys and "/services/kept/scheme" in keys, "registered")
        source.say(Registration("kept", web().instance))
        scene.until_keys(lambda keys: f"{H}{ME}" not in keys, "withdrawn")
        assert scene.keys()[SCHEME] == "http"
        scene.store.delete(list(OTHER))
        scene.until_keys(lambda keys: SCHEME not in keys, "nothing of a service without instances remains")


def says(registrator: Registrator, words: str) -> bool:
    return any(words in problem.reason for problem in registrator.status.problems)


def test_two_of_one_name_say_so_and_the_newcomer_gives_way(scene: Scene) -> None:
    late = CuttableStore(scene.store)
    newcomer = StubSource(web(port=8001), web("n1:other:80", 8002))
    with scene.running(StubSource(web(port=8000)), ttl_seconds=LONG_SECONDS) as first:
        scene.until_keys(lambda keys: f"{H}{ME}" in keys, "registered")
        revision = scene.store.snapshot("/services/").entries[f"{H}{ME}"].modified
        with scene.running(newcomer, late, LONG_SECONDS) as second:
            until(lambda: says(first, "wants this id for 192.0.2.7:8001"), "the first says so")
            until(lambda: says(second, "is taken, by 192.0.2.7:8000"), "the second says so")
            scene.until_keys(lambda keys: f"{H}n1:other:80" in keys, "what is not contested is registered")
            # Its restart, and its end, take nothing of the first one's away.
            newcomer.say(web(port=8003))
            until(lambda: says(first, "wants this id for 192.0.2.7:8003"), "the claim follows")
        until(lambda: not first.status.problems, "it is not contested any more")
        assert scene.store.snapshot("/services/").entries[f"{H}{ME}"].modified == revision
        assert scene.keys() == {**HELD, SCHEME: "http"}


def test_a_contested_id_goes_to_the_one_that_is_left(scene: Scene) -> None:
    first = StubSource(web(port=8000))
    with scene.running(first):
        scene.until_keys(lambda keys: f"{H}{ME}" in keys, "registered")
        with scene.running(StubSource(web(port=8001))) as second:
            until(lambda: bool(second.status.problems), "it waits")
            first.say()
            scene.until_keys(lambda keys: keys.get(f"{H}{ME}") == "192.0.2.7:8001", "its turn")
            until(lambda: not second.status.problems, "and nothing more to say")
            scene.until_keys(
                lambda keys: keys == {**HELD, f"{H}{ME}": "192.0.2.7:8001", SCHEME: "http"}, "all"
            )


def test_of_two_that_both_wrote_an_id_one_gives_way(scene: Scene) -> None:
    """Both were cut off, or both began at once."""
    source = StubSource(web(port=8001))
    with scene.running(source, ttl_seconds=LONG_SECONDS) as registrator:
        scene.until_keys(lambda keys: f"{H}{ME}" in keys, "registered")
        for _ in range(OVERWRITES):
            scene.store.put({f"{H}{ME}": "192.0.2.7:8000"})
            until(lambda: says(registrator, "192.0.2.7:8000"), "it is noticed")
            scene.clock.ahead += MOST_CONTEST_SECONDS
            source.repeat()
            until(
                lambda: scene.keys()[f"{H}{ME}"] == "192.0.2.7:8001" or says(registrator, "is taken"),
                "put back, or given up",
            )
        until(lambda: says(registrator, "is taken"), "given up")
        assert scene.keys()[f"{H}{ME}"] == "192.0.2.7:8000"
    # Nothing of the other one's is taken away in the end.
    assert scene.keys()[f"{H}{ME}"] == "192.0.2.7:8000"


@contextmanager
def crashing(scene: Scene, source: StubSource, journal: Journal | None) -> Iterator[CuttableStore]:
    """A registrator that at the end is cut off, and so cannot withdraw."""
    store = CuttableStore(scene.store)
    registrator = Registrator(store, source, ttl_seconds=LONG_SECONDS, clock=scene.clock, journal=journal)
    with in_thread(registrator.run):
        yield store
        store.cut = True


def test_after_a_crash_what_is_ours_is_taken_over_and_what_is_gone_is_removed(
    scene: Scene, tmp_path: Path
) -> None:
    path = tmp_path / "journal"
    gone = Registration("gone", web("n1:gone:80", 8009).instance)
    with crashing(scene, StubSource(web(port=8000), gone), Journal(path)):
        scene.until_keys(lambda keys: "/services/gone/scheme" in keys and SCHEME in keys, "registered")
    scene.store.put({"/services/gone/hosts/n1:kept:80": "192.0.2.9:1"})
    # Another address, as after a restart of the container; without that proof it would be another's.
    with crashing(scene, StubSource(web(port=8001)), Journal(path)):
        scene.until_keys(lambda keys: keys[f"{H}{ME}"] == "192.0.2.7:8001", "taken over")
        scene.until_keys(lambda keys: "/services/gone/hosts/n1:gone:80" not in keys, "removed")
        left = scene.keys()
        kept = {key for key in left if key.startswith("/services/gone/")}
        assert kept == {"/services/gone/hosts/n1:kept:80", "/services/gone/scheme"}


def test_after_a_crash_without_a_journal_nothing_is_guessed(scene: Scene) -> None:
    with crashing(scene, StubSource(web(port=8000)), None):
        scene.until_keys(lambda keys: SCHEME in keys, "registered")
    source = StubSource(web(port=8001))
    with scene.running(source) as registrator:
        until(lambda: says(registrator, "is taken"), "left to whoever wrote it")
        assert scene.keys()[f"{H}{ME}"] == "192.0.2.7:8000"
        scene.clock.ahead += LONG_SECONDS + 1
        source.repeat()
        scene.until_keys(lambda keys: keys.get(f"{H}{ME}") == "192.0.2.7:8001", "once that has expired")


def test_one_service_that_is_refused_holds_up_no_other_nor_what_is_withdrawn(scene: Scene) -> None:
    store = CuttableStore(scene.store)
    source = StubSource(web(), Registration("good", web("n1:good:80").instance))
    with scene.running(source, store, LONG_SECONDS) as registrator:
        scene.until_keys(lambda keys: SCHEME in keys, "registered")
        store.refused = frozenset({"bad"})
        bad = Registration("bad", web("n1:bad:80").instance)
        # In one look: one appears that is refused, one that is not, and one goes.
        source.say(bad, web(), Registration("new", web("n1:new:80").instance))
        scene.until_keys(lambda keys: "/services/new/hosts/n1:new:80" in keys, "registered")
        scene.until_keys(lambda keys: "/services/good/hosts/n1:good:80" not in keys, "withdrawn")
        until(lambda: says(registrator, "the store refuses it: /services/bad/"), "reported")
        assert registrator.status.error is None
        store.refused = frozenset()
        scene.clock.ahead += 120
        source.repeat()
        scene.until_keys(lambda keys: "/services/bad/hosts/n1:bad:80" in keys, "registered in the end")
        until(lambda: not registrator.status.problems, "nothing to report")


def test_a_round_whose_puts_are_all_refused_still_withdraws(scene: Scene) -> None:
    store = CuttableStore(scene.store)
    source = StubSource(web())
    with scene.running(source, store, LONG_SECONDS):
        scene.until_keys(lambda keys: SCHEME in keys, "registered")
        store.refused = frozenset({"bad"})
        source.say(Registration("bad", web("n1:bad:80").instance))
        scene.until_keys(lambda keys: not keys, "withdrawn")


def test_it_withdraws_at_its_end_what_the_store_will_not_delete(scene: Scene) -> None:
    """With the session go its keys, whatever becomes of the deletion that spares others a glimpse."""
    store = CuttableStore(scene.store)
    with scene.running(StubSource(web()), store, LONG_SECONDS):
        scene.until_keys(lambda keys: SCHEME in keys, "registered")
        store.refused = frozenset({"web"})
    assert not scene.keys()


def test_a_store_that_refuses_all_is_tried_again_seldom(scene: Scene) -> None:
    store = CuttableStore(scene.store)
    source = StubSource(web())
    with scene.running(source, store, LONG_SECONDS) as registrator:
        scene.until_keys(len, "registered")
        store.refused = frozenset({"*"})
        source.say(web(), web("n1:web2:80", 8002))
        until(lambda: "refused" in str(registrator.status.error), "reported")
        assert registrator.status.problems == ()
        store.refused = frozenset()
        scene.clock.ahead += LONG_SECONDS / 3
        source.repeat()
        scene.until_keys(lambda keys: f"{H}n1:web2:80" in keys, "registered once it may")
        until(lambda: registrator.status.error is None, "recovered")


def test_a_session_that_is_lost_while_its_keys_are_still_seen(scene: Scene) -> None:
    """Then they are ours all the same, though another session wrote them."""
    store = CuttableStore(scene.store)
    source = StubSource(web(), web("n1:web2:80", 8002))
    with scene.running(source, store, LONG_SECONDS) as registrator:
        scene.until_keys(lambda keys: f"{H}n1:web2:80" in keys, "registered")
        store.session_lost = True
        source.say(web(port=8001))
        until(lambda: registrator.status.error is not None, "lost")
        store.session_lost = False
        scene.until_keys(lambda keys: keys.get(f"{H}{ME}") == "192.0.2.7:8001", "moved")
        scene.until_keys(lambda keys: f"{H}n1:web2:80" not in keys, "withdrawn")
        assert registrator.status.problems == ()


def test_what_was_deleted_but_is_still_seen_is_nobody_elses(scene: Scene) -> None:
    store = CuttableStore(scene.store)
    source = StubSource(web(port=8000))
    with scene.running(source, store, LONG_SECONDS) as registrator:
        scene.until_keys(lambda keys: SCHEME in keys, "registered")
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 3, "it has verified what it wrote")
        store.blind = True
        source.say()
        scene.until_keys(lambda keys: f"{H}{ME}" not in keys, "withdrawn, which it cannot see")
        source.say(web(port=8001))
        scene.until_keys(lambda keys: keys.get(f"{H}{ME}") == "192.0.2.7:8001", "registered again")
        assert registrator.status.problems == ()


def test_an_instance_that_goes_and_comes_with_another_port_is_never_its_own_rival(scene: Scene) -> None:
    source = StubSource(web())
    with scene.running(source, ttl_seconds=LONG_SECONDS) as registrator:
        for port in range(8000, 8020):
            source.say(web(port=port))
            scene.until_keys(lambda keys, port=port: keys.get(f"{H}{ME}") == f"192.0.2.7:{port}", "there")  # type: ignore[misc]
            source.say()
            scene.until_keys(lambda keys: f"{H}{ME}" not in keys, "gone")
        assert registrator.status.problems == ()


def test_a_store_out_of_reach_is_waited_for(scene: Scene) -> None:
    store = CuttableStore(scene.store)
    store.cut = True
    source = StubSource(web())
    with scene.running(source, store) as registrator:
        store.cut = False
        scene.until_keys(len, "registered")
        store.cut = True
        source.say(web("n1:web2:80", 8002))
        until(lambda: registrator.status.error == "cut", "reported")
        store.cut = False
        scene.until_keys(lambda keys: f"{H}n1:web2:80" in keys and f"{H}{ME}" not in keys, "caught up")
        until(lambda: registrator.status.error is None, "recovered")


def test_a_put_whose_answer_is_lost_is_not_forgotten(scene: Scene) -> None:
    store = CuttableStore(scene.store)
    source = StubSource(web(), web("n1:web2:80", 8002))
    with scene.running(source, store):
        scene.until_keys(lambda keys: f"{H}n1:web2:80" in keys, "registered")
        store.lose_answers = True
        source.say(web(), web("n1:web2:80", 8002), web("n1:web3:80", 8003))
        scene.until_keys(lambda keys: f"{A}n1:web3:80" in keys, "it arrived")
        source.say(web())
        store.lose_answers = False
        scene.until_keys(lambda keys: keys == {**HELD, SCHEME: "http"}, "withdrawn")


def test_a_failed_put_is_done_again_though_nothing_can_be_seen(scene: Scene) -> None:
    store = CuttableStore(scene.store)
    source = StubSource(web())
    with scene.running(source, store, ttl_seconds=LONG_SECONDS) as registrator:
        scene.until_keys(len, "registered")
        store.blind = store.cut = True
        source.say(web(port=8001))
        until(lambda: registrator.status.error == "cut", "the put has failed")
        store.cut = False
        scene.until_keys(lambda keys: keys[f"{H}{ME}"] == "192.0.2.7:8001", "put again")


def test_a_bug_in_the_source_is_not_hidden(scene: Scene) -> None:
    source = StubSource()
    source.fail(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        Registrator(scene.store, source).run(threading.Event())


def test_a_store_that_is_gone_does_not_hold_up_the_end(scene: Scene) -> None:
    store = CuttableStore(scene.store)
    with scene.running(StubSource(web()), store):
        scene.until_keys(len, "registered")
        store.cut = True
    assert scene.keys()
    scene.clock.ahead += TTL_SECONDS + 1
    assert not scene.keys()


def test_what_is_said_of_an_instance_stands_before_its_address_does(scene: Scene) -> None:
    """Or a store without transactions would show a new tcp service as http for an instant."""
    source = StubSource(web(scheme="tcp", host_port=9000))
    came, went = [], []
    watch = scene.store.watch("/services/", scene.store.snapshot("/services/").revision)
    with scene.running(source):
        scene.until_keys(lambda keys: len(keys) == 4, "registered")
        source.say()
        scene.until_keys(lambda keys: not keys, "gone")
    while len(went) < 4:
        for change in next(watch).changes:
            (came if change.entry is not None else went).append(change.key)
    assert came[-1] == f"{H}{ME}"
    assert went[0] == f"{H}{ME}"
