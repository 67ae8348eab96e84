"""The clipped objective against TRL's own, value and gradient, and guided candidates inside TRL's trainer"""
import os
import sys
import warnings

import pytest
import torch

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    trl = pytest.importorskip("trl", reason="TRL is compared where the `bench` extra is installed")
    from datasets import Dataset
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from refine_nb._trl import guided_rollout
from refine_nb.candidates import CandidateConfig, group_advantage
from refine_nb.evaluation import k3
from refine_nb.grpo import grpo_loss

SYMBOLS, END, PAD, LENGTH = "abcdefghij", 10, 11, 6
PROMPTS = ["abc", "h", "gfedcbaj", "bb"]
LIKELIEST = CandidateConfig(threshold=0, top_k=4, n_random=0, confident_k=4)
pytestmark = pytest.mark.filterwarnings("ignore")


def tokenizer():
    "One symbol a token, an end sign and a padding sign"
    tokens = Tokenizer(models.WordLevel({s: i for i, s in enumerate(SYMBOLS)} | {"<eos>": END, "<pad>": PAD}, unk_token="a"))
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.Split(Regex("."), "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<eos>", pad_token="<pad>", padding_side="left")


def tiny():
    "A model with relative positions, predictions far from uniform, and dropout; always the same"
    torch.manual_seed(0)
    shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, attention_dropout=0.3)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=12, bos_token_id=END, eos_token_id=END, pad_token_id=PAD, **shape))
    for p in model.parameters(): torch.nn.init.normal_(p, std=0.5)
    return model.eval()


def trainer_in(folder, reward=lambda completion_ids, **_: [float(len(ids)) for ids in completion_ids], rollout_func=None, **settings):
    "TRL's trainer on the tiny model"
    settings = dict(num_generations=4, per_device_train_batch_size=16, max_completion_length=LENGTH, max_steps=1, learning_rate=1e-2, gradient_checkpointing=False) | settings
    args = trl.GRPOConfig(str(folder), use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1, shuffle_dataset=False, **settings)
    trainer = trl.GRPOTrainer(tiny().train(), reward, args, Dataset.from_dict({"prompt": PROMPTS}), processing_class=tokenizer(), rollout_func=rollout_func)
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def repeated(prompts, g): return [p for p in prompts for _ in range(g)]


# The objective

def tries(b=12, seed=0):
    "Log-probabilities now and before, of a reference, advantages and a ragged mask; ratios leave the clip range on both sides"
    draws = torch.Generator().manual_seed(seed)
    logp = -torch.rand(b, LENGTH, generator=draws) * 3
    old, ref = (logp + torch.randn(b, LENGTH, generator=draws) / 2 for _ in range(2))
    mask = (torch.arange(LENGTH) < torch.randint(1, LENGTH + 1, (b, 1), generator=draws)).long()
    return logp.requires_grad_(), old, ref, torch.randn(b, generator=draws), mask


def theirs(trainer, logp, old, ref, adv, mask, share=None):
    "TRL's loss and its gradient"
    b, stub = len(logp), torch.zeros(logp.shape, dtype=torch.long)
    inputs = dict(prompt_ids=stub[:, :1], prompt_mask=stub[:, :1] + 1, completion_ids=stub, completion_mask=mask, advantages=adv, old_per_token_logps=old, ref_per_token_logps=ref)
    if share is not None: inputs["tool_mask"] = share.expand(b, LENGTH)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logp, torch.zeros(logp.shape), None)
    loss = trainer._compute_loss(trainer.model.train(), inputs | dict(num_items_in_batch=(mask * (1 if share is None else share)).sum()))
    return loss, torch.autograd.grad(loss, logp)[0]


def ours(loss_type, logp, old, ref, adv, mask, beta=0.0, corrected=False, share=1.0, epsilon=0.1, epsilon_high=0.3):
    "The same by `grpo_loss` and `k3`: the loss types are weights and a normaliser; corrected, the penalty is times the ratio"
    weight = mask / mask.sum(-1, keepdim=True) if loss_type == "grpo" else mask * share
    normalizer = dict(grpo=len(logp), dapo=float(weight.sum()), dr_grpo=len(logp) * LENGTH)[loss_type]
    loss, shares = grpo_loss(logp, old, adv[:, None].expand(logp.shape), weight.float(), epsilon, epsilon_high, normalizer)
    kl = k3(logp, ref) * ((logp - old).exp() if corrected else 1)
    loss = loss + beta * (weight * kl).sum() / normalizer
    return loss, torch.autograd.grad(loss, logp)[0], shares


