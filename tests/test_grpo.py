"""Advantages against loops, the loss by hand, objectives against enumerated gradients and a plain rewriting, and what resumes"""
import pytest
import torch

from refine_nb.candidates import SCALES, CandidateConfig, Candidates, exact_match, group_advantage, select, whole_match
from refine_nb.data import Windows
from refine_nb.evaluation import kl_exact
from refine_nb.gpt import ContextualGPT, GPTConfig
from refine_nb.grpo import FOUND, GRPO, TENSORS, AllPositions, GRPOConfig, Rollouts, grpo_loss
from refine_nb.train import NonFiniteLoss, TrainConfig, count_flops, cross_entropy, train
from refine_nb.trigram import NGram

V = 7


def tiny(seed=0, context=12, n_symbols=V):
    torch.manual_seed(seed)
    model = ContextualGPT(GPTConfig(n_symbols, context=context, n_layers=2, n_heads=2, width=16, ngram=2))
    for p in model.parameters(): torch.nn.init.normal_(p, std=0.3)
    return model


def random_ids(*shape, seed=1): return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def text(n=400): return random_ids(n)


def gradient(model, loss): return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def close(a, b, tolerance=1e-5): return (a - b).abs().max() < tolerance * b.abs().max()


def test_loss_against_loops():
    "Clipping on both sides, weights, masks, both normalisers"
    g = torch.Generator().manual_seed(0)
    old, adv, weight = torch.randn(4, 6, generator=g), torch.randn(4, 6, generator=g), torch.rand(4, 6, generator=g) * (torch.rand(4, 6, generator=g) > 0.3)
    new = old + 0.4 * torch.randn(4, 6, generator=g)
    total, low, high = 0.0, 0.0, 0.0
    for o, n, a, w in zip(old.flatten().tolist(), new.flatten().tolist(), adv.flatten().tolist(), weight.flatten().tolist()):
        ratio = 2.718281828459045 ** (n - o)
        clipped = min(max(ratio, 0.9), 1.3)
        total += w * min(ratio * a, clipped * a)
        low, high = low + w * (ratio < 0.9 and a < 0), high + w * (ratio > 1.3 and a > 0)
    loss, shares = grpo_loss(new, old, adv, weight, 0.1, 0.3)
    assert loss.item() == pytest.approx(-total / weight.sum().item(), rel=1e-5)
    assert shares["clip_low"] == pytest.approx(low / weight.sum().item(), rel=1e-5) and shares["clip_high"] == pytest.approx(high / weight.sum().item(), rel=1e-5) and min(shares.values()) > 0
    assert grpo_loss(new, old, adv, weight, 0.1, 0.3, normalizer=8)[0].item() == pytest.approx(-total / 8, rel=1e-5)


@pytest.mark.parametrize(("scale", "maximised"), [("none", lambda p: p), ("group", lambda p: 2 * p.sqrt().arcsin()), ("mean", torch.log), ("probability", torch.log)])
def test_enumerated_gradients(scale, maximised):
    model, windows = tiny(), random_ids(3, 10)
    p = model.log_probs(windows[:, :-1]).gather(-1, windows[:, 1:, None]).exp()
    assert close(gradient(model, AllPositions(GRPOConfig(scale), CandidateConfig("exact"), V)(model, windows)[0]), gradient(model, -maximised(p).mean()))


def test_enumerated_with_mean_is_supervised():
    model, windows = tiny(), random_ids(3, 10)
    assert close(gradient(model, AllPositions(GRPOConfig(), CandidateConfig("exact"), V)(model, windows)[0]), gradient(model, cross_entropy(model, windows)[0]))


def test_partial_credit_is_part_of_the_expected_reward():
    model, windows, reference = tiny(), random_ids(3, 10), NGram.fit(text(), V, 2)
    reward = torch.nn.functional.one_hot(windows[:, 1:], V).float()
    for b in range(3):
        for t in range(9):
            for a in reference.log_probs(windows[:, :-1])[b, t].topk(5).indices.tolist():
                if a != windows[b, t + 1]: reward[b, t, a] = 0.2
    expected = gradient(model, -(model.log_probs(windows[:, :-1]).exp() * reward).sum(-1).mean())
    objective = AllPositions(GRPOConfig("none", partial_credit=0.2), CandidateConfig("exact"), V, reference)
    assert close(gradient(model, objective(model, windows)[0]), expected)


