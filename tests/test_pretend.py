"""Everything that learns or judges, on a device that is as strict as a graphics card, and all experiments in their smoke preset"""
import copy
import math
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import nbformat
import pytest
import torch
from pretend_device import NAME, pretend

import refine_nb.data
import refine_nb.records
from refine_nb.benchmark_tasks import load_task
from refine_nb.calibration import evaluate_lookahead, evaluate_last_position
from refine_nb.candidates import CandidateConfig
from refine_nb.confidence import (
    ConfidenceAwareGPT, Lookahead, LookaheadConfig, LookaheadWindows, next_token_loss, standard_twin)
from refine_nb.data import MarkovSource, Windows, eval_windows, markov
from refine_nb.evaluation import evaluate, score
from refine_nb.gpt import ContextualGPT, GPTConfig, sample
from refine_nb.grpo import PositionGRPO, GRPOConfig, RolloutGRPO
from refine_nb.mugrokfast import MuGrokfast, MuGrokfastConfig
from refine_nb.pipeline import run_warm_start, run_reinforcement
from refine_nb.prefix import Prefix, branch_logits, generate, tree_logits
from refine_nb.published import REINFORCETrainer
from refine_nb.quiet_star import QuietGPT, QuietSTaR, ThoughtInjector, evaluate_thoughts
from refine_nb.tasks import ProblemBatches, RowBatches, distinct_items
from refine_nb.thought_rl import (
    ExpertIterationBatches, PublishedObjective, ThoughtRL, ThoughtRLConfig, ThoughtSampler)
from refine_nb.thought_validation import validate_thoughts
from refine_nb.thoughts import ThoughtConfig, ThoughtGenerator, thought_config_for
from refine_nb.train import WeightEMA, TrainConfig, count_flops, cross_entropy, train
from refine_nb.trigram import NGram
from refine_nb.trm import TRM, RecursiveGPT, TRMConfig, evaluate_steps
from refine_nb.warm_start import WarmStartBatches, load_thinking_model, save_thinking_model, thinking_model, warm_start_loss

ROOT = Path(__file__).resolve().parent.parent
V = 11
SHAPE = dict(context=24, n_layers=2, n_heads=2, width=16)


@pytest.fixture
def seen():
    with pretend() as seen:
        torch.manual_seed(0)
        yield seen


def ids(*shape, seed=1): return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed)).to(NAME)


def gpt(**changes): return ContextualGPT(GPTConfig(V, **SHAPE | changes)).to(NAME)


def learned(model, objective, batches, steps=2, **more):
    "The rows of a short training"
    rows = train(model, objective, batches, TrainConfig(steps=steps, lr=1e-3, warmup=1, eval_every=1, checkpoint_every=1), progress=False, **more)
    assert all(math.isfinite(row["loss"]) for row in rows) and len(rows) == steps
    return rows


def test_the_device_refuses_what_a_graphics_card_refuses(seen):
    x = torch.ones(3, device=NAME)
    for act, why in [
        (lambda: x + torch.ones(3), "same device"), 
        (lambda: x.gather(0, torch.tensor([0])), "same device"), (lambda: torch.rand(2, generator=torch.Generator(), device=NAME), "for generator"),
        (lambda: torch.rand(2, generator=torch.Generator(NAME)), "for generator"),
    ]:
        with pytest.raises(RuntimeError, match=why): act()
    for act in (x.numpy, lambda: __import__("numpy").asarray(x), lambda: __import__("pandas").DataFrame({"x": x})):
        with pytest.raises(TypeError, match="to numpy"): act()
    assert (x + torch.tensor(1.0)).cpu().tolist() == [2, 2, 2] and x[torch.tensor([0])].device.type == NAME


@pytest.mark.parametrize("wait", [
    lambda x: x[0].item(), lambda x: bool(x[0] > 0), lambda x: x.tolist(), lambda x: x.cpu(), lambda x: x[x > 0], lambda x: torch.equal(x, x),
    lambda x: x.nonzero(), lambda x: f"{x[0]:.2f}", lambda x: x.to("cpu"), lambda x: torch.zeros(3).copy_(x), lambda x: int(x[1])])
def test_the_device_counts_what_the_host_waits_for(seen, wait):
    x = torch.ones(3, device=NAME)
    assert not seen.waits
    wait(x)
    assert sum(seen.waits.values()) == 1


