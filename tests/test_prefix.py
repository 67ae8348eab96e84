"""Branches of one prefix: masks against walking up the tree, packed passes and trunks against one row per branch, values and gradients"""
import pytest
import torch

from refine_nb.gpt import choose, set_precision
from refine_nb.prefix import Prefix, branch_logits, generate, star, tree_logits, tree_mask


def random_ids(*shape, seed=1): return torch.randint(11, shape, generator=torch.Generator().manual_seed(seed))


def random_tree(n, seed):
    "Parents of a random tree, several roots allowed"
    g = torch.Generator().manual_seed(seed)
    return torch.tensor([-1] + [int(torch.randint(-1, i, (1,), generator=g)) for i in range(1, n)])


def path(parent, i):
    "From a root down to i, by walking up"
    out = []
    while i >= 0: out, i = [i, *out], int(parent[i])
    return out


def rows(model, prefix, branches):
    "The reference: every branch in a row of its own behind a copy of its prefix"
    whole = torch.cat([prefix.repeat_interleave(branches.shape[1], 0), branches.flatten(0, 1)], 1)
    return model(whole[:, :-1])[:, prefix.shape[1] - 1 :].unflatten(0, branches.shape[:2])


def gradients(model, loss): return torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("seed", range(4))
def test_mask_is_the_set_of_ancestors(seed):
    parent = random_tree(15, seed)
    expected = torch.zeros(15, 15, dtype=torch.bool)
    for i in range(15): expected[i, path(parent, i)] = True
    assert torch.equal(tree_mask(parent), expected)


def test_star_is_the_tree_of_a_group():
    parent = star(4, 3, 2)
    assert [path(parent, i) for i in (5, 7, 9)] == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 6, 7], [0, 1, 2, 3, 8, 9]]


@pytest.mark.parametrize("seed", range(4))
def test_packed_tree_equals_every_path_alone(model, seed):
    parent, ids = random_tree(15, seed), random_ids(2, 15, seed=seed)
    packed = tree_logits(model, ids, parent)
    for i in range(15): assert torch.allclose(packed[:, i], model(ids[:, path(parent, i)])[:, -1], atol=1e-5)


def test_packed_gradients_equal_paths_alone(model):
    parent, ids, pick = star(5, 3, 4), random_ids(2, 17), torch.randn(2, 12, 11, generator=torch.Generator().manual_seed(2))
    branches = ids[:, 5:].view(2, 3, 4)
    alone = torch.cat([model(torch.cat([ids[:, :5], branches[:, g]], 1))[:, 5:] for g in range(3)], 1)
    ours, theirs = gradients(model, (tree_logits(model, ids, parent)[:, 5:] * pick).sum()), gradients(model, (alone * pick).sum())
    assert max((a - b).abs().max() for a, b in zip(ours, theirs)) < 1e-4 * max(b.abs().max() for b in theirs)


@pytest.mark.parametrize(("t", "g", "c"), [(9, 4, 5), (1, 3, 2), (6, 1, 3), (7, 5, 1), (20, 2, 5)])
def test_trunk_values_and_gradients_equal_one_row_per_branch(model, t, g, c):
    prefix, branches = random_ids(2, t), random_ids(2, g, c, seed=3)
    pick = torch.randn(2, g, c, 11, generator=torch.Generator().manual_seed(2))
    ours, theirs = branch_logits(Prefix(model, prefix), branches), rows(model, prefix, branches)
    assert torch.allclose(ours.log_softmax(-1), theirs.log_softmax(-1), atol=1e-5)
    a, b = gradients(model, (ours.log_softmax(-1) * pick).sum()), gradients(model, (theirs.log_softmax(-1) * pick).sum())
    assert max((x - y).abs().max() for x, y in zip(a, b)) < 1e-5 * max(y.abs().max() for y in b)


def test_bf16_stays_close(model):
    set_precision(model, "bf16")
    prefix, branches = random_ids(2, 9), random_ids(2, 4, 5, seed=3)
    gap = (branch_logits(Prefix(model, prefix), branches).softmax(-1) - rows(model, prefix, branches).softmax(-1)).abs()
    assert gap.mean() < 0.01


def test_trunk_predicts_the_next_character(model):
    prefix = random_ids(3, 8)
    assert torch.allclose(Prefix(model, prefix).next_logits, model(prefix)[:, -1], atol=1e-5)


def test_branches_do_not_see_each_other(model):
    prefix, branches = random_ids(2, 6), random_ids(2, 3, 4)
    other = branches.clone()
    other[:, 1] = (other[:, 1] + 1) % 11
    trunk = Prefix(model, prefix)
    a, b = branch_logits(trunk, branches), branch_logits(trunk, other)
    assert torch.equal(a[:, [0, 2]], b[:, [0, 2]]) and not torch.allclose(a[:, 1, 1:], b[:, 1, 1:])


@pytest.mark.parametrize("forced", [False, True])
def test_same_draws_same_characters(model, forced):
    "Against reading every whole row again for each character, without a cache"
    prefix, first = random_ids(2, 7), random_ids(2, 4, seed=5) if forced else None
    ours = generate(Prefix(model, prefix), 6, 4, first, generator=torch.Generator().manual_seed(4))
    generator, whole = torch.Generator().manual_seed(4), prefix.repeat_interleave(4, 0)
    for i in range(6):
        new = first.flatten() if forced and i == 0 else choose(model(whole)[:, -1], generator=generator)
        whole = torch.cat([whole, new[:, None]], 1)
    assert torch.equal(ours.flatten(0, 1), whole[:, 7:])


def test_greedy_is_the_likeliest(model):
    prefix = random_ids(2, 7)
    out = generate(Prefix(model, prefix), 3, temperature=0)
    assert torch.equal(out[:, 0], rows(model, prefix, out).argmax(-1)[:, 0])


def test_generating_leaves_the_trunk_as_it_was(model):
    "Drawing from a trunk and then learning from it gives the gradients of a fresh one; a model in training mode stays there"
    prefix, branches = random_ids(2, 6), random_ids(2, 3, 4)
    used, fresh = Prefix(model.train(), prefix), Prefix(model, prefix)
    generate(used, 5, 3)
    assert model.training
    a, b = (gradients(model, branch_logits(t, branches).log_softmax(-1)[..., 0].sum()) for t in (used, fresh))
    assert all(torch.equal(x, y) for x, y in zip(a, b))


def test_refusals(model):
    trunk = Prefix(model, random_ids(2, 20))
    with pytest.raises(ValueError, match="do not fit a context of 24.*context=25"): generate(trunk, 6)
    with pytest.raises(ValueError, match="do not fit"): branch_logits(trunk, random_ids(2, 2, 6))
    with pytest.raises(ValueError, match="do not fit a context"): Prefix(model, random_ids(2, 25))
    with pytest.raises(ValueError, match="at least one"): Prefix(model, random_ids(2, 0))
    with pytest.raises(ValueError, match="at least one"): star(3, 0, 2)
    with pytest.raises(ValueError, match="depth 25"): tree_logits(model, random_ids(1, 25), torch.arange(25) - 1)
    with pytest.raises(ValueError, match="stands before its child"): tree_mask(torch.tensor([-1, -2]))
