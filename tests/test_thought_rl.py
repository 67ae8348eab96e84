"""Thoughts taught by reward: likelihoods and losses against one row each, rewards by hand, what stops a run and what it leaves"""
import copy
import inspect
import json
import math
import os
import signal
import stat
import subprocess
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from toy_project import toy_cells, write_notebook

import refine_nb.checkpoints as model_files
import refine_nb.pipeline as pipeline
import refine_nb.thought_rewards as thought_rewards
import refine_nb.thought_rl as thought_rl
import refine_nb.thought_validation as thought_validation
from refine_nb.anti_theater import AntiTheaterValidator, Finding, Report
from refine_nb.benchmark_tasks import MultipleChoice, WordProblems, load_task
from refine_nb.prefix import Prefix
from refine_nb.checkpoints import BadCheckpoint, list_checkpoints
from refine_nb.gpt import ContextualGPT, GPTConfig
from refine_nb.mugrokfast import MuGrokfast, MuGrokfastConfig
from refine_nb.pipeline import run_warm_start, run_reinforcement
from refine_nb.records import start_run
from refine_nb.tasks import Item, ProblemBatches
from refine_nb.thought_rl import (NothingToLearn, ThoughtRL, ThoughtRLConfig, kl_to_warm_start,
                                  published_kl, published_loss, ExpertIterationBatches, PublishedObjective,
                                  ThoughtSampler)
from refine_nb.train import TrainConfig, train
from refine_nb.thought_rewards import (CoherenceScorer, answer_logp, improvement_reward, direct_logp, thought_diversity,
                                       append_answer)
from refine_nb.thought_validation import validate_thoughts
from refine_nb.thoughts import ThoughtGenerator, Thoughts, answers_correct, thought_config_for, worked_thought
from refine_nb.trm import NormedGPT
from refine_nb.warm_start import FILLER, WarmStartBatches, load_thinking_model, fits_within, save_thinking_model, thinking_model, warm_start_loss

TASK = load_task("s5", 1)
ITEMS = TASK.sample(50)
THOUGHTS = thought_config_for(TASK, ITEMS, n_thoughts=3)
COUNTDOWN, WORDS = load_task("countdown", 2), load_task("word_problems", 1)
START, END, STOP = THOUGHTS.start, THOUGHTS.end, TASK.vocab["\n"]


def fresh(seed=0, std=0.3):
    "A small model far from the symmetric start"
    torch.manual_seed(seed)
    model = thinking_model(TASK, ITEMS, n_layers=2, width=16, n_heads=2)
    for p in model.parameters(): torch.nn.init.normal_(p, std=std)
    return model


@pytest.fixture(scope="module")
def trained():
    "A model that knows direct and worked answers"
    torch.manual_seed(0)
    model = thinking_model(TASK, ITEMS, n_layers=2, width=48)
    train(model, warm_start_loss, WarmStartBatches(TASK, 64, direct=0.3, seed=0), TrainConfig(steps=250, lr=6e-3, warmup=10), progress=False)
    return model.eval()


def written(model, prompt, seed=0):
    return ThoughtGenerator(THOUGHTS, 6, STOP)(Prefix(model, prompt), generator=torch.Generator().manual_seed(seed))


def questions(n=4, seed=1): return next(ProblemBatches(TASK, n, seed))


def row_logp(model, prompt, ids):
    "The reference: log-probability of each character of one row after a prompt"
    logp = model(torch.cat([prompt, ids])[None, :-1])[0, len(prompt) - 1 :].log_softmax(-1)
    return logp.gather(1, ids[:, None])[:, 0]


def test_thoughts_are_as_long_as_the_worked_form():
    task = load_task("arithmetic", 3)
    c = thought_config_for(task, task.sample(5))
    assert (c.start, c.end, c.length) == (len(task.vocab), task.vocab[":"], len("12,34,56")) and THOUGHTS.length == 5


def test_warm_start_has_its_kinds_in_their_shares():
    batch = next(WarmStartBatches(TASK, 20, direct=0.25, canned=0.4, seed=2))
    texts = [["".join([*TASK.vocab.chars, "<"][i] for i in row) for row in torch.cat(pair, 1).tolist()] for pair in batch]
    assert [len(t) for t in texts] == [5, 7, 8]
    for kind, mark in zip(texts, ("", "<", "<" + FILLER)):
        for text in kind:
            prompt, _, rest = text.partition("=")
            item = TASK.item(prompt + "=")
            assert rest == {"": item.completion(), "<": "<" + item.completion(True)}.get(mark, mark + item.completion())


def test_warm_start_resumes():
    one, two = WarmStartBatches(TASK, 8, seed=3), WarmStartBatches(TASK, 8, seed=3)
    next(one)
    two.load_state_dict(one.state_dict())
    assert all(torch.equal(a, b) for x, y in zip(next(one), next(two)) for a, b in zip(x, y))


def test_warm_loss_is_of_what_follows_the_prompt_without_the_start():
    model, batch = fresh(), next(WarmStartBatches(TASK, 12, direct=0.5, canned=0.25, seed=1))
    terms = [row_logp(model, p, w)[1 if w[0] == START else 0 :] for prompt, written in batch for p, w in zip(prompt, written)]
    loss, metrics = warm_start_loss(model, batch)
    assert torch.allclose(loss, -torch.cat(terms).mean(), atol=1e-5) and metrics["tokens"] == len(torch.cat(terms))


def test_true_answers_stand_behind_each_thought():
    model, (prompt, answer, _) = fresh(), questions()
    found = written(model, prompt)
    ids, there = append_answer(found, answer, END)
    gains, trunk = answer_logp(Prefix(model, prompt), found, answer, END), Prefix(model, prompt)
    for i in range(4):
        for g in range(3):
            e = found.ids[i, g].tolist().index(END) + 1
            row = torch.cat([found.ids[i, g, :e], answer[i]])
            assert torch.equal(ids[i, g, : e + 6], row) and there[i, g].nonzero()[:, 0].tolist() == list(range(e, e + 6))
            assert torch.allclose(gains[i, g], row_logp(model, prompt[i], row)[e:].sum(), atol=1e-4)
        assert torch.allclose(direct_logp(trunk, answer)[i], row_logp(model, prompt[i], answer[i]).sum(), atol=1e-4)


