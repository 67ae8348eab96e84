"""Measures of a prediction against scipy, pair counting and all orders of equal predictions; the judged losses against concatenation"""
import math
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from test_confidence import characters, concatenated, random_model

from refine_nb.calibration import (
    _check,
    _check_event,
    auroc,
    calibration_curve,
    calibration_error,
    isotonic_map,
    judge_ahead,
    judge_last,
    quality,
    r2,
    r2_gain,
    risk_coverage,
)
from refine_nb.statistics import bootstrap_interval, window_interval


def test_the_losses_that_are_judged_are_those_of_concatenation():
    model, windows = random_model(2), characters(3, 10)
    found, ids = judge_ahead(model, windows, oracle=True), windows[:, :8]
    assert {v.shape for v in found.values()} == {(3, 7)}  # the future of the last position is read where nothing is trained
    heard = model.previous(ids)
    now = model(ids, confidence_scalars=heard)
    p, pred = now["logits"].softmax(-1)[:, :-1], now["confidence_pred"]
    ahead = torch.stack([concatenated(model, ids, torch.full_like(ids, a), pred, heard) for a in range(7)], 2).log_softmax(-1)[:, :-1]  # b t a v
    nll, pred = -ahead.gather(-1, windows[:, 2:-1, None, None].expand(-1, -1, 7, 1))[..., 0], pred[:, :-1]
    assert torch.allclose(found["teacher"], nll.gather(-1, windows[:, 1:8, None])[..., 0], atol=1e-4) and torch.allclose(found["head"], pred, atol=1e-5)
    assert (found["sampled"][..., None] - nll).abs().amin(-1).max() < 1e-4
    assert torch.allclose(found["entropy"], -(p * p.log()).sum(-1), atol=1e-4) and torch.allclose(found["max_prob"], -p.amax(-1).log(), atol=1e-4)
    mixture = (p[..., None] * ahead.exp()).sum(2)
    assert torch.allclose(found["oracle_sampled"], -torch.einsum("btx,bta,btax->bt", mixture, p, ahead), atol=1e-4)
    assert torch.allclose(found["oracle_teacher"], -torch.einsum("bta,btax,btax->bt", p, ahead.exp(), ahead), atol=1e-4)


def test_auroc_counts_pairs():
    rng = np.random.default_rng(0)
    score_, event = rng.integers(0, 20, 200).astype(float), rng.random(200) < 0.3
    pairs = (score_[event][:, None] > score_[~event]).mean() + (score_[event][:, None] == score_[~event]).mean() / 2
    assert auroc(score_, event) == pytest.approx(pairs) and auroc(score_, event) == pytest.approx(mannwhitneyu(score_[event], score_[~event]).statistic / (event.sum() * (~event).sum()))
    assert math.isnan(auroc(score_, np.zeros(200, bool)))


def test_isotonic_map_is_the_best_rising_function():
    rng = np.random.default_rng(0)
    x = np.repeat(rng.random(60), rng.integers(1, 5, 60))  # ties of different sizes
    y = x + rng.normal(size=len(x)) / 3
    f = isotonic_map(x, y)
    fitted = f(np.sort(x))
    assert (np.diff(fitted) >= 0).all() and np.isclose(f(x).mean(), y.mean())
    best = np.square(y - f(x)).sum()
    for knots in rng.random((200, 5)):  # any other rising step function is no better
        steps = np.sort(rng.choice(y, 6))
        assert np.square(y - steps[np.searchsorted(np.sort(knots), x)]).sum() >= best
    assert f(np.array([-9.0]))[0] == fitted[0] and f(np.array([9.0]))[0] == fitted[-1]


def test_calibration_error_by_hand_and_what_it_does_not_see():
    pred, actual = np.array([1.0, 1.0, 3.0, 3.0]), np.array([0.0, 4.0, 3.0, 4.0])
    assert calibration_error(pred, actual, 2) == pytest.approx((1 + 0.5) / 2) and calibration_curve(pred, actual, 2).share.tolist() == [0.5, 0.5]
    assert calibration_error(np.full(4, actual.mean()), actual, 1) == pytest.approx(0) and r2(np.full(4, actual.mean()), actual) == pytest.approx(0)


