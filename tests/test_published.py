"""Published names against the sources' snippets, written out, and against ours"""
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_confidence import SHAPE, characters, random_model

import refine_nb.published as published
from refine_nb.benchmark_tasks import load_task
from refine_nb.candidates import CandidateConfig
from refine_nb.confidence import next_token, split_window
from refine_nb.gpt import ContextualGPT, GPTConfig
from refine_nb.published import (
    ConfidenceExperimentConfig,
    ConfidenceExperimentResults,
    REINFORCETrainer,
    TrigramRef,
    compare_models,
    enhanced_reward,
    guided_generate,
    prepare_confidence_data,
    select_exhaustive_chars,
    two_pass_training_step,
)
from refine_nb.thoughts import thoughts_for
from refine_nb.train import TrainConfig
from refine_nb.trigram import NGram
from refine_nb.warm_start import load_model, thinker


# ---- guided exhaustive GRPO ----


def test_the_reference_is_an_ngram_of_order_three():
    text, ids = characters(300), characters(2, 9, seed=1)
    reference = TrigramRef.fit(text, 7)
    assert isinstance(reference, torch.nn.Module) and torch.equal(reference(ids), NGram.fit(text, 7, 3).log_probs(ids))


def test_the_reward_is_the_published_formula():
    gen, ref, logits = characters(40), characters(40, seed=1), torch.randn(40, 7)
    exact = (gen == ref).float()
    in_top5 = torch.tensor([float(g in row.topk(5).indices) for g, row in zip(gen, logits)])
    found = enhanced_reward(gen, ref, torch.randn(40, 7), logits)
    assert torch.allclose(found, exact + in_top5 * 0.2 * (1 - exact)) and len(found.unique()) == 3
    assert enhanced_reward(gen[:3] % 3, ref[:3] % 3, None, logits[:3, :3]).min() >= 0.2  # three symbols are all among five


@pytest.mark.parametrize("threshold,n", [(0.0, 5), (99.0, 2)])
def test_more_characters_where_the_model_is_unsure(threshold, n):
    model, context = random_policy(), characters(6)
    cfg = CandidateConfig(threshold=threshold, top_k=3, n_random=2, confident_k=2)
    tried = select_exhaustive_chars(model, context, 7, cfg, torch.Generator().manual_seed(0))
    best = model(context[None])[0, -1].topk(3).indices
    assert len(set(tried.tolist())) == n == len(tried) and torch.equal(tried[: min(n, 3)], best[: min(n, 3)])
    with pytest.raises(ValueError, match="V is 65"): select_exhaustive_chars(model, context, 65, cfg)
    with pytest.raises(ValueError, match="more than the 7 symbols"): select_exhaustive_chars(model, context, 7)


def test_guided_writing_forces_first_characters_and_goes_on_alone():
    model, context, first = random_policy(), characters(5), torch.tensor([4, 0, 6])
    out = guided_generate(model, context, first, n=4, temperature=0.0)
    for row, char in zip(out, first):
        text = torch.cat([context, char[None]])
        for _ in range(3): text = torch.cat([text, model(text[None])[0, -1].argmax()[None]])
        assert torch.equal(row, text[5:])
    free = guided_generate(model, context, n=4, temperature=0.0)
    assert free.shape == (1, 4) and free[0, 0] == model(context[None])[0, -1].argmax()


def random_policy():
    "A small model with weights large enough that its choices differ"
    torch.manual_seed(0)
    model = ContextualGPT(GPTConfig(7, context=9, n_layers=2, n_heads=2, width=16))
    for p in model.parameters(): torch.nn.init.normal_(p, std=0.3)
    return model.eval()


# ---- confidence ----