def test_published_reward():
    right = torch.tensor([[True, False, True], [True, True, False]])
    assert improvement_reward(right, torch.tensor([False, True])).tolist() == [[1, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("reward", ["improvement", "right", "gain"])
def test_loss_is_that_of_the_chosen_characters(monkeypatch, reward):
    "REINFORCE and its gradient from one row for each thought"
    monkeypatch.setattr(type(TASK), "check_ids", lambda task, answer, ids: ids.sum(-1) % 3 == 0)  # some are right
    model, batch = fresh(), questions(16)
    objective = ThoughtRL(TASK, THOUGHTS, ThoughtRLConfig(reward, "leave_one_out", beta=0.0), seed=4)
    loss, _ = objective(model, batch)
    found = written(model, batch[0], seed=4)
    right = TASK.check_ids(batch[1], found.ids)
    direct = TASK.check_ids(batch[1], model_greedy(model, batch[0]))[:, 0]
    trunk = Prefix(model, batch[0])
    r = dict(right=right.float(), improvement=improvement_reward(right, direct), gain=answer_logp(trunk, found, batch[1], END) - direct_logp(trunk, batch[1])[:, None])[reward]
    own = found.chosen & (objective.thinking(found) if reward == "gain" else True)
    adv = r - (r.sum(1, keepdim=True) - r) / 2
    terms = [[(row_logp(model, batch[0][i], found.ids[i, g]) * own[i, g]).sum() * adv[i, g] for g in range(3)] for i in range(16)]
    mine = -torch.stack([torch.stack(t) for t in terms]).mean()
    grads = [torch.cat([g.flatten() for g in torch.autograd.grad(x, list(model.parameters()))]) for x in (loss, mine)]
    assert torch.allclose(loss, mine, atol=1e-4) and torch.allclose(*grads, atol=1e-4) and (adv != 0).any()


def model_greedy(model, prompt):
    "The greedy direct answer, character by character"
    ids = prompt
    for _ in range(6): ids = torch.cat([ids, model(ids)[:, -1].argmax(-1)[:, None]], 1)
    return ids[:, None, prompt.shape[1] :]


def test_naive_loss_sends_nothing_to_the_thoughts():
    model, (prompt, answer, _) = fresh(), questions()
    found = written(model, prompt)
    logits = []
    real = thought_rewards.branch_logits
    try:
        thought_rewards.branch_logits = lambda trunk, ids: logits.append(real(trunk, ids)) or logits[-1]
        loss = published_loss(Prefix(model, prompt), found, answer, torch.rand(4, 3), END)
    finally: thought_rewards.branch_logits = real
    grad, = torch.autograd.grad(loss, logits[0])
    assert (grad[found.inside] == 0).all() and (grad[:, :, 0] == 0).all() and grad[append_answer(found, answer, END)[1]].abs().max() > 0


def test_ours_sends_something_to_the_thoughts_and_nothing_to_forced_characters():
    model, batch = fresh(), questions()
    objective = ThoughtRL(TASK, THOUGHTS, ThoughtRLConfig("gain", beta=0.0), seed=4)
    kept, real = [], thought_rl.branch_logits
    try:
        thought_rl.branch_logits = lambda trunk, ids: kept.append(real(trunk, ids)) or kept[-1]
        loss, _ = objective(model, batch)
    finally: thought_rl.branch_logits = real
    found = written(model, batch[0], seed=4)
    grad, = torch.autograd.grad(loss, kept[0])
    assert (grad[~found.chosen] == 0).all() and grad[found.inside].abs().max() > 0 and (~found.ended).any()


def expert(model, batch=12, task=TASK, thoughts=THOUGHTS, room=6, **changes):
    "Expert iteration from four questions at a time"
    return ExpertIterationBatches(model, ThoughtSampler(task, thoughts, room), ProblemBatches(task, 4, 0, width=room), batch, **changes)


def everything_is(right, monkeypatch):
    "Answers that are all right, or all wrong"
    verdicts = lambda task, answer, ids, items: torch.full(ids.shape[:2], right)
    monkeypatch.setattr(thought_rl, "answers_correct", verdicts)


def test_expert_iteration_learns_its_own_right_thoughts(trained):
    (prompt, written), = next(expert(trained))
    assert len(prompt) == len(written) == 12
    for question, ids in zip(prompt, written):
        assert ids[0] == START and TASK.check_answer(TASK.item(decoded(TASK, question)), decoded(TASK, ids[1:]).partition(":")[2])
    asked = ProblemBatches(TASK, 4, 0)
    assert {decoded(TASK, row) for row in prompt} <= {decoded(TASK, row) for _ in range(20) for row in next(asked)[0]}


def test_expert_iteration_goes_on_from_a_checkpoint(monkeypatch):
    everything_is(True, monkeypatch)
    model = fresh()
    one, other = expert(model), expert(model)
    next(one)
    other.load_state_dict(one.state_dict())
    assert other.sampler.characters == one.sampler.characters > 0
    for _ in range(2): assert all(torch.equal(a, b) for a, b in zip(next(one)[0], next(other)[0]))
    latest = expert(model, kept=30)
    for _ in range(4): next(latest)
    assert len(latest.prompts) == len(latest.written) == 30 and torch.equal(latest.written, one.written[-30:]) is False
    for _ in range(1): next(one)
    assert torch.equal(latest.prompts, one.prompts[-30:])


def test_nothing_right_is_nothing_to_learn(monkeypatch):
    everything_is(False, monkeypatch)
    with pytest.raises(NothingToLearn, match="nothing to learn from"): next(expert(fresh()))


def test_expert_iteration_of_answers_of_several_widths(monkeypatch, tmp_path):
    "Sums of one to four digits: what is kept is what was drawn, behind newlines and before them; also where it goes on"
    everything_is(True, monkeypatch)
    task = load_task("addition", (1, 4))
    items = task.sample(50)
    torch.manual_seed(0)
    model, thoughts, room = thinking_model(task, items, n_layers=1, width=16), thought_config_for(task, items, 2), max(len(i.completion()) for i in items)
    batches = expert(model, 5, task, thoughts, room)
    draws, asked, pairs, widths = ThoughtSampler(task, thoughts, room), ProblemBatches(task, 4, 0, width=room), set(), set()
    for _ in range(4):
        (prompt, written), = next(batches)
        question, answer, some = next(asked)
        _, drawn, _ = draws(model, (question, answer, some))
        torch.randint(1, (5,), generator=draws.generator)  # as the picks draw
        widths.add(question.shape[1])
        pairs |= {(i.prompt, decoded(task, row)) for i, group in zip(some, drawn.ids) for row in group}
        assert {(decoded(task, p).lstrip("\n"), decoded(task, w)) for p, w in zip(prompt, written)} <= pairs
    assert len(widths) > 1 and batches.prompts.shape == (32, max(widths))
    again = expert(model, 5, task, thoughts, room)
    again.load_state_dict(batches.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(next(batches)[0], next(again)[0]))
    loss, _ = warm_start_loss(model, next(batches))
    assert loss.isfinite()


@pytest.mark.parametrize("rewarded, beta, kl_to", [(True, 0.0, "same_thought"), (True, 0.5, "no_thought"), (True, 0.5, "same_thought"), (False, 0.0, "no_thought")])
def test_published_loss_is_reward_times_likelihood_and_penalty(monkeypatch, rewarded, beta, kl_to):
    model, reference, batch = fresh(0, std=0.1), fresh(1, std=0.1), questions()
    without = torch.tensor([True, False, True, False])
    verdicts = lambda task, answer, ids, items: torch.ones(ids.shape[:2], dtype=torch.bool) if ids.shape[1] > 1 else without[:, None]
    monkeypatch.setattr(thought_rl, "answers_correct", verdicts)
    loss, metrics = PublishedObjective(ThoughtSampler(TASK, THOUGHTS, 6), reference, beta, kl_to, rewarded)(model, batch)
    trunk, found, right = ThoughtSampler(TASK, THOUGHTS, 6)(model, batch)
    reward = improvement_reward(right, without) if rewarded else torch.ones(right.shape)
    assert reward.mean() == (0.5 if rewarded else 1) == metrics["rl/reward"]
    known = Prefix(reference, batch[0])
    penalty = published_kl(trunk, known, found, batch[1], END) if kl_to == "no_thought" else kl_to_warm_start(trunk, known, found)
    expected = published_loss(trunk, found, batch[1], reward, END) + beta * penalty
    assert penalty > 1e-3 and loss.item() == pytest.approx(expected.item(), abs=1e-6) and metrics["right"] == 1


def test_published_objective_goes_on_from_a_checkpoint():
    one, other = (PublishedObjective(ThoughtSampler(TASK, THOUGHTS, 6), fresh(1)) for _ in range(2))
    model, batch = fresh(), questions()
    one(model, batch)
    other.load_state_dict(one.state_dict())
    assert one(model, batch)[0].item() == other(model, batch)[0].item() and one.sampler.characters == other.sampler.characters


def test_all_methods_draw_alike(monkeypatch):
    "Expert iteration, the published form and REINFORCE: the same first questions, as many thoughts and characters"
    everything_is(True, monkeypatch)
    model, reference = fresh(), fresh(1)
    first, batches = next(ProblemBatches(TASK, 4, 0, width=6)), expert(model)
    next(batches)
    assert torch.equal(batches.prompts[::3], first[0]) and len(batches.prompts) == 12
    metrics = ThoughtRL(TASK, THOUGHTS, ThoughtRLConfig(), reference, 0)(model, first)[1]
    published = PublishedObjective(ThoughtSampler(TASK, THOUGHTS, 6), reference)
    published(model, first)
    assert batches.sampler.characters == published.sampler.characters == metrics["generated"] > 0


def test_kl_is_along_the_same_thoughts():
    model, other, (prompt, *_) = fresh(0), fresh(1), questions()
    found, terms = written(model, prompt), []
    for i in range(4):
        for g in range(3):
            p, q = (m(torch.cat([prompt[i], found.ids[i, g]])[None, :-1])[0, len(prompt[i]) - 1 :].log_softmax(-1) for m in (model, other))
            terms.append((p.exp() * (p - q)).sum(-1)[found.chosen[i, g]])
    assert torch.allclose(kl_to_warm_start(Prefix(model, prompt), Prefix(other, prompt), found), torch.cat(terms).mean(), atol=1e-4)
    assert abs(kl_to_warm_start(Prefix(model, prompt), Prefix(copy.deepcopy(model), prompt), found)) < 1e-6


@pytest.mark.parametrize("baseline", ["leave_one_out", "mean", "none"])
def test_advantages(baseline):
    objective = ThoughtRL(TASK, THOUGHTS, ThoughtRLConfig(baseline=baseline, beta=0.0))
    reward = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    adv, flat = objective.advantage(reward)
    third = {"leave_one_out": [1.0, -0.5, -0.5], "mean": [2 / 3, -1 / 3, -1 / 3], "none": [1.0, 0.0, 0.0]}[baseline]
    assert torch.allclose(adv[0], torch.tensor(third)) and flat.tolist() == [False, baseline != "none"] and objective.advantage(0 * reward)[1].all() and (adv[1] == float(baseline == "none")).all()


def test_rewards_that_never_vary_stop_the_run():
    objective = ThoughtRL(TASK, THOUGHTS, ThoughtRLConfig(beta=0.0, patience=3))
    flat, reward = torch.ones(2, dtype=torch.bool), torch.zeros(2, 3)
    objective.count_episodes(flat, reward, 2), objective.count_episodes(flat, reward, 2), objective.count_episodes(torch.tensor([True, False]), reward, 2)
    objective.count_episodes(flat, reward, 2), objective.count_episodes(flat, reward, 2)
    with pytest.raises(NothingToLearn, match="for 3 updates all 3 thoughts"): objective.count_episodes(flat, reward, 2)
    assert objective.episodes == 12


def test_each_corruption_lowers_its_part_of_coherence(trained):
    prompt, answer, _ = questions(64)
    item_ids = TASK.encode([TASK.item("".join(TASK.vocab.chars[i] for i in p)) for p in prompt.tolist()], worked=True)[1]
    ids = torch.cat([torch.full((64, 1), START), item_ids], 1)[:, None]
    def thoughts_of(ids):
        place = torch.arange(ids.shape[-1])
        return Thoughts(ids, (place > 0).expand_as(ids), ((place > 0) & (place < 6)).expand_as(ids), torch.ones(64, 1, dtype=torch.bool))
    score, good = CoherenceScorer(trained, END, STOP), thoughts_of(ids)
    whole = score(trained, prompt, good, answer)
    garbled, noise, other = ids.clone(), ids.clone(), torch.cat([ids[..., :1], ids[..., 1:].roll(1, 0)], -1)
    garbled[:, :, 1:6] = ids[:, :, 1:6].flip(-1)
    noise[:, :, 1:6] = torch.randint(len(TASK.vocab), (64, 1, 5), generator=torch.Generator().manual_seed(0))
    parts = [(name, score(trained, prompt, thoughts_of(worse), answer)) for worse in (garbled, noise) for name in ("semantic", "syntactic")]
    parts += [("semantic", score(trained, prompt, thoughts_of(other), answer)), ("predictive", score(trained, prompt, good, answer.roll(1, 0))), ("predictive", score(trained, prompt, thoughts_of(other), answer))]
    for name, worse in parts: assert getattr(worse, name).mean() < getattr(whole, name).mean() - 0.05, name
    assert torch.allclose(whole.composite, 0.3 * whole.semantic + 0.3 * whole.syntactic + 0.4 * whole.predictive) and 0 <= whole.composite.min() <= whole.composite.max() <= 1


@pytest.mark.parametrize("turn, score", [(1.0, 1.0), (0.0, 0.5), (-2.0, 0.0)])
def test_semantic_coherence_is_the_angle_between_question_and_thought(turn, score):
    "Hidden states of a question are its own direction and something that all questions share, those of its thoughts the direction turned and something else; outside of the thought they are anything"
    (prompt, *_), found = questions(), written(fresh(), questions()[0])
    own = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0], [0, -1.0, 0]])
    class Model(ContextualGPT):
        def hidden(self, ids, cache=None):
            if len(ids) == 4: return (own + torch.tensor([0.3, 0, 7.0]))[:, None].expand(4, ids.shape[1], 3)
            told = turn * own[:, None].expand(4, 3, 3).flatten(0, 1) + torch.tensor([2.0, 0, 5.0]) * (turn != 0) + own.roll(2, 0)[:, None].expand(4, 3, 3).flatten(0, 1) * (turn == 0)
            return torch.where(found.inside[..., 1:].flatten(0, 1)[..., None], told[:, None], torch.randn(*ids.shape, 3))
    found = found._replace(inside=torch.arange(found.ids.shape[-1]).sub(3).abs().le(2).expand_as(found.ids))
    scored = CoherenceScorer(fresh(), END, STOP).similarity(Model(fresh().cfg), prompt, found)
    assert torch.allclose(scored, torch.tensor(score), atol=1e-6)


