"""What learns and reads, on a device that is as strict as a graphics card"""
import math

import pytest
import torch
from pretend_device import NAME, pretend

from refine_nb.candidates import CandidateConfig
from refine_nb.data import Windows
from refine_nb.evaluation import evaluate
from refine_nb.gpt import ContextualGPT, GPTConfig
from refine_nb.grpo import PositionGRPO, GRPOConfig, RolloutGRPO
from refine_nb.train import WeightEMA, TrainConfig, count_flops, cross_entropy, train
from refine_nb.trigram import NGram
from refine_nb.trm import TRM, RecursiveGPT, TRMConfig, evaluate_steps

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
