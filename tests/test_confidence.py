"""The forms of the look-ahead against concatenation, gradients by position, feedback against one position at a time"""
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import refine_nb.confidence as confidence
from refine_nb import _attention
from refine_nb._attention import Text
from refine_nb.checkpoints import BadCheckpoint, load_weights, save_checkpoint
from refine_nb.confidence import (
    ConfidenceAwareGPT,
    Lookahead,
    LookaheadConfig,
    LookaheadWindows,
    _mask_ahead,
    branch_ahead,
    next_token,
    split_window,
    standard_twin,
    two_passes,
)
from refine_nb.data import Windows
from refine_nb.evaluation import evaluate, score
from refine_nb.gpt import ContextualGPT, GPTConfig, n_parameters, sample
from refine_nb.prefix import tree_logits
from refine_nb.train import TrainConfig, adamw, count_flops, train, update

SHAPE = GPTConfig(7, context=9, n_layers=2, n_heads=2, width=16)


def random_model(feedback: int = 0, **shape) -> ConfidenceAwareGPT:
    "Weights large enough that a mistake shows"
    torch.manual_seed(0)
    model = ConfidenceAwareGPT(replace(SHAPE, **shape), feedback=feedback)
    for p in model.parameters(): torch.nn.init.normal_(p, std=0.3)
    return model


def characters(*shape: int, seed: int = 0) -> torch.Tensor: return torch.randint(7, shape, generator=torch.Generator().manual_seed(seed))


def concatenated(model, ids, branch, pred, heard):
    "The definition: each prefix with its branch appended, through a whole pass"
    rows = []
    for t in range(1, ids.shape[1] + 1):
        scalars = torch.cat([heard[:, :t], pred[:, t - 1 : t, None]], 1)
        rows.append(model(torch.cat([ids[:, :t], branch[:, t - 1 : t]], 1), confidence_scalars=scalars)["logits"][:, -1])
    return torch.stack(rows, 1)


@pytest.fixture
def spy(monkeypatch):
    "Every look-ahead that an objective computes: its arguments, and whether gradients were on"
    seen = []
    for name in ("branch_ahead", "_mask_ahead"):
        def record(*args, plain=getattr(confidence, name)):
            out = plain(*args)
            seen.append((args, out))
            return out
        monkeypatch.setattr(confidence, name, record)
    return seen


# ---- the model ----


def test_starts_as_the_plain_model_of_the_same_random_seed():
    ids = characters(3, 8)
    torch.manual_seed(5)
    aware = ConfidenceAwareGPT(SHAPE)
    torch.manual_seed(5)
    plain = ContextualGPT(SHAPE)
    found = aware(ids, confidence_scalars=torch.rand(3, 8, 1))
    assert torch.equal(found["logits"], plain(ids)) and torch.equal(aware(ids), plain(ids))
    assert (found["confidence_pred"] == 2.0).all() and (ConfidenceAwareGPT(SHAPE, 0.5)(ids, confidence_scalars=torch.zeros(3, 8, 1))["confidence_pred"] == 0.5).all()


def test_heard_confidence_enters_both_normalisations_of_every_block_and_only_later_positions():
    model, ids = random_model(), characters(1, 8)
    heard = torch.zeros(1, 8, 1, requires_grad=True)
    for t in range(8):
        (grad,) = torch.autograd.grad(model(ids, confidence_scalars=heard)["logits"][0, t].square().sum(), heard)
        assert (grad[0, : t + 1, 0] != 0).all() and (grad[0, t + 1 :, 0] == 0).all()
    model(ids, confidence_scalars=torch.ones(1, 8, 1))["logits"].square().sum().backward()
    for block in model.blocks:
        for norm in (block.norm1, block.norm2): assert norm.gain.grad.abs().min() > 0 and norm.shift.grad.abs().min() > 0


def test_the_adaptive_layer_by_its_formula():
    layer, x, c = random_model().blocks[0].norm1, torch.randn(2, 3, 16), torch.randn(2, 3, 1)
    y = F.layer_norm(x, (16,), layer.weight)
    assert torch.allclose(layer(x, c), y * (1 + c * layer.gain) + c * layer.shift, atol=1e-6)