def test_semantic_coherence_without_anything_to_tell():
    "Empty thoughts, thoughts that are all alike and a question alone have one half; empty ones and padding before a question change nothing for the others"
    (prompt, *_), found, model = questions(7), written(fresh(), questions(7)[0]), fresh(std=0.1)
    found = found._replace(inside=torch.arange(found.ids.shape[-1]).sub(3).abs().le(2).expand_as(found.ids))
    alike = lambda found, prompt=prompt: CoherenceScorer(model, END, STOP).similarity(model, prompt, found)
    whole, empty = alike(found), found._replace(inside=found.inside & (torch.arange(3) > 0)[:, None])
    assert torch.equal(alike(empty)[:, 0], torch.full((7,), 0.5)) and torch.allclose(alike(empty)[:, 1:], alike(Thoughts(*(x[:, 1:] for x in found))), atol=1e-6) and (whole - 0.5).abs().min() > 1e-4
    same = found._replace(ids=found.ids[:1, :1].expand_as(found.ids))
    assert torch.equal(alike(same), torch.full((7, 3), 0.5)) and torch.equal(alike(Thoughts(*(x[:1] for x in found)), prompt[:1]), torch.full((1, 3), 0.5))
    class Placeless(ContextualGPT):
        "Hidden states that are the symbols'"
        def hidden(self, ids, cache=None): return model.token(ids)
    plain = CoherenceScorer(model, END, STOP)
    assert torch.allclose(plain.similarity(Placeless(model.cfg), torch.nn.functional.pad(prompt, (2, 0), value=STOP), found), plain.similarity(Placeless(model.cfg), prompt, found), atol=1e-6)


def test_diversity():
    ids = torch.tensor([[[9, 1, 2, 0], [9, 1, 2, 0], [9, 3, 4, 0]]])
    inside = torch.tensor([False, True, True, False]).expand_as(ids)
    assert thought_diversity(Thoughts(ids, inside, inside, torch.ones(1, 3, dtype=torch.bool))) == pytest.approx(2 / 3)


def test_validation_tells_what_checking_each_answer_tells(trained, monkeypatch):
    monkeypatch.setitem(thought_validation._PROXIES, type(TASK), "proxy")
    items = TASK.sample(40, split="test")
    found, evidence = validate_thoughts(trained, trained, TASK, THOUGHTS, items, seed=1)
    direct = [TASK.check_answer(i, t + "\n") for i, t in zip(items, evidence.direct)]
    assert evidence.right_without.tolist() == direct and found["accuracy_direct"] == pytest.approx(sum(direct) / 40)
    assert evidence.right_with.tolist() == [TASK.check_answer(i, t + "\n") for i, t in zip(items, evidence.thoughtful)]
    assert validate_thoughts(trained, trained, TASK, THOUGHTS, items, seed=1)[1].thoughtful == evidence.thoughtful and 0 <= found["thought_diversity"] <= 1
    assert found["proxy"] == found["accuracy_greedy"] != found["accuracy_sampled"]
    prompt = TASK.encode(items)[0]
    read = torch.cat([prompt, ThoughtGenerator(THOUGHTS, 6, STOP)(Prefix(trained, prompt), 1, temperature=0.0).ids[:, 0]], 1)
    largest = [trained.attention_logit_max(row[None, : trained.cfg.context]).max().item() for row in read]
    assert found["attention_logit_max"] == pytest.approx(max(largest)) and max(largest) > trained.attention_logit_max(prompt).max() + 1e-3


def test_resumes_bit_for_bit(tmp_path):
    base = fresh(std=0.1)
    def run(folder, stop=None):
        model, losses = copy.deepcopy(base), []
        def note(row):
            losses.append(row["loss"])
            if len(losses) == stop: raise KeyboardInterrupt
        objective = ThoughtRL(TASK, THOUGHTS, ThoughtRLConfig("gain"), copy.deepcopy(base), seed=2)
        try: train(model, objective, ProblemBatches(TASK, 4), TrainConfig(steps=6, lr=1e-3, warmup=1, checkpoint_every=3), callbacks=(note,), checkpoint_dir=folder, progress=False)
        except KeyboardInterrupt: pass
        return losses, objective.episodes
    whole, broken, again = run(tmp_path / "a"), run(tmp_path / "b", stop=5), run(tmp_path / "b")
    assert len(broken[0]) == 5 and again[0] == whole[0][3:] and again[1] == whole[1]


def test_golden_losses():
    "Ten steps from a fixed start; a change here is a change of what every recorded run means"
    base = fresh(std=0.1)
    rows = train(copy.deepcopy(base), ThoughtRL(TASK, THOUGHTS, ThoughtRLConfig("gain"), base, seed=2), ProblemBatches(TASK, 4), TrainConfig(steps=10, lr=1e-3, warmup=1), progress=False)
    assert [r["loss"] for r in rows[::3]] == pytest.approx(GOLDEN, abs=2e-3)


GOLDEN = [0.0242, -0.0692, 0.0366, 0.0782]


def test_a_saved_model_loads_in_one_line(tmp_path, monkeypatch):
    model = fresh()
    save_thinking_model(tmp_path / "m", model, ("s5", 1), THOUGHTS)
    loaded, task, thoughts = load_thinking_model(tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert task == TASK and thoughts == THOUGHTS and all(torch.equal(p, q) for p, q in zip(model.parameters(), loaded.parameters()))
    def full(*args, **more): raise OSError("no space left")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError): save_thinking_model(tmp_path / "m", fresh(1), ("s5", 1), THOUGHTS)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert torch.equal(load_thinking_model(tmp_path / "m")[0].token.weight, model.token.weight)


PASSES, FAILS = Finding(1.0, 0.9, 1.1, 0.5, "pass", "fine"), Finding(0.0, -0.1, 0.1, 0.5, "fail", "0.000 (-0.100 … 0.100) against 0.5")


UPDATES = 6  # of a small run, each validated and tested


def small(folder, model, **changes):
    return run_reinforcement(folder, model, ("s5", 1), THOUGHTS, **dict(training=TrainConfig(steps=UPDATES, lr=1e-3, warmup=2), batch=4, items=20, seed=0, progress=False) | changes)


def test_a_decided_failure_goes_back_to_the_last_good_state(tmp_path, trained):
    class Validator(AntiTheaterValidator):
        "Passes the start and two states, then fails"
        calls = 0
        def __call__(self, evidence):
            self.calls += 1
            return Report(PASSES, FAILS if self.calls == 4 else PASSES, PASSES)
    validator, weights = Validator(), []
    real = pipeline.save_thinking_model
    def keep(folder, model, *rest):
        weights.append(model.token.weight.detach().clone())
        return real(folder, model, *rest)
    pipeline.save_thinking_model = keep
    heard = []
    try: result = small(tmp_path, trained, validator=validator, callbacks=(heard.append,))
    finally: pipeline.save_thinking_model = real
    assert "ablation decidedly failed" in result.stopped and validator.calls == 5 and len(weights) == 3  # the start and two good states; the last call judges what was taken
    assert torch.equal(result.model.token.weight, weights[-1]) and not torch.equal(weights[-1], weights[0])
    assert len(result.rows) < UPDATES and result.rows[-1]["rl/anti_theater_ablation"] == 0.0 and result.rows[-1]["step"] == heard[-1]["step"] == result.rows[-2]["step"] + 1


def test_what_the_warm_start_fails_stops_nothing(tmp_path, trained):
    "Ablation fails from the start, correlation at the second test"
    calls = []
    def validator(evidence):
        calls.append(evidence)
        return Report(PASSES, FAILS, FAILS if len(calls) == 3 else PASSES)
    result = small(tmp_path, trained, validator=validator)
    assert result.stopped.startswith("after 8 episodes correlation decidedly failed") and result.start.decided_failures == ["ablation"] and len(calls) == 4 and "unchanged" not in result.stopped
    calls.clear()
    def validator(evidence):
        calls.append(evidence)
        return Report(PASSES, FAILS if len(calls) == 2 else PASSES, PASSES)
    assert small(tmp_path / "first", trained, validator=validator).stopped.endswith("; the model is the warm start, unchanged")
    always = lambda evidence: Report(PASSES, FAILS, PASSES)
    assert small(tmp_path / "always", trained, validator=always).stopped == "" and json.loads((tmp_path / "always/log.json").read_text())["forgiven"] == ["ablation"]
    strict = small(tmp_path / "strict", trained, validator=always, waive=False)
    assert strict.stopped.startswith("after 4 episodes ablation decidedly failed") and strict.stopped.endswith("unchanged") and torch.equal(strict.model.token.weight, trained.token.weight)
    with pytest.raises(ValueError, match="another run: waive"): small(tmp_path / "always", trained, validator=always, waive=False)