@pytest.mark.parametrize("form", ["positions", "rollouts"])
def test_without_reward_only_the_penalty_pulls(form):
    model, windows, reference = tiny(), random_ids(3, 10), NGram.fit(text(), V, 3)
    cfg, candidates = GRPOConfig(reward_weight=0, beta=0.3), CandidateConfig("exact")
    if form == "positions":
        objective, ids = AllPositions(cfg, candidates, V, reference), windows[:, :-1]
        expected = kl_exact(model.log_probs(ids), reference.log_probs(ids)).mean()
    else:
        objective, ids = Rollouts(cfg, candidates, V, 1, reference), windows[:, :-1]
        expected = kl_exact(model.log_probs(ids)[:, -1], reference.log_probs(ids)[:, -1]).mean()
    loss, metrics = objective(model, windows)
    assert metrics["zero_variance"] == 1 and metrics["kl"] == pytest.approx(expected.item(), rel=1e-4)
    assert close(gradient(model, loss), gradient(model, 0.3 * expected), 1e-4)


def plain_rollouts(model, tries, scale, reference, beta, estimator, length):
    "The loss of given tries, one row per branch, in loops"
    total, weights = 0.0, tries.weight.sum()
    for b in range(len(tries.batch)):
        context, w, r = tries.batch[b, :-length], tries.weight[b, :, 0], tries.reward[b]
        mean = (w * r).sum() / w.sum()
        a = (r - mean) / dict(none=1.0, group=((w * (r - mean) ** 2).sum() / w.sum()).sqrt(), mean=mean)[scale] if r[w > 0].unique().numel() > 1 else torch.zeros_like(r)
        for g in range(tries.ids.shape[1]):
            row = torch.cat([context, tries.ids[b, g]])[None, :-1]
            now, ref = model.log_probs(row)[0, -length:], reference.log_probs(row)[0, -length:]
            for c, i in enumerate(tries.ids[b, g].tolist()):
                gap = ref[c, i] - now[c, i]
                kl = gap.exp() - gap - 1 if estimator == "k3" else (now[c].exp() * (now[c] - ref[c])).sum()
                total = total + tries.weight[b, g, c] * (beta * kl - a[g] * now[c, i])
    return total / weights


@pytest.mark.parametrize(("estimator", "scale", "kl"), [("stratified", "mean", "exact"), ("uniform", "group", "k3"), ("on_policy", "none", "k3")])
def test_rollouts_against_a_plain_rewriting(estimator, scale, kl):
    "Gradient of one step: shared trunk, weights of whole branches, penalty along them, answers that end early"
    model, windows, reference = tiny(), random_ids(3, 10), NGram.fit(text(), V, 3)
    cfg, candidates = GRPOConfig(scale, partial_credit=0.2, beta=0.1, kl_estimator=kl), CandidateConfig(estimator, threshold=0.0, top_k=2, n_random=3, confident_k=2, n_samples=5, exhaustive_ratio=0.7)
    objective = Rollouts(cfg, candidates, V, 3, reference, end=2)
    loss, _ = objective(model, windows)
    ours, theirs = gradient(model, loss), gradient(model, plain_rollouts(model, objective.tries, scale, reference, 0.1, kl, 3))
    assert close(ours, theirs, 1e-4)
    masked = objective.tries.weight == 0
    for row, dead in zip(objective.tries.ids.flatten(0, 1).tolist(), masked.flatten(0, 1).tolist()):
        ended = row.index(2) if 2 in row else 3
        assert dead[ended + 1 :] == [True] * len(dead[ended + 1 :]) and (all(dead) or not any(dead[: ended + 1]))