@pytest.mark.parametrize("width,layers", [(16, 1), (32, 2), (64, 3), (128, 4)])
def test_the_twin_has_as_many_parameters(width, layers):
    cfg = GPTConfig(65, context=65, n_layers=layers, n_heads=2, width=width)
    aware, twin = n_parameters(ConfidenceAwareGPT(cfg)), n_parameters(standard_twin(cfg))
    assert 0 <= aware - twin < 2 * width and (aware - twin) / twin < 0.01


def test_feedback_is_the_sequential_one_in_every_way_of_reading():
    model, ids = random_model(feedback=8), characters(3, 8)
    heard = torch.zeros(3, 1, 1)
    for t in range(1, 8):
        pred = model(ids[:, :t], confidence_scalars=heard)["confidence_pred"]
        heard = torch.cat([heard, pred[:, -1:, None]], 1)
    logits = model(ids, confidence_scalars=heard)["logits"]
    assert torch.allclose(model.previous(ids), heard, atol=1e-5) and torch.allclose(model(ids), logits, atol=1e-4)
    for n in range(1, 4): assert torch.allclose(model.previous(ids, n)[:, : n + 1], heard[:, : n + 1], atol=1e-5) and not torch.allclose(model.previous(ids, n), heard, atol=1e-4)
    cache = model.new_cache(3)
    parts = torch.cat([model(ids[:, :3], cache), model(ids[:, 3:6], cache), model(ids[:, 6:7], cache), model(ids[:, 7:], cache)], 1)
    assert torch.allclose(parts, logits, atol=1e-4)


def test_a_cache_keeps_the_confidence_through_fork_gather_rollback_and_parts():
    model, ids = random_model(feedback=8), characters(4, 8)
    want = model(ids)[:, -1]
    cache = model.new_cache(2)
    model(ids[:2, :5], cache)
    cache.fork(2)
    assert torch.allclose(model(ids[[0, 0, 1, 1]][:, 5:], cache)[:, -1], want[[0, 0, 1, 1]], atol=1e-4)
    cache = model.new_cache(4)
    model(ids, cache)
    cache.rollback(5).gather(torch.tensor([3, 1]))
    assert torch.allclose(model(ids[[3, 1], 5:], cache)[:, -1], want[[3, 1]], atol=1e-4)
    whole = model.new_cache(4)
    for i in range(0, 4, 2): model(ids[i : i + 2, :5], whole.part(i, i + 2))
    whole.advance(5)
    assert torch.allclose(model(ids[:, 5:], whole)[:, -1], want, atol=1e-4)


@pytest.mark.parametrize("feedback", [0, 8])
def test_sampling_and_scoring_work_as_for_every_model(feedback):
    model = random_model(feedback)
    out = sample(model, characters(2, 3), 5, g=2, temperature=0)
    assert out.shape == (2, 2, 8) and torch.equal(out[:, 0], out[:, 1])
    for t in range(3, 8): assert torch.equal(model(out[:, 0, :t])[:, -1].argmax(-1), out[:, 0, t])
    windows = characters(5, 9)
    nll, _ = score(model, windows)
    assert torch.allclose(nll, F.cross_entropy(model(windows[:, :-1]).mT, windows[:, 1:], reduction="none"), atol=1e-5)
    assert evaluate(model, windows)["val_loss"] == pytest.approx(nll.mean().item(), rel=1e-5)


# ---- the forms ----


@pytest.mark.parametrize("ngram", [0, 1, 3])
@pytest.mark.parametrize("feedback", [0, 2])
def test_both_forms_equal_concatenation(ngram, feedback):
    model, ids, branch = random_model(feedback, ngram=ngram), characters(3, 8), characters(3, 8, seed=1)
    heard = torch.rand(3, 8, 1)
    read = Text()
    pred = model.confidence_predictor(model.hidden(ids, read, confidence_scalars=heard))[..., 0]
    slow = concatenated(model, ids, branch, pred, heard)
    assert (_mask_ahead(model, ids, branch, pred, heard) - slow).abs().max() < 1e-5
    assert (branch_ahead(model, read, branch, pred) - slow).abs().max() < 1e-5


