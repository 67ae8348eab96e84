"""`make demo`: four methods, each beside the control that decides it, in small; Ctrl-C loses nothing, and again goes on"""
import hashlib
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from refine_nb.benchmark_tasks import load_task
from refine_nb.calibration import evaluate_lookahead, r2_gain
from refine_nb.candidates import CandidateConfig
from refine_nb.confidence import ConfidenceAwareGPT, Lookahead, LookaheadConfig, LookaheadWindows
from refine_nb.data import CharVocab, Windows, eval_windows, load_corpus, split_ids
from refine_nb.evaluation import evaluate
from refine_nb.gpt import ContextualGPT, GPTConfig, sample
from refine_nb.grpo import GRPOConfig, RolloutGRPO
from refine_nb.pipeline import run_reinforcement, run_warm_start
from refine_nb.prefix import Prefix
from refine_nb.thought_rl import ThoughtRLConfig
from refine_nb.thoughts import ThoughtConfig, ThoughtGenerator, decode_thoughts
from refine_nb.train import TrainConfig, cross_entropy, train
from refine_nb.trigram import NGram
from refine_nb.trm import TRM, RecursiveGPT, TRMConfig, evaluate_steps

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "build" / "demo"
CONTEXT, BRANCH = 32, 4  # characters that are read, and that one try writes


class Size(NamedTuple):
    "How long everything is trained"
    explore: int = 250   # updates of guided GRPO
    refine: int = 240    # updates of the recursive model
    plain: int = 1300    # of the plain one: about as much CPU time
    noise: int = 150     # of the recursive model on one batch of random characters
    ahead: int = 300     # of the model that looks ahead
    warm: int = 300      # of the model that learns to think from examples
    reward: int = 20     # of the same from reward
    judged: int = 200    # held-out windows


class Line(NamedTuple):
    "One line of the table"
    method: str
    claimed: str
    here: str
    control: str


class Text(NamedTuple):
    "The text that all models read"
    vocab: CharVocab
    fit: torch.Tensor       # ids
    held_out: torch.Tensor  # ids


def read(name: str) -> Text:
    "A corpus, the last tenth held out"
    corpus = load_corpus(name)
    vocab = CharVocab.from_text(corpus.text)
    return Text(vocab, *split_ids(vocab.encode(corpus.text), "report"))


