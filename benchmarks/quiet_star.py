"""Thoughts: all positions at once against one after another, and the price of thinking (one thread, process CPU time, medians; ratios of the same round).

    python benchmarks/quiet_star.py       # about three minutes; writes benchmarks/quiet_star.json and prints it

Thoughts of 12 characters after every character of a text. "a cache each" reads every position's text once into a cache of its own and writes
from there; "one after another" reads the growing row again for every character. All three write the same characters. `transformers` writes
thoughts after 64 prompts in one batch with its own cache, a GPT-2 of the same shape: it has no thoughts at every position of one text.
"""

import copy
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"): os.environ[name] = "1"

import torch
from safetensors.torch import save_file
from speed import limits, machine_facts, median, ratio, rounds

from refine_nb.prefix import Prefix, generate
from refine_nb.gpt import ContextualGPT, GPTConfig, n_parameters
from refine_nb.quiet_star import QuietConfig, QuietGPT, QuietSTaR, think
from refine_nb.thought_rl import ThoughtRL, ThoughtRLConfig
from refine_nb.thoughts import ThoughtConfig, ThoughtGenerator, thought_logp, thoughts_for
from refine_nb.benchmark_tasks import load_task
from refine_nb.train import TrainConfig, adamw, cross_entropy, update

torch.set_num_threads(1)
OUT = Path(__file__).with_suffix(".json")
CFG = ThoughtConfig(65, 66, n_thoughts=4, length=12, temperature=0.0)


def model(context: int) -> ContextualGPT:
    torch.manual_seed(0)
    return ContextualGPT(GPTConfig(67, context=context, n_layers=3, n_heads=4, width=64)).eval()


def one_after_another(model, ids):
    "Every thought in a row of its own, read from the beginning for every character"
    out = []
    for p in range(ids.shape[1]):
        row = torch.cat([ids[:, : p + 1], torch.tensor([[CFG.start]])], 1)
        for _ in range(CFG.length): row = torch.cat([row, thought_logp(model(row)[:, -1], CFG).argmax(-1)[:, None]], 1)
        out.append(row[:, -CFG.length :])
    return torch.stack(out, 1)


def a_cache_each(model, ids):
    "Every thought behind a cache of its own"
    out = []
    for p in range(ids.shape[1]):
        cache, new, row = model.new_cache(1), torch.cat([ids[:, : p + 1], torch.tensor([[CFG.start]])], 1), []
        for _ in range(CFG.length):
            new = thought_logp(model(new, cache)[:, -1], CFG).argmax(-1)[:, None]
            row.append(new)
        out.append(torch.cat(row, 1))
    return torch.stack(out, 1)


@torch.no_grad()
def everywhere(t: int, n: int) -> dict:
    "A thought after each of t characters of one text"
    gpt, ids, at = model(t + 20), torch.randint(65, (1, t), generator=torch.Generator().manual_seed(0)), torch.arange(t)[None]
    ways = {"at once": lambda: think(Prefix(gpt, ids, every=True), at, CFG), "a cache each": lambda: a_cache_each(gpt, ids), "one after another": lambda: one_after_another(gpt, ids)}
    first = ways["at once"]()
    if not all(torch.equal(first, way()) for way in ways.values()): raise AssertionError("the ways of thinking write other characters")
    took = rounds(ways, n)
    return dict(ms={k: 1e3 * v for k, v in median(took).items()}, speed_up={k: ratio(took, k, "at once") for k in ways if k != "at once"})


