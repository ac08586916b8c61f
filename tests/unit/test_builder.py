"""CatalogBuilder: one change at a time comes to the same as reading everything; who gets a contested port."""

import itertools
import json
import random
import sys
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.builder import CatalogBuilder
from discovery.catalog import Catalog, Instance, Problem, Service, diff
from discovery.stores.base import Change, Changes, Entry, Snapshot


class Shop:
    """A store's entries and a builder that follows them; ``put`` and ``delete`` are one change each."""

    def __init__(self, *, recreate: bool = False) -> None:
        """``recreate``: a put makes the key anew, as etcd v2 does."""
        self.revision = 0
        self.entries: dict[str, Entry] = {}
        self.builder = CatalogBuilder()
        self.catalog = self.builder.reset(Snapshot(0, {}))
        self._recreate = recreate

    def put(self, values: Mapping[str, str]) -> Catalog:
        return self.change({f"/services/{key}": value for key, value in values.items()})

    def delete(self, *keys: str) -> Catalog:
        return self.change({f"/services/{key}": None for key in keys})

    def change(self, values: Mapping[str, str | None]) -> Catalog:
        self.catalog = self.builder.apply(self.changes(values))
        return self.catalog

    def changes(self, values: Mapping[str, str | None]) -> Changes:
        """Change the store, and the changes a watch would tell, all at one revision."""
        self.revision += 1
        told = []
        for key, value in values.items():
            before = self.entries.pop(key, None)
            if value is not None:
                created = before.created if before and not self._recreate else self.revision
                self.entries[key] = Entry(key, value, created, self.revision)
            told.append(Change(key, self.entries.get(key)))
        return Changes(self.revision, tuple(told))

    def snapshot(self) -> Snapshot:
        return Snapshot(self.revision, dict(self.entries))

    def from_scratch(self) -> Catalog:
        return CatalogBuilder().reset(self.snapshot())

    @property
    def ports(self) -> dict[str, int | None]:
        return {name: service.host_port for name, service in self.catalog.services.items()}


def instance(name: str, id_: str, number: int, **attributes: object) -> dict[str, str]:
    return {
        f"{name}/attributes/{id_}": json.dumps(attributes),
        f"{name}/hosts/{id_}": f"192.0.2.{number}:80",
    }


# ---- incremental is from scratch --------------------------------------------------------------------

# Few names, so that changes meet; each name has ports of its own, for who holds a contested port depends on
# who held it before, which a reader that starts late cannot know.
NAMES = {"a": ("1001", "1002"), "b": ("2001", "2002"), "c-c": ("3001", "3002")}


@st.composite
def keys_and_values(draw: st.DrawFn) -> tuple[str, str | None]:
    name = draw(st.sampled_from([*NAMES, "Bad Name", ""]))
    ports = NAMES.get(name, ("1",))
    id_ = draw(st.sampled_from(["0", "1", "bad id"]))
    port, scheme = draw(st.sampled_from(ports)), draw(st.sampled_from(["http", "tcp"]))
    said = {"scheme": scheme, "host_port": int(port), "options": {"path": "keep", "x": "y"}}
    rest, value = draw(
        st.sampled_from(
            [
                ("scheme", scheme),
                ("host_port", port),
                (f"hosts/{id_}", "192.0.2.1:80"),
                (f"hosts/{id_}", "[2001:db8::1]:80"),
                (f"hosts/{id_}", "rubbish"),
                (f"attributes/{id_}", json.dumps(said)),
                (f"attributes/{id_}", "{}"),
                ("options/path", "keep"),
                ("options/scheme", scheme),
                ("options/host_port", port),
                ("options/unknown", "x"),
                ("stray", "x"),
                ("stray2", "x"),
                ("", "x"),
            ]
        )
    )
    return f"/services/{name}/{rest}", draw(st.sampled_from([value, value, None]))


batches = st.lists(st.lists(keys_and_values(), max_size=5).map(dict), max_size=12)


