"""Thoughts: branches at many positions against one row each, values and gradients; mixtures against probabilities; REINFORCE against the enumerated gradient"""
import math
from itertools import product

import pytest
import torch

from refine_nb.confidence import ConfidenceAwareGPT
from refine_nb.data import Windows
from refine_nb.gpt import ContextualGPT, GPTConfig
from refine_nb.prefix import Prefix
from refine_nb.quiet_star import (MIXINGS, PLACES, MixingHead, QuietConfig, QuietGPT, QuietSTaR, ThoughtInjector,
                                  evaluate_thoughts, mix, predict, predicted_loss, think, thought_gains, true_after)
from refine_nb.thoughts import ThoughtConfig, ThoughtGenerator, thought_logp
from refine_nb.train import TrainConfig, count_flops, train

CFG = ThoughtConfig(9, 10, n_thoughts=3, length=4, ahead=3)


def generator(seed=0): return torch.Generator().manual_seed(seed)


def random_ids(*shape, seed=1): return torch.randint(9, shape, generator=generator(seed))


def scattered(model):
    "Weights far from the symmetric start"
    torch.manual_seed(0)
    for p in model.parameters(): torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def quiet(cfg=CFG, mixing="gate", **changes):
    "A small thinking model"
    return scattered(QuietGPT(QuietConfig(**dict(n_symbols=11, context=24, n_layers=2, n_heads=2, width=16) | changes, thoughts=cfg, mixing=mixing)))


def one_row_each(model, ids, at, branches):
    "The reference: every branch in a row of its own behind its part of the text"
    rows = [[model.hidden(torch.cat([ids[i, : p + 1], branch])[None])[0, p + 1 :] for p, branch in zip(at[i].tolist(), branches[i])] for i in range(len(ids))]
    return torch.stack([torch.stack(row) for row in rows])


AT = torch.tensor([[0, 7, 3, 3], [9, 1, 0, 9]])


def leaving(reading, branches):
    "The last layer along branches that leave a text at `AT`"
    return reading.model.hidden(branches.flatten(1), reading.branches(at=AT)).unflatten(1, (4, -1))


def test_branches_equal_one_row_each(model):
    ids, branches = random_ids(2, 10), random_ids(2, 4, 5, seed=2)
    assert torch.allclose(leaving(Prefix(model, ids, every=True), branches), one_row_each(model, ids, AT, branches), atol=1e-5)


def test_branches_read_in_parts_what_they_read_at_once(model):
    reading, branches = Prefix(model, random_ids(2, 10), every=True), random_ids(2, 4, 6, seed=2)
    growing = reading.branches(at=AT)
    parts = torch.cat([model.hidden(part.flatten(1), growing).unflatten(1, (4, -1)) for part in branches.split([1, 3, 2], -1)], 2)
    assert torch.allclose(parts, leaving(reading, branches), atol=1e-5)


def test_gradients_equal_one_row_each(model):
    ids, branches, pick = random_ids(2, 10), random_ids(2, 4, 5, seed=2), torch.randn(2, 4, 5, 16, generator=generator())
    grads = [torch.autograd.grad((h * pick).sum(), list(model.parameters()), allow_unused=True) for h in (leaving(Prefix(model, ids, every=True), branches), one_row_each(model, ids, AT, branches))]
    assert max((a - b).abs().max() for a, b in zip(*grads) if b is not None) < 1e-4 * max(b.abs().max() for b in grads[1] if b is not None)


def test_thoughts_see_no_later_text_and_no_other_thought(model):
    ids, branches = random_ids(2, 10), random_ids(2, 4, 5, seed=2)
    before = leaving(Prefix(model, ids, every=True), branches)
    ids[:, 4:], branches[:, 0] = (ids[:, 4:] + 1) % 9, (branches[:, 0] + 1) % 9
    same = leaving(Prefix(model, ids, every=True), branches).isclose(before, atol=1e-6).all(-1).all(-1)
    assert same.tolist() == [[False, False, True, True], [False, True, True, False]]