@pytest.mark.parametrize(("estimator", "scale", "sound"), [("exact", "none", True), ("stratified", "none", True), ("on_policy", "none", True), ("renormalized", "none", False), ("uniform", "none", False),
                                                           ("exact", "mean", True), ("stratified", "mean", False), ("stratified", "probability", True)])
def test_expected_gradient_of_a_group(estimator, scale, sound):
    "Selection, weights and the group's own baseline together, against enumeration over the logits; the right character is likely, middling and rare"
    logp = (1.5 * torch.randn(30, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    cfg, p, order, total, true = CandidateConfig(estimator, threshold=0.0, top_k=6, n_random=6, confident_k=6), logp.exp(), logp.argsort(descending=True), 0.0, 0.0
    for rank in (0, 8, 25):
        group = select(logp.expand(20_000, -1), cfg, torch.Generator().manual_seed(1))
        reward = exact_match(group.ids, order[rank].expand(20_000))
        push = group.weight * group_advantage(reward, group.weight, scale, share=group.share)[0]
        mean = (torch.zeros(20_000, 30).scatter_add(-1, group.ids, push) - push.sum(-1, keepdim=True) * p).mean(0)
        hit = torch.nn.functional.one_hot(order[rank], 30)
        total, true = total + mean / (p[order[rank]] if scale == "none" else 1), true + hit - p  # each rank counts alike
    assert (torch.nn.functional.cosine_similarity(total, true, 0) > 0.99) == sound


@pytest.mark.parametrize(("estimator", "baseline", "sound"), [("exact", "split", True), ("stratified", "split", True), ("on_policy", "split", True), ("on_policy", "leave_one_out", True),
                                                              ("exact", "mean", False), ("uniform", "split", False)])
def test_rollouts_expect_the_enumerated_gradient(estimator, baseline, sound):
    "Two characters, all 49 answers enumerated; the mean of 600 draws points the same way, at a policy that prefers one first character"
    model, window = tiny(), random_ids(1, 8)
    sharpen = torch.optim.SGD(model.parameters(), 0.05)
    while (p := model.log_probs(window[:, :-2])[0, -1, window[0, -2]]) < -0.05:  # sure of the first character, not of the second
        model.zero_grad()
        (-p).backward()
        sharpen.step()
    pairs = torch.cartesian_prod(torch.arange(V), torch.arange(V))
    reward = (pairs == window[0, -2:]).long().cumprod(-1).float().mean(-1)
    whole = torch.cat([window[:, :-2].expand(V * V, -1), pairs], 1)
    logp = model.log_probs(whole[:, :-1])[:, -2:].gather(-1, pairs[..., None])[..., 0].sum(-1)
    true = gradient(model, (logp.exp() * reward).sum())
    objective = Rollouts(GRPOConfig("none", baseline=baseline), CandidateConfig(estimator, threshold=0.0, top_k=2, n_random=3, confident_k=2), V, 2)
    mean = -sum(gradient(model, objective(model, window.expand(8, -1))[0]) for _ in range(75))
    cosine = torch.nn.functional.cosine_similarity(mean, true, 0)
    assert (cosine > 0.97) == sound


def tree_gradient(scale, baseline, first, success):
    "Expected push on the logits of a first character, all of them tried, and of the success behind each; outcomes enumerated"
    n, method = len(first), GRPO(GRPOConfig(scale, baseline), CandidateConfig("exact"), len(first))
    came = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * n)
    weight, yes = first.expand(len(came), n), torch.ones(len(came), dtype=torch.bool)
    chosen, drawn, _ = method.advantages(came, Candidates(torch.arange(n).expand(len(came), n), weight, weight, yes, yes))
    chance = torch.where(came == 1, success, 1 - success).prod(-1)[:, None]
    on_first = (chance * weight * chosen).sum(0)
    return torch.cat([on_first - on_first.sum() * first, (chance * weight * drawn * (came - success)).sum(0)])


FIRST, SUCCESS = [(0.5, 0.3, 0.2), (0.99, 0.006, 0.004)], torch.tensor([0.3, 0.5, 0.9])


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("scale", SCALES)
def test_split_expects_the_enumerated_gradient(scale, first):
    "Chosen and drawn characters of a branch have one factor: 1 without scale, else what the others leave it to be divided by"
    first, factor = torch.tensor(first), torch.ones(3)
    if scale in ("mean", "probability"):
        for i in range(3):
            others = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 2)
            p, w = (torch.cat([x[:i], x[i + 1 :]]) for x in (SUCCESS, first))
            factor[i] = (torch.where(others == 1, p, 1 - p).prod(-1) / (first[i] + others @ w)).sum()
    value = factor * first * SUCCESS
    true = torch.cat([value - value.sum() * first, value * (1 - SUCCESS)])
    found = tree_gradient(scale, "split", first, SUCCESS)
    if scale == "group": assert torch.nn.functional.cosine_similarity(found, true, 0) > 0.99  # a factor for each of both parts
    else: assert torch.allclose(found, true, atol=1e-5)


