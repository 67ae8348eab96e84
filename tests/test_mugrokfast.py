"""Orthogonalisation against a decomposition, each rule against PyTorch's, the filter's response, exact clipping, routing, resumption, refusals"""
import copy
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from refine_nb.confidence import ConfidenceAwareGPT
from refine_nb.data import Windows
from refine_nb.gpt import ContextualGPT, GPTConfig
from refine_nb.mugrokfast import QUINTIC, LogitWatch, MuGrokfast, MuGrokfastConfig, grokfast, hidden_matrices, muon_update, newton_schulz, qk_clip
from refine_nb.prefix import Prefix, branch_logits, tree_logits
from refine_nb.quiet_star import QuietConfig, QuietGPT
from refine_nb.tables import read_runs
from refine_nb.train import TrainConfig, cross_entropy, train
from refine_nb.trm import RecursiveGPT, TRMConfig

V = 11
OFF = dict(grokfast_lambda=0.0, qk_clip_threshold=0.0)


def tiny(**fields):
    torch.manual_seed(0)
    return ContextualGPT(GPTConfig(V, **dict(context=12, n_layers=2, n_heads=2, width=16) | fields))


def ids(*shape, seed=1): return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def backward(model, seed=1):
    model.zero_grad()
    cross_entropy(model, ids(4, 13, seed=seed))[0].backward()


# Orthogonalisation and rules

@pytest.mark.parametrize("shape", [(16, 16), (48, 8), (8, 48), (3, 5, 7), (2, 2, 9, 4)])
def test_newton_schulz_against_a_decomposition(shape):
    "The singular vectors stay, the values go through the polynomial five times"
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, vt = torch.linalg.svd(g, full_matrices=False)
    s = s / g.norm(dim=(-2, -1))[..., None]
    for _ in range(5): s = QUINTIC[0] * s + QUINTIC[1] * s**3 + QUINTIC[2] * s**5
    assert torch.allclose(newton_schulz(g), u @ (s[..., None] * vt), atol=1e-9)


def test_zero_stays_zero(): assert torch.equal(newton_schulz(torch.zeros(2, 4, 6)), torch.zeros(2, 4, 6))


@pytest.mark.parametrize("shape", [(16, 16), (24, 8), (8, 24)])
@pytest.mark.parametrize("match, theirs", [(True, "match_rms_adamw"), (False, "original")])
def test_muon_update_against_torch(shape, match, theirs):
    g = torch.Generator().manual_seed(0)
    ours, other, momentum = torch.zeros(shape), torch.nn.Parameter(torch.zeros(shape)), torch.zeros(shape)
    reference = torch.optim.Muon([other], lr=0.1, weight_decay=0.0, momentum=0.9, adjust_lr_fn=theirs)
    for _ in range(4):
        grad = torch.randn(shape, generator=g)
        ours -= 0.1 * next(muon_update([grad], [momentum], 0.9, match))
        other.grad = grad
        reference.step()
    assert torch.allclose(ours, other, atol=2e-3 * other.abs().max().item())


def test_a_batch_is_its_matrices():
    g = torch.randn(5, 12, 8, generator=torch.Generator().manual_seed(0))
    one = torch.stack([next(muon_update([x], [0.3 * x])) for x in g])
    assert torch.allclose(torch.stack([*muon_update(g, 0.3 * g)]), one, atol=0.02 * one.abs().max().item())


