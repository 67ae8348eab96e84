"""Rewards against loops, selection against its probabilities, estimators and advantages against the enumerated gradient"""
import itertools
import math

import pytest
import torch

from refine_nb.candidates import (
    DEVIATIONS,
    ESTIMATORS,
    SCALES,
    CandidateConfig,
    exact_match,
    group_advantage,
    partial_credit,
    prefix_match,
    select_candidates,
    whole_match,
)
from refine_nb.evaluation import entropy


def random_logp(*shape, scale=2.0, seed=0): return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)


def generator(seed=0): return torch.Generator().manual_seed(seed)


def test_rewards_against_loops():
    branches, target = torch.randint(3, (4, 5, 6), generator=generator()), torch.randint(3, (4, 6), generator=generator(1))
    credit = torch.rand(4, 5, 6, generator=generator(2))
    plain, with_credit, whole = prefix_match(branches, target), prefix_match(branches, target, credit), whole_match(branches, target)
    for b in range(4):
        for g in range(5):
            right = 0
            while right < 6 and branches[b, g, right] == target[b, right]: right += 1
            assert plain[b, g].item() == pytest.approx(right / 6)
            assert with_credit[b, g].item() == pytest.approx((right + (credit[b, g, right].item() if right < 6 else 0)) / 6)
            assert whole[b, g].item() == float(right == 6)
    assert torch.equal(exact_match(branches[:, :, 0], target[:, 0]), (branches[:, :, 0] == target[:, :1]).float())


def test_partial_credit_is_for_the_likeliest_only():
    got = partial_credit(torch.tensor([[0, 1, 2, 3]]), torch.tensor([[1, 3]]), 0.2)
    assert torch.allclose(got, torch.tensor([[0.0, 0.2, 0.0, 0.2]]))
    with pytest.raises(ValueError, match="1.5"): partial_credit(torch.tensor([[0]]), torch.tensor([[0]]), 1.5)


def test_candidates_are_the_likeliest_and_distinct_others():
    logp, cfg = random_logp(200, 30), CandidateConfig(threshold=0.0, top_k=4, n_random=6, confident_k=4)
    group = select_candidates(logp, cfg, generator())
    assert torch.equal(group.ids[:, :4], logp.topk(4).indices)
    assert all(len(set(row)) == 10 for row in group.ids.tolist())
    assert torch.allclose(group.weight[:, :4], logp.gather(-1, group.ids[:, :4]).exp())
    assert torch.allclose(group.weight[:, 4:], logp.gather(-1, group.ids[:, 4:]).exp() * 26 / 6)


def test_every_character_of_the_tail_is_equally_likely():
    "Each of the 26 others is among the 6 drawn with probability 6 / 26; five standard errors"
    logp, cfg = random_logp(1, 30).expand(20_000, -1), CandidateConfig(threshold=0.0, top_k=4, n_random=6, confident_k=4)
    counts = select_candidates(logp, cfg, generator()).ids[:, 4:].flatten().bincount(minlength=30) / 20_000
    tail = counts[counts > 0]
    assert len(tail) == 26 and (tail - 6 / 26).abs().max() < 5 * math.sqrt(6 / 26 * 20 / 26 / 20_000)


def test_the_gate():
    "Above the threshold the long list, below it confident_k characters and weights of zero"
    logp = torch.stack([random_logp(30, scale=0.1), random_logp(30, scale=6.0)])
    h = entropy(logp)
    assert h[0] > 2 > h[1] and torch.allclose(h, torch.distributions.Categorical(logits=logp).entropy(), atol=1e-5)
    group = select_candidates(logp, CandidateConfig("uniform", confident_k=7), generator())
    assert group.uncertain.tolist() == [True, False] and (group.weight > 0).sum(-1).tolist() == [25, 7]
    assert torch.equal(group.ids[1, :7], logp[1].topk(7).indices)


def test_more_confident_than_likely_candidates():
    logp = random_logp(1, 30, scale=6.0)
    group = select_candidates(logp, CandidateConfig("stratified", top_k=3, n_random=10, confident_k=8), generator())
    assert torch.equal(group.ids[0, :8], logp[0].topk(8).indices) and (group.weight[0, 8:] == 0).all()


def test_split_batch():
    "The most uncertain half gets candidates, the other half samples, both in one tensor"
    logp = torch.stack([random_logp(30, scale=s) for s in (0.1, 5.0, 0.2, 4.0)])
    group = select_candidates(logp, CandidateConfig("uniform", exhaustive_ratio=0.5), generator())
    assert group.guided.tolist() == [True, False, True, False] and (group.weight[[1, 3]] == 1 / 25).all()
    draws = torch.stack([select_candidates(logp, CandidateConfig("uniform", exhaustive_ratio=0.5), generator(i)).ids[1] for i in range(400)])
    share = (draws == logp[1].argmax()).float().mean()
    p = logp[1].max().exp()
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / 10_000)


