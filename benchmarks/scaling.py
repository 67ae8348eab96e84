"""Time and peak memory of one training step against width, depth and context; each point in a process of its own.

    python benchmarks/scaling.py          # a few minutes; writes benchmarks/scaling.csv, which nbs/results/speed.ipynb draws

One factor is varied at a time around 4 layers × 4 heads × 128 with 12 windows of 64; the last row is the `gpu` preset with
12 windows of 256. Peak memory is the process's peak resident set, interpreter and torch (about 300 MB) included.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

BASE = dict(n_layers=4, n_heads=4, width=128, context=64)
POINTS = [BASE | {"width": w} for w in (64, 128, 256, 512)] + [BASE | {"n_layers": n} for n in (2, 4, 8, 16)] + [BASE | {"context": c} for c in (32, 64, 128, 256, 512)]
POINTS = list({json.dumps(p): p for p in POINTS}.values()) + ["gpu"]


def step(point) -> dict:
    "Median CPU milliseconds of a step, and the peak resident set of this process"
    import statistics
    import time

    import torch

    from refine_nb.gpt import ContextualGPT, GPTConfig, n_parameters
    from refine_nb.train import TrainConfig, adamw, cross_entropy, update

    torch.set_num_threads(1)
    cfg = GPTConfig.preset("gpu", 65) if point == "gpu" else GPTConfig(65, **point)
    model, train, times = ContextualGPT(cfg), TrainConfig(), []
    batch, optimizer = torch.randint(65, (12, cfg.context + 1)), adamw(model, train)
    for _ in range(3 if point == "gpu" else 10):
        start = time.process_time()
        update(model, cross_entropy, [batch], optimizer, train.lr, train.clip)
        times.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)
    return dict(preset=point if point == "gpu" else "", n_layers=cfg.n_layers, width=cfg.width, context=cfg.context, n_parameters=n_parameters(model), ms=1e3 * statistics.median(times[1:]), peak_gib=peak)


def main() -> None:
    import pandas as pd

    rows = []
    for point in POINTS:
        done = subprocess.run([sys.executable, __file__, json.dumps(point)], capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        rows.append(json.loads(done.stdout))
        print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(Path(__file__).with_suffix(".csv"), index=False)


if __name__ == "__main__": print(json.dumps(step(json.loads(sys.argv[1])))) if len(sys.argv) > 1 else main()
