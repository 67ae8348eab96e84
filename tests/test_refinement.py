"""The reward for improving against loops, calculus and its optimum; refusals"""
import math

import pytest
import torch

from refine_nb import refinement
from refine_nb.refinement import (Refinement, gross_refinement, net_refinement, refinement_loss, refinement_optimum, reward_gradient, step0_degradation,
                                  supervision_weights)


def test_weights():
    assert supervision_weights(3, 4).numpy().round(3).tolist() == pytest.approx([0.025, 0.075, 0.225, 0.675])
    assert supervision_weights(10, 4).numpy().round(3).tolist() == pytest.approx([0.001, 0.009, 0.090, 0.900])
    assert supervision_weights(1, 5).tolist() == pytest.approx([0.2] * 5) and supervision_weights(0.5, 2).tolist() == pytest.approx([2 / 3, 1 / 3])


def by_loops(losses, base, scale, reward):
    total = sum(base**i * v for i, v in enumerate(losses)) / sum(base**i for i in range(len(losses)))
    for before, now in zip(losses, losses[1:]):
        before = before if reward == "naive" else before.detach()
        gain = (before - now) / before
        if reward != "none" and (reward != "hinge" or now > before): total = total - scale * gain
    return total


@pytest.mark.parametrize("reward", refinement._REWARDS)
@pytest.mark.parametrize("values", [[4.0, 2.0, 1.0, 1.5], [3.0, 3.5, 0.2], [2.0]])
def test_loss_against_loops(reward, values):
    a, b = (torch.tensor(values, requires_grad=True) for _ in range(2))
    ours, theirs = refinement_loss(a, 5.0, 0.7, reward), by_loops(b, 5.0, 0.7, reward)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert torch.allclose(torch.autograd.grad(ours, a)[0], torch.autograd.grad(theirs, b)[0], rtol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_closed_gradient_is_autograds(n):
    losses = (torch.rand(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) + 0.3).requires_grad_()
    assert torch.allclose(reward_gradient(losses.detach(), 3.0, 0.5), torch.autograd.grad(refinement_loss(losses, 3.0, 0.5), losses)[0], atol=1e-7)


@pytest.mark.parametrize("base, scale", [(3.0, 0.5), (5.0, 1.0), (10.0, 2.0)])
def test_optimum(base, scale):
    "Nothing pulls at the steps before the last; two steps by hand; and it is a minimum over each step"
    losses = torch.tensor(refinement_optimum(2.24, base, scale), dtype=torch.float64)
    assert reward_gradient(losses, base, scale)[:3].abs().max() < 1e-6 and losses[3] == 2.24
    assert refinement_optimum(1.5, base, scale, 2)[0] == pytest.approx(math.sqrt(scale * 1.5 * (1 + base)))
    for k in range(3):
        for factor in (0.99, 1.01):
            moved = losses.clone()
            moved[k] *= factor
            assert refinement_loss(moved, base, scale) > refinement_loss(losses, base, scale)


def test_measures():
    assert gross_refinement([4.0, 2.0, 1.0]) == 0.75 and step0_degradation(2.5, 2.0) == 0.5
    assert net_refinement(2.0, {"a": 2.5, "b": 1.6}) == (1 - 2.0 / 1.6, "b")
    with pytest.raises(ValueError, match="needs baselines"): net_refinement(2.0, {})
    with pytest.raises(ValueError, match="loss of 'a' is nan"): net_refinement(2.0, {"a": math.nan})


@pytest.mark.parametrize("reward", refinement._REWARDS)
def test_after_a_loss_of_zero_there_is_nothing_to_gain(reward):
    "A text of one symbol is predicted for nothing: no nan in the loss, none in the gradient"
    losses = torch.tensor([2.0, 0.0, 0.0], requires_grad=True)
    loss = refinement_loss(losses, 1.0, 1.0, reward)
    assert loss.item() == pytest.approx(2 / 3 - (reward in ("naive", "stop_gradient")))
    assert torch.autograd.grad(loss, losses)[0].isfinite().all()


@pytest.mark.parametrize("bad", [dict(curriculum=2.5), dict(curriculum=-1), dict(contrastive=math.nan)])
def test_settings_are_refused(bad):
    with pytest.raises((ValueError, TypeError), match=next(iter(bad))): Refinement(**bad)