@pytest.mark.parametrize(("name", "unbiased"), [("exact", True), ("stratified", True), ("on_policy", True), ("renormalized", False), ("uniform", False)])
def test_mean_under_the_weights(name, unbiased):
    "Σ w f has the expectation Σ π f for sound weights, within five standard errors, and not for the others"
    logp, f = random_logp(30, scale=1.0), torch.rand(30, generator=generator(7))
    cfg = CandidateConfig(name, threshold=0.0, top_k=3, n_random=5, confident_k=3, n_samples=8)
    group = select_candidates(logp.expand(20_000, -1), cfg, generator())
    sums = (group.weight * f[group.ids]).sum(-1).double()
    error = abs(sums.mean() - (logp.exp() * f).sum()) / (sums.std() / math.sqrt(20_000) + 1e-6)
    assert (error < 5) == unbiased


@pytest.mark.parametrize("name", ["renormalized", "uniform", "on_policy", "exact"])
def test_weights_sum_to_one(name):
    group = select_candidates(random_logp(50, 30), CandidateConfig(name), generator())
    assert torch.allclose(group.weight.sum(-1), torch.ones(50), atol=1e-5)


def test_exact_is_the_whole_vocabulary():
    logp = random_logp(4, 30)
    group = select_candidates(logp, CandidateConfig("exact"))
    assert torch.equal(group.ids, torch.arange(30).expand(4, 30)) and torch.allclose(group.weight, logp.exp())
    assert set(ESTIMATORS) == {"exact", "stratified", "renormalized", "uniform", "on_policy"}


@pytest.mark.parametrize(("settings", "message"), [
    (dict(estimator="strat"), "none of exact, stratified"), (dict(threshold=-1.0), "threshold"), (dict(threshold=float("nan")), "threshold"), (dict(top_k=-1), "top_k"),
    (dict(exhaustive_ratio=1.5), "exhaustive_ratio"), (dict(top_k=0, n_random=0, confident_k=0), "empty candidate set"), (dict(estimator="on_policy", n_samples=0), "empty"),
    (dict(top_k=2, n_random=2), "confident_k 10 is more than")])
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message): CandidateConfig(**settings)


def test_more_candidates_than_symbols():
    with pytest.raises(ValueError, match="10 likeliest . 15 random candidates are more than the 20 symbols"): select_candidates(random_logp(2, 20), CandidateConfig())


# Advantages

def divisor(reward, weight, share, scale, i=None):
    "What the advantage of try i is divided by, from the definition; with i, the try's own reward is not looked at"
    best, worst, total = max(reward), min(reward), sum(weight)
    possible = [[(r, w) for r, w in zip(reward, weight)]]
    if i is not None and scale == "group":  # half of the try at the best reward, half at the worst
        possible = [[(r, w) for j, (r, w) in enumerate(possible[0]) if j != i] + [(best, weight[i] / 2), (worst, weight[i] / 2)]]
    if scale == "group":
        mean = sum(r * w for r, w in possible[0]) / total
        return math.sqrt(sum(w * (r - mean) ** 2 for r, w in possible[0]) / total)
    seen = [best if j == i else r for j, r in enumerate(reward)]
    if scale == "mean": return sum(r * w for r, w in zip(seen, weight)) / total
    return sum(r * s for r, s in zip(seen, share)) if scale == "probability" else 1.0


def advantage(reward, weight, share, scale, baseline, i):
    "The advantage of try i, from the definition"
    if len(set(reward)) == 1: return 0.0
    left = i if baseline == "leave_one_out" else None
    against = [j for j in range(len(reward)) if j != left]
    base = sum(weight[j] * reward[j] for j in against) / sum(weight[j] for j in against)
    return (reward[i] - base) / divisor(reward, weight, share, scale, left)


FORMS = [(scale, baseline) for scale in SCALES for baseline in ("mean", "leave_one_out")]


@pytest.mark.parametrize(("scale", "baseline"), FORMS)
def test_advantage_against_loops(scale, baseline):
    reward, weight, share = (torch.rand(3, 5, generator=generator(n)) for n in range(3))
    adv, flat = group_advantage(reward, weight, scale, baseline, share)
    assert not flat.any()
    for r, w, s, got in zip(*(x.tolist() for x in (reward, weight, share, adv))):
        assert got == pytest.approx([advantage(r, w, s, scale, baseline, i) for i in range(5)], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("scale", "baseline"), FORMS)