def test_thinking_at_every_position_equals_one_after_another(model):
    cfg, ids = ThoughtConfig(9, 10, length=6, temperature=0.0), random_ids(2, 10)
    at, rows = torch.arange(10).expand(2, 10), []
    for i, p in product(range(2), range(10)):
        row = torch.cat([ids[i, : p + 1], torch.tensor([9])])
        for _ in range(6): row = torch.cat([row, model(row[None])[0, -1, :9].argmax()[None]])
        rows.append(row[-6:])
    assert torch.equal(think(Prefix(model, ids, every=True), at, cfg).flatten(0, 1), torch.stack(rows))


def test_thoughts_are_drawn_and_learned_without_dropout():
    model = quiet(CFG, dropout=0.5)
    model.train()
    a, b = (QuietSTaR(1.0, seed=2)(model, random_ids(2, 12))[0] for _ in range(2))
    assert torch.equal(a, b) and model.training


def test_drawn_thoughts_follow_the_masked_distribution():
    model, cfg = scattered(ContextualGPT(GPTConfig(5, context=8, n_layers=1, n_heads=1, width=8))), ThoughtConfig(3, 4, length=1)
    ids = torch.tensor([[0, 2, 1]])
    drawn = think(Prefix(model, ids, every=True), torch.full((1, 20000), 1), cfg, generator())[0, :, 0].bincount(minlength=5) / 20000
    true = model(torch.tensor([[0, 2, 3]]))[0, -1, :3].softmax(-1)
    assert torch.allclose(drawn[:3], true, atol=0.015) and drawn[3:].sum() == 0
    assert torch.allclose(thought_logp(model(torch.tensor([[0, 2, 3]]))[0, -1], cfg).exp()[:3], true, atol=1e-6)


def test_dropout_is_off_while_thinking():
    model = ContextualGPT(GPTConfig(11, context=24, n_layers=2, n_heads=2, width=16, dropout=0.5))
    reading, at = Prefix(model.eval(), random_ids(1, 6), every=True), torch.arange(6)[None]
    model.train()
    greedy = [think(reading, at, ThoughtConfig(9, 10, length=8, temperature=0.0)) for _ in range(2)]
    assert torch.equal(*greedy) and model.training


@pytest.mark.parametrize("kind", MIXINGS)
def test_mixture_is_a_distribution(kind):
    head, torch_rng = scattered(MixingHead(8, kind)), generator()
    plain, thoughtful = torch.randn(6, 8, generator=torch_rng), torch.randn(6, 3, 8, generator=torch_rng)
    weight = head(plain, thoughtful)
    assert weight.shape == (6, 3) and (weight > 0).all() and (weight.sum(-1) < 1).all()
    assert torch.allclose(head(plain, thoughtful[:, [2, 0, 1]]), weight[:, [2, 0, 1]], atol=1e-6)
    p, q = torch.randn(6, 11, generator=torch_rng).softmax(-1), torch.randn(6, 3, 11, generator=torch_rng).softmax(-1)
    mixed = torch.stack([mix(p[:, v].log(), q[:, :, v].log(), weight) for v in range(11)], -1).exp()
    assert torch.allclose(mixed, (1 - weight.sum(-1, keepdim=True)) * p + (weight[..., None] * q).sum(1), atol=1e-6)
    assert torch.allclose(mixed.sum(-1), torch.ones(6), atol=1e-5)