def close(a, b): return all(torch.allclose(x, y, rtol=1e-5, atol=1e-6) for x, y in zip(a[:2], b[:2]))


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize("beta, corrected", [(0.0, True), (0.4, False), (0.4, True)])
def test_loss_and_gradient(tmp_path, loss_type, beta, corrected):
    "With ragged completions, unequal clip ranges and ratios clipped on both sides; TRL's default corrects the penalty"
    trainer, work = trainer_in(tmp_path, loss_type=loss_type, epsilon=0.1, epsilon_high=0.3, use_bias_correction_kl=corrected), tries()
    trainer.beta = beta
    a, b = theirs(trainer, *work), ours(loss_type, *work, beta, corrected)
    assert close(a, b), f"loss {a[0].item()} and {b[0].item()}, gradients differ by {(a[1] - b[1]).abs().max().item()}"
    assert not close(a, ours(loss_type, *work, beta, corrected, epsilon=0.3, epsilon_high=0.1))
    assert a[1][work[4] == 1].abs().max() > 1e-3 and not a[1][work[4] == 0].any()


def test_clipped_shares(tmp_path):
    "The shares that TRL logs, by the same definition"
    trainer, work = trainer_in(tmp_path, epsilon=0.1, epsilon_high=0.3), tries()
    theirs(trainer, *work)
    logged, shares = trainer._metrics["train"], ours("dapo", *work)[2]
    assert shares["clip_low"] == pytest.approx(logged["clip_ratio/low_mean"][0]) and shares["clip_low"] > 0.1
    assert shares["clip_high"] == pytest.approx(logged["clip_ratio/high_mean"][0]) and shares["clip_high"] > 0.1


@pytest.mark.parametrize("loss_type", ["dapo", "dr_grpo"])
def test_weights_in_the_mask(tmp_path, loss_type):
    "A mask of fractions is a weight in TRL's loss and normaliser"
    trainer, work = trainer_in(tmp_path, loss_type=loss_type, epsilon=0.1, epsilon_high=0.3), tries()
    share = torch.rand(12, 1, generator=torch.Generator().manual_seed(1)) * 2
    assert close(theirs(trainer, *work, share), ours(loss_type, *work, share=share))
    assert not close(theirs(trainer, *work), ours(loss_type, *work, share=share))


def test_advantages(tmp_path):
    "TRL divides by the deviation of the sample, plus 1e-4: a group of rewards that nearly agree is among them"
    rewards = [0.0, 1.0, 1.0, 5.0, 2.0, 2.0, 2.0, 2.0, 0.1, 0.3, 0.2, 0.9, 1.0002, 1.0, 1.0, 1.0]
    reward, weight = torch.tensor(rewards).view(4, 4), torch.full((4, 4), 1 / 4)
    for scale in ("group", "none"):
        trainer = trainer_in(tmp_path, lambda completions, **_: rewards, guided_rollout(LIKELIEST), scale_rewards=scale)
        found = trainer._generate_and_score_completions([{"prompt": p} for p in repeated(PROMPTS, 4)])["advantages"].view(4, 4)
        adv, flat = group_advantage(reward, weight, scale, deviation="sample")
        assert torch.allclose(found, adv, atol=1e-5) and flat.tolist() == [False, True, False, False]


# Guided candidates

@torch.no_grad()
def greedy(model, ids, n):
    "n likeliest tokens after unpadded ids, up to the end sign"
    start = len(ids)
    while len(ids) - start < n and (len(ids) == start or ids[-1] != END): ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[start:]


@pytest.mark.parametrize("forced", ["masked", "weighted"])
def test_a_step(tmp_path, forced):
    "Prompts of four lengths: every completion is a candidate and its greedy continuation, as one unpadded row at a time gives it"
    seen = {}

    def reward(prompts, completion_ids, candidate_weight, **_):
        seen.update(prompts=prompts, ids=completion_ids, weight=candidate_weight)
        return [ids.count(1) + len(ids) / 10 for ids in completion_ids]

    trainer = trainer_in(tmp_path, reward, guided_rollout(LIKELIEST, forced), top_k=1, temperature=0.7)
    trainer.train()
    before = tiny()
    rows = [tokenizer()(p)["input_ids"] for p in PROMPTS]
    p, first = zip(*((before(torch.tensor([row])).logits[0, -1] / 0.7).softmax(-1).topk(4) for row in rows))
    want = [[a] + (greedy(before, [*row, a], LENGTH - 1) if a != END else []) for row, group in zip(rows, first) for a in group.tolist()]
    assert seen["prompts"] == repeated(PROMPTS, 4) and seen["ids"] == want and {1, LENGTH} < {len(ids) for ids in want}
    assert seen["weight"] == pytest.approx(torch.cat(p).tolist(), rel=1e-4)
    log = trainer.state.log_history[0]
    scale = [0 if forced == "masked" else w / sum(seen["weight"]) * 16 for w in seen["weight"]]
    assert log["completions/mean_length"] == pytest.approx(sum(s + (len(ids) - 1) * (s or 1) for s, ids in zip(scale, want)) / 16, rel=1e-4)
    moved = max((a - b).abs().max().item() for a, b in zip(before.parameters(), trainer.model.parameters()))
    assert abs(log["loss"]) < 10 and moved > 1e-3 and trainer.model.training