@pytest.mark.parametrize(("baseline", "first", "least", "most"), [("mean", FIRST[0], 0.95, 0.97), ("mean", FIRST[1], 0.4, 0.45), ("leave_one_out", FIRST[0], 0.96, 0.98)])
def test_one_baseline_for_chosen_and_drawn_is_not_sound(baseline, first, least, most):
    "Without scale: a branch that weighs much hardly pushes what it drew, or what was chosen is not compared with one number"
    first = torch.tensor(first)
    one, split = (tree_gradient("none", b, first, SUCCESS) for b in (baseline, "split"))
    assert least < torch.nn.functional.cosine_similarity(one, split, 0) < most


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out", "split"])
def test_baselines_of_chosen_and_drawn_characters(baseline):
    "Half of the contexts guided: mean for chosen characters, leave one out for drawn ones, and for everything where all was drawn"
    objective = Rollouts(GRPOConfig("mean", baseline), CandidateConfig("stratified", threshold=0.0, top_k=2, n_random=3, confident_k=2, exhaustive_ratio=0.5), V, 2)
    model, windows = tiny(), random_ids(6, 10)
    windows[:, -2] = model.log_probs(windows[:, :-2])[:, -1].argmax(-1)
    objective(model, windows)
    tries = objective.tries
    mean, others = (group_advantage(tries.reward, tries.weight[..., 0], "mean", b)[0] for b in ("mean", "leave_one_out"))
    guided = (tries.weight[..., 0] != 1 / 5).any(-1, keepdim=True)
    assert guided.sum() == 3
    first = torch.where(guided, mean, others) if baseline == "split" else mean if baseline == "mean" else others
    assert torch.equal(tries.adv[..., 0], first) and torch.equal(tries.adv[..., 1], mean if baseline == "mean" else others)


def test_partial_credit_along_branches():
    "Up to the first error, where the reference counts the wrong character among its five likeliest there"
    windows, reference = random_ids(4, 10), NGram.fit(text(), V, 3)
    objective = Rollouts(GRPOConfig(partial_credit=0.2), CandidateConfig("on_policy", n_samples=12), V, 3, reference)
    objective(tiny(), windows)
    seen = set()
    for window, branches, rewards in zip(windows, objective.tries.ids, objective.tries.reward):
        top = reference.log_probs(window[None, :-1])[0].topk(5).indices
        for branch, reward in zip(branches.tolist(), rewards.tolist()):
            right = next((i for i in range(3) if branch[i] != window[7 + i]), 3)
            credited = right < 3 and branch[right] in top[6 + right].tolist()
            seen.add((right, credited))
            assert reward == pytest.approx((right + 0.2 * credited) / 3)
    assert {(0, True), (0, False), (1, True)} <= seen


def ragged(batch, seed):
    "A rollout objective that has called a model once: its loss, its metrics and itself; answers end early"
    objective = Rollouts(GRPOConfig("none"), CandidateConfig("on_policy", n_samples=6), V, 3, end=2, seed=seed)
    return *objective(tiny(), batch), objective


