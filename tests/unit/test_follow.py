"""The follower: the newest catalog, applied, until it runs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from structlog.testing import capture_logs

from discovery.catalog import Catalog, Problem, Service
from discovery.errors import ApplyError, Postponed, RenderError
from discovery.feed import Feed, Published
from discovery.follow import Follower, FollowerStatus
from tests.lab.wait import until

PROBLEM = Problem("web", "/services/web/host_port", "port 80 is used by another program")


def catalog(revision: int, *names: str) -> Catalog:
    return Catalog(revision, {name: Service(name) for name in names})


class Recorder:
    """An applier that records what it is given and does as it is told."""

    name = "recorder"

    def __init__(self) -> None:
        self.applied: list[Catalog] = []
        self.error: ApplyError | RenderError | None = None
        self.problems: tuple[Problem, ...] = ()
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def apply(self, catalog: Catalog) -> tuple[Problem, ...]:
        self.applied.append(catalog)
        error, problems = self.error, self.problems
        self.entered.set()
        assert self.go_on.wait(30)
        if error is not None:
            raise error
        return problems

    @property
    def count(self) -> int:
        return len(self.applied)


class Site:
    def __init__(self, quiet_seconds: float = 0.0, most_seconds: float = 0.0) -> None:
        self.feed: Feed[Catalog] = Feed()
        self.applier = Recorder()
        self.attempts: list[tuple[FollowerStatus, float]] = []
        self.stop = threading.Event()
        self.follower = Follower(
            self.feed,
            self.applier,
            quiet_seconds=quiet_seconds,
            most_seconds=most_seconds,
            recheck_seconds=0.1,
            on_attempt=lambda status, seconds: self.attempts.append((status, seconds)),
        )

    @property
    def status(self) -> FollowerStatus:
        return self.follower.status

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self.follower.run, args=(self.stop,))
        thread.start()
        try:
            yield
        finally:
            self.stop.set()
            self.applier.go_on.set()
            thread.join(20)
            assert not thread.is_alive()

    def until_applied(self, revision: int) -> None:
        until(
            lambda: self.status.applied_revision == revision,
            f"revision {revision} applied",
            detail=lambda: f"{self.status} {self.applier.applied}",
        )


@pytest.fixture
def site() -> Site:
    return Site()


def test_nothing_is_applied_before_there_is_a_catalog(site: Site) -> None:
    site.follower.poke()
    with site.running():
        assert not site.applier.entered.wait(0.3)
        assert site.status == FollowerStatus("recorder")
        site.feed.publish(catalog(1))
        site.until_applied(1)


def test_each_change_is_applied_and_confirmed_only_when_it_runs(site: Site) -> None:
    with site.running():
        site.feed.publish(catalog(1, "a"))
        site.until_applied(1)
        site.applier.entered.clear()
        site.applier.go_on.clear()
        site.feed.publish(catalog(2, "a", "b"))
        assert site.applier.entered.wait(20)
        assert site.status.applied_revision == 1
        site.applier.go_on.set()
        site.until_applied(2)
    assert [status.applied_revision for status, _ in site.attempts] == [1, 2]
    assert all(seconds >= 0 for _, seconds in site.attempts)


def test_slow_applier_skips_to_the_newest(site: Site) -> None:
    site.applier.go_on.clear()
    with site.running():
        site.feed.publish(catalog(1, "a"))
        assert site.applier.entered.wait(20)
        for revision in range(2, 50):
            site.feed.publish(catalog(revision, "a", f"b{revision}"))
        site.applier.go_on.set()
        site.until_applied(49)
    assert [each.revision for each in site.applier.applied] == [1, 49]


def test_burst_is_gathered() -> None:
    site = Site(quiet_seconds=0.3, most_seconds=20)
    with site.running():
        for revision in range(1, 20):
            site.feed.publish(catalog(revision, f"a{revision}"))
        site.until_applied(19)
    assert site.applier.count < 5


def test_revision_that_changes_nothing_is_confirmed_without_applying(site: Site) -> None:
    with site.running():
        first = catalog(1, "a")
        site.feed.publish(first)
        site.until_applied(1)
        site.feed.publish(Catalog(2, first.services))
        site.until_applied(2)
    assert site.applier.count == 1


def test_revision_that_changes_nothing_is_not_confirmed_while_the_last_apply_failed(site: Site) -> None:
    with site.running():
        site.applier.error = ApplyError("no")
        first = catalog(1, "a")
        site.feed.publish(first)
        until(lambda: site.status.error == "no", "the failure is told")
        site.feed.publish(Catalog(2, first.services))
        until(lambda: site.applier.count >= 2, "applied again")
        assert site.status.applied_revision is None
        site.applier.error = None
        site.until_applied(2)


def test_failure_keeps_what_runs_is_logged_once_and_retried_without_a_new_catalog(site: Site) -> None:
    with capture_logs() as logs, site.running():
        site.feed.publish(catalog(1, "a"))
        site.until_applied(1)
        site.applier.error = RenderError("haproxy.cfg.j2:3: oops")
        site.feed.publish(catalog(2, "a", "b"))
        until(lambda: site.applier.count >= 3, "tried again")
        assert (site.status.applied_revision, site.status.error) == (1, "haproxy.cfg.j2:3: oops")
        site.applier.error = None
        site.until_applied(2)
        assert site.status.error is None
    assert [log["event"] for log in logs] == ["apply_failed", "apply_recovered"]


def test_what_is_postponed_is_neither_an_error_nor_applied_and_comes_again(site: Site) -> None:
    site.applier.error = Postponed("waits for a reload", 0.2)
    with capture_logs() as logs, site.running():
        site.feed.publish(catalog(1, "web"))
        until(lambda: site.applier.count >= 2, "applied again when it is due")
        assert site.follower.status == FollowerStatus("recorder", waits="waits for a reload")
        # The revision alone moves on: what it asks for does not run yet.
        latest = site.feed.latest
        assert latest is not None
        site.feed.publish(Catalog(2, latest.value.services))
        until(lambda: site.applier.applied[-1].revision == 2, "the newest is applied")
        assert site.follower.status.applied_revision is None
        site.applier.error = None
        until(lambda: site.follower.status.applied_revision == 2, "it runs")
        assert site.follower.status.waits is None
    assert not [each for each in logs if each["log_level"] == "error"]


def test_what_was_postponed_and_then_failed_waits_no_more(site: Site) -> None:
    site.applier.error = Postponed("waits for a reload", 0.05)
    with site.running():
        site.feed.publish(catalog(1, "web"))
        until(lambda: site.status.waits is not None, "it waits")
        site.applier.error = ApplyError("the reload failed")
        until(lambda: site.status.error is not None, "it failed")
        assert site.status.waits is None


def test_newer_catalog_does_not_wait_for_the_retry_of_an_older(site: Site) -> None:
    with site.running():
        site.applier.error = ApplyError("no")
        site.feed.publish(catalog(1, "a"))
        until(lambda: site.status.error is not None, "failed")
        site.applier.error = None
        site.feed.publish(catalog(2, "b"))
        site.until_applied(2)
    assert site.applier.applied[-1].revision == 2


def test_poke_applies_the_same_catalog_again(site: Site) -> None:
    with site.running():
        site.feed.publish(catalog(1, "a"))
        site.until_applied(1)
        site.follower.poke()
        until(lambda: site.applier.count == 2, "applied again")
    assert site.applier.applied[0] is site.applier.applied[1]


def test_poke_during_an_apply_is_not_lost(site: Site) -> None:
    """The ground may have changed after the applier looked at it."""
    site.applier.go_on.clear()
    with site.running():
        site.feed.publish(catalog(1, "a"))
        assert site.applier.entered.wait(20)
        site.follower.poke()
        site.applier.go_on.set()
        until(lambda: site.applier.count == 2, "applied again")


def test_poke_during_a_failing_apply_is_not_lost(site: Site) -> None:
    """A template is mended while the broken one is being rendered; no need to wait for the back-off."""
    site.applier.error = RenderError("no")
    site.applier.go_on.clear()
    with site.running():
        site.feed.publish(catalog(1, "a"))
        assert site.applier.entered.wait(20)
        site.applier.error = None
        site.follower.poke()
        site.applier.go_on.set()
        site.until_applied(1)
    assert site.applier.count == 2


def test_poke_with_a_revision_that_changes_nothing_applies(site: Site) -> None:
    with site.running():
        first = catalog(1, "a")
        site.feed.publish(first)
        site.until_applied(1)
        for revision in range(2, 30):
            before = site.applier.count
            site.follower.poke()
            site.feed.publish(Catalog(revision, first.services))
            until(lambda before=before: site.applier.count > before, "applied again")  # type: ignore[misc]


def test_problems_are_told_and_rechecked(site: Site) -> None:
    site.applier.problems = (PROBLEM,)
    with site.running():
        site.feed.publish(catalog(1, "web"))
        site.until_applied(1)
        assert site.status.problems == (PROBLEM,)
        site.applier.problems = ()
        until(lambda: site.status.problems == (), "rechecked")
        count = site.applier.count
        site.feed.publish(catalog(2, "web", "b"))
        site.until_applied(2)
        assert site.applier.count == count + 1


def test_stop_is_seen_while_waiting_for_the_first_catalog(site: Site) -> None:
    with site.running():
        pass


def test_stop_while_gathering_applies_no_more(site: Site) -> None:
    class StoppedMeanwhile(Feed[Catalog]):
        def gather(
            self, published: Published[Catalog], quiet_seconds: float, most_seconds: float
        ) -> Published[Catalog]:
            site.stop.set()
            return super().gather(published, quiet_seconds, most_seconds)

    feed = StoppedMeanwhile()
    feed.publish(catalog(1, "a"))
    Follower(feed, site.applier).run(site.stop)
    assert site.applier.count == 0


def test_stop_in_the_middle_of_failures_does_not_wait_for_the_back_off(site: Site) -> None:
    site.applier.error = ApplyError("no")
    with site.running():
        site.feed.publish(catalog(1, "a"))
        until(lambda: site.applier.count >= 1, "failed")


def test_bug_in_an_applier_ends_the_loop(site: Site) -> None:
    """Only our own errors are waited out; whatever else is a bug, and the process is to end with it."""

    class Buggy(Recorder):
        def apply(self, catalog: Catalog) -> tuple[Problem, ...]:
            raise KeyError("bug")

    follower = Follower(site.feed, Buggy())
    site.feed.publish(catalog(1))
    with pytest.raises(KeyError):
        follower.run(site.stop)