# What learns

def test_training_goes_on_from_a_checkpoint(seen, tmp_path):
    model = gpt(ngram=3, dropout=0.1)
    more = dict(checkpoint_dir=tmp_path)
    learned(model, WeightEMA(cross_entropy, model), Windows(ids(500), 16, 4), 2, evaluate=lambda m: evaluate(m, ids(3, 17)), **more)
    assert learned(model, WeightEMA(cross_entropy, model), Windows(ids(500), 16, 4), 2, evaluate=lambda m: evaluate(m, ids(3, 17)), **more)
    assert count_flops(model, cross_entropy, ids(2, 9)) > 0


@pytest.mark.parametrize("method", ["positions", "rollouts"])
@pytest.mark.parametrize("estimator", ["exact", "stratified", "on_policy"])
def test_grpo(seen, tmp_path, method, estimator):
    reference = NGram.fit(ids(500), V).to(NAME)
    cfg = GRPOConfig(baseline="leave_one_out", partial_credit=0.3, beta=0.1, kl_estimator="k3" if estimator == "exact" else "exact", num_iterations=2)
    candidates = CandidateConfig(estimator, top_k=3, n_random=3, n_samples=4, confident_k=3, exhaustive_ratio=0.5)
    if method == "positions": objective = PositionGRPO(cfg, candidates, V, reference, device=NAME)
    else: objective = RolloutGRPO(cfg, candidates, V, 3, reference, end=0, device=NAME)
    learned(gpt(), objective, Windows(ids(500), 12, 4, ahead=1), 3, checkpoint_dir=tmp_path)


@pytest.mark.parametrize("changes", [dict(), dict(halting=True, detach=True, improvement_reward="none"), dict(curriculum=2, contrastive=0.1)])
def test_trm(seen, tmp_path, changes):
    model = RecursiveGPT(TRMConfig.preset("smoke", V, **changes)).to(NAME)
    learned(model, TRM(model.cfg.refinement), Windows(ids(500), 8, 4), evaluate=lambda m: evaluate_steps(m, ids(3, 9)), checkpoint_dir=tmp_path)


@pytest.mark.parametrize("cfg", [LookaheadConfig(form="last", carry=True), LookaheadConfig(form="branch", detach=True, clip=0.1), LookaheadConfig(form="mask"), LookaheadConfig(form="shifted", target="teacher")])
def test_confidence(seen, tmp_path, cfg):
    model = ConfidenceAwareGPT(GPTConfig(V, **SHAPE), feedback=0 if cfg.form == "shifted" else 2).to(NAME)
    learned(model, Lookahead(cfg, 0, NAME), LookaheadWindows(ids(500), 12, 4, ahead=2), checkpoint_dir=tmp_path)
    if cfg.form != "branch": return
    evaluate_lookahead(model, ids(3, 14), oracle=True), evaluate_last_position(model, ids(3, 14))
    learned(standard_twin(model.cfg).to(NAME), next_token_loss, LookaheadWindows(ids(500), 12, 4, ahead=2))


@pytest.mark.parametrize("name", ["bake", "rl"])
def test_mugrokfast(seen, tmp_path, name):
    model = gpt()
    learned(model, cross_entropy, Windows(ids(500), 16, 4), optimizer=MuGrokfast(model, MuGrokfastConfig.preset(name)), checkpoint_dir=tmp_path)


@pytest.mark.parametrize("where", ["every", "random", "difficulty", "end"])
def test_quiet_thoughts(seen, tmp_path, where):
    model = QuietGPT.from_plain(gpt(context=40), ThoughtConfig(9, 10, n_thoughts=2, length=3, ahead=2), "gate").to(NAME)
    injector = ThoughtInjector(where, 1 if where in ("every", "end") else 3)
    learned(model, QuietSTaR(injector=injector, device=NAME), Windows(ids(500), 9, 2), checkpoint_dir=tmp_path)
    evaluate_thoughts(model, ids(2, 9), injector)


@pytest.fixture(scope="module")
def words():
    "A task with its questions and room for thoughts"
    task = load_task("s5", 2)
    questions = distinct_items(task, 6, 0)
    return task, questions, thought_config_for(task, questions, 2)