def test_more_matrices_than_the_cache_holds_are_orthogonalised_in_parts():
    g = torch.randn(5, 512, 600, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(newton_schulz(g, 2), torch.stack([newton_schulz(x, 2) for x in g]), atol=1e-5)


@pytest.mark.parametrize("omega", [0.0, math.pi / 3, math.pi])
def test_the_filter_has_its_frequency_response(omega):
    "|H(ω)| = |1 + λ(1 − α) / (1 − α e^{−iω})|, and at ω = 0 and π the two closed forms"
    alpha, lam, n = 0.9, 0.5, 600
    slow, out = torch.zeros((), dtype=torch.float64), []
    for t in range(n): out.append(grokfast(torch.tensor(math.cos(omega * t), dtype=torch.float64), slow, alpha, lam).item())
    late = np.arange(n // 2, n)
    basis = np.stack([np.cos(omega * late), np.sin(omega * late)], 1)[:, : 1 if omega in (0.0, math.pi) else 2]
    gain = np.linalg.norm(np.linalg.lstsq(basis, np.array(out)[late], rcond=None)[0])
    assert gain == pytest.approx(abs(1 + lam * (1 - alpha) / (1 - alpha * np.exp(-1j * omega))), rel=1e-6)
    if omega == 0: assert gain == pytest.approx(1 + lam)
    if omega == math.pi: assert gain == pytest.approx(1 + lam * (1 - alpha) / (1 + alpha))


# The optimiser

def test_every_parameter_has_one_rule():
    model = tiny(ngram=2)
    groups = MuGrokfast(model).param_groups
    held = [id(p) for g in groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters()) and [g["rule"] for g in groups] == ["muon", "adamw", "adamw"]
    names = {id(p): n for n, p in model.named_parameters()}
    assert {names[id(p)].split(".", 2)[2] for p in groups[0]["params"]} == {f"{n}.weight" for n in ("attention.q", "attention.k", "attention.v", "attention.out", "up", "down")}
    assert all(p.ndim < 2 for p in groups[2]["params"]) and groups[2]["weight_decay"] == 0.0
    assert [g["rule"] for g in MuGrokfast(model, MuGrokfastConfig(muon=False)).param_groups] == ["adamw", "adamw"]


def test_without_muon_it_is_adamw():
    ours, theirs = tiny(), tiny()
    a = MuGrokfast(ours, MuGrokfastConfig(lr=1e-2, other_lr=1.0, weight_decay=0.1, muon=False, **OFF))
    decayed = [[p for p in theirs.parameters() if (p.ndim > 1) == two] for two in (True, False)]
    b = torch.optim.AdamW([dict(params=p, weight_decay=d) for p, d in zip(decayed, (0.1, 0.0))], lr=1e-2, betas=(0.9, 0.95))
    for step in range(4):
        backward(ours, step), backward(theirs, step)
        a.step(), b.step()
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(ours.parameters(), theirs.parameters()))


def test_with_muon_it_is_torch_muon_and_adamw():
    ours, theirs = tiny(), tiny()
    a = MuGrokfast(ours, MuGrokfastConfig(lr=1e-2, other_lr=0.5, weight_decay=5.0, **OFF))
    hidden = {id(p) for p in hidden_matrices(theirs)}
    rest = [p for p in theirs.parameters() if id(p) not in hidden]
    b = (torch.optim.Muon(hidden_matrices(theirs), lr=1e-2, weight_decay=5.0, adjust_lr_fn="match_rms_adamw"), torch.optim.AdamW([dict(params=[p for p in rest if p.ndim > 1], weight_decay=5.0), dict(params=[p for p in rest if p.ndim < 2], weight_decay=0.0)], lr=5e-3, betas=(0.9, 0.95)))
    for step in range(3):
        backward(ours, step), backward(theirs, step)
        a.step()
        for part in b: part.step()
    assert all(torch.allclose(p, q, atol=2e-3) for p, q in zip(ours.parameters(), theirs.parameters()))


def test_the_filter_acts_on_every_parameter():
    "One step with λ is one without on gradients filtered by hand"
    ours, theirs = tiny(), tiny()
    a, b = MuGrokfast(ours, MuGrokfastConfig(lr=1e-2, grokfast_lambda=2.0, grokfast_alpha=0.5, qk_clip_threshold=0.0)), MuGrokfast(theirs, MuGrokfastConfig(lr=1e-2, **OFF))
    slow = [torch.zeros_like(p) for p in theirs.parameters()]
    for step in range(3):
        backward(ours, step), backward(theirs, step)
        for p, s in zip(theirs.parameters(), slow): p.grad = grokfast(p.grad, s, 0.5, 2.0)
        a.step(), b.step()
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(ours.parameters(), theirs.parameters()))


