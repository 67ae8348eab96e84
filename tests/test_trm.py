"""The recursion against one written out, gradients with and without detaching and checkpointing, caching, halting, costs, resumption, refusals"""
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_refinement import by_loops

import refine_nb.trm as trm
from refine_nb.checkpoints import BadCheckpoint, checkpoints, load_weights
from refine_nb.data import MarkovSource, Windows, supervised
from refine_nb.benchmark_tasks import load_task
from refine_nb.evaluation import score
from refine_nb.gpt import ContextualGPT, GPTConfig, n_parameters, sample
from refine_nb.refinement import Refinement, supervision_weights
from refine_nb.train import Averaged, TrainConfig, adamw, answer_loss, count_flops, cross_entropy, lr_at, train, update
from refine_nb.trm import (PAPER, TRM, NormedGPT, Recursion, RecursiveGPT, TRMConfig, evaluate_steps,
                           score_steps)
from refine_nb.puzzles import every_start

V = 11
NONE = dict(improvement_reward="none")


def tiny(**fields):
    torch.manual_seed(0)
    model = RecursiveGPT(TRMConfig(V, **dict(context=24, n_layers=2, n_heads=2, width=16) | {k: fields.pop(k) for k in ("refinement", "dropout") if k in fields}, recursion=Recursion(**fields)))
    for p in model.parameters(): torch.nn.init.normal_(p, std=0.3)
    return model


def random_ids(*shape, seed=1): return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def gradient(model, loss): return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, materialize_grads=True)])


def problems(b=6): return random_ids(b, 9), random_ids(b, 3, seed=2)


# The model

def written_out(model, ids, carry=lambda s: s):
    "The logits of every step, with nothing shared and no cleverness"
    r, out = model.cfg.recursion, []
    x = F.layer_norm(model.token(ids) + model.position.weight[: ids.shape[1]], (model.cfg.width,))
    y, z = model.answer.repeat(*ids.shape, 1), model.latent.repeat(*ids.shape, 1)

    def net(h):
        for block in model.blocks: h = block(h)
        return model.norm(h)

    for _ in range(r.n_supervision):
        for _ in range(r.n_cycles):
            for _ in range(r.n_loops): z = net(x + y + z)
            y = net(y + z)
        out.append(model.head(y))
        y, z = carry(y), carry(z)
    return out


@pytest.mark.parametrize("shape", [dict(), dict(n_loops=1, n_cycles=2, n_supervision=3), dict(n_loops=3, n_supervision=1, refinement=Refinement(**NONE))])
def test_recursion_against_one_written_out(shape):
    model, ids = tiny(**shape), random_ids(3, 10)
    expected = torch.stack(written_out(model, ids))
    assert torch.allclose(model.head(torch.stack(list(model.answers(ids)))), expected, atol=1e-5)
    assert torch.allclose(model(ids), expected[-1], atol=1e-5)
    assert (expected[-1] - expected[0]).abs().max() > 0.01 or len(expected) == 1


def test_parameters_beside_a_plain_one():
    cfg = TRMConfig.preset("smoke", V)
    torch.manual_seed(0)
    plain = ContextualGPT(cfg)
    torch.manual_seed(0)
    model = RecursiveGPT(cfg)
    assert n_parameters(model) == n_parameters(plain) + 2 * cfg.width
    assert all(torch.equal(p, dict(model.named_parameters())[name]) for name, p in plain.named_parameters())


def test_sees_only_what_is_before():
    model, ids = tiny(), random_ids(1, 12)
    other = ids.clone()
    other[0, 7] = (other[0, 7] + 1) % V
    change = (torch.stack(list(model.answers(ids))) - torch.stack(list(model.answers(other)))).abs().amax((0, 1, 3))
    assert change[:7].max() == 0 and change[7:].min() > 0


