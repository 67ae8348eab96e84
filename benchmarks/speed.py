"""Speed against peers and against the machine, as ratios measured in one run (one thread, process CPU time, medians).

    python benchmarks/speed.py            # everything, about five minutes; writes benchmarks/speed.json and prints a table
    python benchmarks/speed.py train      # one part: limits, train, sample, counts or markov

The peer is GPT-2 of the `transformers` library (extra `bench`) with the same shape, dropout 0, exact GELU, scaled-dot-product
attention, the same fused AdamW and clip. Each round times every contestant once, in turn, so that a drift of the machine meets
all of them; a ratio is the median over rounds of (peer's time / ours).
"""

import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"): os.environ[name] = "1"

import torch
import torch.nn.functional as F

from refine_nb.data import CharVocab, MarkovSource, Windows, eval_windows, load_corpus, split_ids
from refine_nb.evaluation import evaluate, score
from refine_nb.gpt import ContextualGPT, GPTConfig, sample, set_precision
from refine_nb.train import TrainConfig, adamw, count_flops, cross_entropy, train, update
from refine_nb.trigram import NGram

torch.set_num_threads(1)
OUT = Path(__file__).with_suffix(".json")
SHAPE = dict(n_layers=4, n_heads=4, width=128)


def rounds(contestants: dict, n: int, repeat: int = 1, warmup: int = 2) -> dict[str, list[float]]:
    "CPU seconds per call of each contestant, n rounds, all of them in every round"
    for f in contestants.values():
        for _ in range(warmup): f()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(n):
        for name, f in contestants.items():
            start = time.process_time()
            for _ in range(repeat): f()
            times[name].append((time.process_time() - start) / repeat)
    return times


def ratio(times, a, b) -> float: return statistics.median(x / y for x, y in zip(times[a], times[b]))


def median(times) -> dict: return {name: statistics.median(t) for name, t in times.items()}


def peer(context: int):
    "GPT-2 of the transformers library, in our shape"
    from transformers import GPT2Config, GPT2LMHeadModel, logging

    logging.set_verbosity_error()
    drop = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=65, n_positions=context, n_embd=128, n_layer=4, n_head=4, activation_function="gelu", attn_implementation="sdpa", bos_token_id=0, eos_token_id=None, pad_token_id=0, **drop))


def machine_facts() -> dict:
    "Processor, whether it has AMX, and PyTorch's version"
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return dict(cpu=names[0] if names else platform.processor(), amx=torch.cpu._is_amx_tile_supported(), torch=torch.__version__)


def limits() -> dict:
    "What the machine can do: matrix products in two precisions, and reading memory"
    a, big = torch.randn(768, 768), torch.randn(64 * 2**20)
    b, flops = a.bfloat16(), 2 * 768**3
    t = median(rounds({"fp32": lambda: a @ a, "bf16": lambda: b @ b, "memory": lambda: big.sum()}, 15, 5))
    return dict(fp32_gflops=flops / t["fp32"] / 1e9, bf16_gflops=flops / t["bf16"] / 1e9, memory_gb_s=big.numel() * 4 / t["memory"] / 1e9)


def training(machine: dict) -> dict:
    "A training step of 12 windows of 64 characters"
    batch = torch.randint(65, (12, 65), generator=torch.Generator().manual_seed(0))
    cfg, steps = TrainConfig(), {}
    for name, precision in (("fp32", "fp32"), ("bf16", "bf16")):
        torch.manual_seed(0)
        model = ContextualGPT(GPTConfig(65, **SHAPE))
        set_precision(model, precision)
        steps[name] = lambda m=model, o=adamw(model, cfg): update(m, cross_entropy, [batch], o, cfg.lr, cfg.clip)
    flops = count_flops(model, cross_entropy, batch)
    other = peer(64).train()

    def objective(model, batch): return F.cross_entropy(model(input_ids=batch[:, :-1], use_cache=False).logits.flatten(0, 1), batch[:, 1:].flatten()), {}

    def autocast(model, batch):
        with torch.autocast("cpu", torch.bfloat16): return cross_entropy(model, batch)

    torch.manual_seed(0)
    third = ContextualGPT(GPTConfig(65, **SHAPE))
    steps["autocast"] = lambda o=adamw(third, cfg): update(third, autocast, [batch], o, cfg.lr, cfg.clip)
    steps["gpt2"] = lambda o=adamw(other, cfg): update(other, objective, [batch], o, cfg.lr, cfg.clip)
    t = rounds(steps, 25, 8, 5)
    m = median(t)
    return dict(ms=({k: 1e3 * v for k, v in m.items()}), tokens_per_s={k: 768 / v for k, v in m.items()}, fp32_vs_gpt2=ratio(t, "gpt2", "fp32"), bf16_vs_fp32=ratio(t, "fp32", "bf16"), autocast_vs_fp32=ratio(t, "fp32", "autocast"), bf16_vs_gpt2=ratio(t, "gpt2", "bf16"),
                fp32_share_of_limit=flops / m["fp32"] / 1e9 / machine["fp32_gflops"], bf16_share_of_limit=flops / m["bf16"] / 1e9 / machine["bf16_gflops"], gpt2_share_of_limit=flops / m["gpt2"] / 1e9 / machine["fp32_gflops"])