def test_the_sum_of_the_softmax_is_the_same_on_every_device(monkeypatch):
    q, k, v = torch.randn(3, 2, 3, 8, 4)
    fast = _attention._causal(q, k, v)
    monkeypatch.setattr(torch.Tensor, "device", torch.device("meta"))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(fast, _attention._causal(q, k, v)))


def test_without_confidence_the_forms_are_the_tree_pass():
    model, ids, branch = random_model(ngram=2), characters(2, 8), characters(2, 8, seed=1)
    tree = tree_logits(model, torch.cat([ids, branch], 1), torch.cat([torch.arange(8) - 1, torch.arange(8)]))[:, 8:]
    assert torch.allclose(_mask_ahead(model, ids, branch, torch.zeros(2, 8)), tree, atol=1e-5)


@pytest.mark.parametrize("feedback", [0, 3])
@pytest.mark.parametrize("form", ["mask", "branch"])
def test_the_objective_hands_the_forms_what_it_trains_on(spy, form, feedback):
    model, batch = random_model(feedback), split_window(characters(4, 10))
    _, metrics = Lookahead(LookaheadConfig(form=form))(model, batch)
    ((args, logits),) = spy
    ids, (branch, pred) = batch[0], args[2:4]
    heard = torch.zeros(4, 8, 1) if not feedback else model.previous(ids)
    assert torch.equal(args[1].ids if form == "branch" else args[1], ids) and torch.allclose(pred, model(ids, confidence_scalars=heard)["confidence_pred"], atol=1e-6)
    assert (logits - concatenated(model, ids, branch, pred, heard)).abs().max() < 1e-5 and not logits.requires_grad
    after = torch.stack([batch[0][:, 2], *batch[0][:, 3:].T, *batch[1:]], 1)
    actual = F.cross_entropy(logits.mT, after, reduction="none")[:, :-1]  # the last one reads an untrained position
    assert metrics["confidence_loss"] == pytest.approx(F.mse_loss(pred[:, :-1], actual).item(), rel=1e-5) and metrics["tokens"] == 32
    assert metrics["actual"] == pytest.approx(actual.mean().item(), rel=1e-5) and metrics["predicted"] == pytest.approx(pred[:, :-1].mean().item(), rel=1e-5)


def test_sampled_branches_come_from_the_model(spy):
    model, batch = random_model(), split_window(characters(1, 10).expand(4000, -1))
    Lookahead()(model, batch)
    branch, p = spy[0][0][2], model(batch[0][:1]).softmax(-1)[0]
    share = torch.stack([(branch == a).float().mean(0) for a in range(7)], -1)
    assert (share - p).abs().max() < 0.03 and (p.amax(-1) - p.amin(-1)).max() > 0.1


def test_the_shifted_form_is_the_teachers_where_no_prediction_is_heard(spy):
    model, batch = random_model(), split_window(characters(4, 10))
    for block in model.blocks:
        for norm in (block.norm1, block.norm2): norm.gain.data.zero_(); norm.shift.data.zero_()
    Lookahead(LookaheadConfig(target="teacher"))(model, batch)
    after = torch.cat([batch[0][:, 2:], batch[1][:, None]], 1)
    nll = F.cross_entropy(spy[0][1][:, :-1].mT, after, reduction="none")
    pred = model(batch[0], confidence_scalars=torch.zeros(4, 8, 1))["confidence_pred"][:, :-1]
    _, metrics = Lookahead(LookaheadConfig(form="shifted", target="teacher"))(model, batch)
    assert metrics["confidence_loss"] == pytest.approx(F.mse_loss(pred, nll).item(), rel=1e-5)