def test_batches_of_an_update_count_by_their_weights():
    "Answers of several lengths in two batches: by `terms` the mean over all tries, which the mean of both means is not"
    (a, _, first), (b, _, second) = (ragged(random_ids(rows, 10, seed=rows), seed=rows) for rows in (2, 5))
    adv, weight = (torch.cat([getattr(o.tries, name).flatten() for o in (first, second)]) for name in ("adv", "weight"))
    whole, terms = -(weight * adv).sum() / weight.sum(), [o.terms(dict(tokens=1)) for o in (first, second)]
    assert ((a * terms[0] + b * terms[1]) / sum(terms)).item() == pytest.approx(whole.item(), abs=1e-6)
    assert abs((a + b).item() / 2 - whole.item()) > 1e-4


def test_what_an_update_sums_and_what_it_takes_the_extremes_of():
    "Lowest, highest and number of two batches, as if they were one"
    (_, a, first), (_, b, second) = (ragged(random_ids(rows, 10, seed=rows), seed=rows) for rows in (2, 5))
    how = dict(sum=sum, min=min, max=max)
    both = {name: how[kind]((a[name], b[name])) for name, kind in GRPO.reductions.items()}
    reward = torch.cat([o.tries.reward.flatten() for o in (first, second)])
    written = sum((o.tries.weight > 0).sum().item() for o in (first, second))
    assert both == dict(tokens=7 * 3, generated=written, reward_min=reward.min().item(), reward_max=reward.max().item())


@pytest.mark.parametrize("form", [lambda e: AllPositions(GRPOConfig(), e, V), lambda e: Rollouts(GRPOConfig(), e, V, 3)])
@pytest.mark.parametrize("estimator", ["on_policy", "exact"])
def test_a_policy_that_is_no_number_stops_the_loop(form, estimator):
    model = tiny()
    with torch.no_grad(): next(model.parameters()).fill_(torch.nan)
    with pytest.raises(NonFiniteLoss): train(model, form(CandidateConfig(estimator)), Windows(text(), 9, 4), TrainConfig(steps=2), progress=False)


def test_metrics_have_their_names():
    reference = NGram.fit(text(), V, 2)
    for objective in (AllPositions(GRPOConfig(beta=0.1), CandidateConfig("on_policy"), V, reference), Rollouts(GRPOConfig(beta=0.1), CandidateConfig("on_policy"), V, 3, reference)):
        metrics = objective(tiny(), random_ids(4, 10))[1]
        assert set(metrics) == {*FOUND, "clip_low", "clip_high", "entropy", "kl"}
        assert metrics["reward_min"] <= metrics["reward_p10"] <= metrics["reward_median"] <= metrics["reward_p90"] <= metrics["reward_max"] <= 1
    assert metrics["tokens"] == 12 and metrics["generated"] == 4 * 16 * 3


def test_rewards_are_described_try_by_try():
    "Lowest and highest of a try, the groups' means between them; what a control without reward would have earned is told too"
    for weight in (1.0, 0.0):
        objective = AllPositions(GRPOConfig(reward_weight=weight), CandidateConfig("exact"), V)
        model, windows = tiny(), random_ids(3, 10)
        metrics = objective(model, windows)[1]
        p = model.log_probs(windows[:, :-1]).gather(-1, windows[:, 1:, None]).exp().flatten().sort().values
        assert metrics["reward_min"] == 0 and metrics["reward_max"] == 1 and metrics["hit_share"] == 1
        assert [metrics[k] for k in ("reward", "reward_p10", "reward_median", "reward_p90")] == pytest.approx([p.mean().item(), *p[[3, 13, 23]].tolist()], rel=1e-4)


