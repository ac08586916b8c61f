"""Two nodes of one name, none of whose keys is the same: both notice. What a node left is no namesake."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from structlog.testing import capture_logs

from discovery.catalog import Attributes, Instance, Registration
from discovery.mirror import Mirror
from discovery.namesakes import PROOF_TTLS, Namesakes
from discovery.registrator import Registrator
from discovery.schema import encode_attributes
from discovery.stores.memory import Memory, MemoryStore
from tests.lab.cuttable import CuttableStore
from tests.lab.thread import in_thread
from tests.lab.wait import until
from tests.unit.test_registrator import Clock, StubSource

TTL_SECONDS = 1000.0
PROOF_SECONDS = PROOF_TTLS * TTL_SECONDS
PREFIX = "/services/web/"


@dataclass
class Sight:
    """What a test says the store holds, and when that was heard."""

    keys: dict[str, str] = field(default_factory=dict)
    listed_at: float = 100.0
    heard_at: float = 100.0

    @property
    def naming(self) -> Mapping[str, str]:
        return {f"{PREFIX}{rest}": value for rest, value in self.keys.items() if "attributes/" in rest}

    def seen(self, service: str) -> Mapping[str, str]:
        return self.keys if service == "web" else {}


def instance(id_: str, *, node: str | None = "n1", container: str | None = "theirs") -> dict[str, str]:
    attributes = Attributes(node=node, container=container)
    return {f"hosts/{id_}": "192.0.2.8:80", f"attributes/{id_}": encode_attributes(attributes)}


def finds(namesakes: Namesakes, sight: Sight, *ours: str) -> bool:
    namesakes.look(sight, lambda key: key in ours)
    return bool(namesakes.problems)


# ---- what proves it ---------------------------------------------------------------------------------


def test_an_instance_of_our_name_that_outlives_a_former_life_is_anothers() -> None:
    namesakes, sight = Namesakes("n1", TTL_SECONDS), Sight(instance("n1:theirs:80"))
    with capture_logs() as logs:
        assert not finds(namesakes, sight)
        sight.heard_at += PROOF_SECONDS
        assert not finds(namesakes, sight), "it may be left from before"
        sight.heard_at += 1
        assert finds(namesakes, sight)
        assert finds(namesakes, sight)
        (problem,) = namesakes.problems
        assert "192.0.2.8:80" in problem.reason and "/services/web/" in problem.reason
        sight.keys.clear()
        assert not finds(namesakes, sight)
    assert [each["event"] for each in logs] == ["node_name_shared", "node_name_no_longer_shared"]


def test_one_that_comes_later_has_to_last_as_long() -> None:
    namesakes, sight = Namesakes("n1", TTL_SECONDS), Sight()
    assert not finds(namesakes, sight)
    sight.heard_at += 10 * PROOF_SECONDS
    sight.keys.update(instance("n1:theirs:80"))
    assert not finds(namesakes, sight)
    sight.heard_at += PROOF_SECONDS + 1
    assert finds(namesakes, sight)


def test_what_is_not_heard_proves_nothing() -> None:
    """An outage of the store is as long as it likes; what it held then may have expired."""
    namesakes, sight = Namesakes("n1", TTL_SECONDS), Sight(instance("n1:theirs:80"))
    assert not finds(namesakes, sight)
    sight.listed_at = sight.heard_at = sight.heard_at + 10 * PROOF_SECONDS
    assert not finds(namesakes, sight)
    sight.heard_at += PROOF_SECONDS + 1
    assert finds(namesakes, sight)


def test_what_is_no_container_of_another_node_of_our_name() -> None:
    announced = instance("n1:192.0.2.8:80", container=None)
    elsewhere = instance("n2:theirs:80", node="n2")
    claim = {"attributes/n1:theirs:80:192.0.2.8:80": encode_attributes(Attributes(node="n1", container="x"))}
    nonsense = {"hosts/n1:a:80": "192.0.2.8:80", "attributes/n1:a:80": '{"node": "n1", "container": 7}'}
    namesakes = Namesakes("n1", TTL_SECONDS)
    sight = Sight({**announced, **elsewhere, **claim, **nonsense, **instance("n1:mine:80")})
    for _ in range(2):
        assert not finds(namesakes, sight, f"{PREFIX}attributes/n1:mine:80")
        sight.heard_at += PROOF_SECONDS + 1
    assert not finds(namesakes, sight)
    sight.heard_at += PROOF_SECONDS + 1
    assert finds(namesakes, sight), "what is ours no longer, and stays, is another's"


# ---- the whole, on a store --------------------------------------------------------------------------


def container(name: str, service: str = "web", port: int = 80) -> Registration:
    attributes = Attributes(node="n1", container=name)
    return Registration(service, Instance(f"n1:{name}:{port}", "192.0.2.7", port, attributes))


class Life:
    """A registrator of node n1, its source, and the store as it reaches it."""

    def __init__(self, memory: Memory, clock: Clock, *registrations: Registration) -> None:
        self.source = StubSource(*registrations)
        self.store = CuttableStore(MemoryStore(memory))
        self.registrator = Registrator(
            self.store,
            self.source,
            ttl_seconds=TTL_SECONDS,
            grace_seconds=100 * TTL_SECONDS,
            node="n1",
            clock=clock,
        )

    @property
    def says_so(self) -> bool:
        # As it looks three times in a TTL.
        self.source.repeat()
        return any("has this node's name" in each.reason for each in self.registrator.status.problems)


def pass_ttls(clock: Clock, ttls: float, *lives: Life) -> None:
    """Let time pass in steps that every one of these survives."""
    for _ in range(round(3 * ttls)):
        kept = [life.store.keepalives for life in lives]
        clock.ahead += TTL_SECONDS / 3 + 1
        for life, before in zip(lives, kept, strict=True):
            until(lambda life=life, before=before: life.store.keepalives > before, "it is kept alive")  # type: ignore[misc]


def test_two_of_one_name_with_nothing_in_common_notice() -> None:
    clock = Clock()
    memory = Memory(clock)
    reader = MemoryStore(memory)
    first, second = Life(memory, clock, container("a", "web")), Life(memory, clock, container("b", "api"))
    with in_thread(first.registrator.run):
        with in_thread(second.registrator.run):
            until(lambda: len(reader.snapshot("/services/").entries) == 6, "both are registered")
            before = dict(reader.snapshot("/services/").entries)
            pass_ttls(clock, PROOF_TTLS + 1, first, second)
            until(lambda: first.says_so and second.says_so, "both say so")
            assert reader.snapshot("/services/").entries == before, "neither touches the other's"
        until(lambda: not first.says_so, "it has the name for itself")


def test_a_restart_is_no_namesake() -> None:
    """It lost its state, and another container runs now: what it left expires."""
    clock = Clock()
    memory = Memory(clock)
    reader = MemoryStore(memory)
    former, next_ = Life(memory, clock, container("gone")), Life(memory, clock, container("new"))
    with in_thread(former.registrator.run):
        until(lambda: f"{PREFIX}hosts/n1:gone:80" in reader.snapshot("/services/").entries, "registered")
        former.store.cut = True
    with capture_logs() as logs, in_thread(next_.registrator.run):
        until(lambda: f"{PREFIX}hosts/n1:new:80" in reader.snapshot("/services/").entries, "registered")
        assert f"{PREFIX}hosts/n1:gone:80" in reader.snapshot("/services/").entries
        assert not next_.says_so
        pass_ttls(clock, PROOF_TTLS + 1, next_)
        until(
            lambda: f"{PREFIX}hosts/n1:gone:80" not in reader.snapshot("/services/").entries, "it has expired"
        )
        # Its own comings and goings are as little a namesake's.
        next_.source.say(container("newer"))
        until(lambda: f"{PREFIX}hosts/n1:newer:80" in reader.snapshot("/services/").entries, "registered")
        pass_ttls(clock, PROOF_TTLS + 1, next_)
        assert not next_.says_so
    assert "node_name_shared" not in {each["event"] for each in logs}


def test_the_mirror_keeps_what_names_the_node_of_any_service() -> None:
    memory = Memory()
    store = MemoryStore(memory)
    key, other = f"{PREFIX}attributes/n1:a:80", "/services/api/attributes/n1:b:80"
    ours = encode_attributes(Attributes(node="n1", container="a"))
    store.put({key: ours, f"{PREFIX}attributes/n2:a:80": encode_attributes(Attributes(node="n2"))})
    store.put({f"{PREFIX}options/x": '"n1"'})
    mirror = Mirror(store, lambda: None, node="n1")
    with in_thread(mirror.run):
        until(lambda: dict(mirror.naming) == {key: ours}, "listed")
        store.put({other: ours})
        until(lambda: dict(mirror.naming) == {key: ours, other: ours}, "one comes")
        store.put({key: encode_attributes(Attributes(node="n2"))})
        until(lambda: dict(mirror.naming) == {other: ours}, "one is another node's now")
        store.delete([other])
        until(lambda: dict(mirror.naming) == {}, "one goes")