@pytest.mark.parametrize("kind", MIXINGS)
def test_mixing_starts_at_a_weight_that_does_not_depend_on_the_thoughts(kind):
    head = MixingHead(8, kind)
    weights = head(torch.randn(5, 8), torch.randn(5, 4, 8)).sum(-1)
    assert torch.allclose(weights, torch.tensor(1 / (1 + math.e**2)).expand(5), atol=1e-5)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_predictions_equal_one_row_for_each_thought(mixing):
    model, batch, at = quiet(mixing=mixing), random_ids(2, 12), torch.tensor([[0, 5], [8, 2]])
    ids, following = random_ids(2, 2, 3, 4, seed=3), true_after(batch, at, 3)
    said = predict(model, Prefix(model, batch[:, :-1], every=True), at, ids, following)
    for i, j, g in product(range(2), range(2), range(3)):
        p, mark = int(at[i, j]), torch.tensor
        row = torch.cat([batch[i, : p + 1], mark([9]), ids[i, j, g], mark([10]), batch[i, p + 1 : p + 3]])
        hidden, plain = model.hidden(row[None])[0, p + 6 :], model.hidden(batch[i : i + 1, :-1])[0, p : p + 3]
        true, inner = batch[i, p + 1 : p + 4], model(row[None])[0, p + 1 : p + 5, :9].log_softmax(-1)
        assert torch.allclose(said.thoughtful[i, j, :, g], model.head(hidden).log_softmax(-1).gather(1, true[:, None])[:, 0], atol=1e-5)
        assert torch.allclose(said.plain[i, j], model.head(plain).log_softmax(-1).gather(1, true[:, None])[:, 0], atol=1e-5)
        assert torch.allclose(said.thought[i, j, g], inner.gather(1, ids[i, j, g][:, None])[:, 0], atol=1e-5)
    assert torch.equal(following[1, 0], batch[1, 9:12])


@pytest.mark.parametrize("n_thoughts, rows", [(2, 3000), (3000, 1)])
def test_policy_gradient_is_that_of_the_expected_reward(n_thoughts, rows):
    "All thoughts of two characters, enumerated, against drawn ones: few at many places, and many at one"
    cfg = ThoughtConfig(3, 4, n_thoughts=n_thoughts, length=2, ahead=2)
    model, batch = quiet(cfg, n_symbols=5, n_layers=1, context=10), torch.tensor([[0, 2, 1, 1]])
    at, every = torch.tensor([[0, 1]]), torch.cartesian_prod(*[torch.arange(3)] * 2).expand(1, 2, 9, 2)
    said = predict(model, Prefix(model, batch[:, :-1], every=True), at, every, true_after(batch, at, 2))
    reward = said.thoughtful.detach().sum(2)
    names = [n for n, _ in model.named_parameters() if not n.startswith("mixing")]
    def gradient(loss): return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [model.get_parameter(n) for n in names])])
    exact = gradient((said.thought.sum(-1).exp() * reward).sum(-1).mean())
    alone = [QuietSTaR(w, 0.0, seed=1)(model, batch.repeat(rows, 1))[0] for w in (1.0, 0.0)]
    drawn = -(gradient(alone[0]) - gradient(alone[1]))
    assert torch.cosine_similarity(exact, drawn, dim=0) > 0.98 and abs(drawn.norm() / exact.norm() - 1) < 0.1


def test_what_an_update_counts():
    model, batch = quiet(), random_ids(2, 12)
    objective = QuietSTaR(1.0, 0.0)
    loss, metrics = objective(model, batch)
    assert metrics["generated"] == 2 * 9 * 3 * 4 and metrics["tokens"] == 2 * 11 and 0 <= metrics["zero_variance"] <= 1
    plain = torch.nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()).item()
    assert abs(metrics["loss_plain"] - plain) < 1e-5