@pytest.mark.parametrize("forced", ["masked", "weighted", "sampled"])
def test_gradient_of_a_forced_token(tmp_path, forced):
    "Answers of one token, all of them tried: weighted climbs the expected reward exactly, masked stands still, sampled goes elsewhere"
    worth = torch.linspace(0, 1, 12) ** 2
    whole = guided_rollout(CandidateConfig(estimator="exact"), forced)
    trainer = trainer_in(tmp_path, lambda completion_ids, **_: worth[torch.tensor(completion_ids)[:, 0]].tolist(), whole, num_generations=12, per_device_train_batch_size=48, max_completion_length=1, scale_rewards="none")
    model = trainer.model.train()
    batch = trainer._generate_and_score_completions([{"prompt": p} for p in repeated(PROMPTS, 12)])
    assert batch["completion_ids"].flatten().tolist() == [*range(12)] * 4 and model.training
    trainer._compute_loss(model.eval(), batch).backward()  # no dropout in the log-probabilities
    found = [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
    model.zero_grad()
    ids, mask = batch["prompt_ids"][::12], batch["prompt_mask"][::12]
    (-(model(ids, attention_mask=mask).logits[:, -1].softmax(-1) @ worth).mean()).backward()
    error = max((a - p.grad).abs().max().item() for a, p in zip(found, model.parameters()))
    assert (error < 1e-5) == (forced == "weighted") and any(a.any() for a in found) == (forced != "masked"), error


def test_contexts_that_sample_are_not_masked(tmp_path):
    "Half of the contexts sample: their first tokens were drawn and may teach; a filler of a confident context teaches nothing"
    rollout = guided_rollout(CandidateConfig(threshold=0, top_k=2, n_random=2, confident_k=2, exhaustive_ratio=0.5))
    out = rollout(repeated(PROMPTS, 4), trainer_in(tmp_path))
    heads = [mask[0] for mask in out["env_mask"]]
    assert sorted(sum(heads[i : i + 4]) for i in range(0, 16, 4)) == [0, 0, 4, 4]
    assert [w == 1 / 4 for w in out["candidate_weight"]] == [h == 1 for h in heads]
    out = guided_rollout(CandidateConfig(threshold=9, top_k=2, n_random=2, confident_k=2), "sampled")(repeated(PROMPTS, 4), trainer_in(tmp_path))
    assert [set(mask) for mask in out["env_mask"]] == [{1}, {1}, {0}, {0}] * 4 and [w > 0 for w in out["candidate_weight"]] == [True, True, False, False] * 4


def test_evaluation_samples(tmp_path):
    "In evaluation nothing is forced, whatever the size of the groups there"
    trainer = trainer_in(tmp_path, top_k=1, num_generations_eval=2, per_device_eval_batch_size=4)
    trainer.model.eval()
    out = guided_rollout(LIKELIEST)(repeated(PROMPTS, 2), trainer)
    want = [greedy(trainer.model, tokenizer()(p)["input_ids"], LENGTH) for p in repeated(PROMPTS, 2)]
    assert out["completion_ids"] == want and out["candidate_weight"] == [0.5] * 8 and out["env_mask"] == [[1] * len(ids) for ids in want]
    assert not trainer.model.training


def test_refusals(tmp_path, monkeypatch):
    trainer, prompts = trainer_in(tmp_path), repeated(PROMPTS, 4)
    with pytest.raises(ValueError, match="5 candidates a group and num_generations is 4"): trainer_in(tmp_path, rollout_func=guided_rollout(CandidateConfig(top_k=2, n_random=3, confident_k=2))).train()
    with pytest.raises(ValueError, match="more than the 12 symbols"): guided_rollout(CandidateConfig())(prompts, trainer)
    for wrong in (prompts[1:], prompts[2:] + prompts[:2]):
        with pytest.raises(ValueError, match="whole groups"): guided_rollout(LIKELIEST)(wrong, trainer)
    with pytest.raises(ValueError, match="divides weights out"): guided_rollout(LIKELIEST, "weighted")(prompts, trainer_in(tmp_path, loss_type="grpo"))
    with pytest.raises(ValueError, match="none of masked, weighted, sampled"): guided_rollout(LIKELIEST, "none")
    for flag, message in (("use_vllm", "transformers' generate"), ("tools", "without tools")):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=message):
            patch.setattr(trainer, flag, [print])
            guided_rollout(LIKELIEST)(prompts, trainer)
    monkeypatch.setitem(sys.modules, "trl.models", None)
    with pytest.raises(ImportError, match=r"refine_nb\[bench\]"): guided_rollout(LIKELIEST)
