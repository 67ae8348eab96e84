"""What learns and reads, on a device that is as strict as a graphics card"""
import copy
import math

import pytest
import torch
from pretend_device import NAME, pretend

from refine_nb.benchmark_tasks import load_task
from refine_nb.calibration import evaluate_lookahead
from refine_nb.candidates import CandidateConfig
from refine_nb.confidence import ConfidenceAwareGPT, Lookahead, LookaheadConfig, LookaheadWindows
from refine_nb.data import Windows
from refine_nb.evaluation import evaluate
from refine_nb.gpt import ContextualGPT, GPTConfig, sample
from refine_nb.grpo import PositionGRPO, GRPOConfig, RolloutGRPO
from refine_nb.mugrokfast import MuGrokfast, MuGrokfastConfig
from refine_nb.prefix import Prefix, generate
from refine_nb.quiet_star import QuietConfig, QuietGPT, QuietSTaR, write_thoughts
from refine_nb.tasks import ProblemBatches
from refine_nb.thought_rl import PublishedObjective, ThoughtRL, ThoughtRLConfig, ThoughtSampler
from refine_nb.thought_validation import validate_thoughts
from refine_nb.thoughts import ThoughtConfig, thought_config_for
from refine_nb.train import WeightEMA, TrainConfig, count_flops, cross_entropy, train
from refine_nb.trigram import NGram
from refine_nb.trm import TRM, RecursiveGPT, TRMConfig, evaluate_steps
from refine_nb.warm_start import WarmStartBatches, thinking_model, warm_start_loss

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


@pytest.mark.parametrize("method, estimator", [("positions", "stratified"), ("rollouts", "on_policy")])
def test_grpo(seen, tmp_path, method, estimator):
    reference = NGram.fit(ids(500), V).to(NAME)
    cfg = GRPOConfig(baseline="leave_one_out", partial_credit=0.3, beta=0.1, kl_estimator="k3" if estimator == "exact" else "exact", num_iterations=2)
    candidates = CandidateConfig(estimator, top_k=3, n_random=3, n_samples=4, confident_k=3, exhaustive_ratio=0.5)
    if method == "positions": objective = PositionGRPO(cfg, candidates, V, reference, device=NAME)
    else: objective = RolloutGRPO(cfg, candidates, V, 3, reference, end=0, device=NAME)
    learned(gpt(), objective, Windows(ids(500), 12, 4, ahead=1), 3, checkpoint_dir=tmp_path)


@pytest.mark.parametrize("changes", [dict(), dict(halting=True, detach=True, improvement_reward="none")])
def test_trm(seen, tmp_path, changes):
    model = RecursiveGPT(TRMConfig.preset("smoke", V, **changes)).to(NAME)
    learned(model, TRM(model.cfg.refinement), Windows(ids(500), 8, 4), evaluate=lambda m: evaluate_steps(m, ids(3, 9)), checkpoint_dir=tmp_path)


def test_look_ahead(seen, tmp_path):
    model = ConfidenceAwareGPT(GPTConfig(V, **SHAPE), feedback=1).to(NAME)
    batches = LookaheadWindows(ids(500), 12, 4, ahead=2, seed=0)
    learned(model, Lookahead(LookaheadConfig(detach=True, clip=0.1), 0, NAME), batches, checkpoint_dir=tmp_path)
    assert evaluate_lookahead(model, ids(6, 14))["sampled"].shape[0] == 6


@pytest.mark.parametrize("mixing", ["gate", "attention"])
def test_quiet_thoughts(seen, tmp_path, mixing):
    thoughts = ThoughtConfig(start=9, end=10, n_thoughts=2, length=3, ahead=2)
    model = QuietGPT(QuietConfig(V, **SHAPE, thoughts=thoughts, mixing=mixing)).to(NAME)
    learned(model, QuietSTaR(seed=0, device=NAME), Windows(ids(500) % 9, 12, 2, ahead=2), checkpoint_dir=tmp_path)
    written = write_thoughts(Prefix(model, ids(2, 8), every=True), ids(2, 4) % 8, thoughts, torch.Generator(NAME).manual_seed(0))
    assert written.shape[-1] == 3 and written.device.type == NAME


def test_mugrokfast(seen, tmp_path):
    model = gpt()
    optimizer = MuGrokfast(model, MuGrokfastConfig(qk_clip_threshold=1.0, grokfast_lambda=0.5))
    learned(model, cross_entropy, Windows(ids(500), 12, 4), 3, optimizer=optimizer, checkpoint_dir=tmp_path)


@pytest.fixture
def thinker():
    "A task, a model that may think about it, and its thoughts"
    task = load_task("s5", 1)
    items = task.sample(40)
    return task, thinking_model(task, items, n_layers=1, width=16).to(NAME), thought_config_for(task, items, 2)


def to_device(task): return lambda items: (*(part.to(NAME) for part in task.encode(items)), items)


def test_warm_start(seen, thinker, tmp_path):
    task, model, _ = thinker
    learned(model, warm_start_loss, WarmStartBatches(task, 8), checkpoint_dir=tmp_path)


@pytest.mark.parametrize("reward", ["right", "improvement", "gain"])
def test_thoughts_by_reward(seen, thinker, tmp_path, reward):
    task, model, thoughts = thinker
    still = copy.deepcopy(model).requires_grad_(False).eval()
    objective = ThoughtRL(task, thoughts, ThoughtRLConfig(reward=reward), still, seed=0, device=NAME)
    learned(model, objective, ProblemBatches(task, 4, collate=to_device(task)), checkpoint_dir=tmp_path)
    judged, evidence = validate_thoughts(model, still, task, thoughts, task.sample(6, 1), 0)
    assert math.isfinite(judged["accuracy_sampled"]) and evidence


def test_the_published_form(seen, thinker, tmp_path):
    task, model, thoughts = thinker
    still, batches = copy.deepcopy(model).requires_grad_(False).eval(), ProblemBatches(task, 4, collate=to_device(task))
    sampler = ThoughtSampler(task, thoughts, 6, device=NAME)
    learned(model, PublishedObjective(sampler, still, beta=0.1), batches, checkpoint_dir=tmp_path)


def test_guided_reading_of_many_branches(seen):
    model = gpt()
    prefix = Prefix(model, ids(2, 8))
    assert generate(prefix, 5, 3, generator=torch.Generator(NAME).manual_seed(0)).device.type == NAME
    assert sample(model, ids(2, 8), 4, 2, generator=torch.Generator(NAME).manual_seed(0)).shape == (2, 2, 12)