def planted(n=240, t=20, seed=0) -> dict[str, torch.Tensor]:
    "A head that knows a known share of the target, and an entropy that knows none of it"
    g = torch.Generator().manual_seed(seed)
    known, noise, other = (torch.randn(n, t, generator=g) for _ in range(3))
    target = 3 + known + noise
    return dict(head=7 - 2 * known, entropy=1 + other, max_prob=other, sampled=target)


def test_quality_and_gain_find_a_planted_head():
    fit, judged = planted(), planted(seed=1)
    table, gains = quality(fit, judged), r2_gain(fit, judged)
    assert table.loc["head", "r2"] == pytest.approx(0.5, abs=0.03) and abs(table.loc["entropy", "r2"]) < 0.01
    assert table.loc["head", "pearson"] == pytest.approx(-(0.5**0.5), abs=0.02) and table.loc["head", "spearman"] < -0.6 and table.loc["head", "auroc"] < 0.3
    assert gains.mean() == pytest.approx(table.loc["head", "r2"] - table.loc["entropy", "r2"]) and bootstrap_interval(gains).low > 0.4
    assert bootstrap_interval(r2_gain(fit, judged | dict(head=judged["entropy"]), over="max_prob")).mean < 0.02


def test_the_gain_is_exact_for_a_head_that_varies_little():
    fit, judged = ({k: v if k != "head" else 100 - v / 1000 for k, v in planted(n=800, t=40, seed=s).items()} for s in (0, 1))
    table = quality(fit, judged)
    assert r2_gain(fit, judged).mean() == pytest.approx(table.loc["head", "r2"] - table.loc["entropy", "r2"], abs=1e-6)


def test_window_interval_covers_the_planted_value():
    inside = [window_interval(lambda x, y: r2(x, y), (10 - d["head"].numpy()) / 2 + 1.5, d["sampled"].numpy(), resamples=60) for d in (planted(seed=s) for s in range(12))]
    assert sum(i.low <= 0.5 <= i.high for i in inside) >= 9 and all(0.01 < i.high - i.low < 0.15 for i in inside)


def test_risk_coverage_by_counting():
    rng = np.random.default_rng(0)
    doubt, wrong = rng.random(50), rng.random(50) < 0.4
    curve = risk_coverage(doubt, wrong)
    for n in (1, 20, 50): assert curve.risk[n - 1] == pytest.approx(wrong[doubt <= np.sort(doubt)[n - 1]].mean()) and curve.coverage[n - 1] == n / 50


# ---- equal predictions, and what is no number ----


def orders(pred):
    "Every order of the rows that a sort by prediction could leave"
    return [list(p) for p in permutations(range(len(pred))) if all(pred[a] <= pred[b] for a, b in zip(p, p[1:]))]


@pytest.mark.parametrize("seed", range(4))
def test_ties_count_as_the_mean_over_all_their_orders(seed):
    rng = np.random.default_rng(seed)
    pred, actual = rng.integers(0, 3, 7).astype(float), rng.integers(0, 9, 7).astype(float)
    wrong, alike = actual > 4, orders(pred)
    curve, kept = calibration_curve(pred, actual, 3), risk_coverage(pred, wrong)
    parts = [[actual[i].mean() for i in np.array_split(np.array(p), 3)] for p in alike]
    assert np.allclose(curve.actual, np.mean(parts, 0))
    assert np.allclose(kept.risk, np.mean([np.cumsum(wrong[p]) / np.arange(1, 8) for p in alike], 0))
    assert calibration_error(pred, actual, 3) == pytest.approx((curve.share * abs(curve.predicted - np.mean(parts, 0))).sum())


@pytest.mark.parametrize("measure", [calibration_error, r2, lambda x, y: auroc(x, y > 0), lambda x, y: risk_coverage(x, y > 0).risk.mean(), lambda x, y: isotonic_map(x, y)(np.linspace(-1, 4, 50)).tolist()],
                         ids=["calibration_error", "r2", "auroc", "risk_coverage", "isotonic_map"])
def test_the_order_of_the_rows_changes_nothing(measure):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 4, 300).astype(float), rng.normal(size=300)
    before = measure(x, y)
    for _ in range(20):
        p = rng.permutation(300)
        if measure is r2: assert measure(x[p], y[p]) == pytest.approx(before, rel=1e-12)  # sums of floats
        else: assert measure(x[p], y[p]) == before
    by_outcome = np.argsort(y)
    assert measure(x[by_outcome], y[by_outcome]) == (pytest.approx(before, rel=1e-12) if measure is r2 else before)