@pytest.mark.parametrize("shape", [dict(), dict(n_cycles=2, n_loops=1), dict(detach=True)])
def test_cached_generation(shape):
    "One character at a time, forked, and by sampling: the same as whole passes"
    model, ids = tiny(**shape), random_ids(2, 6)
    cache = model.new_cache(2)
    with torch.no_grad():
        one_by_one = torch.cat([model(c, cache) for c in ids.split(1, 1)], 1)
        assert torch.allclose(one_by_one, model(ids), atol=1e-5)
        cache.fork(2)
        more = random_ids(4, 3, seed=3)
        assert torch.allclose(model(more, cache), model(torch.cat([ids.repeat_interleave(2, 0), more], 1))[:, -3:], atol=1e-5)
        whole = ids
        for _ in range(8): whole = torch.cat([whole, model(whole)[:, -1:].argmax(-1)], 1)
    assert torch.equal(sample(model, ids, 8, temperature=0)[:, 0], whole)


# Gradients

@pytest.mark.parametrize("reward", ["naive", "none"])
def test_objective_against_a_loop_written_out(reward):
    model, batch = tiny(refinement=Refinement(improvement_reward=reward)), problems()
    ids, target = torch.cat(batch, 1)[:, :-1], batch[1]
    losses = torch.stack([F.cross_entropy(logits[:, -3:].transpose(1, 2), target) for logits in written_out(model, ids)])
    loss, metrics = TRM(model.cfg.refinement)(model, batch)
    expected = by_loops(list(losses), 5.0, 1.0, reward)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4) and [metrics[f"loss_{k}"] for k in range(4)] == pytest.approx(losses.tolist(), rel=1e-4)
    a, b = gradient(model, loss), gradient(model, expected)
    assert (a - b).abs().max() < 1e-4 * b.abs().max() and metrics["tokens"] == 18
    assert metrics["refinement"] == pytest.approx(1 - metrics["loss_3"] / metrics["loss_0"])


def test_detached_steps_are_steps_of_their_own():
    "As the paper accumulates them: every step's gradient with the states that it found as constants"
    model, batch = tiny(detach=True, refinement=Refinement(2.0, **NONE)), random_ids(3, 11)
    ids, target = supervised(batch)
    expected = sum(w * gradient(model, F.cross_entropy(logits.flatten(0, 1), target.flatten())) for w, logits in zip(supervision_weights(2.0, 4), written_out(model, ids, torch.Tensor.detach)))
    ours = gradient(model, TRM(model.cfg.refinement)(model, batch)[0])
    attached = tiny(refinement=Refinement(2.0, **NONE))
    assert torch.allclose(ours, expected, atol=1e-5)
    assert (gradient(attached, TRM(attached.cfg.refinement)(attached, batch)[0]) - expected).abs().max() > 1e-3


def test_only_the_last_cycle_gets_a_gradient():
    shape = dict(n_cycles=3, n_supervision=2, detach=True, refinement=Refinement(1.0, **NONE))
    model, batch = tiny(last_cycle_only=True, **shape), random_ids(2, 9)
    ids, target = supervised(batch)
    x, y, z = model.start(ids)
    expected = 0
    for _ in range(2):
        with torch.no_grad():
            for _ in range(2): y, z = model.cycle(x, y, z)
        y, z = model.cycle(x, y, z)
        expected = expected + gradient(model, F.cross_entropy(model.head(y).flatten(0, 1), target.flatten())) / 2
        y, z = y.detach(), z.detach()
    ours, whole = (gradient(m, TRM(m.cfg.refinement)(m, batch)[0]) for m in (model, tiny(**shape)))
    assert torch.allclose(ours, expected, atol=1e-5) and (ours - whole).abs().max() > 1e-3


def gradient_and_bytes(model, batch):
    "The gradient of the objective, and the bytes that were kept for it"
    seen = {}

    def pack(t):
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    torch.manual_seed(5)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): loss = TRM(model.cfg.refinement)(model, batch)[0]
    return gradient(model, loss), sum(seen.values())


@pytest.mark.parametrize("shape", [dict(), dict(n_cycles=2), dict(n_cycles=2, last_cycle_only=True, detach=True), dict(dropout=0.3)])
def test_checkpointing_changes_no_gradient(shape):
    "Also with dropout: what is computed again draws the same"
    kept, again = tiny(**shape).train(), tiny(gradient_checkpointing=True, **shape).train()
    found = [gradient_and_bytes(model, random_ids(4, 20)) for model in (kept, again)]
    (a, more), (b, less) = found
    assert (a - b).abs().max() <= 1e-6 * a.abs().max() and less < more / 2