def test_the_last_position_is_the_published_step():
    model, (ids, one, two), heard = random_model(), split_window(characters(4, 10)), torch.rand(4, 8, 1)
    torch.manual_seed(3)
    step = two_pass_training_step(model, heard, ids, one, two, alpha=0.7)
    torch.manual_seed(3)
    now = model(ids, confidence_scalars=heard)
    own = torch.multinomial(now["logits"][:, -1].softmax(-1), 1)
    pred = now["confidence_pred"][:, -1]
    future = model(torch.cat([ids, own], 1), confidence_scalars=torch.cat([heard, pred.detach()[:, None, None]], 1))["logits"][:, -1]
    actual = F.cross_entropy(future, two, reduction="none").detach()
    lm, doubt = F.cross_entropy(now["logits"][:, -1], one), F.mse_loss(pred, actual)
    assert set(step) == {"pred_conf_t", "total_loss", "loss_lm", "loss_confidence"}
    for name, value in dict(pred_conf_t=pred, loss_lm=lm, loss_confidence=doubt, total_loss=lm + 0.7 * doubt).items(): assert torch.allclose(step[name], value, atol=1e-6), name
    ours, theirs = (torch.autograd.grad(total, list(model.parameters()), allow_unused=True) for total in (step["total_loss"], lm + 0.7 * doubt))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs) if a is not None)


def test_the_literal_preset_runs_saves_and_loads_back(tmp_path):
    preset = ConfidenceExperimentConfig()
    assert (preset.training_steps, preset.batch_size, preset.seeds, preset.confidence_alpha, preset.lookahead_steps, preset.confidence_init_bias, preset.save_interval) == (1000, 4, (42, 123, 456), 1.0, 2, 2.0, 100)
    cfg = replace(preset, training_steps=12, seeds=(1, 2), save_interval=5, results_dir=str(tmp_path))
    results = compare_models(cfg, characters(300), SHAPE)
    (path,) = tmp_path.iterdir()
    assert path.name == f"{results.timestamp}_results.json" and ConfidenceExperimentResults.load(path) == results
    history = results.confidence_model_results["2"]
    assert set(history) == {"token_loss_history", "confidence_loss_history", "confidence_predictions", "actual_future_losses"} and all(len(v) == 12 for v in history.values())
    assert set(results.standard_model_results["1"]) == {"token_loss_history"} and all(t > 0 for t in results.training_time.values())
    table = published._summary(results, smooth=3)
    assert len(table) == 4 and table.final_token_loss[0] == pytest.approx(np.mean(results.standard_model_results["1"]["token_loss_history"][-3:])) and (table.steps_to_common_loss <= 12).all()


def test_the_file_is_there_before_the_end(tmp_path, monkeypatch):
    cfg = ConfidenceExperimentConfig(training_steps=6, seeds=(1,), save_interval=2, results_dir=str(tmp_path))
    monkeypatch.setattr(published, "next_token", lambda model, batch: (next(fuse), next_token(model, batch))[1])
    fuse = iter(range(6))
    with pytest.raises((StopIteration, RuntimeError)): compare_models(cfg, characters(300), SHAPE)
    (path,) = tmp_path.iterdir()
    assert len(ConfidenceExperimentResults.load(path).standard_model_results["1"]["token_loss_history"]) == 4


@pytest.mark.parametrize("fields,word", [(dict(lookahead_steps=3), "lookahead_steps is 3"), (dict(batch_size=0), "batch_size is 0"), (dict(seeds=(1, 1)), "each once"), (dict(seeds=()), "at least one")])
def test_literal_settings_that_make_no_sense_are_refused(fields, word):
    with pytest.raises(ValueError, match=word): ConfidenceExperimentConfig(**fields)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"config": {}}))
    with pytest.raises(ValueError, match="no results of this experiment"): ConfidenceExperimentResults.load(tmp_path / "x.json")


def test_the_common_loss_is_reached_by_the_worst_at_its_end():
    histories = {str(s): dict(token_loss_history=np.random.default_rng(s).random(97).tolist()) for s in range(60)}
    results = ConfidenceExperimentResults(ConfidenceExperimentConfig(), "t", histories, {}, dict(standard=1.0))
    table = published._summary(results, smooth=7)
    level = table.final_token_loss.max()
    for row, h in zip(table.itertuples(), histories.values()):
        means = [np.mean(h["token_loss_history"][max(0, t - 6) : t + 1]) for t in range(97)]
        assert row.steps_to_common_loss == 1 + next(t for t, m in enumerate(means) if m <= level + 1e-12)


