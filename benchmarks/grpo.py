"""One step of GRPO against TRL on equal work: process CPU time on one thread, ratios measured in one run.

    python benchmarks/grpo.py               # everything, about ten minutes; writes grpo.json and grpo_scaling.csv beside this file
    python benchmarks/grpo.py step          # one part again: limits, step, candidates, loop or scaling

step: TRL's `GRPOTrainer` (extra `bench`) trains, and after each of its steps, in its callback, every other contestant makes one of its own, so that a
drift of the machine meets all of them; a ratio is the median over rounds of (TRL's time / ours). 8 prompts of 100 characters, groups of 8 and 16,
8 characters a completion and never fewer, beta 0, one update per generation batch, fp32; GPT-2 of our shape, the same AdamW and clip. TRL's defaults
that would cost it time are off: gradient checkpointing, bf16 autocast (timed beside), logging, saving. Generation is all that makes the batch: tokens,
draws, rewards, advantages (with us also the one reading of the prompts that the update learns through); update is the rest. "rows" is our own step with
one row per completion, as TRL computes it.

candidates: ours alone: 8 texts of 100 characters × 25 candidates × 8 characters, shared prefix against one row per candidate (without any cache); the
characters must be the same, differences of log-probabilities and gradients are reported.

loop: the share of a training run, recorder and checkpoint included, that is neither generating nor scoring nor updating.

scaling: group size, completion length, context and width, one at a time, each point in a process of its own; exponents are slopes of log–log fits.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from speed import SHAPE, limits, machine_facts, median, peer, ratio, rounds  # sets one thread before torch is imported

import numpy as np
import pandas as pd
import torch

import refine_nb.train
from refine_nb.prefix import Prefix, branch_logits, generate
from refine_nb.candidates import CandidateConfig, select, group_advantage
from refine_nb.data import Windows
from refine_nb.gpt import ContextualGPT, GPTConfig, sample, set_precision
from refine_nb.grpo import AllPositions, GRPOConfig, Rollouts, grpo_loss
from refine_nb.train import TrainConfig, adamw, train, update

OUT, CURVES = Path(__file__).with_suffix(".json"), Path(__file__).with_name("grpo_scaling.csv")
BASE = dict(prompts=8, t=100, g=8, c=8, width=128)
VARIED = dict(g=(4, 8, 16, 32), c=(4, 8, 16, 32), t=(50, 100, 200, 400), width=(64, 128, 256))
SYMBOLS = [chr(i) for i in range(59, 124)]  # 65 of them


def prompts(work: dict) -> torch.Tensor: return torch.randint(65, (work["prompts"], work["t"]), generator=torch.Generator().manual_seed(0))


# ---- TRL ----


def characters():
    "A tokenizer of one character a token; its end sign is no symbol of the model, so no completion ends early"
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = Tokenizer(models.WordLevel({s: i for i, s in enumerate(SYMBOLS)}, unk_token=SYMBOLS[0]))
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.Split(Regex("."), "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<eos>", pad_token="<eos>", padding_side="left")


def share_below_32(completion_ids, **_) -> list[float]:
    "A reward that costs next to nothing"
    return [sum(i < 32 for i in ids) / len(ids) for ids in completion_ids]


def trl_trainer(work: dict, folder: str, steps: int, precision: str):
    "TRL's trainer on the work, with nothing beside the training step"
    from datasets import Dataset
    from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback
    from trl import GRPOConfig as Settings
    from trl import GRPOTrainer

    shape, cfg = peer(work["t"] + work["c"]).config.to_dict(), TrainConfig()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**shape | {"n_embd": work["width"]}))
    args = Settings(
        folder, num_generations=work["g"], per_device_train_batch_size=work["prompts"] * work["g"], max_completion_length=work["c"], max_steps=steps, beta=0.0, shuffle_dataset=False,
        learning_rate=cfg.lr, lr_scheduler_type="constant", optim="adamw_torch_fused", adam_beta2=0.95, weight_decay=cfg.weight_decay, max_grad_norm=cfg.clip,
        gradient_checkpointing=False, bf16=precision == "bf16", use_cpu=True, report_to="none", logging_strategy="no", save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False)
    data = Dataset.from_dict({"prompt": ["".join(SYMBOLS[i] for i in row) for row in prompts(work).tolist()]})
    trainer = GRPOTrainer(model, share_below_32, args, data, processing_class=characters())
    trainer.remove_callback(PrinterCallback)
    return trainer


def take_turns(trainer, others: dict) -> dict[str, list[tuple]]:
    "Train; (generation, update) in CPU seconds of every step of TRL's and, after each, of one step of every other contestant"
    from transformers import TrainerCallback

    times, prepare, now = {name: [] for name in ("trl", *others)}, trainer._prepare_inputs, dict(start=0.0, batch=0.0)

    def timed(inputs):
        start = time.process_time()
        batch = prepare(inputs)
        now["batch"] = time.process_time() - start
        return batch

    def begin(*_, **__): now["start"] = time.process_time()

    def turn(*_, **__):
        times["trl"].append((now["batch"], time.process_time() - now["start"] - now["batch"]))
        for name, step in others.items(): times[name].append(step())
        begin()

    trainer._prepare_inputs = timed
    trainer.add_callback(type("Turns", (TrainerCallback,), dict(on_train_begin=staticmethod(begin), on_step_end=staticmethod(turn))))
    trainer.train()
    return times


def against_trl(work: dict, others: dict, n: int, warmup: int, precision: str = "fp32") -> dict[str, list[tuple]]:
    "The same, n steps after the warm-up; refuses work that is not equal"
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl_trainer(work, folder, warmup + n, precision)
        times = take_turns(trainer, others)
    logged = trainer.state.log_history[-1]
    if not logged["completions/min_length"] == logged["completions/max_length"] == work["c"]: raise RuntimeError(f"TRL's completions have {logged['completions/min_length']} to {logged['completions/max_length']} characters, not {work['c']}")
    if torch.get_num_threads() != 1: raise RuntimeError(f"{torch.get_num_threads()} threads, not one")
    return {name: t[warmup:] for name, t in times.items()}


# ---- ours ----


def our_model(work: dict, precision: str = "fp32") -> ContextualGPT:
    torch.manual_seed(0)
    model = ContextualGPT(GPTConfig(65, context=work["t"] + work["c"], **SHAPE | {"width": work["width"]}))
    set_precision(model, precision)
    return model


def below_32(branches, target=None) -> torch.Tensor: return (branches < 32).float().mean(-1)


def logp_of(logits, ids) -> torch.Tensor: return logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def rows_generate(model, x, c: int, first) -> torch.Tensor:
    "One row per candidate, without any cache; greedy after a forced first character"
    ids = torch.cat([x.repeat_interleave(first.shape[1], 0), first.flatten()[:, None]], 1)
    with torch.no_grad():
        for _ in range(c - 1): ids = torch.cat([ids, model.head(model.hidden(ids)[:, -1:]).argmax(-1)], 1)
    return ids[:, x.shape[1] :].unflatten(0, first.shape)


def rows_logits(model, x, ids) -> torch.Tensor:
    "One row per candidate in the training pass"
    rows = torch.cat([x.repeat_interleave(ids.shape[1], 0), ids.flatten(0, 1)[:, :-1]], 1)
    return model.head(model.hidden(rows)[:, x.shape[1] - 1 :]).unflatten(0, ids.shape[:2])


def ours(work: dict, precision: str = "fp32"):
    "A step of ours; called, it returns the CPU seconds of its generation and of its update"
    model, cfg, now = our_model(work, precision), TrainConfig(), {}
    objective = Rollouts(GRPOConfig(scale_rewards="group"), CandidateConfig(estimator="on_policy", n_samples=work["g"]), 65, work["c"], reward=below_32)
    optimizer, explore = adamw(model, cfg), objective.explore
    batch = torch.cat([prompts(work), torch.zeros(work["prompts"], work["c"], dtype=torch.long)], 1)  # nobody looks at the target

    def timed(*args):
        tries = explore(*args)
        now["middle"] = time.process_time()
        return tries

    def step() -> tuple[float, float]:
        start = time.process_time()
        update(model, objective, [batch], optimizer, cfg.lr, cfg.clip)
        return now["middle"] - start, time.process_time() - now["middle"]

    objective.explore = timed
    return step


def unshared(work: dict):
    "The same step with one row per completion, as TRL computes it: what a loop without a trainer around it gains by itself"
    model, x, cfg, (g, c) = our_model(work), prompts(work).repeat_interleave(work["g"], 0), TrainConfig(), (work["g"], work["c"])
    optimizer = adamw(model, cfg)

    def step() -> tuple[float, float]:
        start = time.process_time()
        ids = sample(model, x, c)[:, :, -c:]
        adv = group_advantage(below_32(ids).view(-1, g), torch.full((work["prompts"], g), 1 / g), "group")[0].view(-1, 1, 1)
        middle = time.process_time()

        def objective(model, ids):
            logp = logp_of(rows_logits(model, x, ids), ids)
            return grpo_loss(logp, logp.detach(), adv.expand(ids.shape), torch.ones(ids.shape))

        update(model, objective, [ids], optimizer, cfg.lr, cfg.clip)
        return middle - start, time.process_time() - middle

    return step


# ---- the parts ----


def split(times: dict[str, list[tuple]]) -> dict[str, list[float]]:
    "Whole steps, generations and updates, each under its own name"
    return {f"{name}{part}": [f(pair) for pair in pairs] for name, pairs in times.items() for part, f in (("", sum), (" generate", lambda p: p[0]), (" update", lambda p: p[1]))}


def step_part() -> dict:
    "A step of GRPO in groups of 8 and 16"
    out = {}
    for g in (8, 16):
        work = BASE | dict(g=g)
        t = split(against_trl(work, dict(rows=unshared(work), fp32=ours(work), bf16=ours(work, "bf16")), 15, 4))
        autocast, m = median(split(against_trl(work, {}, 5, 2, "bf16"))), median(t)
        out[f"g={g}"] = dict(ms={k: 1e3 * v for k, v in m.items()}, completions_per_s={k: 8 * g / m[k] for k in ("trl", "fp32", "bf16")}, trl_autocast_ms=1e3 * autocast["trl"],
                             trl_vs={f"{p}{k}": ratio(t, f"trl{k}", f"{p}{k}") for p in ("rows", "fp32", "bf16") for k in ("", " generate", " update")})
    return out


def candidates() -> dict:
    "25 candidates of 8 characters, their first ones chosen, then greedy: shared prefix against one row per candidate"
    work, draws = BASE | dict(g=25), torch.Generator().manual_seed(0)
    model, x, c = our_model(work).eval(), prompts(work), work["c"]
    group = select(Prefix(model, x).next_logits.detach().log_softmax(-1), CandidateConfig(), draws)
    adv, weight, drift = torch.randn(8, 25, 1, generator=draws).expand(8, 25, c), group.weight[..., None].expand(8, 25, c), torch.randn(8, 25, c, generator=draws) / 10

    def learn(logits, ids):
        model.zero_grad()
        logp = logp_of(logits, ids)
        loss, _ = grpo_loss(logp, logp.detach() + drift, adv, weight)
        loss.backward()
        return torch.cat([loss.detach()[None], logp.detach().flatten()]), [p.grad for p in model.parameters()]

    def rows_both(): return learn(rows_logits(model, x, drawn := rows_generate(model, x, c, group.ids)), drawn)

    def shared_both():
        trunk = Prefix(model, x)
        drawn = generate(trunk, c, first=group.ids, temperature=0)
        return learn(branch_logits(trunk, drawn), drawn)

    @torch.no_grad()
    def shared_generate(): return generate(Prefix(model, x), c, first=group.ids, temperature=0)

    ids = shared_generate()
    if not torch.equal(ids, rows_generate(model, x, c, group.ids)): raise RuntimeError("a shared prefix and one row per candidate gave different characters")
    (value_a, a), (value_b, b) = rows_both(), shared_both()
    t = rounds({"rows generate": lambda: rows_generate(model, x, c, group.ids), "shared generate": shared_generate, "rows train": lambda: learn(rows_logits(model, x, ids), ids),
                "shared train": lambda: learn(branch_logits(Prefix(model, x), ids), ids), "rows both": rows_both, "shared both": shared_both}, 7, warmup=1)
    return dict(ms={k: 1e3 * v for k, v in median(t).items()}, gain={k: ratio(t, f"rows {k}", f"shared {k}") for k in ("generate", "train", "both")}, characters_equal=ids.numel(),
                logp_difference=(value_a - value_b).abs().max().item(), gradient_difference=max((i - j).abs().max().item() for i, j in zip(a, b)), gradient_max=max(i.abs().max().item() for i in a))


def outside(objective, ahead: int, steps: int) -> dict:
    "A run of the loop, recorder and a checkpoint included: the share of its time outside `update`, and milliseconds a step"
    inside, ticks, text = [], [], torch.randint(65, (20_000,), generator=torch.Generator().manual_seed(0))

    def timed(*args):
        start = time.process_time()
        row = update(*args)
        inside.append(time.process_time() - start)
        return row

    def record(row):
        log.write(json.dumps(row) + "\n")
        ticks.append(time.process_time())

    refine_nb.train.update = timed
    try:
        with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "metrics.jsonl", "w") as log:
            cfg = TrainConfig(steps=steps, warmup=5, checkpoint_every=steps // 2 + 10)
            train(our_model(BASE), objective, Windows(text, 100, 8, ahead), cfg, callbacks=(record,), checkpoint_dir=Path(folder) / "checkpoints", progress=False)
    finally: refine_nb.train.update = update
    return dict(outside=1 - sum(inside[5:]) / (ticks[-1] - ticks[4]), ms=1e3 * (ticks[-1] - ticks[4]) / (steps - 5))


def loop(steps: int = 100) -> dict:
    "The loop around `update`, which generates, scores and learns; the first steps, with their counting of operations, left out"
    return {"all positions": outside(AllPositions(GRPOConfig(), CandidateConfig(), 65), 1, steps), "rollouts": outside(Rollouts(GRPOConfig(), CandidateConfig(), 65, 8), 8, steps)}


def resident() -> float:
    "Peak resident set of this process in GiB since the last call"
    status, refs = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if sys.platform == "darwin" else 20)
    peak = int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 2**20
    refs.write_text("5")  # forget the peak
    return peak


def point(side: str, work: dict) -> dict:
    "Median CPU milliseconds of a step, and the memory that the steps add to what the interpreter and its imports hold"
    if side == "trl": against_trl(BASE | dict(prompts=1, t=2, g=2, c=2), {}, 1, 0)  # imports
    else: ours(BASE | dict(prompts=1, t=2, g=2, c=2))()
    resident()
    before, warmup, n = resident(), 1, 3
    if side == "trl": times = against_trl(work, {}, n, warmup)
    else:
        step = ours(work)
        times = {side: [step() for _ in range(warmup + n)][warmup:]}
    m = median(split(times))
    return dict(side=side, **work, ms=1e3 * m[side], generate_ms=1e3 * m[f"{side} generate"], update_ms=1e3 * m[f"{side} update"], before_gib=before, peak_gib=resident())


def slope(x, y) -> float: return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def exponents(rows: pd.DataFrame) -> dict:
    "Slopes of log–log fits: of time and added memory against each factor, and of time against two counts of characters"
    rows, out = rows.assign(added_gib=rows.peak_gib - rows.before_gib), {}
    for side, mine in rows.groupby("side"):
        lines = {k: mine[(mine[[o for o in VARIED if o != k]] == [BASE[o] for o in VARIED if o != k]).all(axis=1)] for k in VARIED}
        out[side] = {y: {k: slope(line[k], line[y]) for k, line in lines.items()} for y in ("ms", "generate_ms", "update_ms", "added_gib")}
        same = mine[mine.width == BASE["width"]]
        for name, count in (("t + g·c", same.t + same.g * same.c), ("g·(t + c)", same.g * (same.t + same.c))):
            out[side][f"ms against {name}"] = dict(slope=slope(count, same.ms), correlation=float(np.corrcoef(np.log(count), np.log(same.ms))[0, 1]))
    return out


def scaling() -> dict:
    "Time and memory of a step as curves, on both sides"
    works = list({json.dumps(w): w for k, values in VARIED.items() for w in (BASE | {k: v} for v in values)}.values())
    rows = []
    for work in works:
        for side in ("trl", "ours"):
            done = subprocess.run([sys.executable, "-W", "ignore", __file__, "point", side, json.dumps(work)], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            if done.returncode: raise RuntimeError(f"{side} {work}: {done.stderr[-2000:]}")
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    rows = pd.DataFrame(rows)
    rows.to_csv(CURVES, index=False, float_format="%.4f")
    return exponents(rows)


def main(parts: list[str]) -> None:
    import transformers
    import trl

    run = dict(limits=limits, step=step_part, candidates=candidates, loop=loop, scaling=scaling)
    unknown = set(parts) - {*run}
    if unknown: raise SystemExit(f"no part {', '.join(sorted(unknown))}; there is {', '.join(run)}")
    result = json.loads(OUT.read_text()) if parts and OUT.exists() else {}
    result |= machine_facts() | dict(trl=trl.__version__, transformers=transformers.__version__)
    for name, f in run.items():
        if not parts or name in parts: result |= {"load": result.get("load", {}) | {name: os.getloadavg()[0]}, name: f()}
    print(json.dumps(result, indent=1))
    OUT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["point"]: print(json.dumps(point(sys.argv[2], json.loads(sys.argv[3]))))
    else: main(sys.argv[1:])