def test_contrastive_penalty():
    model, batch = tiny(), random_ids(2, 9)
    y = torch.stack(list(model.answers(batch[:, :-1])))
    alike = torch.stack([(a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1) for a, b in zip(y, y[1:])]).mean()
    with_penalty, without = TRM(Refinement(contrastive=0.3))(model, batch), TRM()(model, batch)[0]
    assert (with_penalty[0] - without).item() == pytest.approx(0.3 * alike.item(), abs=1e-5) and with_penalty[1]["cosine"] == pytest.approx(alike.item(), abs=1e-5)


# Halting

HALT = dict(halting=True, detach=True, refinement=Refinement(2.0, **NONE))


@pytest.fixture
def no_exploring(monkeypatch): monkeypatch.setattr(trm, "_EXPLORE", 0.0)


def doubt(model, logit):
    "Let the halting head say the same to every row"
    torch.nn.init.zeros_(model.halt.weight), torch.nn.init.constant_(model.halt.bias, logit)
    return model


def test_nobody_halts(no_exploring):
    "All rows to the end: the loss of `all_steps`, and half a binary cross-entropy a step"
    model, plain, batch = doubt(tiny(**HALT), -2.0), tiny(**HALT | dict(halting=False)), problems()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("halt")})
    loss, metrics = TRM(model.cfg.refinement)(model, batch)
    ids, target = supervised(batch)
    right = [(logits[:, -3:].argmax(-1) == target).all(1).float().mean() for logits in written_out(plain, ids)]
    q = torch.tensor(-2.0).sigmoid()
    judged = sum(w * 0.5 * -(r * q.log() + (1 - r) * (1 - q).log()) for w, r in zip(supervision_weights(2.0, 4), right))
    assert loss.item() == pytest.approx((TRM(plain.cfg.refinement)(plain, batch)[0] + judged).item(), rel=1e-5) and metrics["steps_per_row"] == 4


def test_everybody_halts_at_once(no_exploring):
    model = doubt(tiny(**HALT), 2.0)
    metrics = TRM(model.cfg.refinement)(model, problems())[1]
    assert metrics["steps_per_row"] == 1 and "loss_1" not in metrics


def test_rows_that_halt_are_left_out_of_later_steps(no_exploring):
    "Half of the rows stop after the first step: the later losses are those of the other half alone"
    model, (prompt, completion) = tiny(**HALT), problems(8)
    y = next(model.answers(torch.cat([prompt, completion], 1)[:, :-1]))[:, -1]
    model.halt.weight.data = torch.nn.init.normal_(model.halt.weight, std=1.0)
    q = model.halt(y)[:, 0]
    model.halt.bias.data -= q.detach().sort().values[3:5].mean()
    on = (model.halt(y)[:, 0] <= 0).nonzero()[:, 0]
    metrics = TRM(model.cfg.refinement)(model, (prompt, completion))[1]
    second = written_out(model, torch.cat([prompt, completion], 1)[:, :-1])[1][on, -3:]
    assert len(on) == 4 and metrics["loss_1"] == pytest.approx(F.cross_entropy(second.flatten(0, 1), completion[on].flatten()).item(), rel=1e-4)


def test_some_explore(monkeypatch):
    monkeypatch.setattr(trm, "_EXPLORE", 1.0)
    model = doubt(tiny(**HALT), 2.0)
    torch.manual_seed(0)
    assert 2 < TRM(model.cfg.refinement)(model, problems(200))[1]["steps_per_row"] < 4


# Runs

IDS = torch.from_numpy(MarkovSource().sample(5000))


def fresh(objective=None, refinement=Refinement(), recursion=Recursion(), steps=20):
    torch.manual_seed(0)
    model = RecursiveGPT(TRMConfig(16, context=12, n_layers=1, n_heads=2, width=16, recursion=recursion, refinement=refinement))
    inner = TRM(refinement)
    return dict(model=model, objective=objective(inner, model) if objective else inner, batches=Windows(IDS, 12, 4), cfg=TrainConfig(steps=steps, lr=2e-2, warmup=5, checkpoint_every=7), progress=False)


GOLDEN = {"naive": [2.77904, 2.80682, 2.81526, 2.62062], "paper": [2.7824, 2.80815, 2.81448, 2.6176]}