def test_the_loops_learning_rate_counts():
    "A rate set in the groups scales the update; the ratio of the others stays"
    moved = []
    for lr in (1e-3, 2e-3):
        model = tiny()
        start, optimizer = [p.detach().clone() for p in model.parameters()], MuGrokfast(model, MuGrokfastConfig(other_lr=3.0, **OFF))
        for group in optimizer.param_groups: group["lr"] = lr
        backward(model)
        optimizer.step()
        moved.append([(p - s).norm().item() for p, s in zip(model.parameters(), start)])
    assert all(b == pytest.approx(2 * a, rel=0.01) for a, b in zip(*moved) if a > 0)


# The brake

def loud(model):
    "Queries and keys with large logits"
    with torch.no_grad():
        for block in model.blocks:
            for linear in (block.attention.q, block.attention.k): torch.nn.init.normal_(linear.weight, std=0.4)
    return model


def test_the_watch_sees_what_attention_sees():
    model, text = loud(tiny()), ids(5, 12)
    watch = LogitWatch(model)
    model(text)
    assert torch.allclose(torch.stack(watch.largest), model.attention_logit_max(text), rtol=1e-5)
    for seed in range(30):  # short texts, in some of which a future position would be the largest
        watch.reset()
        model(ids(1, 4, seed=seed))
        assert torch.allclose(torch.stack(watch.largest), model.attention_logit_max(ids(1, 4, seed=seed)), rtol=1e-5)
    watch.reset()
    model(text), model(ids(5, 12, seed=7))
    both = torch.maximum(model.attention_logit_max(text), model.attention_logit_max(ids(5, 12, seed=7)))
    assert torch.allclose(torch.stack(watch.largest), both, rtol=1e-5)


def test_the_watch_sees_trees_under_their_mask():
    "A path and a sibling, against the two paths in rows of their own"
    model, text = loud(tiny()), ids(3, 5)
    watch = LogitWatch(model)
    tree_logits(model, text, torch.tensor([-1, 0, 1, 0, 3]))
    with torch.no_grad(): seen = [by_hand(model, text[:, path], lambda _: slice(None)) for path in ([0, 1, 2], [0, 3, 4])]
    assert torch.allclose(torch.stack(watch.largest), torch.stack(seen).amax(0), rtol=1e-5)


def test_two_watches_see_the_same():
    model = loud(tiny())
    one, two = LogitWatch(model), LogitWatch(model)
    model(ids(2, 12))
    assert torch.equal(torch.stack(one.largest), torch.stack(two.largest))


def test_a_watch_needs_attention():
    with pytest.raises(ValueError, match="a Linear has no attention"): LogitWatch(torch.nn.Linear(2, 2))


def by_hand(model, rows, asked):
    "The largest logit of every layer's heads over whole rows read plainly; in each layer only the queries of `asked`"
    out, x = [], model.embed(rows)
    for layer, block in enumerate(model.blocks):
        q, k, _ = block.attention.heads(block.norm1(x))
        logits = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(torch.ones(rows.shape[1], rows.shape[1]).triu(1).bool(), -math.inf)
        out.append(logits[:, :, asked(layer)].amax((0, 2, 3)))
        x = block(x)
    return torch.stack(out)