def test_two_passes_by_definition():
    model, (ids, one, two), heard = random_model(), split_window(characters(4, 10)), torch.rand(4, 8, 1)
    pred, actual, token_loss = two_passes(model, heard, ids, one, two, torch.Generator().manual_seed(3))
    now = model(ids, confidence_scalars=heard)
    own = torch.multinomial(now["logits"][:, -1].softmax(-1), 1, generator=torch.Generator().manual_seed(3))
    known = torch.cat([heard, now["confidence_pred"][:, -1:, None]], 1)
    future = model(torch.cat([ids, own], 1), confidence_scalars=known)["logits"][:, -1]
    assert torch.allclose(pred, now["confidence_pred"][:, -1]) and torch.allclose(token_loss, F.cross_entropy(now["logits"][:, -1], one))
    assert torch.allclose(actual, F.cross_entropy(future, two, reduction="none"), atol=1e-6) and not actual.requires_grad


# ---- which positions are trained ----

TARGETS = [("last", "sampled"), ("last_two", "sampled"), ("mask", "sampled"), ("mask", "teacher"), ("branch", "sampled"), ("branch", "teacher"), ("shifted", "teacher")]


@pytest.mark.parametrize("form,target,feedback", [(*case, n) for case in TARGETS for n in (0, 2) if case[0] != "shifted" or not n])
def test_no_target_reads_a_position_that_no_token_loss_trains(form, target, feedback):
    model, batch = random_model(feedback), split_window(characters(16, 10))

    def lookahead(alpha):
        torch.manual_seed(0)
        return Lookahead(LookaheadConfig(alpha=alpha, form=form, target=target))(model, batch)

    (grad,) = torch.autograd.grad(lookahead(0.0)[0], model.position.weight)
    trained = grad.abs().amax(1) > 0
    assert trained.tolist() == [True] * 8 + [form == "last_two"]
    before = lookahead(1.0)[1]
    with torch.no_grad(): model.position.weight[8] += torch.randn(16)
    after = lookahead(1.0)[1]
    reads = before["confidence_loss"] != after["confidence_loss"]
    assert reads == (form in ("last", "last_two"))  # the published step reads it untrained, as it was published


def test_the_mended_step_also_learns_where_its_target_is_read():
    model, (ids, one, two) = random_model(), split_window(characters(4, 10))
    torch.manual_seed(3)
    loss, metrics = Lookahead(LookaheadConfig(form="last_two"))(model, (ids, one, two))
    torch.manual_seed(3)
    heard = torch.zeros(4, 8, 1)
    pred, actual, now = two_passes(model, heard, ids, one, two)
    known = torch.cat([heard, pred.detach()[:, None, None]], 1)
    then = F.cross_entropy(model(torch.cat([ids, one[:, None]], 1), confidence_scalars=known)["logits"][:, -1], two)
    total = (now + then) / 2 + F.mse_loss(pred, actual)
    assert torch.allclose(loss, total, atol=1e-6) and metrics["tokens"] == 8
    ours, theirs = (torch.autograd.grad(x, list(model.parameters()), allow_unused=True) for x in (loss, total))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs) if a is not None)


# ---- gradients ----