def explore(text: Text, size: Size, home: Path) -> tuple[list[Line], str]:
    "Guided GRPO as published, and the same without its reward"
    n = len(text.vocab)
    reference = NGram.fit(text.fit, n, 3)
    windows = text.held_out.unfold(0, CONTEXT + 1, 11)[: 5 * size.judged]
    right, written = {}, ""
    for weight in (1.0, 0.0):
        torch.manual_seed(0)
        policy = ContextualGPT(GPTConfig(n, context=CONTEXT + BRANCH - 1, n_layers=2, n_heads=4, width=64, ngram=4))
        config = GRPOConfig("group", reward_weight=weight, partial_credit=0.2, beta=0.005, kl_estimator="k3")
        objective = RolloutGRPO(config, CandidateConfig("uniform", exhaustive_ratio=0.5), n, BRANCH, reference, seed=0)
        name = "explore" if weight else "explore-without-reward"
        settings = TrainConfig(steps=size.explore, lr=1e-3, warmup=min(20, size.explore // 4))
        train(policy, objective, Windows(text.fit, CONTEXT, 8, ahead=BRANCH, seed=0), settings, checkpoint_dir=home / name)
        right[weight] = evaluate(policy, windows, skip=CONTEXT - 1)["val_accuracy"]
        if not weight: written = text.vocab.decode(sample(policy, text.fit[:20][None], 120, temperature=0.8)[0, 0])
    line = Line("guided GRPO", "25–35 % of characters right, by its reward", f"{right[1.0]:.0%}",
                f"{right[0.0]:.0%} without reward")
    return [line], f"written by the control: {written!r}"


class OneBatch(Iterator):
    "One batch of random characters for ever: nothing in it can be learned but by heart"

    def __init__(self, n: int):
        self.ids = torch.randint(n, (4, CONTEXT + 1), generator=torch.Generator().manual_seed(0))

    def __next__(self) -> torch.Tensor: return self.ids


def refine(text: Text, size: Size, home: Path) -> tuple[list[Line], str]:
    "The extreme profile on text and on random characters, and a plain model of as much CPU time"
    n, windows = len(text.vocab), eval_windows(text.held_out, CONTEXT)[: size.judged]
    shape = dict(n_symbols=n, context=CONTEXT, n_layers=1, n_heads=4, width=64)
    config = TRMConfig.with_refinement_preset("extreme", **shape, n_loops=2, n_cycles=1, n_supervision=4,
                                              improvement_reward="naive")
    noise, found = OneBatch(n), {}
    for name, steps, batches, judged in (("refine", size.refine, Windows(text.fit, CONTEXT, 16, seed=0), windows),
                                         ("refine-noise", size.noise, noise, noise.ids)):
        torch.manual_seed(0)
        model = RecursiveGPT(config)
        settings = TrainConfig(steps=steps, lr=0.01, warmup=steps // 10)
        train(model, TRM(config.refinement), batches, settings, checkpoint_dir=home / name)
        found[name] = evaluate_steps(model, judged)
    torch.manual_seed(0)
    plain = ContextualGPT(GPTConfig(**shape))
    settings = TrainConfig(steps=size.plain, lr=0.02, warmup=size.plain // 20)
    train(plain, cross_entropy, Windows(text.fit, CONTEXT, 16, seed=0), settings, checkpoint_dir=home / "refine-plain")
    gross = Line("TRM refinement", "last loss 50–97 % below the first", f"{found['refine']['val_refinement']:.0%}",
                 f"{found['refine-noise']['val_refinement']:.0%} on random characters")
    net = Line("", "ready for production", f"loss {found['refine']['val_loss']:.2f}",
               f"loss {evaluate(plain, windows)['val_loss']:.2f}, a plain model in the same time")
    return [gross, net], ""


def look_ahead(text: Text, size: Size, home: Path) -> tuple[list[Line], str]:
    "A head that foretells the loss after the next character, and what entropy foretells of it"
    torch.manual_seed(0)
    model = ConfidenceAwareGPT(GPTConfig(len(text.vocab), context=CONTEXT + 1, n_layers=2, n_heads=4, width=64))
    objective = Lookahead(LookaheadConfig(detach=True, clip=0.1), 0)
    settings = TrainConfig(steps=size.ahead, lr=8e-3, warmup=min(50, size.ahead // 4))
    batches = LookaheadWindows(text.fit, CONTEXT, 16, ahead=2, seed=0)
    train(model, objective, batches, settings, checkpoint_dir=home / "look-ahead")
    windows = eval_windows(text.held_out, CONTEXT, 2)[: 2 * size.judged]
    fitted, judged = evaluate_lookahead(model, windows[0::2]), evaluate_lookahead(model, windows[1::2])
    gain = float(r2_gain(fitted, judged).mean())
    loss, doubt = judged["sampled"].flatten(), judged["entropy"].flatten()
    known = float(torch.corrcoef(torch.stack([loss, doubt]))[0, 1]) ** 2
    here, control = f"{known + gain:.1%} of its variance", f"{known:.1%} by entropy, which costs nothing"
    return [Line("look-ahead confidence", "foretells the loss after the next character", here, control)], ""


def damaged(thought: str) -> str:
    "A thought whose last step has its first two letters exchanged"
    steps = thought.split(",")
    last = steps[-1]
    return ",".join([*steps[:-1], last[1] + last[0] + last[2:]])


def thoughtful(task, marks: ThoughtConfig, prompt: str, thought: str) -> torch.Tensor:
    "Ids of a question and a whole thought, as a model reads them before it answers"
    encode, start, end = task.vocab.encode, torch.tensor([marks.start]), torch.tensor([marks.end])
    return torch.cat([encode(prompt), start, encode(thought), end])


def answers(model, task, marks: ThoughtConfig, prompts: list[str], thoughts: list[str]) -> list[str]:
    "The likeliest answers behind given thoughts, all of one length"
    ids = torch.stack([thoughtful(task, marks, p, t) for p, t in zip(prompts, thoughts)])
    return [task.vocab.decode(row[ids.shape[1]:]).split("\n")[0] for row in sample(model, ids, 6, temperature=0.0)[:, 0]]


def think(size: Size, home: Path) -> tuple[list[Line], str]:
    "Thoughts learned from examples and reward; then one step of each is damaged"
    warm = TrainConfig(steps=size.warm, lr=4e-3, warmup=min(20, size.warm // 4), checkpoint_every=50)
    start = run_warm_start(home / "think-warm", ("s5", 2), n_layers=2, training=warm)
    taught = TrainConfig(steps=size.reward, lr=2.5e-4, warmup=min(5, size.reward // 4), weight_decay=0.0)
    task, n = load_task("s5", 2), min(size.judged, 200)
    end = run_reinforcement(home / "think-reward", start.file, ("s5", 2), start.thoughts, ThoughtRLConfig(), taught,
                            validate_every=480, items=n)
    items = list({i.prompt: i for i in task.sample(n, 7, "test")}.values())
    prefix = Prefix(end.model, task.encode(items)[0])
    told = decode_thoughts(task, ThoughtGenerator(start.thoughts, 6, task.vocab["\n"])(prefix, 1, temperature=0.0).ids[:, 0])
    whole = [(i, t.removeprefix("<think>").split(":")[0]) for i, t in zip(items, told)]
    whole = [(i, t) for i, t in whole if [len(step) for step in t.split(",")] == [5, 5]]  # complete ones
    if not whole: return [Line("thoughts", "are used", "no worked thought yet", "train longer")], ""
    kept, thoughts = [i for i, _ in whole], [t for _, t in whole]
    prompts = [i.prompt for i in kept]
    own, other = (answers(end.model, task, start.thoughts, prompts, ts)
                  for ts in (thoughts, [damaged(t) for t in thoughts]))
    right, spoilt = (sum(a == i.answer for a, i in zip(found, kept)) / len(kept) for found in (own, other))
    line = Line("thoughts", "raise the accuracy and are used", f"{right:.0%} right behind {len(kept)} of them",
                f"{spoilt:.0%} with one step damaged, {end.final['accuracy_direct']:.0%} without a thought")
    first = f"{kept[0].prompt} | {thoughts[0]} | {own[0]}"
    spoiled = f"{kept[0].prompt} | {damaged(thoughts[0])} | {other[0]}"
    return [line], f"question | thought | answer: {first}\n  the last step damaged: {spoiled}"


def table(lines: list[Line]) -> str:
    "The lines under each other, columns as wide as they have to be"
    rows = [Line("method", "claimed", "here", "control"), *lines]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows)


def start_anew_if_changed(home: Path) -> None:
    "Remove what another version of this file trained: its checkpoints are no beginning of these runs"
    version, mark = hashlib.sha256(Path(__file__).read_bytes()).hexdigest(), home / "version.txt"
    if home.exists() and not (mark.exists() and mark.read_text() == version): shutil.rmtree(home)
    home.mkdir(parents=True, exist_ok=True)
    mark.write_text(version)


def run(size: Size = Size(), home: Path = HOME, corpus: str = "pydocs") -> list[Line]:
    "All four methods; prints as it goes; returns the table's lines"
    text, lines, parts = read(corpus), [], ((explore, 1), (refine, 2), (look_ahead, 3), (think, 4))
    for part, number in parts:
        print(f"\n{number} of {len(parts)}: {part.__doc__}", flush=True)
        found, said = part(size, home) if part is think else part(text, size, home)
        lines += found
        print("\n".join(filter(None, [table(found), said])), flush=True)
    return lines


def main() -> int:
    "The demonstration, where it lies, and what to try next"
    start = time.time()
    torch.set_num_threads(1)
    start_anew_if_changed(HOME)
    try:
        lines = run()
    except KeyboardInterrupt:
        print("\nstopped; what was trained is kept, and `make demo` goes on from there")
        return 130
    text = table(lines)
    (HOME / "table.txt").write_text(text + "\n")
    print(f"\n{text}\n\nOne run each, with one random seed: a look, no evidence. The evidence: CLAIMS.md and nbs/results/.")
    print(f"Models and table lie in {HOME.relative_to(ROOT)}/. Next: `make lab`, nbs/14_grpo.ipynb; own text: README.md")
    print(f"{time.time() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