def test_one_prediction_for_all_rows_by_closed_form():
    y = np.sort(np.random.default_rng(0).exponential(size=100))  # sorted: each bin of rows would have another mean
    assert calibration_error(np.full(100, 0.3), y) == pytest.approx(abs(0.3 - y.mean()))
    assert np.allclose(risk_coverage(np.zeros(100), y > 1).risk, (y > 1).mean()) and auroc(np.zeros(100), y > 1) == 0.5
    assert np.allclose(isotonic_map(np.zeros(100), y)(np.array([-1.0, 0.0, 1.0])), y.mean())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("measure", [r2, calibration_error, calibration_curve, isotonic_map], ids=lambda f: f.__name__)
def test_what_is_no_number_is_refused_by_name_and_row(measure, bad):
    x, y = np.arange(5.0), np.arange(5.0)
    broken = x.copy()
    broken[3] = bad
    with pytest.raises(ValueError, match=rf"is {bad} in row 3, and 1 of 5"): measure(broken, y)
    with pytest.raises(ValueError, match=rf"is {bad} in row 3"): measure(x, broken)
    with pytest.raises(ValueError, match="at least one"): measure(x[:0], y[:0])


def test_what_cannot_be_measured_is_refused():
    x, y = np.arange(5.0), np.arange(5.0)
    for broken in (np.append(x[:4], np.nan), np.append(x[:4], np.inf)):
        with pytest.raises(ValueError, match="score is (nan|inf) in row 4"): auroc(broken, y > 2)
        with pytest.raises(ValueError, match="doubt is (nan|inf) in row 4"): risk_coverage(broken, y > 2)
        with pytest.raises(ValueError, match="x is (nan|inf) in row 4"): isotonic_map(x, y)(broken)
    with pytest.raises(ValueError, match="equally many rows"): _check(pred=x, actual=y[:4])
    with pytest.raises(TypeError, match="event holds int64"): _check_event("event", np.array([0, 1, 0, 1, 1]))
    with pytest.raises(ValueError, match="bins is 0"): calibration_error(x, y, 0)
    assert math.isnan(r2(x, np.ones(5)))


def test_a_corpus_of_one_symbol_is_undefined_and_not_perfect():
    silent = {name: torch.zeros(6, 4) for name in ("entropy", "max_prob", "sampled")} | dict(head=torch.full((6, 4), 2.0))
    table = quality(silent, silent)
    assert table[["r2", "pearson", "spearman", "auroc"]].isna().all(axis=None)
    assert table.loc["head", "ece"] == 2 and table.loc["entropy", "ece"] == 0 and (table.ece_isotonic == 0).all() and (table.ece_temperature == 0).all()
    assert np.isnan(r2_gain(silent, silent)).all()
    for name in ("head", "sampled"):
        broken = planted()
        broken[name][3, 5] = torch.nan
        for call in (quality, r2_gain):
            with pytest.raises(ValueError, match=f"{name} is nan in row 65"): call(broken, planted())
            with pytest.raises(ValueError, match=f"{name} is nan in row 65"): call(planted(), broken)


def test_the_last_position_alone_is_that_of_all():
    for feedback in (0, 2):
        model, windows = random_model(feedback), characters(5, 10)
        found, everywhere = judge_last(model, windows[:, :-1], rows=2), judge_ahead(model, windows)
        assert torch.allclose(found["head"], everywhere["head"][:, -1], atol=1e-5) and found["sampled"].shape == (5,)
    ids, heard = windows[:, :8], torch.full((5, 8, 1), 0.7)
    pred = model(ids, confidence_scalars=heard)["confidence_pred"]
    assert torch.allclose(judge_last(model, windows, 0.7)["head"], pred[:, -1], atol=1e-5)
    nll = torch.stack([-concatenated(model, ids, torch.full_like(ids, a), pred, heard)[:, -1].log_softmax(-1).gather(-1, windows[:, -1:])[:, 0] for a in range(7)], 1)
    assert (judge_last(model, windows, 0.7)["sampled"][:, None] - nll).abs().amin(1).max() < 1e-5