@pytest.mark.parametrize("cfg", [ThoughtRLConfig(patience=9), ThoughtRLConfig("gain", "mean", patience=9), ThoughtRLConfig("improvement", "none", kl_to="no_thought", patience=9)])
def test_thoughts_by_reward(seen, tmp_path, words, cfg):
    task, questions, thoughts = words
    model = thinking_model(task, questions, 1, 16).to(NAME)
    learned(model, warm_start_loss, WarmStartBatches(task, 8))
    baked = copy.deepcopy(model).requires_grad_(False).eval()
    learned(model, ThoughtRL(task, thoughts, cfg, baked, 0, NAME), ProblemBatches(task, 6), checkpoint_dir=tmp_path)
    validate_thoughts(model, baked, task, thoughts, questions)


@pytest.mark.parametrize("method", ["published", "expert", "snippet"])
def test_other_ways_to_learn_from_thoughts(seen, tmp_path, words, method):
    task, questions, thoughts = words
    model = thinking_model(task, questions, 1, 16).to(NAME)
    sampler, asked = ThoughtSampler(task, thoughts, 6, 0, NAME), ProblemBatches(task, 6, width=6)
    if method == "published": learned(model, PublishedObjective(sampler, copy.deepcopy(model), kl_to="same_thought"), asked, checkpoint_dir=tmp_path)
    elif method == "expert":
        sampler.task = SimpleNamespace(one_answer=True, vocab=task.vocab, check_ids=lambda answer, found: torch.ones_like(found[..., 0], dtype=torch.bool))
        learned(model, warm_start_loss, ExpertIterationBatches(model, sampler, asked, 4), checkpoint_dir=tmp_path)
    else:
        prompt, answer = (x.to(NAME) for x in task.encode(questions))
        assert math.isfinite(REINFORCETrainer(model, ("s5", 2), thoughts).train_episode(prompt, answer)["loss"])


def test_two_steps_make_a_thinking_model(seen, tmp_path):
    baked = run_warm_start(tmp_path / "one", ("s5", 1), n_layers=1, width=16, training=TrainConfig(steps=2, warmup=1), batch=8, items=8, device=NAME, progress=False)
    found = run_reinforcement(tmp_path / "two", baked, ("s5", 1), baked.thoughts, episodes=8, batch=4, device=NAME, progress=False)
    assert found.model.position.weight.device.type == NAME


# What reads and judges

def test_reading_and_writing(seen):
    model, prompt = gpt(ngram=3), ids(2, 5)
    assert sample(model, prompt, 30, 2, top_k=3, generator=torch.Generator(NAME)).device.type == NAME
    trunk, at = Prefix(model, prompt, every=True), ids(2, 3) % 5
    branches = generate(trunk, 4, 3, generator=torch.Generator(NAME))
    assert branch_logits(trunk, branches).shape == (2, 3, 4, V)
    assert model.hidden(ids(2, 6), trunk.branches(at=at)).shape == (2, 6, 16)
    with torch.no_grad(): assert model(prompt, trunk.ahead()).shape == (2, 5, V)
    parent = torch.tensor([-1, 0, 1, 1, 0])
    for place in ("cpu", NAME): assert tree_logits(model, prompt, parent.to(place)).shape == (2, 5, V)
    rows = model.new_cache(2)
    for place in ("cpu", NAME): model(ids(3, 1), model_rows(model, prompt).gather(torch.tensor([1, 0, 0]).to(place)))
    assert len(model.attention_logit_max(prompt)) == 2 and rows.rows == 2


def model_rows(model, prompt):
    rows = model.new_cache(2)
    with torch.no_grad(): model(prompt, rows)
    return rows


def test_counts_and_evaluation(seen):
    for text in (ids(500), ids(500).cpu()):
        counts = NGram.fit(text, V, 3)
        assert counts.logp0.device == text.device
        counts.to(NAME).topk(ids(2, 7), 3), evaluate(counts.to(NAME), ids(2, 7))
    nll, hit = score(gpt(), eval_windows(ids(100), 8))
    source = MarkovSource(4, 2, 2)
    assert source.log_probs(ids(2, 7) % 4).device.type == NAME and nll.device.type == NAME
    rows = RowBatches(ids(9, 5), 4)
    assert next(rows).device.type == NAME