@pytest.mark.parametrize("name, refinement, recursion", [("naive", Refinement(), Recursion()), ("paper", Refinement(1.0, **NONE), Recursion(2, 3, 4, True, True, True))])
def test_golden_losses(name, refinement, recursion):
    "Twenty steps from a fixed start; a change here is a change of what every recorded run means"
    losses = [r["loss"] for r in train(**fresh(None, refinement, recursion))]
    assert losses[::5] == pytest.approx(GOLDEN[name], abs=2e-4)


@pytest.mark.parametrize("objective, refinement", [(None, Refinement(curriculum=15)), (lambda inner, model: Averaged(inner, model, 0.9), Refinement(curriculum=15))], ids=["curriculum", "averaged"])
@pytest.mark.parametrize("stop", [3, 10])
def test_stopped_and_resumed(tmp_path, objective, refinement, stop):
    whole, broken, resumed = (fresh(objective, refinement) for _ in range(3))
    rows = train(**whole)

    def stopping(row):
        if row["step"] == stop: raise RuntimeError("stop")

    with pytest.raises(RuntimeError): train(**broken, checkpoint_dir=tmp_path, callbacks=(stopping,))
    again = train(**resumed, checkpoint_dir=tmp_path)
    assert [r["loss"] for r in rows] == [r["loss"] for r in again]
    assert [sum(k.startswith("loss_") for k in r) for r in rows][::5] == [1, 2, 3, 4]
    for part in ("model", "objective"):
        a, b = (run[part].state_dict() for run in (whole, resumed))
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_counting_flops_does_not_move_the_curriculum():
    model, objective = tiny(), TRM(Refinement(curriculum=10))
    count_flops(model, objective, random_ids(2, 9))
    assert objective.updates == 0


def by_brute_force(run):
    "Operations of a run: every batch counted by itself, just before its update"
    total, cfg, optimizer = 0, run["cfg"], adamw(run["model"], run["cfg"])
    for step in range(cfg.steps):
        batch = next(run["batches"])
        total += count_flops(run["model"], run["objective"], batch)
        update(run["model"], run["objective"], [batch], optimizer, lr_at(step, cfg), cfg.clip)
    return total


@pytest.mark.parametrize("name, refinement, recursion", [("curriculum", Refinement(curriculum=15), Recursion()),
                                                         ("halting", Refinement(1.0, **NONE), Recursion(2, 3, 4, True, True, True))])
def test_operations_are_those_of_every_batch(name, refinement, recursion):
    "Steps that come with the curriculum, rows that halt: the loop counts each kind once and knows the sum"
    def run():
        out = fresh(None, refinement, recursion)
        if out["model"].halt is not None: torch.nn.init.constant_(out["model"].halt.bias, 0.0), torch.nn.init.normal_(out["model"].halt.weight)  # some rows halt
        return out

    rows = train(**run())
    assert rows[-1]["flops"] == by_brute_force(run())
    assert rows[-1]["flops"] != 20 * rows[0]["flops"]


def test_the_curriculum_is_counted_in_updates():
    "Four batches an update: all have the same number of steps"
    objective, run = TRM(Refinement(curriculum=4)), fresh(None, Refinement(curriculum=4))
    rows = train(**run | dict(objective=objective, cfg=replace(run["cfg"], steps=6, accumulate=4)))
    assert [sum(k.startswith("loss_") for k in r) for r in rows] == [1, 1, 2, 3, 4, 4] and objective.updates == 6


def test_a_step_that_some_batches_did_not_reach():
    "Its loss is the mean of those that did"
    few, many = ({"loss_0": 1.0, "tokens": 2}, {"loss_0": 4.0, "loss_1": 3.0, "tokens": 4})
    metrics = iter([few, many])
    model = torch.nn.Linear(1, 1)
    row = update(model, lambda m, b: (m.weight.sum(), next(metrics)), [None, None], torch.optim.SGD(model.parameters(), 0.1), 0.1, 1.0)
    assert row["loss_0"] == pytest.approx(3.0) and row["loss_1"] == pytest.approx(3.0) and row["tokens"] == 6


