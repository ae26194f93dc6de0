from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from service.cache.lifetimes import Lifetimes
from service.filtering.generation import Generation
from tests.support.clock import Clock

NOTHING = Generation(())


def test_an_entry_is_fresh_then_stale_then_gone() -> None:
    clock = Clock()
    lifetimes = Lifetimes(hard_s=100, soft_s=40, clock=clock)
    entry = lifetimes.entry("k", NOTHING)
    seen = []
    for age in (0, 39.9, 40, 99.9, 100):
        clock.now = 1000 + age
        seen.append((lifetimes.stale(entry), lifetimes.gone(entry)))
    assert seen == [(False, False), (False, False), (True, False), (True, False), (True, True)]


def test_an_entry_without_a_good_rewrite_lives_shorter_and_never_longer() -> None:
    lifetimes = Lifetimes(hard_s=100, soft_s=40, empty_s=10, clock=Clock())
    entry = lifetimes.entry("k", NOTHING, empty=True)
    assert entry.gone_at - entry.stored_at == 10
    assert entry.stale_at == entry.gone_at
    patient = Lifetimes(hard_s=100, empty_s=1000, clock=Clock())
    assert patient.entry("k", NOTHING, empty=True).gone_at == 1100


def test_a_copy_is_as_old_as_its_original_on_every_replica() -> None:
    one, other = Clock(), Clock()
    made = Lifetimes(hard_s=100, soft_s=40, jitter=0.3, clock=one).entry("k", NOTHING)
    other.now += 77
    copy = Lifetimes(hard_s=100, soft_s=40, jitter=0.3, clock=other).entry(
        "k", NOTHING, stored_at=made.stored_at
    )
    assert copy == made


@given(st.text(max_size=20), st.floats(0, 0.99), st.booleans())
def test_jitter_only_cuts_short_and_by_its_share_at_most(
    key: str, jitter: float, empty: bool
) -> None:
    lifetimes = Lifetimes(hard_s=100, soft_s=40, empty_s=50, jitter=jitter, clock=Clock())
    entry = lifetimes.entry(key, NOTHING, empty=empty)
    life = 50 if empty else 100
    assert life * (1 - jitter) - 1e-6 <= entry.gone_at - entry.stored_at <= life + 1e-6
    assert 40 * (1 - jitter) - 1e-6 <= entry.stale_at - entry.stored_at <= 40 + 1e-6


def test_entries_made_together_end_all_over_the_span() -> None:
    lifetimes = Lifetimes(hard_s=1000, jitter=0.2, clock=Clock())
    ends = sorted(lifetimes.entry(f"key {i}", NOTHING).gone_at for i in range(1000))
    inside = sum(1850 <= end < 1950 for end in ends)
    assert 400 < inside < 600
    assert max(later - sooner for sooner, later in pairwise(ends)) < 20
