"""Recursive refinement against its naive form and against plain models (one thread, process CPU time, medians; ratios of the same round).

    python benchmarks/trm.py       # about three minutes; writes benchmarks/trm.json and prints it

A step is one update: forward, backward, clip and AdamW. The naive form embeds the text and calls the head on every position in
every supervision step; its generation runs the whole recursion over the whole text for every character. The peers of equal cost
are plain models of one layer (equal parameters) and of as many layers as the recursion has applications of a block.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"): os.environ[name] = "1"

import torch
import torch.nn.functional as F
from speed import limits, machine_facts, median, ratio, rounds

from refine_nb.data import supervised
from refine_nb.gpt import ContextualGPT, GPTConfig, sample
from refine_nb.refinement import refinement_loss
from refine_nb.train import TrainConfig, adamw, answer_loss, count_flops, update
from refine_nb.trm import TRM, RecursiveGPT, TRMConfig

torch.set_num_threads(1)
OUT = Path(__file__).with_suffix(".json")
CFG = TRMConfig.with_refinement_preset(n_symbols=65)


def naive(model, batch):
    "The loss as the description writes it: everything in every step"
    ids, target = supervised(batch)
    padded = F.pad(target, (ids.shape[1] - target.shape[1], 0), value=-100)
    _, y, z = model.start(ids)
    losses = []
    for step in range(CFG.recursion.n_supervision):
        y, z = model.refine(model.start(ids)[0], y, z, step)
        losses.append(F.cross_entropy(model.head(y).flatten(0, 1), padded.flatten()))
    return refinement_loss(torch.stack(losses), 5.0, 1.0), {}


def recursive(**changes):
    torch.manual_seed(0)
    return RecursiveGPT(replace(CFG, recursion=replace(CFG.recursion, **changes)))


def plain(layers: int):
    torch.manual_seed(0)
    return ContextualGPT(GPTConfig(65, context=CFG.context, n_layers=layers, n_heads=CFG.n_heads, width=CFG.width))


def kept_bytes(model, objective, batch) -> int:
    "Bytes of all tensors that are kept for the backward pass"
    seen = {}

    def pack(t):
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): objective(model, batch)
    return sum(seen.values())


def training(batch, n: int) -> dict:
    "Milliseconds, operations and megabytes of an update, and times as multiples of ours"
    applications = CFG.recursion.n_supervision * CFG.recursion.n_cycles * (CFG.recursion.n_loops + 1)
    contestants = {"naive": (recursive(), naive), "ours": (recursive(), TRM(CFG.refinement)), "ours, checkpointed": (recursive(gradient_checkpointing=True), TRM(CFG.refinement)), "detached": (recursive(detach=True), TRM(CFG.refinement)),
                   "one step": (RecursiveGPT(TRMConfig.preset("cpu", 65, n_supervision=1, improvement_reward="none")), TRM(replace(CFG.refinement, improvement_reward="none"))), "plain, equal parameters": (plain(1), answer_loss), f"plain, {applications} layers": (plain(applications), answer_loss)}
    flops = {name: count_flops(model, objective, batch) for name, (model, objective) in contestants.items()}
    kept = {name: kept_bytes(model, objective, batch) / 1e6 for name, (model, objective) in contestants.items()}
    cfg = TrainConfig()
    t = rounds({name: lambda m=model, f=objective, o=adamw(model, cfg): update(m, f, [batch], o, cfg.lr, cfg.clip) for name, (model, objective) in contestants.items()}, n)
    return dict(ms={k: 1e3 * v for k, v in median(t).items()}, mflop={k: v / 1e6 for k, v in flops.items()}, kept_mb=kept, times_ours={k: ratio(t, k, "ours") for k in t})


@torch.no_grad()
def generation(n: int) -> dict:
    "47 characters after 16, 32 texts, greedily; the same characters both ways"
    model, other, prompt = recursive().eval(), plain(12).eval(), torch.randint(65, (32, 16), generator=torch.Generator().manual_seed(0))

    def whole_passes():
        text = prompt
        for _ in range(47): text = torch.cat([text, model(text)[:, -1:].argmax(-1)], 1)
        return text

    def cached(model): return sample(model, prompt, 47, temperature=0)[:, 0]

    if not torch.equal(whole_passes(), cached(model)): raise AssertionError("cached generation writes other characters")
    t = rounds({"naive": whole_passes, "cached": lambda: cached(model), "plain, 12 layers": lambda: cached(other)}, n)
    return dict(ms={k: 1e3 * v for k, v in median(t).items()}, speed_up=ratio(t, "naive", "cached"), times_plain=ratio(t, "cached", "plain, 12 layers"))


def main(n: int) -> None:
    g = torch.Generator().manual_seed(0)
    text, problems = torch.randint(65, (16, 65), generator=g), (torch.randint(65, (16, 60), generator=g), torch.randint(65, (16, 2), generator=g))
    result = machine_facts() | dict(load=os.getloadavg()[0], rounds=n, limits=limits(), text=training(text, n), problems=training(problems, n), generation=generation(n))
    print(json.dumps(result, indent=1))
    OUT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__": main(int(sys.argv[1]) if sys.argv[1:] else 15)