def test_a_step_of_recursion_costs_as_many_plain_layers():
    plain = ContextualGPT(GPTConfig(V, context=24, n_layers=24, n_heads=2, width=16))
    model, batch = tiny(), random_ids(2, 13)
    head = 6 * 2 * 12 * 16 * V  # read once a step instead of once
    assert count_flops(model, TRM(), batch) == count_flops(plain, answer_loss, batch) + 3 * head


def test_plain_objective():
    "On windows the loop's own; on problems the mean over the completion"
    plain = ContextualGPT(GPTConfig(V, context=24, n_layers=1, n_heads=2, width=16))
    windows, batch = random_ids(3, 9), problems()
    assert answer_loss(plain, windows)[0].item() == pytest.approx(cross_entropy(plain, windows)[0].item(), rel=1e-6)
    logits = plain(torch.cat(batch, 1)[:, :-1])[:, 8:]
    assert answer_loss(plain, batch)[0].item() == pytest.approx(F.cross_entropy(logits.transpose(1, 2), batch[1]).item(), rel=1e-6)


def test_scores():
    model, windows = tiny(), random_ids(9, 13)
    nll, hit = score_steps(model, windows, tokens=30)
    last = score(model, windows)
    assert nll.shape == (4, 9, 12) and torch.allclose(nll[-1], last[0], atol=1e-5) and torch.equal(hit[-1], last[1])
    prompt, completion = problems()
    of_problems, (ids, _) = score_steps(model, (prompt, completion)), supervised((prompt, completion))
    logp = written_out(model, ids)[1][:, -3:].log_softmax(-1)
    assert torch.allclose(of_problems[0][1], -logp.gather(-1, completion[..., None])[..., 0], atol=1e-5)
    measured = evaluate_steps(model, (prompt, completion))
    assert measured["val_exact"] == of_problems[1][-1].all(-1).float().mean().item() and measured["val_loss"] == measured["val_loss_3"] != measured["val_loss_0"]


# Refusals

@pytest.mark.parametrize("field, value, message", [
    ("supervision_weight_base", 0, "supervision_weight_base is 0"), ("supervision_weight_base", -3.0, "is -3.0"), ("supervision_weight_base", math.inf, "is inf"), ("supervision_weight_base", math.nan, "is nan"),
    ("improvement_reward_scale", -1.0, "improvement_reward_scale is -1.0"), ("improvement_reward_scale", math.nan, "is nan"), ("improvement_reward", "naif", "did you mean 'naive'"),
    ("n_supervision", 1, "one step has no step before it.*improvement_reward='none'"), ("n_loops", 0, "n_loops is 0"), ("n_cycles", 0, "n_cycles is 0"), ("halting", True, "halting with improvement_reward 'naive'"),
    ("lr", math.nan, "lr nan"), ("warmup", -1, "warmup -1"), ("n_loop", 3, "did you mean 'n_loops'"), ("n_layers", 0, "n_layers is 0"), ("contrastive", math.inf, "contrastive is inf"), ("width", 63, "do not divide")])
def test_config_refuses(field, value, message):
    with pytest.raises(ValueError, match=message): TRMConfig.with_refinement_preset(**{"n_symbols": 65, field: value})


def test_every_start_against_single_items():
    "Each answer is that of the item that starts there"
    task = load_task("pointers", (1, 4), nodes=6)
    items = task.sample(20, 3)
    ids, target = every_start(items, task.vocab)
    for item, asked, answers in zip(items, ids, target):
        table, last = item.prompt[:-1].rsplit(" ", 1)
        assert task.vocab.decode(asked) == "".join(pair[1] for pair in table.split(" ")) + f"{last[1:]}=abcdef"
        assert task.vocab.decode(answers) == "".join(task.item(f"{table} {node}{last[1:]}=").answer for node in "abcdef")


def test_supervised_goes_through():
    "Inputs and targets that are said themselves are taken as they are; no answer is among the inputs"
    task = load_task("pointers", 2, nodes=5)
    batch, model = every_start(task.sample(6, 0), task.vocab), ContextualGPT(GPTConfig(len(task.vocab), context=12, n_layers=1, n_heads=2, width=16))
    assert supervised(batch) is batch and batch.ids.shape == (6, 12) and batch.target.shape == (6, 5)
    want = torch.nn.functional.cross_entropy(model(batch.ids)[:, -5:].flatten(0, 1), batch.target.flatten())
    assert answer_loss(model, batch)[0].item() == pytest.approx(want.item(), rel=1e-6)