def test_a_saved_thinker(seen, tmp_path, words):
    task, questions, thoughts = words
    model = thinking_model(task, questions, 1, 16).to(NAME)
    save_thinking_model(tmp_path / "m.safetensors", model, ("s5", 2), thoughts)
    assert torch.equal(load_thinking_model(tmp_path / "m.safetensors")[0].head.weight, model.head.weight.cpu())
    write = ThoughtGenerator(thoughts, 6, task.vocab["\n"])
    assert write(Prefix(model, task.encode(questions)[0].to(NAME)), generator=torch.Generator(NAME)).ids.device.type == NAME


# All experiments

class Run:
    "In place of a record: parameters, folders and nothing kept"

    def __init__(self, params, folder): self.params, self.dir, self.checkpoint_dir, self.metrics = params, folder, None, None

    def __call__(self, row): pass

    log = __call__

    def finish(self, metrics, windows=None, **more):
        self.metrics = metrics
        assert not any(isinstance(v, torch.Tensor) for v in metrics.values())


def executed(name, folder, monkeypatch, **given):
    "The variables of an experiment after all its cells, in its smoke preset, on the pretended device"
    def start_run(experiment, live, presets, corpus=None):
        return Run(presets["smoke"] | {k: v for k, v in live.items() if k in known and v is not None}, folder)

    monkeypatch.setattr(refine_nb.records, "start_run", start_run)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    matplotlib.use("Agg")
    ns = {"display": lambda *shown: [str(x) for x in shown]}
    with chdir(folder):
        for cell in nbformat.read(ROOT / f"experiments/{name}.ipynb", 4).cells:
            if cell.cell_type != "code": continue
            source = cell.source.replace('"cuda" if torch.cuda.is_available() else "cpu"', f'"{NAME}"')
            exec(compile(source, name, "exec"), ns)
            if "parameters" in cell.metadata.get("tags", ()):
                known = {k for k in ns if k not in ("PRESETS", "display", "__builtins__", "__annotations__")}
                assert set(given) <= known
                ns |= {"preset": "smoke"} | given
    matplotlib.pyplot.close("all")
    return ns


RUNS = [
    ("01_char_lm", dict(corpus="markov", ngram=2)),
    ("01_char_lm", dict(corpus="markov", method="counts", order=2)),
    ("10_candidates_pay", dict(estimator="stratified")),
    ("10_context_collapse", dict(corpus="markov")),
    ("10_estimators_exact", dict(characters=768, repetitions=0)),
    ("10_guided_grpo", dict(corpus="markov", partial=0.3, beta=0.1, ratio=0.5)),
    ("10_guided_grpo", dict(corpus="markov", form="rollouts", length=2, baseline="leave_one_out")),
    ("11_trm_refinement", dict(corpus="markov", data="text", average=0.9)),
    ("11_trm_refinement", dict(corpus="markov", data="pointers", halting=True, reward="none")),
    ("12_confidence_lookahead", dict(corpus="markov")),
    ("12_confidence_lookahead", dict(corpus="markov", data="arithmetic", form="last", detach=False, clip=0.0)),
    ("13_mugrokfast_parts", dict(corpus="markov", data="text", muon=True, qk_clip=0.5, grokfast_lambda=0.1)),
    ("13_mugrokfast_parts", dict(corpus="markov", data="reward")),
    ("14_quiet_text", dict(corpus="markov", where="predicted")),
    ("16_longer_problems", dict(longest=1)),
    ("16_thought_rl", dict(length=1, reward="improvement")),
    ("16_thought_rl", dict(length=1, method="naive", optimizer="rl")),
]


@pytest.mark.parametrize("name, given", RUNS, ids=[f"{name} {' '.join(map(str, given.values()))}" for name, given in RUNS])
def test_experiments(seen, tmp_path, monkeypatch, small_corpus, name, given):
    ns = executed(name, tmp_path, monkeypatch, **given)
    assert ns["run"].metrics and (seen.operations or name == "10_estimators_exact")


@pytest.fixture
def small_corpus(monkeypatch):
    "A short text of the Markov source, so that every test reads it quickly"
    monkeypatch.setattr(refine_nb.data, "markov", lambda **more: SHORT)


SHORT = markov(6000)


def test_every_experiment_runs_on_the_device():
    assert {name for name, _ in RUNS} == {path.stem for path in (ROOT / "experiments").glob("*.ipynb")}
