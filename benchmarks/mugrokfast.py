"""A step of MuGrokfast against PyTorch's own parts (one thread, process CPU time, medians; ratios of the same round).

    python benchmarks/mugrokfast.py       # about a minute; writes benchmarks/mugrokfast.json and prints it

The peer is what one would put together: torch.optim.Muon for the hidden matrices, fused AdamW for the rest. "update" has both passes, clipping of the
gradient, and the look at the attention logits that QK-clip needs; "step" is the optimiser's part of it, timed in place (by itself, with memory
that was just given back, it would time the allocator). Every head counts as just above the threshold: QK-clip scales all of them, every time.
"""

import json
import os
import sys
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"): os.environ[name] = "1"

import torch
from speed import SHAPE, limits, machine_facts, median, ratio, rounds

from refine_nb.gpt import ContextualGPT, GPTConfig
from refine_nb.mugrokfast import MuGrokfast, MuGrokfastConfig, hidden_matrices
from refine_nb.train import cross_entropy, update

torch.set_num_threads(1)
OUT, PEER = Path(__file__).with_suffix(".json"), "torch Muon and AdamW"


class Pair:
    "Muon for hidden matrices, fused AdamW for the rest, as one optimiser"

    def __init__(self, model):
        hidden = set(map(id, matrices := hidden_matrices(model)))
        self.parts = torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.0), torch.optim.AdamW([p for p in model.parameters() if id(p) not in hidden], lr=1e-3, weight_decay=0.0, fused=True)
        self.param_groups = [g for part in self.parts for g in part.param_groups]

    def step(self):
        for part in self.parts: part.step()

    def zero_grad(self):
        for part in self.parts: part.zero_grad()


class Clipping(MuGrokfast):
    "All four parts, with every head just above the threshold: all maps are scaled, by next to nothing"

    def clip(self):
        self.watch.largest = [torch.full((a.n_heads,), self.cfg.qk_clip_threshold * (1 + 1e-6)) for a in self.watch.attentions]
        super().clip()


WAYS = {PEER: Pair, "Muon and AdamW": lambda m: MuGrokfast(m, MuGrokfastConfig(grokfast_lambda=0.0, qk_clip_threshold=0.0)),
        "and Grokfast": lambda m: MuGrokfast(m, MuGrokfastConfig(qk_clip_threshold=0.0)), "and QK-clip": Clipping}


class Timed:
    "An optimiser that notes the CPU seconds of its steps"

    def __init__(self, inner):
        self.inner, self.param_groups, self.zero_grad, self.seconds = inner, inner.param_groups, inner.zero_grad, []

    def step(self):
        start = time.process_time()
        self.inner.step()
        self.seconds.append(time.process_time() - start)


def costs(n: int, **shape) -> dict:
    "A whole update of every way, on twelve windows of 64 characters, and the step in it"
    batch, optimizers, updates = torch.randint(65, (12, 65), generator=torch.Generator().manual_seed(0)), {}, {}
    for name, build in WAYS.items():
        torch.manual_seed(0)
        model = ContextualGPT(GPTConfig(65, **shape))
        optimizers[name] = Timed(build(model))
        updates[name] = lambda m=model, o=optimizers[name]: update(m, cross_entropy, [batch], o, 1e-4, 1.0)
    whole, found = rounds(updates, n), {}
    for what, t in (("step", {name: o.seconds[-n:] for name, o in optimizers.items()}), ("update", whole)):
        found |= {f"{what}_ms": {k: 1e3 * v for k, v in median(t).items()}, f"{what}_vs_torch": {k: ratio(t, k, PEER) for k in WAYS}}
    return found


def main(n: int) -> None:
    result = machine_facts() | dict(load=os.getloadavg()[0], rounds=n, limits=limits(), narrow=costs(n, **SHAPE), wide=costs(n, n_layers=4, n_heads=8, width=256))
    print(json.dumps(result, indent=1))
    OUT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__": main(int(sys.argv[1]) if sys.argv[1:] else 25)
