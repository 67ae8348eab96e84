"""The forms of the confidence look-ahead side by side (one thread, process CPU time, medians; ratios of the same round).

    python benchmarks/confidence.py       # about three minutes; writes benchmarks/confidence.json and prints it

A step is one update: forward, backward, clip and AdamW on 16 windows. The published form trains 16 positions a step, the
others all of them, so what counts is the time a trained position. A form that feeds predictions back is compared with the
published form as it is (zeros as previous confidences) and with the published form on the same model, which needs the same passes.
"""

import json
import os
import sys
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"): os.environ[name] = "1"

import torch
from speed import limits, machine_facts, median, ratio, rounds

from refine_nb._attention import Text
from refine_nb.confidence import (ConfidenceAwareGPT, Lookahead, LookaheadConfig, branch_ahead, next_token,
                                  split_window, standard_twin, _mask_ahead)
from refine_nb.gpt import GPTConfig
from refine_nb.train import TrainConfig, adamw, count_flops, update

torch.set_num_threads(1)
OUT = Path(__file__).with_suffix(".json")
BATCH, CFG = 16, LookaheadConfig


def shape(context: int) -> GPTConfig: return GPTConfig(65, context=context + 1, n_layers=3, n_heads=4, width=64)


def windows(context: int): return torch.randint(65, (BATCH, context + 2), generator=torch.Generator().manual_seed(0))


def step(context: int, objective=next_token, feedback: int = 0):
    "One update of a fresh model, as a function, and its operations"
    torch.manual_seed(0)
    model = standard_twin(shape(context)) if objective is next_token else ConfidenceAwareGPT(shape(context), feedback=feedback)
    batch, cfg = split_window(windows(context)), TrainConfig()
    optimizer = adamw(model, cfg)
    return lambda: update(model, objective, [batch], optimizer, cfg.lr, cfg.clip), count_flops(model, objective, batch)


def forms(context: int, n: int) -> dict:
    "Milliseconds a step, microseconds a trained position, speed-up over the published form"
    teacher = dict(target="teacher")
    all_forms = {"last": step(context, Lookahead(CFG(form="last"))), "mask": step(context, Lookahead(CFG(form="mask"))), "branch": step(context, Lookahead(CFG())),
                 "branch, detached, own clip": step(context, Lookahead(CFG(detach=True, clip=0.1))), "branch, shared, own clip": step(context, Lookahead(CFG(clip=0.1))),
                 "shifted": step(context, Lookahead(CFG(form="shifted", **teacher))), "plain twin": step(context)}
    for passes in (1, 2, 4):
        all_forms[f"branch, {passes} Jacobi"] = step(context, Lookahead(CFG()), passes)
        all_forms[f"last, {passes} Jacobi"] = step(context, Lookahead(CFG(form="last")), passes)
    t = rounds({name: f for name, (f, _) in all_forms.items()}, n)
    positions = {name: BATCH * (1 if name.startswith("last") else context - 1 if name == "shifted" else context) for name in t}
    speed_up = {name: ratio(t, "last", name) * positions[name] / BATCH for name in t}
    like = {f"{p} Jacobi": ratio(t, f"last, {p} Jacobi", f"branch, {p} Jacobi") * context for p in (1, 2, 4)}
    m = median(t)
    return dict(ms={k: 1e3 * v for k, v in m.items()}, us_per_position={k: 1e6 * v / positions[k] for k, v in m.items()}, speed_up=speed_up, speed_up_against_last_on_the_same_model=like,
                operations_vs_twin={name: flops / all_forms["plain twin"][1] for name, (_, flops) in all_forms.items()})


@torch.no_grad()
def exact(context: int) -> dict:
    "Largest difference of logits from explicit concatenation, with large random weights, with and without feedback"
    out, ids = {}, windows(context)[:4, :context]
    branch = torch.randint(65, ids.shape, generator=torch.Generator().manual_seed(1))
    for feedback in (0, 4):
        torch.manual_seed(0)
        model = ConfidenceAwareGPT(shape(context), feedback=feedback)
        for p in model.parameters(): torch.nn.init.normal_(p, std=0.3)
        heard, read = model.previous(ids) if feedback else torch.zeros(*ids.shape, 1), Text(detach=True)
        pred = model.confidence_predictor(model.hidden(ids, read, confidence_scalars=heard))[..., 0]

        def last(t, model=model, heard=heard, pred=pred): return model(torch.cat([ids[:, :t], branch[:, t - 1 : t]], 1), confidence_scalars=torch.cat([heard[:, :t], pred[:, t - 1 : t, None]], 1))["logits"][:, -1]

        slow = torch.stack([last(t) for t in range(1, context + 1)], 1)
        found = dict(mask=_mask_ahead(model, ids, branch, pred, heard), branch=branch_ahead(model, read, branch, pred))
        out[f"feedback {feedback}"] = {name: (x - slow).abs().max().item() for name, x in found.items()} | dict(largest_logit=slow.abs().max().item())
    return out


def main(n: int) -> None:
    result = machine_facts() | dict(load=os.getloadavg()[0], rounds=n, limits=limits()) | {f"context {c}": forms(c, n) | dict(difference=exact(c)) for c in (64, 128)}
    print(json.dumps(result, indent=1))
    OUT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__": main(int(sys.argv[1]) if sys.argv[1:] else 15)
