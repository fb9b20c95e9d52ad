from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowds.curriculum.apportion import Changes, DrawPlan


@dataclass(frozen=True)
class Case:
    sizes: np.ndarray
    active: np.ndarray
    """Which cluster is drawn from in which phase."""
    starts: np.ndarray
    """The first batch of each phase, from 0."""
    batch: int
    batches: int = 120

    def phases(self) -> np.ndarray:
        return np.searchsorted(self.starts, np.arange(self.batches), side="right") - 1

    def counts_and_firsts(self) -> tuple[np.ndarray, np.ndarray]:
        change = np.diff(self.active.astype(np.int64), axis=1, prepend=0)
        phase, leaf = np.nonzero(change.T)
        changes = Changes(phase, leaf, self.sizes[leaf] * change[leaf, phase])
        plan = DrawPlan(len(self.sizes), changes, self.starts * self.batch, batch=self.batch)
        begin = np.arange(self.batches) * self.batch
        shares = plan.shares(self.phases(), begin, begin + self.batch)
        counts = np.zeros((self.batches, len(self.sizes)), np.int64)
        firsts = np.full_like(counts, -1)
        counts[shares.row, shares.leaf], firsts[shares.row, shares.leaf] = shares.count, shares.first
        return counts, firsts

    def exact(self) -> np.ndarray:
        weights = (self.active * self.sizes[:, np.newaxis]).T[self.phases()]
        return self.batch * weights / weights.sum(axis=1, keepdims=True)


@st.composite
def cases(draw: st.DrawFn, *, rising: bool, largest: int, batch: int) -> Case:
    sizes = np.array(draw(st.lists(st.integers(1, largest), min_size=1, max_size=12)))
    phases = draw(st.integers(1, len(sizes)))
    starts = np.array([0, *sorted(draw(st.sets(st.integers(1, 100), min_size=phases - 1, max_size=phases - 1)))])
    first = np.array([0, *(draw(st.integers(0, phases - 1)) for _ in sizes[1:])])
    active = first[:, np.newaxis] <= np.arange(phases)
    if not rising:
        flips = draw(st.lists(st.tuples(st.integers(1, len(sizes)), st.integers(0, phases - 1)), max_size=6))
        for cluster, phase in flips:
            active[cluster % len(sizes), phase] ^= True
        active[0] |= ~active.any(axis=0)
    return Case(sizes, active, starts, batch)


def most_off_in_any_run(case: Case, counts: np.ndarray) -> float:
    """The largest difference between a count and its exact share over any run of batches, across phases too."""
    ahead = np.vstack([np.zeros(len(case.sizes)), np.cumsum(counts - case.exact(), axis=0)])
    return float((ahead.max(axis=0) - ahead.min(axis=0)).max())


def check_counts(case: Case) -> np.ndarray:
    counts, firsts = case.counts_and_firsts()
    assert (counts.sum(axis=1) == case.batch).all()
    assert (counts[case.exact() == 0] == 0).all()
    drawn_before = np.cumsum(counts, axis=0) - counts
    assert (firsts[counts > 0] == drawn_before[counts > 0]).all()
    return counts


@settings(deadline=None, max_examples=200)
@given(cases(rising=True, largest=40, batch=480 * 2))
def test_clusters_of_a_draw_per_batch_are_within_two_over_any_run(case: Case) -> None:
    assert most_off_in_any_run(case, check_counts(case)) < 2


@settings(deadline=None, max_examples=200)
@given(st.sampled_from([1, 4, 16, 64]).flatmap(lambda batch: cases(rising=True, largest=10**6, batch=batch)))
def test_rare_clusters_stay_close_too(case: Case) -> None:
    assert most_off_in_any_run(case, check_counts(case)) < 2.6


@settings(deadline=None, max_examples=200)
@given(st.sampled_from([1, 4, 16, 64]).flatmap(lambda batch: cases(rising=False, largest=1000, batch=batch)))
def test_clusters_may_come_and_go(case: Case) -> None:
    check_counts(case)


def test_two_hundred_thousand_clusters_take_turns() -> None:
    count = 200_000
    plan = DrawPlan(
        count, Changes(np.arange(count), np.arange(count), np.ones(count, np.int64)), np.arange(count) * 8, batch=8
    )
    batches = np.arange(count - 100, count)
    shares = plan.shares(batches, batches * 8, batches * 8 + 8)
    assert shares.count.sum() == 800
    assert shares.count.max() == 1


def test_huge_counts_are_exact() -> None:
    """Far into a long run, where products no longer fit 64 bits, counts still add up."""
    sizes = np.array([5, 3, 10**9, 7])
    plan = DrawPlan(4, Changes(np.zeros(4, np.int64), np.arange(4), sizes), np.array([0]), batch=64)
    batch = np.arange(10**9, 10**9 + 1000)
    shares = plan.shares(np.zeros(1000, np.int64), batch * 64, batch * 64 + 64)
    heavy = shares.leaf == 2
    assert (np.diff(shares.first[heavy]) == shares.count[heavy][:-1]).all()
    assert abs(shares.first[heavy][0] - 64 * 10**9 * (10**9 / sizes.sum())) < 2