def test_no_push_is_out_of_bounds(scale, baseline):
    "Weights over thirty powers of ten, one try with nearly all of it, rewards of all kinds: |weight × advantage| is bounded"
    weight = 10 ** -(30 * torch.rand(4000, 6, generator=generator()))
    weight[:2000, 0] = 1.0
    weight = weight / weight.sum(-1, keepdim=True)
    reward = torch.rand(4000, 6, generator=generator(1))
    reward[::2] = reward[::2].round()
    adv, _ = group_advantage(reward, weight, scale, baseline)
    assert torch.isfinite(adv).all() and (adv != 0).any()
    assert (weight * adv).abs().max() <= {"group": 2.0}.get(scale, 1.0) * 1.001


def test_a_try_that_weighs_nearly_everything_is_pushed_by_one():
    "The group of two in which an advantage of −1 was −999 when its scale held the try and its baseline did not"
    reward, weight = torch.tensor([0.0, 1.0]), torch.tensor([0.999, 0.001])
    found = {form: group_advantage(reward, weight, *form)[0][0].item() for form in FORMS}
    left_out = {scale: found[scale, "leave_one_out"] for scale in SCALES}
    assert left_out == pytest.approx(dict(none=-1, group=-2, mean=-1, probability=-1), rel=1e-3)
    assert found["mean", "mean"] == pytest.approx(-1)


def pushed(p, reward, g, scale, baseline):
    "Expected gradient of a group of g samples with respect to the logits, all v**g groups enumerated"
    groups = torch.cartesian_prod(*[torch.arange(len(p))] * g)
    adv, _ = group_advantage(reward[groups], torch.full(groups.shape, 1 / g), scale, baseline)
    score = torch.eye(len(p)) - p
    return (p[groups].prod(-1)[:, None] * (adv[..., None] * score[groups]).mean(1)).sum(0)


def promised(p, g, scale, baseline):
    "The factor of the gradient of J = p that a scale and a baseline promise for rewards of 0 and 1"
    terms = g if baseline == "leave_one_out" else g - 1
    if scale in ("mean", "probability"): return sum((1 - p) ** k for k in range(terms))  # of log p, its series cut
    if scale == "none": return terms / g
    others = [(k, math.comb(g - 1, k) * p**k * (1 - p) ** (g - 1 - k)) for k in range(g)]
    if baseline == "leave_one_out":
        return sum(q / divisor([0.0] + [1.0] * k + [0.0] * (g - 1 - k) + [1.0], [1.0] * g + [0.0], None, "group", 0) for k, q in others)
    return sum(math.comb(g, k) * p**k * (1 - p) ** (g - k) * math.sqrt(k * (g - k)) for k in range(g + 1)) / (g * p * (1 - p))


@pytest.mark.parametrize(("scale", "baseline"), FORMS)
@pytest.mark.parametrize("g", [2, 3, 5])
def test_samples_expect_the_enumerated_gradient(scale, baseline, g):
    "Leave one out gives all of it: without scale ∇J itself, by the mean the series of log p with g terms, one more than the mean"
    p, first = torch.tensor([0.1, 0.25, 0.65]).double(), torch.tensor([1.0, 0.0, 0.0]).double()
    for reward in (first, 1 - first):
        j = (p * reward).sum()
        assert torch.allclose(pushed(p, reward, g, scale, baseline), promised(j.item(), g, scale, baseline) * p * (reward - j), atol=1e-6)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("weight", [(0.6, 0.3, 0.1), (0.999, 0.0009, 0.0001), (0.5, 0.4, 0.2)])
def test_drawn_continuations_of_chosen_tries_expect_it_too(scale, weight):
    "Every branch succeeds by itself with its own probability, all outcomes enumerated: weight × slope of its success / its scale"
    success, total = (0.3, 0.5, 0.9), sum(weight)
    for i in range(3):
        slope, factor = 0.0, 0.0
        for came in itertools.product((0.0, 1.0), repeat=3):
            chance = math.prod(s if c else 1 - s for s, c in zip(success, came))
            adv = group_advantage(torch.tensor(came), torch.tensor(weight), scale, "leave_one_out")[0][i].item()
            slope += chance * weight[i] * adv * (came[i] - success[i])
            scaled = [came[i] if j == i else c for j, c in enumerate(came)] + [0.0, 1.0]  # rewards of 0 and 1 are possible
            factor += chance / divisor(scaled, [*weight, 0.0, 0.0], [*weight, 0.0, 0.0], scale, i)
        assert slope == pytest.approx(weight[i] * success[i] * (1 - success[i]) * factor, rel=1e-4)
        assert factor <= {"group": 2 / math.sqrt(weight[i] / total), "none": 1.0 + 1e-9}.get(scale, 1.0001 / weight[i] * (total if scale == "mean" else 1))