def test_a_history_with_nan_has_no_common_loss():
    histories = {"1": dict(token_loss_history=[3.0, 2.0]), "2": dict(token_loss_history=[3.0, float("nan")])}
    for order in (["1", "2"], ["2", "1"]):
        results = ConfidenceExperimentResults(ConfidenceExperimentConfig(), "t", {k: histories[k] for k in order}, {}, dict(standard=1.0))
        assert published._summary(results, smooth=1).steps_to_common_loss.isna().all()


def test_the_data_are_those_of_the_room():
    tokens, one, two = next(prepare_confidence_data(characters(60), 8, 3, seed=4))
    again = next(prepare_confidence_data(characters(60), 8, 3, seed=4))
    assert (tokens.shape, one.shape, two.shape) == ((3, 8), (3,), (3,)) and torch.equal(tokens, again[0])
    with pytest.raises(ValueError, match="no window"): prepare_confidence_data(characters(9), 8)


# ---- Quiet-STaR ----


def trainer(**settings):
    "A trainer over a small untrained model"
    task = load_task("s5", 1)
    items = task.sample(200, 0)
    torch.manual_seed(0)
    return task, REINFORCETrainer(thinker(task, items, n_layers=1, width=16), ("s5", 1), thoughts_for(task, items), **settings)


def test_the_reward_and_the_penalty_are_the_published_formulas():
    a, b, labels = torch.randn(200, 4, 5), torch.randn(200, 4, 5), torch.randint(5, (200, 4))
    correct_with = (a.argmax(dim=-1) == labels).float().mean(dim=-1)
    correct_without = (b.argmax(dim=-1) == labels).float().mean(dim=-1)
    found = REINFORCETrainer.compute_reward(a, b, labels)
    assert torch.equal(found, (correct_with > correct_without).float()) and 0 < found.mean() < 1
    kl = F.kl_div(b.log_softmax(-1), a.log_softmax(-1), reduction="none", log_target=True).sum(-1).mean()
    assert torch.allclose(REINFORCETrainer.compute_kl_divergence(a, b), kl, atol=1e-6)


def test_an_episode_is_cross_entropy_times_mean_reward_and_a_penalty(monkeypatch):
    task, ours = trainer(kl_coefficient=0.5, lr=1e-3)
    prompt, answer = task.encode(task.sample(6, 1))
    monkeypatch.setattr(published, "compute_reward", lambda right, direct: torch.full(right.shape, 0.25))
    with torch.no_grad():
        for p in ours.baked_model.parameters(): p += 0.05 * torch.randn(p.shape)
    before = {n: p.clone() for n, p in ours.model.named_parameters()}
    row = ours.train_episode(prompt, answer)
    assert row["reward"] == 0.25 and row["kl_divergence"] > 0 and any(not torch.equal(p, before[n]) for n, p in ours.model.named_parameters())
    assert ours.train_episode(prompt, answer)["loss"] != row["loss"]
    policy_loss = (row["loss"] - 0.5 * row["kl_divergence"]) / 0.25
    assert 0 < policy_loss < 2 * np.log(len(task.vocab) + 1)  # an untrained model's nats a character


def test_an_episode_without_reward_and_penalty_changes_nothing():
    task, ours = trainer(kl_coefficient=0.0)
    published_loss = ours.train_episode(*task.encode(task.sample(6, 1)))  # an untrained model is never right
    fresh = trainer()[1]
    assert published_loss["reward"] == published_loss["loss"] == 0
    assert all(torch.equal(a, b) for a, b in zip(ours.model.parameters(), fresh.model.parameters()))


def test_training_is_that_of_step_two(tmp_path):
    task, ours = trainer()
    settings = dict(training=TrainConfig(steps=2, lr=1e-3, warmup=1), batch=5, items=10, progress=False)
    result = ours.train(tmp_path / "a", **settings)
    again = published.run_step2_rl(tmp_path / "b", ours.baked_model, ("s5", 1), ours.thoughts, **settings)
    assert ours.model is result.model and [r["loss"] for r in result.rows] == [r["loss"] for r in again.rows]
    model = load_model(ours.save_model(tmp_path / "m.safetensors"))[0]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), ours.model.parameters()))
    found = ours.validate_episode(task.sample(10, 0, "test"))
    assert 0 <= found["accuracy_direct"] <= 1