@pytest.mark.parametrize("seed", range(8))
def test_the_watch_sees_trunks_and_branches(seed):
    "Every branch in a row of its own; a trunk asks only its last position in its last layer"
    model, prefix, branches = loud(tiny()), ids(3, 6, seed=seed), ids(3 * 2, 5, seed=seed + 50).unflatten(0, (3, 2))
    watch = LogitWatch(model)
    branch_logits(Prefix(model, prefix), branches)
    rows = torch.cat([prefix[:, None].expand(3, 2, 6), branches[..., :-1]], -1).flatten(0, 1)
    with torch.no_grad(): seen = by_hand(model, rows, lambda layer: slice(5 if layer + 1 == len(model.blocks) else 0, None))
    assert torch.allclose(torch.stack(watch.largest), seen, rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_the_watch_sees_thoughts_inside_a_text(seed):
    "A text, and branches after each of its positions, against the text and every branch in a row of its own"
    model, text, branches = loud(tiny()), ids(2, 6, seed=seed), ids(2 * 6, 4, seed=seed + 50).unflatten(0, (2, 6))
    watch = LogitWatch(model)
    model.hidden(branches.flatten(1), Prefix(model, text, every=True).branches(at=torch.arange(6).expand(2, 6)))
    with torch.no_grad(): seen = [by_hand(model, text, lambda _: slice(None))] + [by_hand(model, torch.cat([text[:, : p + 1], branches[:, p]], 1), lambda _: slice(None)) for p in range(6)]
    assert torch.allclose(torch.stack(watch.largest), torch.stack(seen).amax(0), rtol=1e-5)


def test_a_failing_pass_leaves_no_watch_behind():
    model = tiny()
    watch = LogitWatch(model)
    with pytest.raises(RuntimeError): model.blocks[0].attention(torch.randn(2, 3, 7))
    torch.randn(2, 4, 3, requires_grad=True).softmax(-1)
    assert watch.largest == [None, None]


def test_only_passes_with_gradients_are_watched():
    model = tiny()
    watch = LogitWatch(model)
    with torch.no_grad(): model(ids(2, 12))
    copy.deepcopy(model)(ids(2, 12))  # such as the averaged model
    assert watch.largest == [None, None]
    model.eval()(ids(2, 12))  # such as a policy that learns from what it wrote
    assert torch.allclose(torch.stack(watch.largest), model.attention_logit_max(ids(2, 12)), rtol=1e-5)


def test_clipping_is_exact_at_fixed_inputs():
    attention, x = loud(tiny()).blocks[0].attention, torch.randn(6, 12, 16, generator=torch.Generator().manual_seed(3))

    def largest():
        q, k, _ = attention.heads(x)
        return (q @ k.mT / math.sqrt(8)).masked_fill(torch.ones(12, 12).triu(1).bool(), -math.inf).amax((0, 2, 3))

    before, value = largest().detach(), attention.v.weight.clone()
    threshold = before.mean().item()
    assert qk_clip(attention, before, threshold) == 1
    assert torch.allclose(largest(), before.clamp(max=threshold), rtol=1e-5) and torch.equal(attention.v.weight, value)
    assert qk_clip(attention, torch.full((2,), -1.0), 0.5) == 0 and torch.allclose(largest(), before.clamp(max=threshold), rtol=1e-5)


def test_a_step_clips_what_the_forward_pass_showed():
    "The update first, then the factor from the logits before it"
    with_clip, without = loud(tiny()), loud(tiny())
    a, b = MuGrokfast(with_clip, MuGrokfastConfig(lr=1e-3, grokfast_lambda=0.0, qk_clip_threshold=2.0)), MuGrokfast(without, MuGrokfastConfig(lr=1e-3, **OFF))
    seen = without.attention_logit_max(ids(4, 13)[:, :-1])
    backward(with_clip), backward(without)
    a.step(), b.step()
    for block, largest in zip(without.blocks, seen): qk_clip(block.attention, largest, 2.0)
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(with_clip.parameters(), without.parameters()))
    assert a.max_logit == pytest.approx(seen.max().item(), rel=1e-5) and a.n_clipped == int((seen > 2.0).sum()) and a.watch.largest == [None, None]


# In the loop

@pytest.mark.parametrize("build", [lambda: RecursiveGPT(TRMConfig.preset("smoke", V, improvement_reward="none")), lambda: ConfidenceAwareGPT(GPTConfig(V, context=17, n_layers=2, n_heads=2, width=16))])
def test_the_other_models_train_with_it(build):
    model = build()
    optimizer = MuGrokfast(model)
    logits = model(ids(3, 8))
    (logits["logits"] if isinstance(logits, dict) else logits).square().mean().backward()
    optimizer.step()
    assert optimizer.max_logit > 0


def test_interrupted_training_goes_on_bit_for_bit(tmp_path):
    "Momentum, slow gradients and AdamW's moments are in the loop's one checkpoint"
    cfg = TrainConfig(steps=8, lr=5e-3, warmup=2, checkpoint_every=4)

    class Stop(Exception): pass

    def run(folder, stop=None):
        model = loud(tiny())
        optimizer = MuGrokfast(model, MuGrokfastConfig(lr=5e-3, qk_clip_threshold=3.0))

        def callback(row):
            if row["step"] == stop: raise Stop

        try: train(model, cross_entropy, Windows(ids(2000), 12, 4, seed=0), cfg, callbacks=(callback,), checkpoint_dir=folder, optimizer=optimizer, progress=False)
        except Stop: pass
        return torch.cat([p.flatten() for p in model.parameters()])

    whole = run(tmp_path / "a")
    run(tmp_path / "b", stop=6)
    assert torch.equal(run(tmp_path / "b"), whole)