def test_absent_tries_change_nothing():
    weight = torch.tensor([[0.5, 0.2, 0.3, 0.0]])
    a, b = (group_advantage(torch.tensor([[1.0, 0.0, 0.5, absent]]), weight, "group")[0] for absent in (0.0, 100.0))
    assert torch.equal(a, b) and a[0, 3] == 0


@pytest.mark.parametrize("scale", SCALES)
def test_groups_without_variance_teach_nothing(scale):
    adv, flat = group_advantage(torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.4, 9.0]]), torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [1.0, 0.0]]), scale)
    assert flat.tolist() == [True, True, False, True] and torch.isfinite(adv).all() and (adv[flat] == 0).all() and (adv[2] != 0).all()


def test_probability_scale_keeps_the_weight_of_the_selection():
    "One right try: divided by what it stands for itself, not by what its weight stands for"
    reward, share, weight = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.5, 0.1, 0.2]), torch.tensor([0.5, 0.4, 0.2])
    mean, own = (group_advantage(reward, weight, s, share=share)[0] for s in ("mean", "probability"))
    assert torch.allclose(mean, (reward - 0.4 / 1.1) / (0.4 / 1.1)) and torch.allclose(own, (reward - 0.4 / 1.1) / 0.1)


@pytest.mark.parametrize(("arguments", "message"), [(("std",), "none of none, group, mean, probability"), (("none", "loo"), "none of mean, leave_one_out"), (("none", "split"), "GRPO.advantages"), (("group", "mean", None, "std"), "none of population, sample"), (("mean",), "a reward is -1: scale 'mean' divides"), (("probability",), "'probability' divides")])
def test_what_an_advantage_cannot_be_made_of(arguments, message):
    with pytest.raises(ValueError, match=message): group_advantage(torch.tensor([1.0, -1.0]), torch.full((2,), 0.5), *arguments)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rewards_must_be_finite(bad):
    with pytest.raises(ValueError, match=f"a reward is {bad}"): group_advantage(torch.tensor([1.0, bad]), torch.full((2,), 0.5))


def test_rounding_is_no_advantage():
    "A reward that was added up from parts differs from 1 in its last digit; a real difference of a thousandth counts"
    reward = torch.ones(2, 8)
    reward[0, 0] = sum([torch.tensor(0.1)] * 10)
    reward[1, 0] = 1.001
    assert reward[0, 0] != 1
    adv, flat = group_advantage(reward, torch.full_like(reward, 1 / 8), "group")
    assert flat.tolist() == [True, False] and (adv[0] == 0).all() and adv[1, 0] > 2


def test_a_small_difference_stays_small_where_nothing_is_divided():
    reward = torch.tensor([[-12.0, -12.000001]])
    adv, flat = group_advantage(reward, torch.full_like(reward, 0.5), "none", "leave_one_out")
    assert not flat.any() and adv[0, 0] == -adv[0, 1] == reward[0, 0] - reward[0, 1]


@pytest.mark.parametrize("kind", [torch.long, torch.bool])
def test_rewards_that_count_are_not_cast_to_nothing(kind):
    adv, _ = group_advantage(torch.tensor([[1, 0, 0, 1]]).to(kind), torch.full((1, 4), 0.25))
    assert adv.tolist() == [[0.5, -0.5, -0.5, 0.5]] and adv.dtype == torch.float32


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_deviation_of_population_or_sample(baseline):
    "TRL divides by the sample's deviation plus 1e-4, which leaves next to nothing of a nearly flat group; both by torch's own"
    reward = torch.tensor([[0.0, 1.0, 1.0, 5.0], [1.00001, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    weight, centred = torch.full((3, 4), 1 / 4), reward - reward.mean(-1, keepdim=True)
    population, sample = (group_advantage(reward, weight, "group", baseline, deviation=d)[0] for d in DEVIATIONS)
    if baseline == "mean":
        assert torch.allclose(sample, centred / (reward.std(-1, keepdim=True) + 1e-4), atol=1e-3)
        assert torch.allclose(population[0], centred[0] / reward[0].std(correction=0), atol=1e-5)
    assert population[1].abs().max() > 1 > 0.2 > sample[1].abs().max() > 0 and not population[2].any() and not sample[2].any()


@pytest.mark.parametrize(("ratio", "guided"), [(0.07, 7), (0.29, 29), (0.071, 8), (0.57, 57), (0.0, 0)])
def test_a_share_of_a_batch_is_not_one_more_by_rounding(ratio, guided):
    assert select_candidates(random_logp(100, 30), CandidateConfig("uniform", exhaustive_ratio=ratio), generator()).guided.sum() == guided
