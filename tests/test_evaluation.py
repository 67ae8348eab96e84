"""Scores by hand, divergences against torch's, edit distance against its recursion"""
from functools import cache

import numpy as np
import pytest
import torch

from refine_nb.evaluation import edit_distance, entropy, evaluate, k3, kl_exact, normalized_edit_distance, score


def test_score_by_hand():
    class Fixed:
        def log_probs(self, ids): return torch.tensor([0.7, 0.2, 0.1]).log().expand(*ids.shape, 3)

    nll, hit = score(Fixed(), torch.tensor([[0, 0, 1], [2, 2, 0]]))
    assert torch.allclose(nll.exp(), torch.tensor([[1 / 0.7, 5.0], [10.0, 1 / 0.7]])) and hit.tolist() == [[True, False], [False, True]]
    with pytest.raises(ValueError, match="no window to judge"): evaluate(Fixed(), torch.zeros(0, 3).long())
    assert evaluate(Fixed(), torch.tensor([[0, 0, 1], [2, 2, 0]]), skip=1)["val_accuracy"] == 0.5


def test_kl():
    g = torch.Generator().manual_seed(0)
    logp, ref = torch.randn(3, 9, generator=g).log_softmax(-1), torch.randn(3, 9, generator=g).log_softmax(-1)
    expected = torch.nn.functional.kl_div(ref, logp, log_target=True, reduction="none").sum(-1)
    assert torch.allclose(kl_exact(logp, ref), expected, atol=1e-6)
    assert torch.allclose((logp.exp() * k3(logp, ref)).sum(-1), expected, atol=1e-6) and (k3(logp, ref) >= 0).all()
    assert torch.allclose(entropy(logp), torch.distributions.Categorical(logits=logp).entropy(), atol=1e-6)


def test_a_gap_beyond_fp32_times_zero_is_zero():
    assert (torch.zeros(1) * k3(torch.tensor([-120.0]), torch.tensor([-3.0]))).item() == 0


@cache
def by_recursion(a, b):
    if not a or not b: return len(a) + len(b)
    return min(by_recursion(a[1:], b) + 1, by_recursion(a, b[1:]) + 1, by_recursion(a[1:], b[1:]) + (a[0] != b[0]))


@pytest.mark.parametrize("seed", range(5))
def test_edit_distance_is_that_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    a, b = ("".join(rng.choice(list("abc"), rng.integers(0, 8))) for _ in range(2))
    assert edit_distance(a, b) == edit_distance(b, a) == by_recursion(a, b)
    assert normalized_edit_distance(a, b) == by_recursion(a, b) / max(len(a), len(b), 1) and normalized_edit_distance("", "") == 0