def test_the_normed_rival_starts_as_the_recursive_model_does():
    "Same weights: one block on its embedding is the recursion's input through that block"
    model = tiny(n_loops=1, n_supervision=2)
    rival = NormedGPT(GPTConfig(V, context=24, n_layers=2, n_heads=2, width=16))
    rival.load_state_dict({k: v for k, v in model.state_dict().items() if k not in ("answer", "latent")})
    x = model.start(random_ids(3, 10))[0]
    for block in rival.blocks: x = block(x)
    assert torch.allclose(rival(random_ids(3, 10)), rival.head(rival.norm(x)), atol=1e-6)
    cache = rival.new_cache(3)
    pieces = torch.cat([rival(part, cache) for part in random_ids(3, 10).split(1, 1)], 1)
    assert torch.allclose(pieces, rival(random_ids(3, 10)), atol=1e-5)


def test_presets():
    assert TRMConfig.with_refinement_preset(n_symbols=65).refinement == Refinement(5.0, 1.0, "naive") == Refinement()
    found = {name: TRMConfig.with_refinement_preset(name, n_symbols=65) for name in trm._PROFILES}
    assert [(c.refinement.supervision_weight_base, c.refinement.improvement_reward_scale, c.lr) for c in found.values()] == [(3, 0.5, 2e-3), (5, 1, 1e-3), (10, 2, 5e-4)]
    assert all(low <= c.training(1000).warmup <= high for c, (low, high) in zip(found.values(), [(50, 100), (100, 150), (150, 200)]))
    gpu = TRMConfig.preset("gpu", 65, recursion=PAPER, improvement_reward="none")
    assert (gpu.n_layers, gpu.width, gpu.recursion.n_loops, gpu.recursion.halting) == (12, 768, 6, True)
    with pytest.raises(ValueError, match="did you mean 'cpu'"): TRMConfig.preset("cpus", 65)
    with pytest.raises(ValueError, match="did you mean 'extreme'"): TRMConfig.with_refinement_preset("xtreme", n_symbols=65)


def test_wrong_model():
    with pytest.raises(TypeError, match="a ContextualGPT has none"): TRM()(ContextualGPT(GPTConfig(V)), random_ids(2, 9))
    with pytest.raises(ValueError, match="one step has no step"): TRM()(tiny(n_supervision=1, refinement=Refinement(**NONE)), random_ids(2, 9))


def test_foreign_checkpoints(tmp_path):
    "Plain weights into a recursive model, the other way round, and another recursion"
    cfg = TRMConfig.preset("smoke", 16, context=12)
    runs = {"plain": (ContextualGPT(cfg), answer_loss), "recursive": (RecursiveGPT(cfg), TRM())}
    for name, (model, objective) in runs.items(): train(model, objective, Windows(IDS, 12, 4), TrainConfig(steps=1), checkpoint_dir=tmp_path / name, progress=False)
    with pytest.raises(BadCheckpoint, match="another model: answer is absent there"): load_weights(RecursiveGPT(cfg), checkpoints(tmp_path / "plain")[-1])
    with pytest.raises(BadCheckpoint, match="another model: answer is .* absent here"): load_weights(ContextualGPT(cfg), checkpoints(tmp_path / "recursive")[-1])
    other = TRMConfig.preset("smoke", 16, context=12, n_loops=3)
    with pytest.raises(BadCheckpoint, match="n_loops"): train(RecursiveGPT(other), TRM(), Windows(IDS, 12, 4), TrainConfig(steps=1), checkpoint_dir=tmp_path / "recursive", progress=False)


def test_a_size_leaves_a_recursion_that_is_given_whole():
    none = dict(improvement_reward="none")
    assert TRMConfig.preset("gpu", 8, recursion=PAPER, **none).recursion == PAPER
    assert TRMConfig.preset("gpu", 8, recursion=PAPER, n_loops=3, **none).recursion.n_loops == 3
    with pytest.raises(ValueError, match="n_symbols is missing"): TRMConfig.with_refinement_preset("extreme", n_layers=12)