@settings(max_examples=200, deadline=None)
@given(batches, st.integers(0, 12))
def test_changes_come_to_the_same_as_a_snapshot(
    given_batches: list[dict[str, str | None]], again: int
) -> None:
    shop = Shop()
    for number, batch in enumerate(given_batches):
        before = shop.catalog
        if number == again:
            # History was lost: a new snapshot takes the place of the changes.
            shop.changes(batch)
            shop.catalog = shop.builder.reset(shop.snapshot())
        else:
            shop.change(batch)
        scratch = shop.from_scratch()
        assert shop.catalog == scratch
        assert shop.catalog.revision == shop.revision
        # What did not change is the same object; all else is told by diff.
        for name, service in shop.catalog.services.items():
            was = before.services.get(name)
            assert (was is service) == (was == service)
        difference = diff(before, shop.catalog)
        names = before.services.keys() | shop.catalog.services.keys()
        told = {*difference.added, *difference.removed, *difference.changed}
        assert told == {n for n in names if before.services.get(n) != shop.catalog.services.get(n)}
        if not told:
            assert shop.catalog.services is before.services


def test_order_of_keys_in_a_snapshot_means_nothing() -> None:
    shop = Shop()
    shop.put({"web/stray1": "x", "web/stray2": "x", "web/hosts/bad id": "x", **instance("web", "0", 1)})
    entries = list(shop.entries.items())
    for order in itertools.permutations(entries):
        assert CatalogBuilder().reset(Snapshot(shop.revision, dict(order))) == shop.catalog


def test_catalogs_handed_out_never_change() -> None:
    shop = Shop()
    first = shop.put({"web/hosts/0": "192.0.2.1:80"})
    copy = Catalog(first.revision, dict(first.services), first.problems)
    shop.put({"web/hosts/1": "192.0.2.2:80", "other/hosts/0": "rubbish"})
    shop.delete("web/hosts/0", "web/hosts/1")
    assert first == copy


def test_change_that_means_nothing_keeps_services_and_problems_as_they_are() -> None:
    shop = Shop()
    before = shop.put({"web/hosts/0": "192.0.2.1:80", "web/stray": "x"})
    after = shop.put({"web/hosts/0": "192.0.2.1:80\n"})
    assert after.revision > before.revision
    assert after.services is before.services
    assert after.problems is before.problems
    assert not diff(before, after)


def test_changed_service_leaves_the_others_the_same_objects() -> None:
    shop = Shop()
    before = shop.put({f"s{number}/hosts/0": "192.0.2.1:80" for number in range(20)})
    after = shop.put({"s7/hosts/1": "192.0.2.2:80"})
    assert diff(before, after).changed == ("s7",)
    assert all(after.services[name] is before.services[name] for name in before.services if name != "s7")


def test_deleting_what_is_not_there_is_nothing() -> None:
    shop = Shop()
    assert shop.delete("web/hosts/0").services == {}
    assert shop.put({"web/hosts/0": "192.0.2.1:80"}).services.keys() == {"web"}
    assert shop.delete("web/hosts/1", "other/scheme").services.keys() == {"web"}
    assert shop.delete("web/hosts/0").services == {}


def test_last_change_to_a_key_in_a_batch_wins() -> None:
    builder = CatalogBuilder()
    key = "/services/web/hosts/0"
    there = Change(key, Entry(key, "192.0.2.1:80", 1, 1))
    gone = Change(key, None)
    assert builder.apply(Changes(1, (there, gone))).services == {}
    assert builder.apply(Changes(2, (there, gone, there))).services.keys() == {"web"}


@pytest.mark.parametrize("bad", ["a/b", "..", "x" * 300, "a\nb", 'a"b', "Web"])
def test_bad_name_harms_no_other_service(bad: str) -> None:
    shop = Shop()
    shop.put({"web/hosts/0": "192.0.2.1:80", f"{bad}/hosts/0": "192.0.2.1:80", f"{bad}/host_port": "80"})
    assert shop.catalog.services["web"] == Service("web", instances=(Instance("0", "192.0.2.1", 80),))
    assert bad not in shop.catalog.services
    assert shop.catalog.problems
    shop.delete(f"{bad}/hosts/0", f"{bad}/host_port")
    assert shop.catalog.problems == ()


def test_bad_value_keeps_the_last_good_one_until_it_is_mended() -> None:
    shop = Shop()
    shop.put({"db/scheme": "tcp", "db/host_port": "5432", "db/hosts/0": "192.0.2.1:80"})
    before = shop.catalog
    shop.put({"db/scheme": "rubbish", "db/host_port": "0"})
    assert shop.catalog.services is before.services
    assert {problem.consequence for problem in shop.catalog.problems} == {"kept at its last good value"}
    # Another change of the service, still with the bad values, and a whole new snapshot.
    shop.put({"db/hosts/1": "192.0.2.2:80"})
    shop.catalog = shop.builder.reset(shop.snapshot())
    assert (shop.catalog.services["db"].scheme, shop.ports) == ("tcp", {"db": 5432})
    shop.put({"db/scheme": "http", "db/host_port": "5433"})
    assert (shop.catalog.services["db"].scheme, shop.ports) == ("http", {"db": 5433})
    assert shop.catalog.problems == ()