def test_where_to_think():
    model, ids = quiet(), random_ids(3, 10)
    reading = Prefix(model, ids, every=True)
    logp = model(ids)[:, :8].log_softmax(-1)
    unsure = (-(logp.exp() * logp).sum(-1)).topk(3).indices.sort().values
    chosen = {where: ThoughtInjector(where, 3, (lambda r: -r.ids.double()) if where == "difficulty" else None)(reading, 8, generator()) for where in PLACES}
    assert torch.equal(chosen["entropy"], unsure) and torch.equal(chosen["every"], torch.arange(8).expand(3, 8)) and (chosen["end"] == 7).all()
    assert torch.equal(chosen["random"], ThoughtInjector("random", 3)(reading, 8, generator())) and not torch.equal(chosen["random"], chosen["entropy"])
    assert all(ids[i, p] <= ids[i, q] for i in range(3) for p in chosen["difficulty"][i] for q in set(range(8)) - set(chosen["difficulty"][i].tolist()))
    assert all((places.diff() > 0).all() and places.max() < 8 for places in chosen.values())


@pytest.mark.parametrize("where", ["random", "entropy"])
def test_operations_are_counted_wherever_it_thinks(where):
    model, batch = quiet(), random_ids(2, 12)
    few, many = (count_flops(model, QuietSTaR(injector=ThoughtInjector(where, n)), batch) for n in (2, 4))
    assert 0 < few < many


def test_gains_are_of_the_places_where_it_thinks():
    model, windows = quiet(), random_ids(5, 12)
    plain, gain = thought_gains(model, windows, ThoughtInjector("entropy", 4), rows=2)
    assert plain.shape == gain.shape == (5, 11) and ((gain != 0).sum(1) == 4).all()
    assert torch.allclose(plain, model(windows[:, :-1]).log_softmax(-1).gather(-1, windows[:, 1:, None])[..., 0], atol=1e-5)
    whole = evaluate_thoughts(model, windows)
    assert abs(whole["val_loss"] - (whole["val_loss_plain"] - whole["val_gain"])) < 1e-9 and evaluate_thoughts(model, windows) == whole != evaluate_thoughts(model, windows, seed=1)


def test_a_plain_model_that_is_given_thoughts_predicts_as_before():
    plain = scattered(ContextualGPT(GPTConfig(11, context=24, n_layers=2, n_heads=2, width=16, ngram=2)))
    thinking, ids = QuietGPT.from_plain(plain, CFG).eval(), random_ids(2, 10)
    assert torch.equal(thinking(ids), plain(ids)) and thinking.cfg.thoughts == CFG and thinking.cfg.ngram == 2


def automaton(row, own_end, c, stop, answer):
    "What a row of a generator has to be, (chosen, inside) of each character and whether the thought ended itself; `own_end`: what is said of an end at the limit"
    chosen, inside, state, left, natural = [False], [False], "thought", answer, False
    for i, x in enumerate(row[1:].tolist(), 1):
        if state == "done": chosen.append(False), inside.append(False)
        elif state == "thought":
            assert i <= c.length or x == c.end
            forced = i == c.length + 1
            chosen.append(not forced), inside.append(x != c.end)
            if x == c.end: state, natural = "answer", not forced or own_end
        else:
            chosen.append(True), inside.append(False)
            left -= 1
            if x == stop or not left: state = "done"
    return chosen, inside, natural


def test_generated_thoughts_end_and_are_answered(model):
    c = ThoughtConfig(9, 10, n_thoughts=40, length=6)
    trunk = Prefix(model, random_ids(3, 5))
    found = ThoughtGenerator(c, answer=4, stop=0)(trunk, generator=generator())
    assert found.ids.shape == (3, 40, 12) and 0 < found.ended.float().mean() < 1
    for i, g in product(range(3), range(40)):
        chosen, inside, natural = automaton(found.ids[i, g], bool(found.ended[i, g]), c, 0, 4)
        assert found.chosen[i, g].tolist() == chosen and found.inside[i, g].tolist() == inside and bool(found.ended[i, g]) == natural


class Scripted(ContextualGPT):
    "Writes what it was told, whatever it reads"

    def forward(self, ids, cache=None):
        place = cache.length + ids.shape[1] - 6  # five of prompt, and the start symbol
        return torch.zeros_like(super().forward(ids, cache)).index_fill(-1, self.script[place : place + 1], 99.0)


