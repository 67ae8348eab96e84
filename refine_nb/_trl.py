"""Guided candidates in TRL's `GRPOTrainer`: the completions of a group begin with chosen first tokens (extra `bench`).

    guided = CandidateConfig(threshold=0, top_k=4, n_random=4, confident_k=4)           # groups of 8 = num_generations
    GRPOTrainer(model, reward, args, data, rollout_func=guided_rollout(guided))

What follows a forced token is drawn from the policy, so it teaches without bias what to do after that token, whoever chose the token. The forced token
itself was not drawn: TRL would take it for a sample and credit every candidate alike, however unlikely the policy finds it. `forced` says what it teaches:

masked      nothing (`env_mask` 0): unbiased for texts that begin with a candidate, each as often as the others; noisy, as all starts share TRL's baseline.
weighted    what its weight says: the weight multiplies the whole completion, as in `refine_nb.grpo.Rollouts`, so that the policy's own expected reward is
            climbed, first token included. TRL has no weights; they travel in `env_mask`, scaled to a mean of 1, and reach loss and normaliser of
            "dapo" and "dr_grpo" ("grpo" would divide them out again). The lengths that TRL logs are weighted too.
sampled     as much as a sample: TRL's bias, kept as a control.

Contexts that sample (estimator "on_policy", or beyond `exhaustive_ratio`) force nothing, and nothing is masked there. Evaluation samples too: a forced
start does not measure the policy. Reward functions get `candidate_weight`, one per completion. A weight of 0 marks a filler in a confident context: it is
masked whole, but TRL counts its reward in the group's mean unless the reward function returns None for it; `threshold=0` has no fillers.
Candidates and weights are those of softmax(logits / temperature), which is also what TRL scores. TRL gives a padded prompt the positions of its padding
when it scores: a model with absolute positions (GPT-2) needs prompts of one length. Draws come from torch's generator, which TRL seeds and saves.
"""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor

from .candidates import CandidateConfig, select
from .evaluation import eval_mode

FORCED = ("masked", "weighted", "sampled")


def guided_rollout(
    candidates: CandidateConfig,  # its group size is the trainer's num_generations
    forced: str = "masked",  # what a forced token may teach, or "weighted" or "sampled"
) -> Callable[..., dict[str, list]]:
    "A `rollout_func` for `GRPOTrainer`; raises `ValueError` at the first step when it does not fit the trainer"
    if forced not in FORCED: raise ValueError(f"forced {forced!r} is none of {', '.join(FORCED)}")
    try: from trl.models import unwrap_model_for_generation
    except ImportError as error: raise ImportError('guided rollouts need TRL and transformers: pip install "refine_nb[bench]"') from error

    def rollout(prompts: list, trainer) -> dict[str, list]:
        train = trainer.model.training
        g = trainer.num_generations if train else trainer.num_generations_eval
        _fits(trainer, forced)
        if train: _groups(prompts, g, candidates.group_size(trainer.model.config.get_text_config().vocab_size))
        rows, _, fields = trainer._tokenize_prompts(prompts)
        if fields: raise ValueError(f"the prompts have {', '.join(fields)} beside text: guided rollouts read text only")
        first, weight, chosen = [[]] * len(rows), torch.full((len(rows),), 1 / g), torch.zeros(len(rows), dtype=torch.bool)
        with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator, trainer.args.ds3_gather_for_generation, trainer.generation_kwargs, trainer.args.gradient_checkpointing_kwargs) as model:
            with eval_mode(model), torch.no_grad():
                if train:
                    _, logits = _generate(trainer, model, rows[::g], 1, output_logits=True)
                    group = select((logits / trainer.temperature).log_softmax(-1), candidates)
                    first, weight, chosen = group.ids.reshape(-1, 1).tolist(), group.weight.flatten(), group.guided.repeat_interleave(g)
                completions = _complete(trainer, model, rows, first)
        masks = zip(*_masks(weight, chosen, forced), map(len, completions))
        return dict(prompt_ids=rows, completion_ids=completions, logprobs=None, env_mask=[[head] + [rest] * (n - 1) for head, rest, n in masks], candidate_weight=weight.tolist())

    return rollout


def _fits(trainer, forced: str) -> None:
    "Refuse a trainer that generates or learns in a way that guided rollouts cannot serve"
    if trainer.use_vllm or trainer.use_transformers_continuous_batching: raise ValueError("guided rollouts use transformers' generate: set use_vllm and use_transformers_continuous_batching to False")
    if trainer.tools: raise ValueError("TRL ignores the mask of a rollout_func where there are tools: train without tools")
    loss, level = trainer.loss_type, trainer.importance_sampling_level
    if forced == "weighted" and (loss not in ("dapo", "dr_grpo") or level != "token"): raise ValueError(f'loss_type {loss!r} with {level!r} ratios divides weights out again: weighted needs "dapo" or "dr_grpo" and "token"')


def _groups(prompts: list, g: int, size: int) -> None:
    "Refuse a batch that is not made of groups of the candidates' size"
    if size != g: raise ValueError(f"there are {size} candidates a group and num_generations is {g}: make them equal")
    if len(prompts) % g or any(prompts[i] != prompts[i - i % g] for i in range(len(prompts))): raise ValueError(f"{len(prompts)} prompts are not groups of {g} equal ones: each process must get whole groups")


def _complete(trainer, model, rows: list[list[int]], first: list[list[int]]) -> list[list[int]]:
    "The forced tokens and what the policy draws after them, up to the end sign"
    n, ends = trainer.generation_config.max_new_tokens - len(first[0]), set(trainer.eos_token_ids)
    drawn = _generate(trainer, model, [a + b for a, b in zip(rows, first)], n)[0].tolist() if n else [[]] * len(rows)
    whole = [a + b for a, b in zip(first, drawn)]
    return [ids[: next((i for i, x in enumerate(ids) if x in ends), len(ids)) + 1] for ids in whole]


def _generate(trainer, model, rows: list[list[int]], n: int, **settings) -> tuple[Tensor, Tensor | None]:
    "What transformers' generate draws after rows of any length; with `output_logits`, the logits after each row"
    width, config = max(map(len, rows)), deepcopy(trainer.generation_config)
    config.update(max_new_tokens=n, return_dict_in_generate=True, **settings)
    ids = torch.tensor([[trainer._tokenizer.pad_token_id] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    return out.sequences[:, width:], out.logits[0].float().cpu() if out.logits else None


def _masks(weight: Tensor, chosen: Tensor, forced: str) -> tuple[list, list]:
    "With what the first token of each completion enters the loss, and with what the others"
    if forced == "weighted": return ((weight / weight.mean()).tolist(),) * 2
    there = weight > 0
    return (there & ~chosen if forced == "masked" else there).int().tolist(), there.int().tolist()