def gradients(model, cfg, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    Lookahead(cfg)(model, batch)[0].backward()
    return {n: p.grad.clone() if p.grad is not None else torch.zeros_like(p) for n, p in model.named_parameters()}


def test_a_detached_head_does_not_teach_the_trunk():
    model, batch = random_model(), split_window(characters(4, 10))
    model.zero_grad()
    next_token(model, batch)[0].backward()
    alone = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    apart, shared = (gradients(model, LookaheadConfig(detach=d), batch) for d in (True, False))
    assert all(torch.allclose(apart[n], g, atol=1e-6) for n, g in alone.items()) and not all(torch.allclose(shared[n], g, atol=1e-4) for n, g in alone.items())
    assert all(torch.allclose(apart[n], shared[n], atol=1e-6) and apart[n].abs().max() > 0 for n in apart if n.startswith("confidence_predictor"))


@pytest.mark.parametrize("detach", [True, False])
def test_the_confidence_gradient_has_its_own_clip(detach):
    model, batch = random_model(), split_window(characters(4, 10))
    token = gradients(model, LookaheadConfig(alpha=0.0, detach=detach), batch)

    def added(clip):
        with_clip = gradients(model, LookaheadConfig(alpha=3.0, detach=detach, clip=clip), batch)
        return torch.cat([(with_clip[n] - token[n]).flatten() for n in token])

    free = added(None)
    assert free.norm() > 1 and torch.allclose(added(0.2), 0.2 * free / free.norm(), atol=1e-5) and torch.allclose(added(1e6), free, atol=1e-5)


@pytest.mark.parametrize("form", ["mask", "branch"])
def test_no_gradient_passes_through_the_second_pass(form, monkeypatch):
    model, batch = random_model(), split_window(characters(4, 10))
    name = dict(mask="_mask_ahead", branch="branch_ahead")[form]
    honest, cut = gradients(model, LookaheadConfig(form=form), batch), getattr(confidence, name)
    monkeypatch.setattr(confidence, name, lambda *args: cut(*args).detach().clone())
    assert all(torch.equal(honest[n], g) for n, g in gradients(model, LookaheadConfig(form=form), batch).items())


# ---- training ----

GOLDEN = {"last": 1.5883, "last_two": 1.7834, "mask": 2.1064, "branch": 2.1064, "shifted": 1.5714}  # fp32 on one thread


@pytest.mark.parametrize("form", GOLDEN)
def test_golden_loss_of_twenty_steps(form):
    torch.manual_seed(0)
    model = ConfidenceAwareGPT(SHAPE)
    text = (torch.arange(400) ** 2 // 3) % 7
    cfg = LookaheadConfig(form=form, target="teacher" if form == "shifted" else "sampled", carry=form in ("last", "last_two"))
    rows = train(model, Lookahead(cfg), LookaheadWindows(text, 8, 4, ahead=2), TrainConfig(steps=20, warmup=2, lr=1e-2), progress=False)
    assert rows[-1]["loss"] == pytest.approx(GOLDEN[form], abs=2e-3)


@pytest.mark.parametrize("cfg", [LookaheadConfig(detach=True, clip=0.1), LookaheadConfig(form="last", carry=True), LookaheadConfig(carry=True)], ids=["branch", "last", "carried"])
def test_a_stopped_run_continues_bit_for_bit(cfg, tmp_path):
    text, settings = characters(300), TrainConfig(steps=6, warmup=1, checkpoint_every=3)

    def go(folder, stop=None):
        torch.manual_seed(1)
        def halt(row):
            if row["step"] == stop: raise KeyboardInterrupt
        return train(ConfidenceAwareGPT(SHAPE), Lookahead(cfg, seed=2), LookaheadWindows(text, 8, 4, ahead=2), settings, callbacks=(halt,), checkpoint_dir=folder, progress=False)

    whole = go(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt): go(tmp_path / "cut", stop=5)
    assert [r["loss"] for r in go(tmp_path / "cut")] == [r["loss"] for r in whole]


def test_carried_confidences_are_the_last_batchs(monkeypatch):
    model, first, second = random_model(), split_window(characters(4, 10)), split_window(characters(4, 10, seed=1))
    objective = Lookahead(LookaheadConfig(carry=True))
    objective(model, first)
    pred = model(first[0], confidence_scalars=torch.zeros(4, 8, 1))["confidence_pred"]
    assert torch.allclose(objective.carried[:, 1:, 0], pred[:, :-1], atol=1e-6) and (objective.carried[:, 0] == 0).all()
    heard, through = [], model.through
    monkeypatch.setattr(model, "through", lambda ids, cache, c=None: (heard.append(c), through(ids, cache, c))[1])
    carried = objective.carried
    objective(model, second)
    assert torch.equal(heard[0], carried)


def test_counting_operations_leaves_the_objective_alone():
    model, objective, batch = random_model(), Lookahead(), split_window(characters(4, 10))
    before = objective.generator.get_state()
    assert count_flops(model, objective, batch) > 1.25 * count_flops(model, next_token, batch) and torch.equal(objective.generator.get_state(), before)


def test_the_twins_objective_is_cross_entropy_on_the_same_windows():
    twin, window = standard_twin(SHAPE), characters(4, 10)
    loss, metrics = next_token(twin, split_window(window))
    assert torch.allclose(loss, F.cross_entropy(twin(window[:, :8]).mT, window[:, 1:9])) and metrics["tokens"] == 32


def test_data_are_windows_in_three_parts_and_resume():
    text = torch.arange(50) % 7
    ours, plain = LookaheadWindows(text, 8, 3, ahead=2, seed=4), Windows(text, 8, 3, ahead=2, seed=4)
    for _ in range(2):
        ids, one, two = next(ours)
        assert torch.equal(torch.cat([ids, one[:, None], two[:, None]], 1), next(plain)) and ids.shape == (3, 8)
    other = LookaheadWindows(text, 8, 3, ahead=2, seed=9)
    other.load_state_dict(ours.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(next(ours), next(other)))


# ---- refusals ----


@pytest.mark.parametrize("batch", [characters(4, 9), split_window(characters(4, 10))[:2], (characters(4, 8), characters(4), characters(3)), (characters(8), characters(8), characters(8))], ids=["tensor", "two parts", "rows", "flat"])
def test_a_batch_without_its_three_parts_is_refused(batch):
    model = random_model()
    with pytest.raises(ValueError, match=r"t\+2 column"): update(model, Lookahead(), [batch], adamw(model, TrainConfig()), 1e-3, 1.0)


def test_what_cannot_work_is_refused_with_the_way_out():
    model, batch = random_model(), split_window(characters(4, 10))
    with pytest.raises(ValueError, match="context=10"): Lookahead()(model, split_window(characters(4, 11)))
    with pytest.raises(TypeError, match="next_token"): Lookahead()(standard_twin(SHAPE), batch)
    with pytest.raises(ValueError, match=r"\(4, 8, 1\)"): confidence._check_confidence(batch[0], torch.zeros(4, 7, 1))
    with pytest.raises(ValueError, match="is inf"): model(batch[0], confidence_scalars=torch.full((4, 8, 1), torch.inf))
    with pytest.raises(ValueError, match="feedback=0"): Lookahead(LookaheadConfig(form="shifted", target="teacher"))(random_model(2), batch)
    with pytest.raises(ValueError, match="no window"): LookaheadWindows(characters(9), 8, 4, ahead=2)
    with pytest.raises(ValueError, match="feedback is -1"): ConfidenceAwareGPT(SHAPE, feedback=-1)
    with pytest.raises(ValueError, match="confidence_init_bias is nan"): ConfidenceAwareGPT(SHAPE, math.nan)
    with pytest.raises(ValueError, match="at least 2"): Lookahead()(model, split_window(characters(4, 3)))


@pytest.mark.parametrize("fields,word", [(dict(form="both"), "form 'both'"), (dict(target="true"), "target 'true'"), (dict(alpha=-1.0), "alpha is -1.0"), (dict(clip=0.0), "clip is 0.0"),
                                         (dict(form="last", detach=True), "published step"), (dict(form="shifted"), "target='teacher'")])
def test_settings_that_make_no_sense_are_refused(fields, word):
    with pytest.raises(ValueError, match=word): LookaheadConfig(**fields)


def test_a_checkpoint_of_the_other_model_is_refused(tmp_path):
    aware, twin = ConfidenceAwareGPT(SHAPE), standard_twin(SHAPE)
    for ours, theirs, folder in ((aware, twin, tmp_path / "a"), (twin, aware, tmp_path / "b")):
        saved = save_checkpoint(folder, theirs, adamw(theirs, TrainConfig()), {}, [], {})
        with pytest.raises(BadCheckpoint, match="belongs to another model"): load_weights(ours, saved)