@pytest.mark.parametrize("field, value, message", [
    ("lr", 0.0, "lr is 0.0"), ("lr", math.nan, "lr is nan"), ("other_lr", -1.0, "other_lr is -1.0"), ("grokfast_lambda", -0.1, "grokfast_lambda is -0.1"), ("qk_clip_threshold", math.inf, "qk_clip_threshold is inf"),
    ("weight_decay", -1.0, "weight_decay"), ("grokfast_alpha", 1.0, "grokfast_alpha is 1.0"), ("momentum", -0.5, "momentum is -0.5"), ("betas", (0.9, 1.0), "beta_2 is 1.0")])
def test_refuses(field, value, message):
    with pytest.raises(ValueError, match=message): MuGrokfastConfig(**{field: value})


def test_published_presets():
    bake, rl = MuGrokfastConfig.preset("bake"), MuGrokfastConfig.preset("rl", momentum=0.9)
    assert (bake.lr, bake.grokfast_lambda, bake.qk_clip_threshold) == (1e-4, 0.2, 30.0) and bake.weight_decay > 0
    assert (rl.lr, rl.grokfast_lambda, rl.qk_clip_threshold, rl.weight_decay, rl.momentum) == (5e-4, 0.1, 25.0, 0.0, 0.9)
    with pytest.raises(ValueError, match="no preset 'r1'"): MuGrokfastConfig.preset("r1")


@pytest.mark.parametrize("name, data, parts, judged, sign", [("bake_tuned", "arithmetic", dict(muon=True, grokfast_lambda=0.2), "val_loss", 1), ("rl_tuned", "reward", dict(muon=True, grokfast_lambda=0.1, qk_clip=25.0), "val_probability", -1)])
def test_tuned_presets_have_the_rate_that_was_best(name, data, parts, judged, sign):
    rows = read_runs(Path(__file__).parents[1] / "results/mugrokfast_parts_tune")
    for field, value in (dict(data=data) | parts).items(): rows = rows[rows[field] == value]
    assert rows.lr.nunique() >= 4 and (sign * rows.groupby("lr")[judged].mean()).idxmin() == MuGrokfastConfig.preset(name).lr


def test_what_mixes_thoughts_in_is_adamws():
    model = QuietGPT(QuietConfig(V, context=24, n_layers=1, n_heads=2, width=16, mixing="attention"))
    hidden, mixing = set(map(id, hidden_matrices(model))), list(model.mixing.parameters())
    assert len(hidden) == 6 and any(p.ndim == 2 for p in mixing) and not hidden & set(map(id, mixing))
    groups = {id(p): g["rule"] for g in MuGrokfast(model).param_groups for p in g["params"]}
    assert all(groups[id(p)] == "adamw" for p in mixing) and len(groups) == len(list(model.parameters()))


def test_step_takes_a_closure_as_torch_has_it():
    "accelerate, Lightning and GradScaler call step(closure)"
    torch.manual_seed(0)
    model = ContextualGPT(GPTConfig(8, context=8, n_layers=1, n_heads=2, width=16))
    twin, ids = copy.deepcopy(model), torch.randint(0, 8, (2, 9))

    def closure():
        ours.zero_grad()
        loss = cross_entropy(model, ids)[0]
        loss.backward()
        return loss

    ours, theirs = MuGrokfast(model), MuGrokfast(twin)
    before = cross_entropy(twin, ids)[0]
    before.backward()
    theirs.step(None)
    assert ours.step(closure).item() == before.item()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))


def test_a_watched_model_can_be_pickled():
    model = ContextualGPT(GPTConfig(8, context=8, n_layers=1, n_heads=2, width=16))
    watch, ids = LogitWatch(model), torch.randint(0, 8, (2, 8))
    again = pickle.loads(pickle.dumps(model))
    again(ids)
    assert watch.largest == [None] and torch.equal(again(ids), model(ids)) and watch.largest[0] is not None
