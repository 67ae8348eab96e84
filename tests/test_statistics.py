"""Statistics beside t: each function against its definition, by brute force"""
import itertools

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from refine_nb.statistics import (
    Interval,
    holm,
    mean_interval,
    paired_proportion_interval,
    proportion_interval,
    proportion_p,
    sign_flip_p,
    t_p,
)

DRAWS = np.random.default_rng(0)


@pytest.mark.parametrize("n", [1, 2, 5, 10, 400])
def test_shares_against_scipy(n):
    for k in {0, 1, n // 3, n - 1, n}:
        for level in (0.9, 0.95, 0.9875):
            low, high = binomtest(k, n).proportion_ci(level, "exact")
            assert proportion_interval(k, n, level)[1:3] == pytest.approx((low, high), abs=1e-9)


def test_the_test_and_the_interval_agree():
    for k, null in itertools.product(range(8), (0.01, 0.2, 0.5, 0.77, 0.99)):
        low, high = proportion_interval(k, 7)[1:3]
        assert (proportion_p(k, 7, null) < 0.05) == (not low <= null <= high)


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="3 of 2"): proportion_interval(3, 2)


def test_paired_shares_cover():
    "By enumeration: the difference of two shares is covered at least as often as asked"
    for won, lost in ((0.2, 0.1), (0.6, 0.0), (0.4, 0.4), (1.0, 0.0)):
        covered, same = 0.0, 1 - won - lost
        for signs in itertools.product((1, -1, 0), repeat=5):
            chance = np.prod([{1: won, -1: lost, 0: same}[s] for s in signs])
            _, low, high, _ = paired_proportion_interval([s > 0 for s in signs], [s < 0 for s in signs])
            covered += chance * (low - 1e-12 <= won - lost <= high + 1e-12)
        assert covered >= 0.95


def test_sign_flips_against_enumeration():
    for n in (3, 5, 8):
        x = DRAWS.normal(0.5, 1, n)
        sums = [abs(np.dot(s, x)) for s in itertools.product((1, -1), repeat=n)]
        assert sign_flip_p(x) == np.mean([s >= abs(x.sum()) - 1e-9 for s in sums])
        assert sign_flip_p(x + 0.3, 0.3) == pytest.approx(sign_flip_p(x))
    with pytest.raises(ValueError, match="at most 20"): sign_flip_p(range(21))


def test_t_against_scipy():
    for n in (2, 5, 10):
        x = DRAWS.normal(0.4, 1, n)
        assert t_p(x, 0.1) == pytest.approx(ttest_1samp(x, 0.1).pvalue)
    assert t_p([1.0]) == 1 and t_p([2.0] * 5) == 0 and t_p([2.0] * 5, 2.0) == 1


def rejected(p, alpha):
    "Holm's steps as he wrote them: from the smallest p on, as long as it is at most α divided by those that are left"
    found, left = set(), dict(p)
    while left and min(left.values()) <= alpha / len(left):
        found.add(smallest := min(left, key=left.get))
        del left[smallest]
    return found


def test_holm_against_its_definition():
    for _ in range(50):
        p = dict(zip("abcdef", DRAWS.uniform(0, 0.2, 6).tolist()))
        for alpha in (0.01, 0.05, 0.2): assert {i for i, a in holm(p).items() if a <= alpha} == rejected(p, alpha)
    assert holm({}) == {}


def test_cutting_and_margins():
    assert Interval(0.4, -0.2, 1.1, 5).clip(0, 1) == (0.4, 0, 1, 5)
    assert mean_interval([0.4, 0.5]).clip(0, 1).n == 2
    assert Interval(0, -0.1, 0.1, 5).no_effect(0.1) and not Interval(0, -0.1, 0.11, 5).no_effect(0.1)
    assert not Interval(0.05, 0.01, 0.09, 5).no_effect(0.1)