@pytest.mark.parametrize("length, ended", [(1, False), (2, True), (3, True)])
def test_a_thought_that_ends_itself_at_the_limit_was_not_cut(length, ended):
    model = Scripted(GPTConfig(11, context=24, n_layers=1, n_heads=1, width=8))
    model.script = torch.tensor([3, 4, 10, 5, 0, 0, 0])
    found = ThoughtGenerator(ThoughtConfig(9, 10, n_thoughts=1, length=length), answer=2, stop=0)(Prefix(model, random_ids(1, 5)), temperature=0.0)
    assert bool(found.ended) == ended and found.ids[0, 0, :3].tolist() == [9, 3, 4 if length > 1 else 10]
    assert bool(found.chosen[0, 0, min(length, 2) + 1]) == (length == 3) and int(found.inside.sum()) == min(length, 2)  # at the limit nothing is chosen


def test_greedy_thought_is_the_models_own(model):
    c, prompt = ThoughtConfig(9, 10, n_thoughts=1, length=6), random_ids(2, 5)
    found = ThoughtGenerator(c, answer=4, stop=0)(Prefix(model, prompt), temperature=0.0)
    for i in range(2):
        row = torch.cat([prompt[i], found.ids[i, 0]])
        best = model(row[None])[0, 4:-1].argmax(-1)
        assert torch.equal(found.ids[i, 0][found.chosen[i, 0]], best[found.chosen[i, 0]]) and found.chosen[i, 0].any()


def test_training_resumes_bit_for_bit(tmp_path):
    text = random_ids(400)
    def run(folder, stop=None):
        model, losses = quiet(), []
        def note(row):
            losses.append(row["loss"])
            if len(losses) == stop: raise KeyboardInterrupt
        try: train(model, QuietSTaR(seed=3), Windows(text, 11, 2, seed=0), TrainConfig(steps=8, warmup=1, checkpoint_every=4), callbacks=(note,), checkpoint_dir=folder, progress=False)
        except KeyboardInterrupt: pass
        return losses, model
    whole, broken = run(tmp_path / "a"), run(tmp_path / "b", stop=6)
    again = run(tmp_path / "b")
    assert len(broken[0]) == 6 and again[0] == whole[0][4:]
    assert all(torch.equal(p, q) for p, q in zip(whole[1].parameters(), again[1].parameters()))


def test_golden_losses():
    "Twenty steps from a fixed start; a change here is a change of what every recorded run means"
    torch.manual_seed(0)
    model = QuietGPT(QuietConfig(n_symbols=11, context=24, n_layers=2, n_heads=2, width=16, thoughts=CFG))
    rows = train(model, QuietSTaR(seed=3), Windows(random_ids(40).repeat(10), 11, 4, seed=0), TrainConfig(steps=20, lr=1e-2, warmup=2), progress=False)
    assert [r["loss"] for r in rows[::5]] == pytest.approx(GOLDEN, abs=2e-3)


GOLDEN = [7.2298, 6.3159, 5.9709, 5.5295]


@pytest.mark.parametrize("change, message", [
    (dict(n_thoughts=0), "n_thoughts is 0"), (dict(length=0), "length is 0"), (dict(ahead=0), "ahead is 0"), (dict(start=-1), "start -1"), (dict(end=9), "two different symbols"),
    (dict(temperature=-1.0), "temperature is -1"), (dict(temperature=math.nan), "temperature is nan"),
])
def test_impossible_thoughts_are_refused(change, message):
    with pytest.raises(ValueError, match=message): ThoughtConfig(**dict(start=9, end=10) | change)


