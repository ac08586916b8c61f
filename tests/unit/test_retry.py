"""Back-off."""

from discovery.retry import Backoff


def test_waits_double_up_to_the_most_and_are_jittered_by_half_at_most() -> None:
    backoff = Backoff(first_seconds=1, most_seconds=10)
    for most in (1, 2, 4, 8, 10, 10, 10):
        assert most / 2 <= backoff.next_seconds() <= most


def test_reset_begins_again() -> None:
    backoff = Backoff(first_seconds=1, most_seconds=10)
    for _ in range(5):
        backoff.next_seconds()
    backoff.reset()
    assert backoff.next_seconds() <= 1


def test_no_wait_is_longer_than_the_most_not_even_the_first() -> None:
    backoff = Backoff(first_seconds=5, most_seconds=1)
    assert all(backoff.next_seconds() <= 1 for _ in range(5))


def test_waits_of_a_fleet_differ() -> None:
    assert len({Backoff(1, 10).next_seconds() for _ in range(20)}) > 1