@pytest.mark.parametrize("form", [lambda cfg: AllPositions(cfg, CandidateConfig("on_policy"), V), lambda cfg: Rollouts(cfg, CandidateConfig("on_policy"), V, 3)])
def test_several_epochs_over_one_exploration(form):
    "The second call keeps the tries, passes over the new batch, and sees ratios that have moved; the third explores again"
    model, objective = tiny(), form(GRPOConfig("none", num_iterations=2))
    objective(model, random_ids(2, 10))
    tries = objective.tries
    with pytest.raises(ValueError, match="take accumulate=1"): objective(model, random_ids(2, 10, seed=9))
    with torch.no_grad():
        for p in model.parameters(): p += 0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3))
    state = objective.state_dict()
    loss, metrics = objective(model, random_ids(2, 10, seed=9))
    assert objective.tries is tries and metrics["clip_low"] + metrics["clip_high"] > 0 and metrics["generated"] == metrics["tokens"] == 0
    twin = form(GRPOConfig("none", num_iterations=2))
    twin.load_state_dict(state)
    assert torch.equal(twin(model, random_ids(2, 10))[0], loss)  # whichever batch is offered
    assert objective(model, random_ids(2, 10, seed=9))[1]["clip_low"] == 0 and objective.tries is not tries


@pytest.mark.parametrize("form", [lambda cfg: AllPositions(cfg, CandidateConfig("on_policy"), V), lambda cfg: Rollouts(cfg, CandidateConfig("on_policy"), V, 3)])
def test_training_resumes_bit_for_bit(form, tmp_path):
    "Stopped between two epochs of one exploration"
    cfg = GRPOConfig("group", num_iterations=2)
    def run(steps, folder): return train(tiny(), form(cfg), Windows(text(), 9, 4), TrainConfig(steps=6, warmup=0, checkpoint_every=3), callbacks=(lambda row: (_ for _ in ()).throw(KeyboardInterrupt) if row["step"] > steps else None,), checkpoint_dir=folder, progress=False)
    whole = run(6, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt): run(4, tmp_path / "parts")
    again = run(6, tmp_path / "parts")
    assert [r["loss"] for r in again] == [r["loss"] for r in whole] and [r["grad_norm"] for r in again] == [r["grad_norm"] for r in whole]


def test_operations_of_a_later_epoch_are_its_own():
    "The first pass writes, the second only learns: the total is that of each pass counted by itself"
    objective, model, counts = Rollouts(GRPOConfig("none", num_iterations=2), CandidateConfig("on_policy"), V, 3), tiny(), []
    counted = lambda model, batch: (counts.append(count_flops(model, objective, batch)), objective(model, batch))[1]
    for windows, step in zip(Windows(text(), 9, 4), range(4)):
        counted(model, windows)
        with torch.no_grad():
            for p in model.parameters(): p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
    fresh = Rollouts(GRPOConfig("none", num_iterations=2), CandidateConfig("on_policy"), V, 3)
    rows = train(tiny(), fresh, Windows(text(), 9, 4), TrainConfig(steps=4, warmup=0), progress=False)
    assert [r["flops"] for r in rows] == [sum(counts[:n]) for n in range(1, 5)] and counts[0] == counts[2] > counts[1] == counts[3]


def test_state_has_one_set_of_names():
    objective = AllPositions(GRPOConfig(num_iterations=2), CandidateConfig("on_policy"), V)
    before = set(objective.state_dict())
    objective(tiny(), random_ids(2, 10))
    assert set(objective.state_dict()) == before == {"epoch", "generator", "found", *TENSORS}


def test_counting_flops_draws_nothing():
    objective, model = Rollouts(GRPOConfig(), CandidateConfig("on_policy"), V, 3), tiny()
    state = objective.generator.get_state()
    assert count_flops(model, objective, random_ids(2, 10)) > 0
    assert torch.equal(objective.generator.get_state(), state) and objective.epoch == 0


def test_dropout_is_off_while_a_policy_tries():
    torch.manual_seed(0)
    model = ContextualGPT(GPTConfig(V, context=12, n_layers=1, n_heads=2, width=16, dropout=0.5)).train()
    losses = [AllPositions(GRPOConfig(), CandidateConfig("exact"), V)(model, random_ids(2, 10))[1]["reward"] for _ in range(2)]
    assert losses[0] == losses[1] and model.training


