"""The three tests for theater: distances against recursion, intervals against resampling by hand, and what decides nothing"""
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from refine_nb.anti_theater import THRESHOLDS, AntiTheaterValidator, Evidence, ablation_test, correlation_test, divergence_test
from refine_nb.statistics import bootstrap_interval, pearson


def evidence(n, seed=0, without=0.2, with_=0.7, told=0.2):
    rng = np.random.default_rng(seed)
    right = torch.tensor(rng.random(n) < with_)
    score = torch.tensor(rng.normal(0.5, 0.1, n)).add(told * (right.double() - 0.5)).clamp(0, 1).float()
    texts = ["".join(rng.choice(list("ab"), 6)) for _ in range(n)]
    return Evidence(["ababab"] * n, texts, torch.tensor(rng.random(n) < without), right, score)


@cache
def by_recursion(a, b):
    if not a or not b: return len(a) + len(b)
    return min(by_recursion(a[1:], b) + 1, by_recursion(a, b[1:]) + 1, by_recursion(a[1:], b[1:]) + (a[0] != b[0]))


def test_divergence_is_of_the_first_hundred():
    seen = evidence(150)
    mean = np.mean([by_recursion(a, b) / 6 for a, b in zip(seen.direct[:100], seen.thoughtful[:100])])
    assert divergence_test(seen).value == pytest.approx(mean) and divergence_test(seen, items=150).value != pytest.approx(mean)


def test_ablation_is_paired_by_item():
    seen = evidence(300)
    gains = (seen.right_with.double() - seen.right_without.double()).tolist()
    found = ablation_test(seen)
    assert (found.value, found.low, found.high) == tuple(bootstrap_interval(gains))[:3] and found.verdict == "pass" and found.low > 0.3


def test_correlation_has_an_interval_over_items():
    seen = evidence(400)
    x, y = seen.coherence.double().numpy(), seen.right_with.double().numpy()
    rng = np.random.default_rng(5)
    draws = [pearson(x[i], y[i]) for i in (rng.integers(400, size=400) for _ in range(1000))]
    found = correlation_test(seen)
    assert found.value == pytest.approx(np.corrcoef(x, y)[0, 1]) and np.allclose((found.low, found.high), np.quantile(draws, [0.025, 0.975]), atol=0.02)


@pytest.mark.parametrize("low, high, verdict", [(0.0, 0.1, "pass"), (0.9, 0.95, "fail")])
def test_a_decided_verdict_needs_the_whole_interval(low, high, verdict):
    seen = evidence(400)
    assert ablation_test(seen, low).verdict == correlation_test(seen, low).verdict == verdict
    middle = ablation_test(seen).value
    for test in (ablation_test, correlation_test):
        found = test(seen)
        assert test(seen, (found.low + found.value) / 2).verdict == test(seen, (found.high + found.value) / 2).verdict == "undecided"
    assert ablation_test(seen, middle).verdict == "undecided" and not ablation_test(seen, middle).passed and ablation_test(seen, middle - 1e-9).passed


@pytest.mark.parametrize("change, why", [(dict(n=199), "199"), (dict(n=400, with_=0.03), "20 of each"), (dict(n=400, with_=0.97), "20 of each"), (dict(n=400, with_=1.1), "varies")])
def test_too_little_decides_no_correlation(change, why):
    found = correlation_test(evidence(**change))
    assert found.verdict == "undecided" and why in found.why and math.isnan(found.low)


@pytest.mark.parametrize("right, n, decides", [(20, 200, True), (180, 200, True), (19, 200, False), (181, 200, False), (20, 199, False)])
def test_twenty_of_each_among_two_hundred_decide(right, n, decides):
    "A score that says the opposite"
    hits = torch.arange(n) < right
    seen = Evidence(["a"] * n, ["b"] * n, ~hits, hits, torch.where(hits, 0.2, 0.8))
    assert correlation_test(seen).value == pytest.approx(-1) and (correlation_test(seen).verdict == "fail") == decides
    assert ("correlation" in AntiTheaterValidator()(seen).decided_failures) == decides


def test_a_score_or_an_outcome_that_never_varies_has_no_correlation():
    seen = evidence(400)
    found = correlation_test(replace(seen, coherence=torch.full((400,), 0.5)))
    assert found.verdict == "undecided" and "varies" in found.why and math.isnan(found.low)
    assert math.isnan(pearson(np.arange(3.0), np.ones(3))) and math.isnan(pearson(np.ones(3), np.arange(3.0)))


def test_too_few_items_decide_nothing():
    report = AntiTheaterValidator()(evidence(99, told=0.0, with_=0.2))
    assert report.decided_failures == [] and not report.all_passed and "99 items" in report.ablation.why
    assert AntiTheaterValidator()(evidence(200, told=0.0, with_=0.2, without=0.4)).decided_failures == ["ablation", "correlation"]


def test_always_right_is_no_failure_and_no_pass():
    report = AntiTheaterValidator()(evidence(400, with_=1.1))
    assert math.isnan(report.correlation.value) and report.decided_failures == [] and not report.all_passed


def test_names_in_the_log():
    metrics = AntiTheaterValidator()(evidence(300)).metrics()
    assert set(metrics) == {f"rl/anti_theater_{k}" for k in (*THRESHOLDS, "all_passed")} and metrics["rl/anti_theater_all_passed"] is True


def test_thresholds_can_be_changed_by_name():
    seen = evidence(300)
    assert all(AntiTheaterValidator({name: 0.99})(seen).decided_failures == [name] for name in THRESHOLDS) and AntiTheaterValidator()(seen).decided_failures == []
    with pytest.raises(ValueError, match="did you mean 'divergence'"): AntiTheaterValidator({"divergance": 0.1})


@pytest.mark.parametrize("change, message", [(dict(thoughtful=["a"]), "different numbers"), (dict(coherence=torch.tensor([0.5, math.nan])), "a coherence is nan"), (dict(coherence=torch.tensor([0.5, -0.1])), "coherence is -0.1"), (dict(coherence=torch.tensor([0.5, 1.1])), "coherence is 1.1"), (dict(direct=[], thoughtful=[], right_without=torch.ones(0, dtype=bool), right_with=torch.ones(0, dtype=bool), coherence=torch.ones(0)), "on none")])
def test_evidence_that_does_not_belong_together_is_refused(change, message):
    fine = dict(direct=["a", "b"], thoughtful=["c", "d"], right_without=torch.tensor([True, False]), right_with=torch.tensor([True, True]), coherence=torch.tensor([0.2, 0.4]))
    with pytest.raises(ValueError, match=message): Evidence(**fine | change)
