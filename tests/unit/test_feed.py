"""The feed between threads."""

import threading
import time

from discovery.feed import Feed, Published
from tests.lab.wait import until

PATIENCE_SECONDS = 30.0


def test_new_feed_has_nothing() -> None:
    feed: Feed[str] = Feed()
    assert feed.latest is None
    assert feed.wait(0, 0) is None


def test_newest_value_is_given_and_older_ones_are_dropped() -> None:
    feed: Feed[str] = Feed()
    for value in "abc":
        feed.publish(value)
    assert feed.latest == Published(3, "c")
    assert feed.wait(0, 0) == feed.wait(2, 0) == Published(3, "c")
    assert feed.wait(3, 0) is None


def test_value_that_is_there_already_is_not_waited_for() -> None:
    feed: Feed[str] = Feed()
    feed.publish("a")
    began = time.monotonic()
    assert feed.wait(0, PATIENCE_SECONDS) == Published(1, "a")
    assert time.monotonic() - began < PATIENCE_SECONDS / 2


def test_equal_values_are_published_all_the_same() -> None:
    feed: Feed[str] = Feed()
    feed.publish("a")
    feed.publish("a")
    assert feed.wait(1, 0) == Published(2, "a")


def test_all_who_wait_are_woken() -> None:
    feed: Feed[str] = Feed()
    got: list[Published[str] | None] = []
    threads = [threading.Thread(target=lambda: got.append(feed.wait(0, PATIENCE_SECONDS))) for _ in range(5)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    feed.publish("a")
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < PATIENCE_SECONDS / 2
    assert got == [Published(1, "a")] * 5


def test_no_wake_up_is_lost_and_the_last_value_always_arrives() -> None:
    """Readers that come back a moment too late for the notification must not wait for the next."""
    feed: Feed[int] = Feed()
    last = 3000
    seen: list[list[int]] = [[] for _ in range(3)]
    timed_out = threading.Event()

    def read(into: list[int]) -> None:
        sequence = 0
        while not into or into[-1] != last:
            published = feed.wait(sequence, PATIENCE_SECONDS)
            if published is None:
                timed_out.set()
                return
            sequence = published.sequence
            into.append(published.value)

    threads = [threading.Thread(target=read, args=(into,)) for into in seen]
    for thread in threads:
        thread.start()
    for value in range(1, last + 1):
        feed.publish(value)
    for thread in threads:
        thread.join()
    assert not timed_out.is_set()
    for values in seen:
        assert values == sorted(set(values))


def test_publishers_in_many_threads_number_their_values_without_a_gap() -> None:
    feed: Feed[int] = Feed()

    def publish() -> None:
        for value in range(500):
            feed.publish(value)

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert feed.latest is not None
    assert feed.latest.sequence == 2000


def first_of(feed: Feed[str]) -> Published[str]:
    feed.publish("first")
    published = feed.wait(0, 0)
    assert published is not None
    return published


def test_gathering_ends_with_the_quiet() -> None:
    feed: Feed[str] = Feed()
    first = first_of(feed)
    began = time.monotonic()
    assert feed.gather(first, 0.01, PATIENCE_SECONDS) == first
    assert 0.01 <= time.monotonic() - began < PATIENCE_SECONDS / 2


def test_gathering_takes_what_was_published_meanwhile() -> None:
    feed: Feed[str] = Feed()
    first = first_of(feed)
    feed.publish("second")
    feed.publish("third")
    assert feed.gather(first, 0.01, PATIENCE_SECONDS) == Published(3, "third")


def test_gathering_ends_although_it_is_never_quiet() -> None:
    feed: Feed[str] = Feed()
    first = first_of(feed)
    done = threading.Event()

    def publish() -> None:
        while not done.wait(0.001):
            feed.publish("more")

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        until(lambda: feed.latest != first, "the stream began")
        began = time.monotonic()
        gathered = feed.gather(first, PATIENCE_SECONDS, 0.2)
        assert 0.2 <= time.monotonic() - began < PATIENCE_SECONDS / 2
        assert gathered.sequence > 1
    finally:
        done.set()
        thread.join()


def test_gathering_for_no_time_gives_what_it_began_with() -> None:
    feed: Feed[str] = Feed()
    first = first_of(feed)
    feed.publish("second")
    assert feed.gather(first, 0, 0) == first