@pytest.mark.parametrize("act, message", [
    (lambda m: ThoughtInjector("everywhere"), "did you mean 'every'"), (lambda m: ThoughtInjector("random", 0), "count is 0"), (lambda m: ThoughtInjector("difficulty", 1), "needs one"),
    (lambda m: ThoughtInjector("entropy", 1, lambda r: r.ids), "nothing else does"), (lambda m: ThoughtInjector("random", 9)(Prefix(m, random_ids(1, 5), every=True), 5), "9 places among 5"),
    (lambda m: MixingHead(8, "gates"), "did you mean 'gate'"), (lambda m: QuietSTaR(-1.0), "policy_weight is -1"), (lambda m: QuietSTaR(read_weight=math.inf), "read_weight is inf"),
    (lambda m: QuietSTaR()(m, random_ids(2, 3)), "leave no place"), (lambda m: think(Prefix(m, random_ids(1, 20), every=True), torch.tensor([[18]]), CFG), "context=25"),
    (lambda m: Prefix(m, random_ids(1, 5)).branches(at=torch.tensor([[5]])), "not .5."), (lambda m: m.hidden(random_ids(1, 5), Prefix(m, random_ids(1, 20)).branches(at=torch.tensor([[19]]))), "does not fit"),
    (lambda m: QuietConfig(11, context=8, thoughts=CFG), "context=9"), (lambda m: QuietConfig(10, thoughts=CFG), "not among the 10 symbols"), (lambda m: QuietConfig(11, thoughts=CFG, mixing="sum"), "no mixing 'sum'"),
    (lambda m: ThoughtGenerator(CFG, 0, 0), "answer of 0"), (lambda m: ThoughtGenerator(CFG, 2, 0)(Prefix(m, random_ids(1, 5)), 0), "n_thoughts is 0"), (lambda m: ThoughtGenerator(CFG, 2, 0)(Prefix(m, random_ids(1, 5)), 1, -1.0), "temperature is -1"), (lambda m: ThoughtGenerator(CFG, 16, 0)(Prefix(m, random_ids(1, 5))), "context=26"),
])
def test_bad_input_is_refused(act, message):
    model = quiet()
    with pytest.raises(ValueError, match=message): act(model)


@pytest.mark.parametrize("cfg, message", [(ThoughtConfig(9, 10, n_thoughts=1), "n_thoughts 1"), (ThoughtConfig(9, 10, temperature=0.5), "temperature 0.5")])
def test_thoughts_that_cannot_be_taught_are_refused(cfg, message):
    with pytest.raises(ValueError, match=message): QuietSTaR()(quiet(cfg, context=40), random_ids(2, 12))
    loss, _ = QuietSTaR(policy_weight=0.0)(quiet(cfg, context=40), random_ids(2, 12))
    assert loss.isfinite()


@pytest.mark.parametrize("feedback", [0, 2])
def test_places_of_predicted_loss_are_where_the_head_says(feedback):
    model, ids = quiet(), random_ids(2, 9)
    aware = scattered(ConfidenceAwareGPT(model.cfg, feedback=feedback))
    heard = aware.previous(ids) if feedback else torch.zeros(2, 9, 1)
    pred = aware.confidence_predictor(aware.hidden(ids, confidence_scalars=heard))[..., 0]
    reading = Prefix(model, ids, every=True)
    assert torch.allclose(predicted_loss(aware)(reading), pred, atol=1e-6) and pred.std() > 0.01
    assert ThoughtInjector("difficulty", 3, predicted_loss(aware))(reading, 6).tolist() == [sorted(row[:6].topk(3).indices.tolist()) for row in pred]
    with pytest.raises(ValueError, match="same vocabulary"): predicted_loss(ConfidenceAwareGPT(GPTConfig(3, context=24)))(reading)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_thoughts_that_weigh_alike_are_all_used(mixing):
    model, batch = quiet(mixing=mixing), random_ids(2, 12)
    some = QuietSTaR(seed=0)(model, batch)[1]["thoughts_used"]
    fresh_head = MixingHead(16, mixing)
    model.mixing.load_state_dict(fresh_head.state_dict())
    alike = QuietSTaR(seed=0)(model, batch)[1]["thoughts_used"]
    assert alike == pytest.approx(3, abs=1e-5) and 1 <= some < 2.999