@pytest.mark.parametrize("verdict, stops", [("pass", True), ("undecided", False)])
@pytest.mark.parametrize("broken_off", [False, True])
def test_what_was_passed_in_between_is_forgiven_no_longer(tmp_path, trained, verdict, stops, broken_off):
    "Ablation fails at the start, has `verdict` after the second update and fails from the third on; also where a run that ended between both goes on"
    def validator(updates):
        calls = []
        def validate(evidence):
            calls.append(evidence)
            return Report(PASSES, PASSES._replace(verdict=verdict) if updates + len(calls) - 1 == 2 and len(calls) > 1 else FAILS, PASSES)
        return validate
    def interrupt(row):
        if row["step"] == 2: os.kill(os.getpid(), signal.SIGINT)
    if broken_off:
        with pytest.raises(KeyboardInterrupt): small(tmp_path, trained, validator=validator(0), callbacks=(interrupt,))
        assert list_checkpoints(tmp_path / "checkpoints")[-1].name.endswith("2")
    result = small(tmp_path, trained, validator=validator(2 * broken_off))
    assert result.stopped.startswith("after 12 episodes ablation decidedly failed") if stops else result.stopped == ""
    assert [r["rl/anti_theater_ablation_forgiven"] for r in result.rows[:2]] == [1.0, 1.0 - stops]
    assert json.loads((tmp_path / "log.json").read_text())["forgiven"] == ([] if stops else ["ablation"])


@pytest.mark.parametrize("passed", [True, False])
def test_what_was_passed_is_not_forgiven_at_the_end_either(tmp_path, trained, passed):
    "Ablation fails at the start, and at the end for the warm start and the trained model; in between it is passed, or never"
    calls = []
    def validator(evidence):
        calls.append(evidence)
        return Report(PASSES, PASSES if passed and 2 <= len(calls) <= UPDATES + 1 else FAILS, PASSES)
    assert (f"after {4 * UPDATES} episodes ablation decidedly failed" in small(tmp_path, trained, validator=validator).stopped) == passed and len(calls) == UPDATES + 4


def test_a_run_that_diverges_says_so(tmp_path, trained):
    with pytest.raises(FloatingPointError, match=r"training diverged: after \d+ episodes .* The last good model is .*model.safetensors; lower the learning rate"):
        small(tmp_path, trained, cfg=ThoughtRLConfig("gain"), training=TrainConfig(steps=12, lr=1e6, warmup=1, clip=1e9))
    assert json.loads((tmp_path / "log.json").read_text())["stopped"].startswith("FloatingPointError: training diverged")
    assert all(p.isfinite().all() for p in load_thinking_model(tmp_path / "model.safetensors")[0].parameters())


@pytest.mark.parametrize("waive", [True, False])
def test_the_end_is_forgiven_only_where_the_rest_is(tmp_path, trained, waive):
    "What is judged before the trained state fails as well: the warm start on the same questions, or an earlier state"
    calls = []
    def validator(last):
        calls.clear()
        def validate(evidence):
            calls.append(evidence)
            return Report(PASSES, FAILS if len(calls) in last else PASSES, PASSES)
        return validate
    assert not small(tmp_path / "a", trained, validator=validator([]), waive=waive).stopped
    n = len(calls)  # the last one is about what was kept
    assert ("ablation decidedly failed" in small(tmp_path / "b", trained, validator=validator([n - 2, n - 1]), waive=waive).stopped) != waive


def test_a_last_state_that_fails_is_not_kept(tmp_path, trained, monkeypatch):
    "The validator lets every state pass but the one at the end"
    calls = {"a": 0, "b": 0}
    def validator(folder, fails_at=0):
        def validate(evidence):
            calls[folder] += 1
            return Report(PASSES, FAILS if calls[folder] == fails_at else PASSES, PASSES)
        return validate
    whole, seen = small(tmp_path / "a", trained, validator=validator("a")), []
    tmp_path, real = tmp_path / "b", pipeline.save_thinking_model
    def keep(file, model, *rest):
        seen.append(model.token.weight.detach().clone())
        return real(file, model, *rest)
    monkeypatch.setattr(pipeline, "save_thinking_model", keep)
    result = small(tmp_path, trained, validator=validator("b", calls["a"] - 1))  # the last call is about what was kept
    assert not whole.stopped and "ablation decidedly failed" in result.stopped and calls["b"] == calls["a"] and len(result.rows) == UPDATES
    assert torch.equal(result.model.token.weight, seen[-1]) and not torch.equal(result.model.token.weight, whole.model.token.weight) and not torch.equal(seen[-1], seen[0])
    said = json.loads((tmp_path / "log.json").read_text())
    assert said["stopped"] == result.stopped and len(said["rows"]) == UPDATES and said["final"]["accuracy_greedy"] == result.final["accuracy_greedy"] and said["report"]["ablation"]["verdict"] == "pass"


def test_what_is_logged_has_the_published_names(tmp_path, trained, monkeypatch):
    "Nineteen names, and after which episodes; the last 100 rewards by hand"
    assert thought_validation._PROXIES == {WordProblems: "gsm8k_accuracy", MultipleChoice: "arc_accuracy"}  # one of the two a run
    monkeypatch.setitem(thought_validation._PROXIES, type(TASK), "gsm8k_accuracy")
    result = small(tmp_path, trained, batch=20, training=TrainConfig(steps=50, lr=1e-3, warmup=2), validate_every=100)
    told = {name: [r["rl/episode"] for r in result.rows if f"rl/{name}" in r] for name in set().union(*({k.removeprefix("rl/") for k in r if k.startswith("rl/")} for r in result.rows))}
    often, hundred = list(range(20, 1001, 20)), list(range(100, 1001, 100))
    assert all(told[name] == often for name in ("episode", "reward", "avg_reward_100", "kl_divergence", "coherence", "num_thoughts"))
    assert all(told[name] == hundred for name in ("coherence_semantic", "coherence_syntactic", "coherence_predictive", "coherence_composite", "thought_length", "thought_diversity", "inference_time_ms", "gsm8k_accuracy"))
    assert all(told[name] == hundred for name in ("anti_theater_divergence", "anti_theater_ablation", "anti_theater_all_passed")) and told["anti_theater_correlation"] and set(told["anti_theater_correlation"]) <= set(hundred)
    assert [r["rl/avg_reward_100"] for r in result.rows] == pytest.approx([sum(r["rl/reward"] for r in result.rows[max(0, i - 4) : i + 1]) / min(5, i + 1) for i in range(50)], abs=1e-5)


def test_a_long_run_is_validated_and_tested_as_often_as_described(tmp_path, trained, monkeypatch):
    "Every 100 and every 1,000 episodes, gradients clipped at 1"
    given = []
    monkeypatch.setattr(pipeline, "train", lambda *args, **more: given.extend(args) or [])
    for steps, between, every in ((2000, 100, 1000), (30, 30, 30)):
        given.clear()
        small(tmp_path / str(steps), trained, batch=10, training=replace(inspect.signature(run_reinforcement).parameters["training"].default, steps=steps))
        questions, training, watch = given[2:5]
        assert questions.width == max(len(i.completion()) for i in ITEMS) and (training.eval_every, watch.between, watch.every, watch.batch, training.clip) == (1, between, every, 10, 1.0)