@pytest.mark.parametrize(("settings", "message"), [
    (dict(scale_rewards="std"), "none of none, group, mean, probability"), (dict(baseline="loo"), "none of mean, leave_one_out"), (dict(kl_estimator="k1"), "none of exact, k3"), (dict(deviation="std"), "none of population, sample"),
    (dict(beta=-1.0), "beta"), (dict(beta=float("nan")), "beta"), (dict(partial_credit=1.5), "partial_credit"), (dict(epsilon=1.0), "epsilon"), (dict(num_iterations=0), "num_iterations")])
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message): GRPOConfig(**settings)


def test_refusals_before_training():
    reference = NGram.fit(text(), V, 2)
    with pytest.raises(ValueError, match="group of one"): AllPositions(GRPOConfig("group"), CandidateConfig("on_policy", n_samples=1), V)
    with pytest.raises(ValueError, match="group of one"): AllPositions(GRPOConfig(), CandidateConfig(top_k=3, n_random=2, confident_k=1), V)
    with pytest.raises(ValueError, match="more than the 7 symbols"): AllPositions(GRPOConfig(), CandidateConfig(), V)
    with pytest.raises(ValueError, match="need a reference"): AllPositions(GRPOConfig(beta=0.1), CandidateConfig("exact"), V)
    with pytest.raises(ValueError, match="knows 7 symbols and the policy 9"): AllPositions(GRPOConfig(), CandidateConfig("exact"), 9, reference)
    with pytest.raises(ValueError, match="policy knows 8 symbols and the objective 7"): AllPositions(GRPOConfig(), CandidateConfig("exact"), V)(tiny(n_symbols=8), random_ids(2, 10))
    with pytest.raises(ValueError, match="branches of 0"): Rollouts(GRPOConfig(), CandidateConfig("exact"), V, 0)
    with pytest.raises(ValueError, match="prefix match"): Rollouts(GRPOConfig(partial_credit=0.1), CandidateConfig("exact"), V, 2, reference, whole_match)
    with pytest.raises(ValueError, match="do not fit a context of 12"): Rollouts(GRPOConfig(), CandidateConfig("exact"), V, 3)(tiny(), random_ids(2, 30))
    for objective, shape in ((AllPositions(GRPOConfig(), CandidateConfig("exact"), V), (2, 1)), (Rollouts(GRPOConfig(), CandidateConfig("exact"), V, 3), (2, 3)), (AllPositions(GRPOConfig(), CandidateConfig("exact"), V), (0, 9))):
        with pytest.raises(ValueError, match=f"batch of {shape[0]} windows of {shape[1]} characters: it needs"): objective(tiny(), torch.zeros(shape, dtype=torch.long))
    with pytest.raises(ValueError, match="5 likeliest characters, and there are 4"): AllPositions(GRPOConfig(partial_credit=0.2), CandidateConfig("exact"), 4, NGram.fit(text() % 4, 4, 2))
    with pytest.raises(ValueError, match="must be finite"): Rollouts(GRPOConfig(), CandidateConfig("exact"), V, 2, reward=lambda branches, target: torch.full(branches.shape[:2], torch.nan))(tiny(), random_ids(2, 10))


@pytest.mark.parametrize("adv, weight", [((0.5, -0.5, 1.0), (1, 1, 0)), ((0.5, -0.5, 1.0), (1, 1, 1)), ((0.5, -0.5, 0.0), (1, 1, 1))])
def test_what_does_not_count_cannot_overflow(adv, weight):
    "Masked, clipped from above, or without advantage: a ratio beyond fp32 leaves loss and gradient finite, its own gradient 0"
    logp = torch.tensor([-1.0, -0.5, -2.0], requires_grad=True)
    loss, _ = grpo_loss(logp, torch.tensor([-1.0, -0.5, -120.0]), torch.tensor(adv), torch.tensor(weight).float())
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logp.grad).all() and logp.grad[2] == 0 and (logp.grad[:2] != 0).all()