def test_service_is_served_while_any_key_of_it_is_left() -> None:
    """Known without a live instance is 503, unknown is 404: the difference is made here."""
    shop = Shop()
    shop.put({"web/scheme": "http", "web/hosts/0": "192.0.2.1:80"})
    assert shop.delete("web/hosts/0").services == {"web": Service("web")}
    assert shop.delete("web/scheme").services == {}


# ---- who gets a port --------------------------------------------------------------------------------


def lost_ports(catalog: Catalog) -> dict[str | None, str]:
    return {p.service: p.reason for p in catalog.problems if "belongs to service" in p.reason}


def test_port_claimed_twice_goes_to_the_oldest_claim_and_the_other_stays_reachable_by_name() -> None:
    shop = Shop()
    shop.put({"zoo/hosts/0": "192.0.2.1:80", "zoo/host_port": "8080"})
    shop.put({"ant/hosts/0": "192.0.2.2:80", "ant/host_port": "8080"})
    assert shop.ports == {"zoo": 8080, "ant": None}
    assert shop.catalog.services["ant"].instances
    assert shop.catalog.problems == (
        Problem(
            "ant",
            "/services/ant/host_port",
            "port 8080 belongs to service zoo, whose claim is older",
            "left out",
        ),
    )
    assert shop.from_scratch() == shop.catalog


def test_loser_gets_the_port_as_soon_as_it_is_free() -> None:
    shop = Shop()
    for name in ("first", "second", "third"):
        shop.put({f"{name}/hosts/0": "192.0.2.1:80", f"{name}/host_port": "8080"})
    assert shop.ports == {"first": 8080, "second": None, "third": None}
    shop.put({"first/host_port": "8081"})
    assert shop.ports == {"first": 8081, "second": 8080, "third": None}
    assert lost_ports(shop.catalog) == {"third": "port 8080 belongs to service second, whose claim is older"}
    shop.delete("second/hosts/0", "second/host_port")
    assert shop.ports == {"first": 8081, "third": 8080}
    assert shop.catalog.problems == ()


def test_claims_of_one_moment_go_by_name_whatever_the_order() -> None:
    names = ["d", "b", "c", "a"]
    for order in itertools.permutations(names):
        shop = Shop()
        shop.put({f"{name}/host_port": "8080" for name in order})
        assert [name for name, port in shop.ports.items() if port] == ["a"]


@pytest.mark.parametrize("recreate", [False, True])
def test_shell_loop_that_repeats_its_claim_does_not_lose_it(recreate: bool) -> None:
    """etcd v2 makes a key anew with every set."""
    shop = Shop(recreate=recreate)
    shop.put({"first/host_port": "8080"})
    shop.put({"second/host_port": "8080"})
    for _ in range(3):
        assert shop.put({"first/host_port": "8080"}).services["first"].host_port == 8080
        shop.put({"second/host_port": "8080"})
        shop.catalog = shop.builder.reset(shop.snapshot())
        assert shop.ports == {"first": 8080, "second": None}


def test_claim_withdrawn_and_made_again_is_a_new_one() -> None:
    shop = Shop()
    shop.put({"first/scheme": "http", "first/host_port": "8080"})
    shop.put({"second/host_port": "8080"})
    shop.delete("first/host_port")
    shop.put({"first/host_port": "8080"})
    assert shop.ports == {"first": None, "second": 8080}


def test_loss_of_one_node_does_not_give_the_port_to_a_rival() -> None:
    """Design 1.1: never, not for an instant, from a service that other nodes still serve."""
    shop = Shop()
    shop.put(
        {
            **instance("web", "n1", 1, scheme="tcp", host_port=8080),
            "web/scheme": "tcp",
            "web/host_port": "8080",
        }
    )
    shop.put({**instance("rival", "n3", 3, host_port=8080), "rival/host_port": "8080"})
    shop.put(instance("web", "n2", 2, scheme="tcp", host_port=8080))
    gone = ["web/scheme", "web/host_port", "web/hosts/n1", "web/attributes/n1"]
    for key in gone:
        shop.delete(key)
        assert shop.ports == {"web": 8080, "rival": None}
        assert shop.catalog.services["web"].scheme == "tcp"
    # The survivor writes the shared keys again, much later than the rival wrote its own.
    shop.put({"web/scheme": "tcp", "web/host_port": "8080"})
    assert shop.ports == {"web": 8080, "rival": None}
    assert [i.id for i in shop.catalog.services["web"].instances] == ["n2"]