def sampling(machine: dict) -> dict:
    "64 texts of 100 + 32 characters: 64 prompts, and 8 prompts with 8 samples each"
    torch.manual_seed(0)
    ours, other = ContextualGPT(GPTConfig(65, context=132, **SHAPE)).eval(), peer(132).eval()
    many, few = torch.randint(65, (64, 100)), torch.randint(65, (8, 100))
    options = dict(max_new_tokens=32, min_new_tokens=32, do_sample=True, top_k=0, use_cache=True)
    t = rounds({"gpt2 64": lambda: other.generate(many, **options), "gpt2 8x8": lambda: other.generate(few, num_return_sequences=8, **options),
                "ours 64": lambda: sample(ours, many, 32), "ours 8x8": lambda: sample(ours, few, 32, g=8)}, 15)
    m = median(t)
    weights = sum(p.numel() for p in ours.blocks.parameters())
    flops, kv = 2 * weights * 64 * (100 + 31), 2 * 4 * 128 * 4  # bytes of keys and values per position
    floor = dict(products=flops / machine["fp32_gflops"] / 1e9, memory=sum(64 * kv * (100 + i) for i in range(1, 32)) / machine["memory_gb_s"] / 1e9)
    return dict(ms={k: 1e3 * v for k, v in m.items()}, tokens_per_s={k: 64 * 32 / v for k, v in m.items()}, ours_vs_gpt2=ratio(t, "gpt2 64", "ours 64"), shared_vs_gpt2=ratio(t, "gpt2 8x8", "ours 8x8"),
                floor_ms={k: 1e3 * v for k, v in floor.items()}, share_of_limit=sum(floor.values()) / m["ours 64"])


def counts() -> dict:
    "Fitting n-grams on a megabyte"
    corpus = load_corpus("auto")
    vocab = CharVocab.from_text(corpus.text)
    ids = vocab.encode(corpus.text)[:1_000_000]
    t = median(rounds({str(n): (lambda n=n: NGram.fit(ids, len(vocab), n)) for n in (2, 3, 4, 5)}, 5))
    return dict(corpus=corpus.name, characters=len(ids), seconds=t)


def limit_of_markov() -> dict:
    "How close the GPT gets to the source's own loss in 1,200 steps"
    corpus = load_corpus("markov")
    vocab = CharVocab.from_text(corpus.text)
    fit, held_out = split_ids(vocab.encode(corpus.text))
    windows = eval_windows(held_out, 64)
    source = score(MarkovSource(), windows)[0][:, 2:].mean().item()

    def excess(policy): return evaluate(policy, windows, skip=2)["val_loss"] / source - 1

    torch.manual_seed(0)
    start, model = time.process_time(), ContextualGPT(GPTConfig(len(vocab), **SHAPE))
    rows = train(model, cross_entropy, Windows(fit, 64, 12), TrainConfig(steps=1200, lr=2e-3, precision="bf16"), progress=False)
    seconds = time.process_time() - start
    found = dict(training_characters=len(fit), judged=windows[:, 3:].numel(), gpt_excess=excess(model))
    return found | dict(bigram_excess=excess(NGram.fit(fit, len(vocab), 2)), steps=len(rows), cpu_seconds=seconds)


def main(parts: list[str]) -> None:
    machine = limits()
    run = dict(train=lambda: training(machine), sample=lambda: sampling(machine), counts=counts, markov=limit_of_markov)
    unknown = set(parts) - {*run, "limits"}
    if unknown: raise SystemExit(f"no part {', '.join(unknown)}; there is limits, {', '.join(run)}")
    result = machine_facts() | dict(load=os.getloadavg()[0], limits=machine) | {name: f() for name, f in run.items() if not parts or name in parts}
    print(json.dumps(result, indent=1))
    if not parts: OUT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__": main(sys.argv[1:])