@torch.no_grad()
def after_questions(n: int) -> dict:
    "Answers of 6 characters after 64 questions of 16: at once, after one thought, after four; and thoughts a second beside transformers"
    gpt, prompt = model(96), torch.randint(65, (64, 16), generator=torch.Generator().manual_seed(0))
    write, end = ThoughtGenerator(CFG, 6, 0), torch.Generator().manual_seed(0)
    ways = {"at once": lambda: generate(Prefix(gpt, prompt), 6, temperature=0.0), "one thought": lambda: write(Prefix(gpt, prompt), 1), "four thoughts": lambda: write(Prefix(gpt, prompt), 4, temperature=1.0, generator=end)}
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
        peer = GPT2LMHeadModel(GPT2Config(vocab_size=67, n_positions=96, n_embd=64, n_layer=3, n_head=4, bos_token_id=65, eos_token_id=None, pad_token_id=65)).eval()
        ways["transformers, four thoughts"] = lambda: peer.generate(prompt, max_new_tokens=19, do_sample=True, num_return_sequences=4, top_k=0, attention_mask=torch.ones_like(prompt))
    except ImportError: print("transformers is not installed (extra bench): no peer")
    took = rounds(ways, n)
    ms = {k: 1e3 * v for k, v in median(took).items()}
    return dict(ms=ms, thoughts_per_second={k: 64 * (4 if "four" in k else 1) / (v / 1e3) for k, v in ms.items() if k != "at once"}, times_direct={k: ratio(took, k, "at once") for k in ways if k != "at once"})


def published_size() -> dict:
    "A model of about 25 million parameters: its file, and the memory of a process that updates it"
    with tempfile.TemporaryDirectory() as folder:
        models = {"plain": ContextualGPT(GPTConfig.preset("gpu", 67)), "with a mixing head": QuietGPT(QuietConfig(**vars(GPTConfig.preset("gpu", 67)), thoughts=CFG))}
        files = {name: dict(parameters=n_parameters(m), file_mb=saved_mb(m, Path(folder) / "m.safetensors")) for name, m in models.items()}
    updates = []
    for what, batch in (("plain", 16), ("reward", 1), ("reward", 4), ("reward", 16), ("text", 1), ("text", 2)):
        done = subprocess.run([sys.executable, "-W", "ignore", __file__, what, str(batch)], capture_output=True, text=True)
        if done.returncode: raise RuntimeError(f"{what} {batch}: {done.stderr[-2000:]}")
        updates.append(json.loads(done.stdout.splitlines()[-1]))
    return dict(files=files, updates=updates)


def saved_mb(model, file: Path) -> float:
    "Megabytes of a model's weights in a file"
    save_file(model.state_dict(), file)
    return file.stat().st_size / 1e6


def updated(what: str, batch: int) -> dict:
    "Two updates with AdamW of the published size, in this process: its peak memory and the CPU seconds of the second"
    task, training = load_task("s5", 10), TrainConfig(steps=2, lr=1e-4, warmup=1)
    items, generator = task.sample(batch, 0), torch.Generator().manual_seed(0)
    if what == "reward":
        thoughts = thoughts_for(task, items)
        model = ContextualGPT(GPTConfig.preset("gpu", len(task.vocab) + 1))
        objective, data = ThoughtRL(task, thoughts, ThoughtRLConfig("gain"), copy.deepcopy(model).requires_grad_(False)), (*task.encode(items), items)
    else:
        shape = vars(GPTConfig.preset("gpu", 67))
        model, objective = (ContextualGPT(GPTConfig(**shape)), cross_entropy) if what == "plain" else (QuietGPT(QuietConfig(**shape, thoughts=replace(CFG, n_thoughts=2, length=8, temperature=1.0))), QuietSTaR())
        data = torch.randint(65, (batch, 49), generator=generator)
    optimizer = adamw(model, training)
    for _ in range(2):
        started = time.process_time()
        update(model, objective, [data], optimizer, training.lr, training.clip)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if sys.platform == "darwin" else 20)
    return dict(what=what, batch=batch, n_parameters=n_parameters(model), peak_gib=peak, cpu_seconds=time.process_time() - started)


def main(n: int) -> None:
    result = machine_facts() | dict(load=os.getloadavg()[0], rounds=n, limits=limits(), everywhere={t: everywhere(t, n) for t in (32, 64, 128)}, after_questions=after_questions(n), published_size=published_size())
    print(json.dumps(result, indent=1))
    OUT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__": print(json.dumps(updated(sys.argv[1], int(sys.argv[2])))) if sys.argv[2:] else main(int(sys.argv[1]) if sys.argv[1:] else 9)