def test_operators_word_for_the_same_port_is_no_new_claim() -> None:
    shop = Shop()
    shop.put({"web/host_port": "8080"})
    shop.put({"rival/host_port": "8080"})
    shop.put({"web/options/host_port": "8080"})
    shop.delete("web/host_port")
    assert shop.ports == {"web": 8080, "rival": None}


def test_old_key_with_a_new_port_is_a_new_claim() -> None:
    """A put keeps the time of creation on etcd v3; the port that runs must not be taken with it."""
    shop = Shop()
    shop.put({"old/host_port": "1000"})
    shop.put({"holder/host_port": "8080"})
    shop.put({"old/host_port": "8080"})
    assert shop.ports == {"old": None, "holder": 8080}
    shop.put({"old/scheme": "tcp"})
    assert shop.ports == {"old": None, "holder": 8080}


def test_disagreement_about_the_port_is_reported_and_the_newest_instance_is_believed() -> None:
    shop = Shop()
    shop.put(instance("web", "b", 1, host_port=8080))
    shop.put(instance("web", "a", 2, host_port=8081))
    assert shop.ports == {"web": 8081}
    assert [(p.service, p.subject, p.consequence) for p in shop.catalog.problems] == [
        ("web", "/services/web/host_port", "reported")
    ]
    shop.put({"web/options/host_port": "9000"})
    assert shop.ports == {"web": 9000}


def test_operator_resolves_a_contested_port() -> None:
    shop = Shop()
    shop.put({"first/host_port": "8080"})
    shop.put({"second/host_port": "8080"})
    shop.put({"second/options/host_port": "8081"})
    assert shop.ports == {"first": 8080, "second": 8081}
    assert shop.catalog.problems == ()
    shop.put({"first/options/host_port": "8081"})
    assert shop.ports == {"first": None, "second": 8081}
    shop.delete("first/options/host_port", "second/options/host_port")
    assert shop.ports == {"first": 8080, "second": None}


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_no_port_is_held_twice_nor_left_unused_nor_taken_from_who_holds_it(seed: int, recreate: bool) -> None:
    chance = random.Random(seed)
    shop = Shop(recreate=recreate)
    for _ in range(25):
        held = {name: port for name, port in shop.ports.items() if port}
        name, port = chance.choice("abcd"), chance.choice(["80", "81", None])
        shop.change({f"/services/{name}/scheme": "tcp", f"/services/{name}/host_port": port})
        wanted: dict[int, set[str]] = {}
        for each in shop.catalog.services:
            if word := shop.entries.get(f"/services/{each}/host_port"):
                wanted.setdefault(int(word.value), set()).add(each)
        holders = {p: [n for n, has in shop.ports.items() if has == p] for p in wanted}
        for wanted_port, names in wanted.items():
            assert len(holders[wanted_port]) == 1
            assert holders[wanted_port][0] in names
            before = [n for n, p in held.items() if p == wanted_port and n in names]
            assert holders[wanted_port] == (before or holders[wanted_port])
        assert {p for p in shop.ports.values() if p} == set(wanted)
        assert lost_ports(shop.catalog).keys() == {n for n, p in shop.ports.items() if not p} & set().union(
            *wanted.values()
        )


def test_thousands_that_claim_one_port_cost_no_more_than_their_number() -> None:
    """One label in a compose file that everybody copies must not stop every node."""

    def calls(number: int) -> int:
        """How many functions are called: what the work is, whatever else the machine does meanwhile."""
        shop = Shop()
        count = itertools.count()
        sys.setprofile(lambda *_: next(count))
        try:
            shop.put({f"s{each}/host_port": "8080" for each in range(number)})
            shop.put({f"s{number // 2}/scheme": "tcp"})
        finally:
            sys.setprofile(None)
        assert len(lost_ports(shop.catalog)) == number - 1
        return next(count)

    # Ten times as many: ten times the work if it is linear, a hundred times if it is not.
    few, many = calls(100), calls(1000)
    assert many < 20 * few
