"""Rewards against loops, selection against its probabilities, estimators against the enumerated gradient"""
import math

import pytest
import torch

from refine_nb.candidates import ESTIMATORS, CandidateConfig, exact_match, partial_credit, prefix_match, select, whole_match
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
    group = select(logp, cfg, generator())
    assert torch.equal(group.ids[:, :4], logp.topk(4).indices)
    assert all(len(set(row)) == 10 for row in group.ids.tolist())
    assert torch.allclose(group.weight[:, :4], logp.gather(-1, group.ids[:, :4]).exp())
    assert torch.allclose(group.weight[:, 4:], logp.gather(-1, group.ids[:, 4:]).exp() * 26 / 6)


def test_every_character_of_the_tail_is_equally_likely():
    "Each of the 26 others is among the 6 drawn with probability 6 / 26; five standard errors"
    logp, cfg = random_logp(1, 30).expand(20_000, -1), CandidateConfig(threshold=0.0, top_k=4, n_random=6, confident_k=4)
    counts = select(logp, cfg, generator()).ids[:, 4:].flatten().bincount(minlength=30) / 20_000
    tail = counts[counts > 0]
    assert len(tail) == 26 and (tail - 6 / 26).abs().max() < 5 * math.sqrt(6 / 26 * 20 / 26 / 20_000)


def test_the_gate():
    "Above the threshold the long list, below it confident_k characters and weights of zero"
    logp = torch.stack([random_logp(30, scale=0.1), random_logp(30, scale=6.0)])
    h = entropy(logp)
    assert h[0] > 2 > h[1] and torch.allclose(h, torch.distributions.Categorical(logits=logp).entropy(), atol=1e-5)
    group = select(logp, CandidateConfig("uniform", confident_k=7), generator())
    assert group.uncertain.tolist() == [True, False] and (group.weight > 0).sum(-1).tolist() == [25, 7]
    assert torch.equal(group.ids[1, :7], logp[1].topk(7).indices)


def test_more_confident_than_likely_candidates():
    logp = random_logp(1, 30, scale=6.0)
    group = select(logp, CandidateConfig("stratified", top_k=3, n_random=10, confident_k=8), generator())
    assert torch.equal(group.ids[0, :8], logp[0].topk(8).indices) and (group.weight[0, 8:] == 0).all()


def test_split_batch():
    "The most uncertain half gets candidates, the other half samples, both in one tensor"
    logp = torch.stack([random_logp(30, scale=s) for s in (0.1, 5.0, 0.2, 4.0)])
    group = select(logp, CandidateConfig("uniform", exhaustive_ratio=0.5), generator())
    assert group.guided.tolist() == [True, False, True, False] and (group.weight[[1, 3]] == 1 / 25).all()
    draws = torch.stack([select(logp, CandidateConfig("uniform", exhaustive_ratio=0.5), generator(i)).ids[1] for i in range(400)])
    share = (draws == logp[1].argmax()).float().mean()
    p = logp[1].max().exp()
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / 10_000)


@pytest.mark.parametrize(("name", "unbiased"), [("exact", True), ("stratified", True), ("on_policy", True), ("renormalized", False), ("uniform", False)])
def test_mean_under_the_weights(name, unbiased):
    "Σ w f has the expectation Σ π f for sound weights, within five standard errors, and not for the others"
    logp, f = random_logp(30, scale=1.0), torch.rand(30, generator=generator(7))
    cfg = CandidateConfig(name, threshold=0.0, top_k=3, n_random=5, confident_k=3, n_samples=8)
    group = select(logp.expand(20_000, -1), cfg, generator())
    sums = (group.weight * f[group.ids]).sum(-1).double()
    error = abs(sums.mean() - (logp.exp() * f).sum()) / (sums.std() / math.sqrt(20_000) + 1e-6)
    assert (error < 5) == unbiased


@pytest.mark.parametrize("name", ["renormalized", "uniform", "on_policy", "exact"])
def test_weights_sum_to_one(name):
    group = select(random_logp(50, 30), CandidateConfig(name), generator())
    assert torch.allclose(group.weight.sum(-1), torch.ones(50), atol=1e-5)


def test_exact_is_the_whole_vocabulary():
    logp = random_logp(4, 30)
    group = select(logp, CandidateConfig("exact"))
    assert torch.equal(group.ids, torch.arange(30).expand(4, 30)) and torch.allclose(group.weight, logp.exp())
    assert set(ESTIMATORS) == {"exact", "stratified", "renormalized", "uniform", "on_policy"}


@pytest.mark.parametrize(("settings", "message"), [
    (dict(estimator="strat"), "none of exact, stratified"), (dict(threshold=-1.0), "threshold"), (dict(threshold=float("nan")), "threshold"), (dict(top_k=-1), "top_k"),
    (dict(exhaustive_ratio=1.5), "exhaustive_ratio"), (dict(top_k=0, n_random=0, confident_k=0), "empty candidate set"), (dict(estimator="on_policy", n_samples=0), "empty"),
    (dict(top_k=2, n_random=2), "confident_k 10 is more than")])
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message): CandidateConfig(**settings)


def test_more_candidates_than_symbols():
    with pytest.raises(ValueError, match="10 likeliest . 15 random candidates are more than the 20 symbols"): select(random_logp(2, 20), CandidateConfig())