@pytest.mark.parametrize("batch, between, every", [(16, 100, 1000), (7, 100, 250), (30, 20, 60), (16, 96, 192)])
def test_validations_come_at_the_first_update_after_their_time(batch, between, every):
    "Also where a run goes on: the watch remembers nothing. Against a count of the multiples that each update passes"
    counter, tested, last = SimpleNamespace(episodes=0), [], 201 * batch
    judge = lambda model: (dict(accuracy_greedy=0.5), counter.episodes)
    def validator(evidence):
        tested.append(evidence)
        return Report(PASSES, PASSES, PASSES)
    rows = {}
    for counter.episodes in range(batch, last + 1, batch):
        rows[counter.episodes] = thought_validation.TheaterWatch(judge, counter, batch, between, every, validator, lambda model: None, last)(fresh())
    validated = [e for e, row in rows.items() if row]
    assert validated == sorted({-(-m // batch) * batch for m in range(between, last, between)} | {last})
    assert tested == [e for before, e in zip([0, *validated], validated) if any(m % every == 0 for m in range(before + 1, e + 1))]


def test_the_log_is_there_after_every_validation(tmp_path, trained):
    seen = []
    def look(row):
        if row["step"] % 5 == 0: seen.append((row["step"], json.loads((tmp_path / "log.json").read_text())))
    result = small(tmp_path, trained, callbacks=(look,), training=TrainConfig(steps=20, lr=1e-3, warmup=2), validate_every=8)
    assert [(step, len(log["rows"]), "final" in log) for step, log in seen] == [(5, 4, False), (10, 10, False), (15, 14, False), (20, 20, False)]
    assert json.loads((tmp_path / "log.json").read_text())["final"]["accuracy_greedy"] == result.final["accuracy_greedy"]


def test_rewards_that_stop_varying_end_a_run_with_its_model(tmp_path, trained, monkeypatch):
    "From the fifth update on every thought earns the same"
    real, calls = ThoughtRL.reward, []
    def reward(self, trunk, found, answer, items):
        calls.append(1)
        earned, right = real(self, trunk, found, answer, items)
        return (torch.ones_like(earned), right) if len(calls) > 5 else (earned, right)
    monkeypatch.setattr(ThoughtRL, "reward", reward)
    result = small(tmp_path, trained, cfg=ThoughtRLConfig("gain", patience=3), training=TrainConfig(steps=12, lr=1e-3, warmup=2))
    assert result.stopped.startswith("for 3 updates all 3 thoughts") and len(calls) == 8 and len(result.rows) == 6  # one call counts operations, the last row is of the update before it stopped
    saved = load_thinking_model(tmp_path / "model.safetensors")[0]
    assert all(torch.equal(p, q) for p, q in zip(saved.parameters(), result.model.parameters())) and not torch.equal(saved.token.weight, trained.token.weight)
    assert json.loads((tmp_path / "log.json").read_text())["stopped"] == result.stopped


def test_tests_for_theater_come_when_they_would_have_come_without_a_stop(tmp_path, trained):
    def stop(row):
        if row["step"] == 8: raise KeyboardInterrupt
    def tested(rows): return [r["step"] for r in rows if "rl/anti_theater_ablation" in r]
    long = dict(training=TrainConfig(steps=40, lr=1e-3, warmup=2, checkpoint_every=7), validate_every=12)  # validated every 12 episodes, tested every 16
    whole = small(tmp_path / "a", trained, **long)
    with pytest.raises(KeyboardInterrupt): small(tmp_path / "b", trained, **long, callbacks=(stop,))
    assert tested(small(tmp_path / "b", trained, **long).rows) == tested(whole.rows) == [6, 9, 12, 18, 21, 24, 30, 33, 36, 40]


def test_gains_that_differ_by_rounding_teach_nothing():
    objective = ThoughtRL(TASK, THOUGHTS, ThoughtRLConfig("gain", beta=0.0))
    assert objective.advantage(torch.tensor([[0.5, 0.5 + 5e-5, 0.5], [0.5, 0.5 + 5e-4, 0.5]]))[1].tolist() == [True, False]


def test_one_thought_learns_without_a_baseline():
    objective, model = ThoughtRL(TASK, thought_config_for(TASK, ITEMS, 1), ThoughtRLConfig("gain", "none", beta=0.0, patience=2)), fresh()
    for i in range(4): objective(model, questions(4, i))[0].backward()
    assert model.token.weight.grad.norm() > 0 and objective.flat_updates == 0


def test_an_undecided_failure_stops_nothing(tmp_path, trained):
    result = small(tmp_path, trained)
    assert result.stopped == "" and len(result.rows) == UPDATES and result.report.correlation.verdict == "undecided"
    assert result.rows[-1]["rl/episode"] == 4 * UPDATES and {"rl/coherence_semantic", "rl/thought_diversity", "val_accuracy_greedy"} <= set(result.rows[-1])


@pytest.mark.parametrize("act, message", [
    (lambda m: ThoughtRLConfig(reward="rigth"), "did you mean 'right'"), (lambda m: ThoughtRLConfig(baseline="loo"), "no baseline 'loo'"), (lambda m: ThoughtRLConfig(beta=math.nan), "beta is nan"), (lambda m: ThoughtRLConfig(patience=0), "patience is 0"),
    (lambda m: ThoughtRL(TASK, THOUGHTS), "needs the frozen warm start"), (lambda m: ThoughtRL(TASK, thought_config_for(TASK, ITEMS, 1), ThoughtRLConfig(beta=0.0)), "n_thoughts 1"),
    (lambda m: ThoughtRL(TASK, THOUGHTS, ThoughtRLConfig(beta=0.0))(m, (*TASK.encode(ITEMS[:2], worked=True), ITEMS[:2])), "have a thought in them"),
    (lambda m: WarmStartBatches(TASK, 8, direct=0.7, canned=0.5), "sum to at most 1"), (lambda m: WarmStartBatches(TASK, 0), "batch of 0"), (lambda m: ThoughtRL(TASK, replace(THOUGHTS, temperature=0.5), ThoughtRLConfig(beta=0.0)), "temperature 0.5"), (lambda m: ThoughtRL(TASK, THOUGHTS, reference=m)(m, (*TASK.encode(ITEMS[:2]), ITEMS[:2])), "the model itself"),
    (lambda m: run_reinforcement("nowhere", m, ("arithmetic", 2), THOUGHTS), "another vocabulary"), (lambda m: small("nowhere", m, batch=0), "batch 0"), (lambda m: ThoughtRLConfig(kl_to="no_thougt"), "did you mean 'no_thought'"), (lambda m: thought_config_for(TASK, [Item("ab=", (), "c")]), "nothing to think"), (lambda m: ProblemBatches(TASK, 4, shift=-1), "shift is -1"), (lambda m: next(ProblemBatches(TASK, 4, keep=lambda i: False)), "0 of 400 items"),
    (lambda m: answers_correct(COUNTDOWN, *(COUNTDOWN.encode(COUNTDOWN.sample(2))[1][x] for x in (slice(None), (slice(None), None)))), "give the items"),
])
def test_bad_input_is_refused(act, message):
    with pytest.raises(ValueError, match=message): act(fresh())


def test_a_missing_or_foreign_warm_start_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model was saved there"): load_thinking_model(tmp_path / "nothing")
    with pytest.raises(ValueError, match="is a folder: give .*model.safetensors"): load_thinking_model(tmp_path)
    (tmp_path / "broken").write_bytes(b"no model, but long enough for a header")
    with pytest.raises(ValueError, match="broken cannot be read as a model"): load_thinking_model(tmp_path / "broken")
    save_thinking_model(tmp_path / "m", fresh(), ("addition", 2), THOUGHTS)  # as many symbols, but others
    with pytest.raises(ValueError, match="another vocabulary"): small(tmp_path / "run", tmp_path / "m")
    save_thinking_model(tmp_path / "m", fresh(), ("arithmetic", 2), THOUGHTS)
    with pytest.raises(ValueError, match="another vocabulary"): load_thinking_model(tmp_path / "m")
    with pytest.raises(FileNotFoundError, match="no model was saved there"): small(tmp_path / "run", tmp_path / "nothing")
    sums = load_task("addition", 2).sample(50)
    with pytest.raises(ValueError, match="another vocabulary"): run_reinforcement(tmp_path / "run", fresh(), ("addition", 2), thought_config_for(load_task("addition", 2), sums))  # as many symbols, in memory
    with pytest.raises(ValueError, match="another vocabulary"): run_reinforcement(tmp_path / "run", load_thinking_model(save_thinking_model(tmp_path / "s", fresh(), ("s5", 1), THOUGHTS))[0], ("addition", 2), thought_config_for(load_task("addition", 2), sums))
    assert not (tmp_path / "run").exists()
    with pytest.raises(TypeError, match="NormedGPT"): save_thinking_model(tmp_path / "n", NormedGPT(fresh().cfg), ("s5", 1), THOUGHTS)


def test_a_file_without_the_weights_of_its_model_is_refused(tmp_path):
    _, settings, _ = model_files.read_model_file(save_thinking_model(tmp_path / "m", fresh(), ("s5", 1), THOUGHTS))
    model_files.save_model_file(tmp_path / "other", torch.nn.Linear(2, 2), "thinking", settings)
    with pytest.raises(ValueError, match="other belongs to another model: bias is .2,. there and absent here"):
        load_thinking_model(tmp_path / "other")
    model_files.save_model_file(tmp_path / "other", fresh(), "gpt", settings)
    with pytest.raises(ValueError, match="of the family 'gpt': it thinks about no task"): load_thinking_model(tmp_path / "other")


def test_a_file_from_before_there_were_families_is_read(tmp_path):
    model, file = fresh(), tmp_path / "m"
    about = dict(task=("s5", 1), vocab=TASK.vocab.chars, model=asdict(model.cfg), thoughts=asdict(THOUGHTS))
    file.write_bytes(save(dict(model.state_dict()), {"thinker": json.dumps(about)}))
    again, task, thoughts = load_thinking_model(file)
    assert (task, thoughts) == (load_task("s5", 1), THOUGHTS) and torch.equal(again.token.weight, model.token.weight)


def test_a_stop_while_a_file_is_read_is_a_stop(tmp_path, monkeypatch):
    "The reader makes an error of its own of whatever is raised inside it"
    file, real = save_thinking_model(tmp_path / "m", fresh(), ("s5", 1), THOUGHTS), model_files.safe_open
    def read(*args):
        try: signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as why: raise SafetensorError("interrupted") from why
        return real(*args)
    monkeypatch.setattr(model_files, "safe_open", read)
    with pytest.raises(KeyboardInterrupt): load_thinking_model(file)


def test_a_saved_model_can_be_read_by_whom_the_system_lets(tmp_path):
    before = os.umask(0o022)
    try: file = save_thinking_model(tmp_path / "m", fresh(), ("s5", 1), THOUGHTS)
    finally: os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_a_task_without_a_length_is_refused():
    "Outside of the tests, which check types"
    done = subprocess.run([sys.executable, "-c", "from refine_nb.pipeline import run_warm_start; run_warm_start('nowhere', 's5')"], capture_output=True, text=True)
    assert "ValueError: task is 's5', needs a name and a length" in done.stderr


def test_a_folder_of_another_run_is_refused_and_left_alone(tmp_path, trained):
    first = small(tmp_path, trained)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for change, word in ((dict(seed=1), "seed"), (dict(cfg=ThoughtRLConfig("gain")), "cfg"), (dict(training=TrainConfig(steps=12, lr=2e-3, warmup=2)), "training"), (dict(batch=5), "batch")):
        with pytest.raises(ValueError, match=f"another run: {word}"): small(tmp_path, trained, **change)
    with pytest.raises(ValueError, match="another run: warm_start"): small(tmp_path, fresh_like(trained))
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    again = small(tmp_path, trained)  # the same run, which is finished
    assert [r["loss"] for r in again.rows] == [r["loss"] for r in first.rows] and all(torch.equal(p, q) for p, q in zip(again.model.parameters(), first.model.parameters()))


def fresh_like(model):
    "Other weights of the same shape"
    out = copy.deepcopy(model)
    with torch.no_grad(): out.token.weight += 0.01
    return out


def test_a_stopped_run_goes_on_with_its_rows_and_its_model(tmp_path, trained):
    def stop(row):
        if row["step"] == 7: raise KeyboardInterrupt
    whole = small(tmp_path / "a", trained, training=TrainConfig(steps=12, lr=1e-3, warmup=2, checkpoint_every=3))
    with pytest.raises(KeyboardInterrupt): small(tmp_path / "b", trained, training=TrainConfig(steps=12, lr=1e-3, warmup=2, checkpoint_every=3), callbacks=(stop,))
    again = small(tmp_path / "b", trained, training=TrainConfig(steps=12, lr=1e-3, warmup=2, checkpoint_every=3))
    assert [r["loss"] for r in again.rows] == [r["loss"] for r in whole.rows] and all(torch.equal(p, q) for p, q in zip(again.model.parameters(), whole.model.parameters()))


def test_without_a_validator_every_state_is_kept(tmp_path, trained):
    base = copy.deepcopy(trained).requires_grad_(False)  # as a frozen warm start is
    result = small(tmp_path, base, validator=None, cfg=ThoughtRLConfig("right", patience=4), training=TrainConfig(steps=60, lr=1e-3, warmup=2))
    assert not torch.equal(result.model.token.weight, trained.token.weight)


def test_dropout_is_off_and_the_reference_is_in_evaluation_mode():
    torch.manual_seed(0)
    model = ContextualGPT(replace(fresh().cfg, dropout=0.5))
    reference = copy.deepcopy(model).train()
    a, b = (ThoughtRL(TASK, THOUGHTS, ThoughtRLConfig("gain"), reference, seed=4)(model.train(), questions()) for _ in range(2))
    assert torch.equal(a[0], b[0]) and abs(a[1]["rl/kl_divergence"]) < 1e-6 and model.training


def test_padding_is_no_part_of_an_answer():
    task = load_task("addition", (1, 4))
    items = task.sample(12)
    torch.manual_seed(0)
    model, thoughts = thinking_model(task, items, n_layers=1, width=16, n_heads=2), thought_config_for(task, items)
    for p in model.parameters(): torch.nn.init.normal_(p, std=0.3)
    prompt, answer = task.encode(items)
    trunk = Prefix(model, prompt)
    short = torch.tensor([len(i.completion()) for i in items])
    assert short.unique().numel() > 1
    alone = torch.stack([row_logp(model, prompt[i], answer[i, : short[i]]).sum() for i in range(12)])
    assert torch.allclose(direct_logp(trunk, answer), alone, atol=1e-4)
    found = ThoughtGenerator(thoughts, answer.shape[1], task.vocab["\n"])(trunk, generator=torch.Generator().manual_seed(0))
    assert torch.equal(append_answer(found, answer, thoughts.end)[1].sum(-1), short[:, None].expand(12, thoughts.n_thoughts))
    loss, metrics = warm_start_loss(model, [(prompt, answer)])
    assert torch.allclose(loss, -torch.cat([row_logp(model, prompt[i], answer[i, : short[i]]) for i in range(12)]).mean(), atol=1e-4) and metrics["tokens"] == int(short.sum())


def test_expected_update_is_the_gradient_of_the_expected_reward(monkeypatch):
    "All that can be written after a prompt, enumerated: a thought of one character, an answer of one and its end; against many draws"
    thoughts = replace(THOUGHTS, start=7, end=2, length=1, n_thoughts=4000)
    monkeypatch.setattr(type(TASK), "check_ids", lambda task, answer, ids: ids.sum(-1) % 5 == 0)
    torch.manual_seed(0)
    model = ContextualGPT(GPTConfig(8, context=12, n_layers=1, n_heads=1, width=8))
    for p in model.parameters(): torch.nn.init.normal_(p, std=0.4)
    prompt, answer, stop = torch.tensor([[3, 4]]), torch.tensor([[5, 0]]), 0
    rows = []  # (ids, chosen): an own end of the thought, or one character and the forced end; then a character and, unless it is the end, another
    for thought, own in [([2], [True])] + [([z, 2], [True, False]) for z in range(8) if z != 2]:
        for x in range(8):
            for y in [None] if x == stop else range(8): rows.append(([7, *thought, x] + ([] if y is None else [y]), [False, *own, True] + ([] if y is None else [True])))
    ids = torch.tensor([(r + [0] * 5)[:5] for r, _ in rows])[None]
    chosen = torch.tensor([(c + [False] * 5)[:5] for _, c in rows])[None]
    logp = thought_rl.branch_logits(Prefix(model, prompt), ids).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    p = (logp * chosen).sum(-1).exp()
    assert abs(p.sum() - 1) < 1e-4
    def gradient(loss): return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    exact = gradient((p * (ids.sum(-1) % 5 == 0).float()).sum())
    objective = ThoughtRL(TASK, thoughts, ThoughtRLConfig("right", beta=0.0), seed=1)
    drawn = -torch.stack([gradient(objective(model, (prompt, answer, []))[0]) for _ in range(40)]).mean(0)
    assert (drawn - exact).norm() / exact.norm() < 0.11


def decoded(task, ids): return "".join([*task.vocab.chars, "<"][i] for i in ids.tolist())


@pytest.mark.parametrize("task", [WORDS, COUNTDOWN, load_task("multiple_choice", (3, 5)), load_task("s5", (1, 3))], ids=lambda t: type(t).__name__)
def test_warm_start_of_any_task_is_prompt_thought_and_answer(task):
    stream, again = WarmStartBatches(task, 12, direct=0.5, seed=5, shift=3), ProblemBatches(task, 12, 5, shift=3)
    (prompts, answers), (thinking, written) = next(stream)
    items = again.draw(12)
    for rows, part, kind in (((prompts, answers), items[:6], "direct"), ((thinking, written), items[6:], "worked")):
        for prompt, ids, item in zip(*rows, part):
            text = item.completion() if kind == "direct" else "<" + worked_thought(item) + item.completion()
            assert decoded(task, prompt).lstrip("\n") == item.prompt and decoded(task, ids).rstrip("\n") + "\n" == text
    assert thought_config_for(task, items).length == max(len(",".join(i.steps)) for i in items)


def test_answers_behind_thoughts_are_checked_as_text_is():
    item, sums = WORDS.sample(1)[0], COUNTDOWN.item("2 5>7=")
    number, thought = item.answer, worked_thought(item)
    cases = {f"<{thought}#### {number}\n": True, f"#### {number}\n": True, f"<{thought}#### {number}": False, f"<{thought}#### {number}1\n": False, f"<#### {number}:#### 1\n": False, f"<{thought}{number}\n": False, "<,,:\n": False, f"<:#### {number}\n\n": True, "<::::": False}
    more = {"<2+5=7:5+2\n": True, "5+2\n": True, "<5+2:2+2\n": False, "<7:7\n": False}
    for task, asked, table in ((WORDS, item, cases), (COUNTDOWN, sums, more)):
        width, symbols = max(map(len, table)), {c: i for i, c in enumerate([*task.vocab.chars, "<"])} | {"<": len(task.vocab)}
        for text, right in table.items():
            ids = torch.tensor([[[symbols[c] for c in text.ljust(width, "2")]]])
            assert answers_correct(task, task.encode([asked])[1], ids, [asked]).tolist() == [[right]], text


def test_padding_ends_no_answer():
    "Room for three characters: a right sum fills it and has no end, where there are three it is not; with a fourth it is"
    item = COUNTDOWN.item("2 5>7=")
    symbols = {c: i for i, c in enumerate([*COUNTDOWN.vocab.chars, "<"])}
    ids, answer = torch.tensor([[[symbols[c] for c in "<2+5=7:5+2\n\n\n"]]]), COUNTDOWN.encode([item])[1]
    assert [answers_correct(COUNTDOWN, answer[:, :room], ids, [item]).item() for room in (3, 4)] == [False, True]


def test_a_true_answer_longer_than_was_expected_has_room_behind_a_thought():
    "A generator that was told of shorter answers: likelihoods are those of one that was not"
    model, (prompt, answer, _) = fresh(), questions()
    trunk = Prefix(model, prompt)
    short, long = (ThoughtGenerator(replace(THOUGHTS, length=3), room, STOP)(trunk, 1, temperature=0.0) for room in (2, 6))
    assert torch.equal(short.inside[..., :5], long.inside[..., :5]) and short.ids.shape[-1] == 7
    assert torch.allclose(answer_logp(trunk, short, answer, END), answer_logp(trunk, long, answer, END), atol=1e-5)
    ids, there = append_answer(short, answer, END)
    assert torch.equal(ids[there].view(4, 6), answer)


def test_questions_keep_shift_and_resume():
    keep = lambda item: item.prompt[0] == "a"
    one, two = ProblemBatches(TASK, 8, 3, keep, shift=4), ProblemBatches(TASK, 8, 3, keep, shift=4)
    widths = {next(one)[0].shape[1] for _ in range(30)}
    two.load_state_dict(one.state_dict())
    (prompt, _, items), (prompt2, _, items2) = next(one), next(two)
    assert widths == {7, 8, 9, 10, 11} and torch.equal(prompt, prompt2) and items == items2
    assert all(i.prompt[0] == "a" for i in items) and [decoded(TASK, p).lstrip("\n") for p in prompt] == [i.prompt for i in items]


def test_kl_to_the_warm_start_without_thoughts():
    "Every thought in a row of its own against the answer at once; the same row by row as the penalty, beside the divergence behind the same thought"
    model, reference, (prompt, answer, items) = fresh(0, std=0.1), fresh(1, std=0.1), questions()
    found, terms = written(model, prompt), []
    logp_of = lambda m, row, n: m(row[None])[0, -n - 1 : -1].log_softmax(-1)
    for i in range(4):
        ref = logp_of(reference, torch.cat([prompt[i], answer[i]]), 6)
        for g in range(3):
            e = found.ids[i, g].tolist().index(END) + 1
            logp = logp_of(model, torch.cat([prompt[i], found.ids[i, g, :e], answer[i]]), 6)
            terms.append((logp.exp() * (logp - ref)).sum(-1))
    told = published_kl(Prefix(model, prompt), Prefix(reference, prompt), found, answer, END)
    assert torch.allclose(told, torch.stack(terms).mean(), atol=1e-5) and told.requires_grad
    losses = [ThoughtRL(TASK, THOUGHTS, ThoughtRLConfig("gain", beta=beta, kl_to=to), reference, seed=0)(model, (prompt, answer, items)) for beta, to in ((0.0, "no_thought"), (0.5, "no_thought"), (0.5, "same_thought"))]
    assert (losses[1][0] - losses[0][0]).item() == pytest.approx(0.5 * told.item(), abs=1e-5) and (losses[2][0] - losses[0][0]).item() == pytest.approx(0.5 * losses[0][1]["rl/kl_divergence"], abs=1e-5)
    assert losses[0][1]["rl/kl_divergence"] == pytest.approx(losses[1][1]["rl/kl_divergence"]) and losses[1][1]["rl/kl_penalty"] == pytest.approx(told.item()) and not any("rl/kl_penalty" in losses[i][1] for i in (0, 2))


def test_kl_without_thoughts_ends_where_answers_end():
    "Sums of one to four digits: answers of several lengths, whose padding does not count"
    task = load_task("addition", (1, 4))
    items = task.sample(8, 3)
    thoughts, (prompt, answer) = thought_config_for(task, items, 2), task.encode(items)
    torch.manual_seed(0)
    models = [thinking_model(task, items, n_layers=1, width=16) for _ in range(2)]
    for m in models: [torch.nn.init.normal_(p, std=0.2) for p in m.parameters()]
    found, terms = ThoughtGenerator(thoughts, answer.shape[1], task.vocab["\n"])(Prefix(models[0], prompt), generator=torch.Generator().manual_seed(0)), []
    assert len(set(lengths := [len(i.completion()) for i in items])) > 1
    for i, n in enumerate(lengths):
        logp_of = lambda m, *before, n=n, known=(answer[i, :n],): m(torch.cat([*before, *known])[None])[0, -n - 1 : -1].log_softmax(-1)
        ref = logp_of(models[1], prompt[i])
        for g in range(2):
            logp = logp_of(models[0], prompt[i], found.ids[i, g, : found.ids[i, g].tolist().index(thoughts.end) + 1])
            terms.append((logp.exp() * (logp - ref)).sum(-1))
    assert torch.allclose(published_kl(Prefix(models[0], prompt), Prefix(models[1], prompt), found, answer, thoughts.end), torch.cat(terms).mean(), atol=1e-5)


def test_what_is_logged_of_thoughts_is_what_was_drawn():
    "Entropy over chosen characters of thoughts, thoughts at their limit, their length, right answers: row by row"
    model, batch = fresh(), questions(16)
    found = written(model, batch[0])
    told = ThoughtRL(TASK, THOUGHTS, ThoughtRLConfig("gain", beta=0.0), seed=0)(model, batch)[1]
    entropies, lengths, right = [], [], []
    for prompt, group, chosen, ends, item in zip(batch[0], found.ids, found.chosen, found.ended, batch[2]):
        for ids, own, ended in zip(group, chosen, ends):
            logp = model(torch.cat([prompt, ids])[None, :-1])[0, len(prompt) - 1 :].log_softmax(-1)
            thought = ids.tolist()[1 : ids.tolist().index(END)]
            entropies += (-(logp.exp() * logp).sum(-1))[: len(thought) + 2][own[: len(thought) + 2]].tolist()
            assert bool(own[len(thought) + 1]) == (len(thought) < THOUGHTS.length) and (ended or len(thought) == THOUGHTS.length)
            lengths.append(len(thought))
            answer = "".join([*TASK.vocab.chars, "<"][i] for i in ids.tolist()[len(thought) + 2 :])
            right.append(TASK.check_answer(item, answer))
    assert told["thought_entropy"] == pytest.approx(sum(entropies) / len(entropies), abs=1e-5)
    assert told["cut"] == pytest.approx(1 - found.ended.double().mean().item()) and 0.1 < told["cut"] < 0.9 and told["characters"] == pytest.approx(sum(lengths) / len(lengths))
    assert told["right"] == pytest.approx(sum(right) / len(right))


def test_answers_that_never_end_are_counted():
    "Room for six characters after each thought, a terminator among them or not"
    model, batch = fresh(), questions(16)
    rows, ends = written(model, batch[0]).ids.flatten(0, 1).tolist(), []
    for row in rows:
        e = row.index(END) + 1
        ends.append(STOP in row[e : e + 6])
    assert 0.1 < sum(ends) / len(rows) < 0.9
    assert ThoughtRL(TASK, THOUGHTS, ThoughtRLConfig("gain", beta=0.0), seed=0)(model, batch)[1]["answer_cut"] == pytest.approx(1 - sum(ends) / len(rows))


def test_nothing_wider_is_let_through():
    items = load_task("s5", (2, 3)).sample(20)
    fits = fits_within(items)
    assert all(map(fits, items)) and fits(TASK.sample(1)[0]) and not fits(load_task("s5", 4).sample(1)[0])


def test_coherence_is_logged_once_in_ten_episodes():
    objective = ThoughtRL(TASK, THOUGHTS, ThoughtRLConfig(), fresh(1), seed=0)
    seen = ["rl/coherence" in objective(fresh(), questions(4, seed=i))[1] for i in range(6)]
    assert seen == [False, False, True, False, True, False] and objective.episodes == 24
    objective, model, (prompt, answer, items) = ThoughtRL(TASK, THOUGHTS, ThoughtRLConfig(), fresh(1), seed=0), fresh(), questions(12)
    found = written(model, prompt)
    first, every = (CoherenceScorer(fresh(1), END, STOP)(model, prompt, Thoughts(*(x[:, part] for x in found)), answer).composite.mean().item() for part in (slice(1), slice(None)))
    assert objective(model, (prompt, answer, items))[1]["rl/coherence"] == pytest.approx(first, abs=1e-5) and abs(first - every) > 1e-3


def test_word_problems_are_judged_and_named(tmp_path):
    "Both steps on problems whose answer has a line of its own; items too wide for the warm start are left out"
    short = dict(training=TrainConfig(steps=6, lr=3e-3, warmup=2, checkpoint_every=3), n_layers=1, width=16, batch=6, items=8, progress=False)
    def stop(row):
        if row["step"] == 5: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): run_warm_start(tmp_path / "a", ("word_problems", 1), callbacks=(stop,), **short)
    broken = run_warm_start(tmp_path / "a", ("word_problems", 1), **short)
    torch.manual_seed(3)  # of the session: of no account
    whole = run_warm_start(tmp_path / "b", ("word_problems", 1), **short)
    assert [r["loss"] for r in broken.rows] == [r["loss"] for r in whole.rows] and all(torch.equal(p, q) for p, q in zip(broken.model.parameters(), whole.model.parameters()))
    assert whole.metrics["gsm8k_accuracy"] == whole.metrics["accuracy_greedy"] and len(whole.rows) == 6
    with pytest.raises(ValueError, match="another run: direct"): run_warm_start(tmp_path / "a", ("word_problems", 1), direct=0.25, **short)
    done = run_reinforcement(tmp_path / "rl", whole.file, ("word_problems", 1), whole.thoughts, ThoughtRLConfig("gain"), TrainConfig(steps=2, lr=1e-3, warmup=1), batch=5, items=8, progress=False)
    assert {"rl/gsm8k_accuracy", "rl/coherence", "rl/attention_logit_max"} <= set(done.rows[-1]) and done.final["gsm8k_accuracy"] == done.final["accuracy_greedy"]


def test_warm_start_has_room_for_more_than_the_questions_that_judge_it(tmp_path):
    done = run_warm_start(tmp_path, ("s5", (1, 6)), training=TrainConfig(steps=1, lr=1e-3, warmup=0), n_layers=1, width=16, batch=4, items=1, progress=False)
    assert done.thoughts.length == max(len(worked_thought(i)) for i in load_task("s5", 6).sample(5)) - 1


def test_a_task_that_is_wider_than_the_warm_start_is_refused(tmp_path, trained):
    "Half of the questions do not fit; or thoughts are longer than there was room for, with a file as with a model"
    task = ("s5", (1, 4))
    narrow = thinking_model(load_task(*task), load_task("s5", (1, 2)).sample(50), n_layers=1, width=16)
    thoughts = thought_config_for(load_task(*task), load_task("s5", (1, 2)).sample(50))
    with pytest.raises(ValueError, match="do not fit a context of 27: .* context=28"): run_reinforcement(tmp_path / "a", narrow, task, thoughts, items=20)
    for warm in (trained, save_thinking_model(tmp_path / "model.safetensors", trained, ("s5", 1), THOUGHTS)):
        with pytest.raises(ValueError, match="a thought of 50 between two symbols"): run_reinforcement(tmp_path / "b", warm, ("s5", 1), replace(THOUGHTS, length=50), items=20)
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_answers_have_the_same_room_in_every_batch():
    task = load_task("addition", (1, 4))
    widths = {room: {next(ProblemBatches(task, 2, seed, width=room))[1].shape[1] for seed in range(20)} for room in (0, 6)}
    assert len(widths[0]) > 1 and widths[6] == {6}
    answer, items = next(ProblemBatches(task, 2, 0, width=6))[1:]
    assert [decoded(task, a).rstrip("\n") for a in answer] == [i.answer for i in items]


def test_the_description_s_optimizer_bakes_and_reinforces(tmp_path):
    "MuGrokfast in both steps; with other settings it is another run"
    with_preset = lambda name, **fields: lambda m: MuGrokfast(m, MuGrokfastConfig.preset(name, **fields))
    short = dict(n_layers=1, width=16, training=TrainConfig(steps=6, lr=5e-3, warmup=2, checkpoint_every=3), batch=8, items=8, progress=False)
    baked = run_warm_start(tmp_path / "baked", ("s5", 1), optimizer=with_preset("bake"), **short)
    plain = run_warm_start(tmp_path / "plain", ("s5", 1), **short)
    assert baked.rows[0]["loss"] == plain.rows[0]["loss"] and baked.rows[-1]["loss"] != plain.rows[-1]["loss"]
    with pytest.raises(ValueError, match="another run: optimizer"): run_warm_start(tmp_path / "baked", ("s5", 1), optimizer=with_preset("bake", grokfast_lambda=0.5), **short)
    told = small(tmp_path / "rl", baked.model, optimizer=with_preset("rl"))
    with pytest.raises(ValueError, match="another run: optimizer"): small(tmp_path / "rl", baked.model, optimizer=with_preset("rl", qk_clip_threshold=10.0))
    assert len(told.rows) == UPDATES and not torch.equal(told.model.token.weight, baked.model.token.weight)


def test_a_run_records_what_is_logged(tmp_path, trained):
    "The recorder of runs as a callback: published names in its rows, validations in its curve"
    write_notebook(tmp_path / "experiments/toy.ipynb", toy_cells())
    run = start_run("toy", {"mode": "fine", "seed": 0, "steps": 4, "pause": 0.0, "warm_start": None}, root=tmp_path)
    result = small(tmp_path / "rl", trained, callbacks=(run,))
    rows = [json.loads(line) for line in (run.dir / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(1, 7)) and all(r["rl/reward"] == pytest.approx(x["rl/reward"]) for r, x in zip(rows, result.rows))
    curve = [r for r in rows if any(k.startswith("val_") for k in r)]
    assert {"rl/coherence_semantic", "rl/thought_diversity", "rl/inference_time_ms", "rl/anti_theater_divergence"} <= set(curve[-1])


def test_multiple_choice_is_judged_under_its_name(tmp_path):
    task = ("multiple_choice", 3)
    items = load_task(*task).sample(100)
    torch.manual_seed(0)
    model = thinking_model(load_task(*task), items, n_layers=1, width=16)
    done = run_reinforcement(tmp_path, model, task, thought_config_for(load_task(*task), items), ThoughtRLConfig("gain"), TrainConfig(steps=2, lr=1e-3, warmup=1), batch=5, items=8, progress=False)
    assert done.rows[-1]["rl/arc_accuracy"] == done.rows[-1]["val_accuracy_greedy"] and done.final["arc_accuracy"] == done.final["accuracy_greedy"] and "rl/gsm8k_accuracy" not in done.rows[-1]


def test_coherence_is_that_of_each_row():
    "Mean log-probability of the thought's characters alone; the answer's gain a character"
    model, reference, (prompt, answer, _) = fresh(0, std=0.1), fresh(1, std=0.1), questions()
    found = written(model, prompt)
    score = CoherenceScorer(reference, END, STOP)(model, prompt, found, answer)
    for i in range(4):
        for g in range(3):
            e, inside = found.ids[i, g].tolist().index(END) + 1, found.inside[i, g]
            known = row_logp(reference, prompt[i], found.ids[i, g])[inside].mean().exp() if inside.any() else torch.tensor(0.0)
            gain = row_logp(model, prompt[i], torch.cat([found.ids[i, g, :e], answer[i]]))[e:].sum() - row_logp(model, prompt[i], answer[i]).sum()
            assert torch.allclose(score.syntactic[i, g], known, atol=1e-4) and torch.allclose(score.predictive[i, g], (gain / 6).sigmoid(), atol=1e-4)


def test_one_folder_is_for_one_call_at_a_time(tmp_path, trained):
    refused = []
    def second(row):
        if row["step"] == 2:
            with pytest.raises(RuntimeError, match="is in use by another call"): small(tmp_path, trained)
            refused.append(row)
    assert len(small(tmp_path, trained, callbacks=(second,)).rows) == UPDATES and refused
    assert len(small(tmp_path, trained).rows) == UPDATES  # free again


def test_bad_input_found_late_leaves_the_folder_free(tmp_path, trained):
    for validator in (lambda evidence: True, lambda evidence: None):
        with pytest.raises(TypeError, match="has to return a Report"): small(tmp_path, trained, validator=validator)
    assert [p.name for p in tmp_path.iterdir()] == [".in_use"]
    assert len(small(tmp_path, trained).rows) == UPDATES


@pytest.mark.parametrize("good", [1, 3])
def test_a_validator_is_held_to_its_word_every_time(tmp_path, trained, good):
    "Where the first test of training says something else than a report, or a later one"
    answers = iter([Report(PASSES, PASSES, PASSES)] * good + [True])
    with pytest.raises(TypeError, match="has to return a Report"): small(tmp_path, trained, validator=lambda evidence: next(answers))


def test_bad_input_after_an_update_was_kept_leaves_the_run(tmp_path, trained):
    def late(row):
        if row["step"] == 9: raise ValueError("late")
    more = dict(training=TrainConfig(steps=12, lr=1e-3, warmup=2, checkpoint_every=3))
    with pytest.raises(ValueError, match="late"): small(tmp_path, trained, callbacks=(late,), **more)
    assert (tmp_path / "settings.json").exists() and load_thinking_model(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="another run: seed"): small(tmp_path, trained, seed=1, **more)
    assert len(small(tmp_path, trained, **more).rows) == 12


@pytest.mark.parametrize("broken", ["{", "3"])
def test_a_folder_that_cannot_say_what_it_is_for_is_refused(tmp_path, trained, broken):
    (tmp_path / "settings.json").write_text(broken)
    with pytest.raises(ValueError, match="settings.json is damaged"): small(tmp_path, trained)
    assert (tmp_path / "settings.json").read_text() == broken
    with pytest.raises(ValueError, match="settings.json is a file: name a folder"): small(tmp_path / "settings.json", trained)


def test_a_damaged_checkpoint_is_named(tmp_path, trained):
    "Before its rows are read"
    small(tmp_path, trained)
    rows = list_checkpoints(tmp_path / "checkpoints")[-1] / "rows.jsonl"
    rows.write_bytes(rows.read_bytes()[:-9])
    with pytest.raises(BadCheckpoint, match="rows.jsonl is missing or damaged"): small(tmp_path, trained)


def test_a_damaged_newest_checkpoint_stops_no_rerun(tmp_path, trained):
    "It goes on from the one before, with the rows up to there"
    more = dict(training=TrainConfig(steps=12, lr=1e-3, warmup=2, checkpoint_every=4))
    whole = small(tmp_path, trained, **more)
    rows = list_checkpoints(tmp_path / "checkpoints")[-1] / "rows.jsonl"
    rows.write_bytes(rows.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="The checkpoint before it is used: .*step-00000008"): again = small(tmp_path, trained, **more)
    assert [r["step"] for r in again.rows] == list(range(1, 13)) and again.rows[-1]["loss"] == whole.rows[-1]["loss"]


def test_batches_of_an_update_count_by_their_thoughts(trained):
    "Not by what was written in them: the loss is a mean over thoughts"
    model = load_thinking_model(trained)[0] if not isinstance(trained, torch.nn.Module) else trained
    objective = ThoughtRL(TASK, THOUGHTS, ThoughtRLConfig(beta=0.0, patience=9))
    for n in (3, 5):
        metrics = objective(model, next(ProblemBatches(TASK, n)))[1]
        assert objective.terms(metrics) == n * THOUGHTS.n_thoughts != metrics["tokens"]


def test_neither_step_touches_the_random_numbers_of_its_caller(tmp_path):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    short = dict(training=TrainConfig(steps=2, lr=1e-3, warmup=1), batch=4, items=8, progress=False)
    warm = run_warm_start(tmp_path / "warm", ("s5", 1), n_layers=1, width=16, **short)
    assert torch.equal(torch.random.get_rng_state(), before)
    by_file = run_reinforcement(tmp_path / "rl", warm.file, ("s5", 1), warm.thoughts, ThoughtRLConfig("gain"), **short)
    assert torch.equal(torch.random.get_rng_state(), before)
    again = run_reinforcement(tmp_path / "rl", warm, ("s5", 1), warm.thoughts, ThoughtRLConfig("gain"), **short)  # the same warm start, as it was returned
    assert torch.equal(again.model.token.weight, by_file.model.token.weight)


def test_optimizers_are_told_apart_by_their_groups(tmp_path, trained):
    def split(first): return lambda m: torch.optim.AdamW([dict(params=[m.token.weight], lr=first), dict(params=[p for n, p in m.named_parameters() if n != "token.weight"])], lr=1e-3)
    small(tmp_path, trained, optimizer=split(1e-3))
    with pytest.raises(ValueError, match="another run: optimizer"): small(tmp_path, trained, optimizer=split(2e-3))


def test_a_warm_start_that_diverges_is_not_saved(tmp_path):
    class Breaks(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]: p.data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="training diverged"):
        run_warm_start(tmp_path, ("s5", 1), training=TrainConfig(steps=1, lr=1e-3, warmup=0), optimizer=lambda m: Breaks(m.parameters(), 1e-3), n_layers=1, width=16, batch=4, items=8, progress=False)
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("change, message", [
    (dict(training=TrainConfig(steps=12, lr=1e-3, warmup=2, accumulate=2)), "accumulate 2: .* ask for batch 8"),
    (dict(thoughts=replace(THOUGHTS, end=STOP)), "those of the warm start go from"),
    (dict(baked=fresh().double()), "weights in torch.float64"),
])
def test_what_step_two_cannot_honour_is_refused(tmp_path, change, message):
    settings = dict(baked=fresh(), task=("s5", 1), thoughts=THOUGHTS, training=TrainConfig(steps=12, lr=1e-3, warmup=2), batch=4, items=20, progress=False) | change
    with pytest.raises(ValueError, match=message): run_reinforcement(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_the_log_of_an_earlier_call_is_there_until_the_next_is_written(tmp_path, trained, monkeypatch):
    small(tmp_path, trained)
    log, seen = (tmp_path / "log.json").read_text(), []
    monkeypatch.setattr(pipeline, "train", lambda *args, **more: seen.append((tmp_path / "log.json").read_text()))
    small(tmp_path, trained)
    assert seen == [log]
