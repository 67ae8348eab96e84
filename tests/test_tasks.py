"""Tasks against references that share no code with them: Python's own arithmetic, permutation matrices, backtracking, powers of adjacency matrices, a regular expression"""
import hashlib
import itertools
import random
import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import datasets
import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from refine_nb.checkpoints import checkpoints
from refine_nb.data import UnknownCharacter
from refine_nb.gpt import ContextualGPT, GPTConfig
from refine_nb.benchmark_tasks import (TASKS, Countdown, MultipleChoice, WordItem, WordProblems, arc, calculate,
                                       check_sums, choice_prompt, gsm8k, load_task)
from refine_nb.puzzles import S5, Addition, Maze, PointerChasing, Sudoku, shortest_paths, sudoku_grids, sudoku_solutions
from refine_nb.tasks import ChainedArithmetic, Item, ProblemBatches, RowBatches, Task, side_of, split_of
from refine_nb.train import TrainConfig, cross_entropy, train

CHAINS = [load_task(name, length) for name in ("arithmetic", "s5") for length in (1, 3, 6)]
PLAIN = [*CHAINS, ChainedArithmetic((2, 4)), PointerChasing(), PointerChasing((1, 9), 10), Sudoku(), Sudoku((4, 12)), Maze(), Maze(5, side=4), Addition(4), Addition((2, 6)), MultipleChoice((3, 6))]  # one answer, in the plain form
EVERY = [*PLAIN, Countdown(3), WordProblems((1, 4))]
RANGES = {"arithmetic": (1, 4), "s5": (1, 4), "pointers": (1, 4), "sudoku": (4, 8), "maze": (2, 5), "addition": (1, 4), "countdown": (2, 4), "word_problems": (1, 4), "multiple_choice": (3, 6)}
OPERATIONS = [s + d for s, ds in (("+", "123456789"), ("-", "123456789"), ("*", "379")) for d in ds]
ROWS = {"1": [1, 0, 2, 3, 4], "2": [0, 2, 1, 3, 4], "3": [0, 1, 3, 2, 4], "4": [0, 1, 2, 4, 3]}
MATRIX = {g: np.eye(5, dtype=int)[rows] for g, rows in ROWS.items()} | {"<": np.roll(np.eye(5, dtype=int), -1, axis=0), ">": np.roll(np.eye(5, dtype=int), 1, axis=0)}


def product(word):
    "The matrix of a whole word: the first generator acts first, so it stands rightmost"
    return np.linalg.multi_dot([np.eye(5, dtype=int), *[MATRIX[g] for g in reversed(word)], np.eye(5, dtype=int)])


def relative(item):
    "What an item's word does to abcde, read off its start and its answer"
    return tuple(item.prompt.index(c) for c in item.answer)


# Working out

@pytest.mark.parametrize("length", [1, 2, 5, 20])
def test_arithmetic_is_python_s(length):
    for item in ChainedArithmetic(length).sample(200, seed=length):
        parts = re.findall(r"^\d\d|[-+*]\d", item.prompt)
        values = list(itertools.accumulate(parts, lambda v, op: str(eval(f"({int(v)}){op}") % 100)))
        assert item.steps == tuple(v.zfill(2) for v in values[1:]) and len(item.steps) == length and item.answer == item.steps[-1]
        assert int(item.answer) == eval("(" * length + str(int(parts[0])) + ")".join(["", *parts[1:]])) % 100  # one reduction at the end


@pytest.mark.parametrize("length", [1, 2, 5, 20])
def test_s5_is_a_product_of_permutation_matrices(length):
    for item in S5(length).sample(60, seed=length):
        start, word = np.array(list(item.prompt[:5])), item.prompt[5:-1]
        want = ["".join(start[product(word[:n]).argmax(1)]) for n in range(1, length + 1)]
        assert item.steps == tuple(want) and item.answer == want[-1]


def test_the_generators_give_s5_and_not_only_half_of_it_at_one_length():
    reached = {tuple(range(5))}
    while len(reached) < len(grown := reached | {tuple(np.array(p)[MATRIX[g].argmax(1)]) for p in reached for g in MATRIX}): reached = grown
    assert len(reached) == 120
    assert {round(np.linalg.det(m)) for m in MATRIX.values()} == {-1, 1}
    assert len({S5(6).item(f"abcde{''.join(w)}=").answer for w in [*itertools.product("1234<>", repeat=6)][::11]}) == 120


def test_an_operation_loses_nothing():
    for op in OPERATIONS: assert len({ChainedArithmetic(1).item(f"{x:02d}{op}=").answer for x in range(100)}) == 100


# Drawing

@pytest.mark.parametrize("name, prompts", [("arithmetic", lambda n: [f"{x:02d}{''.join(w)}=" for x in range(100) for w in itertools.product(OPERATIONS, repeat=n)]),
                                           ("s5", lambda n: ["".join([*p, *w, "="]) for p in itertools.permutations("abcde") for w in itertools.product("1234<>", repeat=n)])])
def test_every_problem_and_no_other(name, prompts):
    for length in (1, 2):
        task, every = load_task(name, length), prompts(length)
        assert len(set(every)) == task.n_items and {task.item(p).prompt for p in every[::40]} == set(every[::40])
        share = np.mean([split_of(p) == "test" for p in every])
        assert abs(share - 0.1) < 4 * np.sqrt(0.09 / len(every))
    task, every = load_task(name, 1), prompts(1)
    for split, n in (("train", 20_000), ("test", 3_000)) if name == "s5" else (("train", 24_000), ("test", 3_000)): assert {i.prompt for i in task.sample(n, 5, split)} == {p for p in every if split_of(p) == split}


def test_draws_are_uniform():
    draw = ChainedArithmetic(2).draw(40_000, torch.Generator().manual_seed(0))
    for position, share in ((slice(0, 2), {f"{x:02d}": 0.01 for x in range(100)}), *[(slice(i, i + 2), {op: 1 / 9 if op[0] == "*" else 1 / 27 for op in OPERATIONS}) for i in (2, 4)]):
        seen = Counter(p[position] for p in draw)
        assert seen.keys() == share.keys() and chisquare([seen[k] for k in share], [len(draw) * v for v in share.values()]).pvalue > 1e-3
    draw = S5(2).draw(24_000, torch.Generator().manual_seed(0))
    for position, n in ((slice(0, 5), 120), (slice(5, 7), 36)):
        seen = Counter(p[position] for p in draw)
        assert len(seen) == n and chisquare(list(seen.values())).pvalue > 1e-3


def test_long_words_end_anywhere_and_short_ones_do_not():
    "The product of a word, without its start, is uniform on 120 permutations at length 32, and not at length 6"
    seen = {length: Counter(map(relative, S5(length).sample(3_000, 1))) for length in (6, 32)}
    p = {length: chisquare([count[q] for q in itertools.permutations(range(5))]).pvalue for length, count in seen.items()}
    assert p[32] > 1e-3 and p[6] < 1e-9


def test_answers_of_a_chain_are_uniform():
    for length in (3, 16):
        seen = Counter(i.answer for i in ChainedArithmetic(length).sample(4_000, 1))
        assert len(seen) == 100 and chisquare(list(seen.values())).pvalue > 1e-3


# The split

def test_the_split_stays_where_it_is():
    "A change here is a change of what every recorded test accuracy means"
    assert [x for x in range(100) if split_of(f"{x:02d}+1=") == "test"] == GOLDEN


GOLDEN = [6, 8, 16, 27, 45, 51, 63, 73, 76, 88]


@pytest.mark.parametrize("task", EVERY, ids=repr)
def test_no_test_item_is_ever_drawn_for_training(task):
    n = 250 if task in CHAINS else 60
    test = {i.prompt for i in task.sample(n, 0, "test")}
    drawn = {i.prompt for seed in range(5) for i in task.sample(2 * n, seed)}
    stream = ProblemBatches(task, n, seed=3)
    drawn |= {task.vocab.decode(row).lstrip("\n") for _ in range(4) for row in next(stream)[0]}
    assert len(test) > 50 and len(drawn) > 500 and not test & drawn
    assert {split_of(p) for p in test} == {"test"} and {split_of(p) for p in drawn} == {"train"}


def test_one_random_seed_does_not_repeat_the_words_on_the_other_side():
    for name, a in (("s5", 5), ("arithmetic", 2)):
        task = load_task(name, 8)
        words = {i.prompt[a:] for i in task.sample(4_000, 1)}
        assert np.mean([i.prompt[a:] in words for i in task.sample(400, 1, "test")]) < 0.05
        assert task.sample(50, 1) == task.sample(50, 1) != task.sample(50, 2)


# Checkers

@pytest.mark.parametrize("task", PLAIN, ids=repr)
def test_no_edit_of_one_character_passes(task):
    "Every replacement, insertion and deletion in a worked completion makes a step or the answer wrong"
    item = task.sample(1, 7)[0]
    text = item.completion(worked=True)
    assert task.check_answer(item, text) and task.check_steps(item, text)
    edits = {text[:i] + c + text[i + cut :] for i in range(len(text)) for c in ["", *task.vocab.chars] for cut in (0, 1)} - {text}
    assert len(edits) > 20 * len(item.answer)
    for e in edits: assert e.startswith(text) or not (task.check_answer(item, e) and task.check_steps(item, e)), e


@pytest.mark.parametrize("task", PLAIN, ids=repr)
def test_the_first_wrong_step_is_the_one_that_was_changed(task):
    item = task.sample(1, 7)[0]
    n = len(item.steps)
    for i, step in enumerate(item.steps):
        changed = ",".join([*item.steps[:i], step + step[0], *item.steps[i + 1 :]]) + f":{item.answer}\n"
        check = task.check_steps(item, changed)
        assert check.right == tuple(j != i for j in range(n)) and check.first_wrong == i and not check
        assert task.check_answer(item, changed)
        short = task.check_steps(item, "".join(s + "," for s in item.steps[:i]) + step[:1])
        assert short.first_wrong == i and sum(short.right) == i
    whole = ",".join(item.steps)
    assert task.check_steps(item, whole + ":").first_wrong is None and task.check_steps(item, whole + ",:").first_wrong == n
    assert task.check_steps(item, item.completion(worked=True) + ",=:\n")  # a sampler does not stop at the end
    for unfinished in (whole, whole + "\n", whole + "\n:"): assert task.check_steps(item, unfinished).first_wrong == n - 1
    assert task.check_steps(item, item.completion()).right == (False,) * n


def test_a_slip_does_not_heal():
    "Whoever computes on from a wrong value ends at a wrong answer: every wrong value at every step of one chain"
    item = ChainedArithmetic(5).item("37+5*3-4*7+8=")
    for i, step in enumerate(item.steps[:-1]):
        rest = ChainedArithmetic(4 - i)
        answers = {rest.item(f"{x:02d}{item.prompt[2 * i + 4:]}").answer for x in range(100) if x != int(step)}
        assert len(answers) == 99 and item.answer not in answers


def garbled(task, items, rng, width):
    "Completions with random edits, cut or filled to one width"
    chars = task.vocab.chars
    for item in items:
        text = list(item.completion(rng.random() < 0.6))
        for _ in range(rng.choice([0, 0, 1, 2])):
            i = rng.randrange(len(text))
            text[i : i + rng.randrange(2)] = rng.choice(["", rng.choice(chars), ":", "\n"])
            text = text or ["\n"]
        yield ("".join(text) + "".join(rng.choices(chars, k=width)))[:width]


@pytest.mark.parametrize("task", PLAIN, ids=repr)
def test_checks_of_texts_and_of_ids_agree_with_a_regular_expression(task):
    rng, items = random.Random(0), task.sample(60, 3)
    width = max(len(i.completion(worked=True)) for i in items) + 2
    texts = [list(garbled(task, [item] * 8, rng, width)) for item in items]
    want = [[re.match(f"(?:[^\n]*:)?{re.escape(item.answer)}\n", t) is not None for t in group] for item, group in zip(items, texts)]
    assert [[task.check_answer(item, t) for t in group] for item, group in zip(items, texts)] == want
    ids = torch.stack([torch.stack([task.vocab.encode(t) for t in group]) for group in texts])
    assert task.check_ids(task.encode(items)[1], ids).tolist() == task.check_ids(items, ids).tolist() == want
    assert 0.3 < np.mean(want) < 0.95


def test_ids_of_other_symbols_are_no_answer():
    task = S5(2)
    item = task.sample(1, 0)[0]
    _, answer = task.encode([item])
    thought = torch.full((1, 1, 2), len(task.vocab))  # a special symbol behind the characters
    assert not task.check_ids(answer, torch.cat([thought, answer[:, None]], -1)).any()
    assert task.check_ids(answer, torch.cat([thought, torch.tensor([[[task.vocab[":"]]]]), answer[:, None], thought], -1)).all()
    assert not task.check_ids(answer, torch.cat([answer[:, None, :-1], thought], -1)).any()


# Ids and batches

@pytest.mark.parametrize("worked", [False, True])
@pytest.mark.parametrize("task", EVERY, ids=repr)
def test_encode_is_the_text(task, worked):
    items = task.sample(20, 1)
    prompt, completion = task.encode(items, worked)
    rows = [task.vocab.decode(row) for row in torch.cat([prompt, completion], 1)]
    texts = [i.text(worked) for i in items]
    assert [r.strip("\n") + "\n" for r in rows] == texts and prompt.shape[1] == max(len(i.prompt) for i in items) and completion.shape[1] == max(len(i.completion(worked)) for i in items)
    assert task.ragged or rows == texts
    assert [task.vocab.decode(row)[-1] for row in prompt] == [i.prompt[-1] for i in items]  # what is filled in stands outside


@pytest.mark.parametrize("worked", [False, True])
def test_problem_batches_go_on_where_they_were(worked):
    task = S5(3)
    stream, other = (ProblemBatches(task, 16, seed, worked=worked, shift=2) for seed in (1, 2))
    first = next(stream)
    state = {k: v.clone() for k, v in stream.state_dict().items()}
    want = [next(stream) for _ in range(3)]
    assert not torch.equal(next(other)[0], first[0]) and not torch.equal(want[0][0], first[0])
    torch.manual_seed(5)  # the global random state is none of its business
    other.load_state_dict(state)
    for a, b in zip(want, [next(other) for _ in range(3)]):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2] == b[2]
    items = [task.item(task.vocab.decode(row).lstrip("\n")) for row in first[0]]
    assert items == first[2] and torch.equal(task.encode(items, worked)[1], first[1])
    foreign = dict(task=S5(4)), dict(batch=15), dict(worked=not worked), dict(task=ChainedArithmetic(3)), dict(shift=0)
    for changes in foreign:
        with pytest.raises(ValueError, match="belongs to other batches"):
            ProblemBatches(**dict(task=task, batch=16, worked=worked, shift=2) | changes).load_state_dict(state)


def test_rows_are_drawn_from_all_and_go_on_where_they_were():
    rows = torch.arange(40).view(20, 2)
    stream = RowBatches(rows, 8, 3, lambda drawn: drawn[:, 0] // 2)
    assert {n for _ in range(40) for n in next(stream).tolist()} == set(range(20))
    state = {k: v.clone() for k, v in stream.state_dict().items()}
    want, again = next(stream), RowBatches(rows, 8)
    again.load_state_dict(state)
    assert torch.equal(next(again), rows[want])
    for other in (RowBatches(rows + 1, 8), RowBatches(rows, 7), RowBatches(rows[:-1], 8), RowBatches(rows.int(), 8)):
        with pytest.raises(ValueError, match="belongs to other batches"): other.load_state_dict(state)


DIGESTS = ["1dbea1ff0f60", "f556d47cbb4c", "4f7734f3287e", "43c536992ad5", "62cf169bbabd"]


def test_first_batches_are_the_recorded_ones():
    "Digests of what the recorded runs were trained on: whoever changes them changes every experiment on problems"
    def digest(batches):
        parts = [part for _ in range(3) for part in next(batches)]
        return hashlib.sha256(b"".join(p.numpy().tobytes() for p in parts if isinstance(p, torch.Tensor))).hexdigest()[:12]

    keep = lambda item: side_of(item, "tune") == "train"
    pair = lambda rows: rows.split((9, 4), 1)
    got = [digest(b) for b in (
        ProblemBatches(ChainedArithmetic(3), 32), ProblemBatches(ChainedArithmetic(3), 32, worked=True),
        ProblemBatches(S5((1, 4)), 32, 7, keep, shift=5, width=8),
        ProblemBatches(S5(2), 32, 1, keep, collate=S5(2).encode), RowBatches(torch.arange(1300).view(100, 13), 32, 1, pair),
    )]
    assert got == DIGESTS


def test_sides_of_the_stages():
    "Judged while tuning: a tenth of the training side, another one with another salt, and the test side in no case"
    items = [Item(f"{i}=", (), "") for i in range(4000)]
    told = {stage: [side_of(i, stage) for i in items] for stage in ("tune", "report")}
    assert {*zip(told["tune"], told["report"])} == {("train", "train"), ("judged", "train"), ("neither", "judged")}
    assert abs(told["tune"].count("judged") / told["report"].count("train") - 0.1) < 0.02
    salted = [side_of(i, "tune", "held out ") for i in items]
    both = sum(a == b == "judged" for a, b in zip(told["tune"], salted))
    assert both < 0.25 * salted.count("judged")
    grouped = {(i.prompt[0], side_of(i, "tune", key=lambda i: i.prompt[0])) for i in items}
    assert len(grouped) == 10
    with pytest.raises(ValueError, match="stage 'test' is none of tune, report"): side_of(items[0], "test")


def test_training_resumes_to_the_bit(tmp_path):
    "Stopped at step 7 and resumed from the checkpoint of step 6, a warm start ends with the weights of an unbroken one"
    task = ChainedArithmetic(2)

    def run(folder, callbacks=()):
        torch.manual_seed(0)
        model = ContextualGPT(GPTConfig(len(task.vocab), context=32, n_layers=1, n_heads=2, width=16))
        cfg = TrainConfig(steps=12, warmup=2, checkpoint_every=3)
        rows = train(model, lambda m, batch: cross_entropy(m, torch.cat(batch[:2], 1)), ProblemBatches(task, 8, worked=True), cfg, checkpoint_dir=folder, callbacks=callbacks, progress=False)
        return [r["loss"] for r in rows], torch.cat([p.detach().flatten() for p in model.parameters()])

    def stop(row):
        if row["step"] == 7: raise RuntimeError("stop")

    with pytest.raises(RuntimeError): run(tmp_path / "broken", (stop,))
    assert checkpoints(tmp_path / "broken")[-1].name == "step-00000006"
    (losses, weights), (again, resumed) = run(tmp_path / "whole"), run(tmp_path / "broken")
    assert losses == again and torch.equal(weights, resumed)


# Refusals

@pytest.mark.parametrize("kind", TASKS.values())
@pytest.mark.parametrize("length", [0, -1, 2.0, True, "3", None, 10**6, (), (3,), (4, 3), (0, 3), (3, 10**6), (3, 3, 3), (3, True)])
def test_lengths_that_are_none(kind, length):
    with pytest.raises((ValueError, TypeError), match="length|parameter") as e: kind(length)
    assert type(e.value) is ValueError or not isinstance(length, int) and length not in ((4, 3), (0, 3), (3, 10**6))  # run-time type checks may speak first


@pytest.mark.parametrize("prompt", ["", "=", "37+5*3=", "37+5*3-4*3=", "37+5*3-4", "37+5*3-4==", "3x+5*3-4=", "-7+5*3-4=", "٣٧+5*3-4=", "37+5*4-4=", "37+0*3-4=", "37+5*3-4=\n", " 37+5*3-4="])
def test_prompts_that_are_none_of_arithmetic(prompt):
    with pytest.raises(ValueError, match="no prompt of ChainedArithmetic"): ChainedArithmetic(3).item(prompt)


@pytest.mark.parametrize("prompt", ["", "=", "abcde12=", "abcde12<3=", "abcde12<", "abcdd12<=", "abcdf12<=", "ABCDE12<=", "abcde125=", "abcde12a=", "abcde12<\n"])
def test_prompts_that_are_none_of_s5(prompt):
    with pytest.raises(ValueError, match="no prompt of S5"): S5(3).item(prompt)


def test_other_refusals():
    task = ChainedArithmetic(2)
    items = task.sample(2, 0)
    for call, message in [(lambda: task.sample(1, 0, "val"), "'val' is none of train, test"), (lambda: task.sample(0), "0 items are no sample"), (lambda: ProblemBatches(task, 0), "batch of 0"), (lambda: ProblemBatches(task, 4, shift=-1), "shift is -1"), (lambda: ProblemBatches(task, 4, keep=lambda item: False).draw(2), "0 of 200 items"), (lambda: ProblemBatches(task, 4, width=9, collate=list), "takes the place of"), (lambda: RowBatches(torch.zeros(0, 2), 4), "out of 0 rows"), (lambda: load_task("s6", 2), "'s6' is none of arithmetic, s5"),
                          (lambda: task.encode([]), "no rectangle"), (lambda: task.encode([*items, *ChainedArithmetic(3).sample(1)]), r"widths \[7, 9\]")]:
        with pytest.raises(ValueError, match=message): call()
    _, answer = task.encode(items)
    for ids, a, message in [(answer[:, None, :-1], answer, "2 characters cannot hold an answer of 3"), (answer[:, None], answer[:, :-1], "no answers with their terminator"), (answer[:, None], task.encode(items, worked=True)[1], "no answers with their terminator")]:
        judge = task.check_ids
        with pytest.raises(ValueError, match=message): judge(a, ids)
    for strange in ("2２\n", "22 \n", "22\r\n", "x", "22\n\0"):
        for judge in (task.check_answer, task.check_steps):
            with pytest.raises(UnknownCharacter): judge(items[0], strange)


def test_a_task_needs_two_sides_and_symbols_without_marks():
    @dataclass(frozen=True)
    class OneProblem(Task):
        symbols: ClassVar[str] = "ab"

        def draw(self, n, generator): return ["a="] * n

        def item(self, prompt): return Item(prompt, ("b",), "b")

    @dataclass(frozen=True)
    class Marked(OneProblem):
        symbols: ClassVar[str] = "a:"

    side, empty = split_of("a="), {"train": "test", "test": "train"}[split_of("a=")]
    assert OneProblem(1).sample(3, 0, side) == [Item("a=", ("b",), "b")] * 3
    with pytest.raises(ValueError, match=f"0 of 2 {empty} prompts"): OneProblem(1).sample(2, 0, empty)
    with pytest.raises(ValueError, match="the marks"): Marked(1)
    for missing in (lambda: Task(1).sample(1), lambda: Task(1).item("a=")):
        with pytest.raises(NotImplementedError, match="Task does not say how"): missing()


# Lengths from a range

@pytest.mark.parametrize("name", TASKS)
def test_a_range_has_each_length_equally_often_and_no_other(name):
    low, high = RANGES[name]
    task = load_task(name, [low, high])
    one = {k: load_task(name, k) for k in range(low, high + 1)}

    def length(prompt):
        found = []
        for k, t in one.items():
            try: found.append(t.item(prompt) and k)
            except ValueError: continue
        return found

    seen = [length(p) for p in task.draw(150, torch.Generator().manual_seed(0))]
    assert {len(ks) for ks in seen} == {1} and chisquare([seen.count([k]) for k in one]).pvalue > 1e-3
    longest = load_task(name, high).sample(1)[0].prompt
    assert task.item(longest).prompt == longest
    with pytest.raises(ValueError, match="no prompt of"): load_task(name, (low, high - 1)).item(longest)
    assert task.vocab.chars == one[low].vocab.chars and set(RANGES) == set(TASKS)


def test_the_streams_of_single_lengths_are_what_they_were():
    "Recorded runs name a task, a length and a random seed, and these problems are what they mean"
    assert [i.prompt for i in ChainedArithmetic(3).sample(2, 1)] == GOLDEN_CHAINS[0] and [i.prompt for i in S5(3).sample(2, 1)] == GOLDEN_CHAINS[1]


GOLDEN_CHAINS = [["40-1-1-4=", "19-1-2+9="], ["acebd2>1=", "cdeba>>3="]]


# Pointers

def hops(item):
    "The nodes on the way, by powers of the permutation matrix"
    *pairs, last = item.prompt[:-1].split(" ")
    names = [p[0] for p in pairs]
    matrix = np.array([[p[1] == n for n in names] for p in pairs], int)
    return tuple(names[np.linalg.matrix_power(matrix, k)[names.index(last[0])].argmax()] for k in range(1, int(last[1:]) + 1))


@pytest.mark.parametrize("task", [PointerChasing(), PointerChasing(1, 2), PointerChasing((1, 11), 12), PointerChasing(25, 26)], ids=repr)
def test_pointers_are_powers_of_a_permutation_matrix(task):
    for prompt in task.draw(100, torch.Generator().manual_seed(1)):
        item = task.item(prompt)
        assert item.steps == hops(item) and item.answer == item.steps[-1] and len({item.prompt.split(" ")[-1][0], *item.steps}) == len(item.steps) + 1
        assert " ".join(sorted(p for p in item.prompt.split(" ")[:-1])) == item.prompt.rpartition(" ")[0]


def test_pointers_every_problem_and_no_other():
    "Cycles by brute force: of the 24 permutations of four nodes, six are one cycle"
    task, every = PointerChasing((1, 3), 4), set()
    for to in itertools.permutations("abcd"):
        one = dict(zip("abcd", to))
        if "a" not in (one["a"], one[one["a"]], one[one[one["a"]]]): every |= {" ".join(a + b for a, b in one.items()) + f" {s}{k}=" for s in "abcd" for k in (1, 2, 3)}
    draws = Counter(task.draw(7200, torch.Generator().manual_seed(0)))
    assert draws.keys() == every and len(every) == task.n_items == 72 and chisquare(list(draws.values())).pvalue > 1e-3


@pytest.mark.parametrize("prompt", ["", "=", "ab ba a1", "ac bd cb da a5=", "ac bd cb da a0=", "ac bd cb da a=", "ac bd cb da e1=", "ab ba cd dc a1=", "ac bd cb db a1=", "bd ac cb da a1=", "ac bd cb da  a1=", "ac bd cb a1=", "acc bd cb da a1=", "ac bd cb da a1 =", "ac bd cb da a٣=", "ac bd cb da a01="])
def test_prompts_that_are_none_of_pointers(prompt):
    with pytest.raises(ValueError, match="no prompt of PointerChasing"): PointerChasing((1, 3), 4).item(prompt)


# Sudoku

UNITS = [*([4 * r + c for c in range(4)] for r in range(4)), *([4 * r + c for r in range(4)] for c in range(4)), *([4 * (2 * a + i) + 2 * b + j for i in (0, 1) for j in (0, 1)] for a in (0, 1) for b in (0, 1))]


def solved(grid): return all({grid[i] for i in unit} == set("1234") for unit in UNITS)


def backtrack(cells):
    "Every solution, by trying each digit in the first blank"
    i = cells.find(".")
    if i < 0: return [cells] * solved(cells)
    near = {cells[j] for unit in UNITS if i in unit for j in unit}
    return [g for d in "1234" if d not in near for g in backtrack(cells[:i] + d + cells[i + 1 :])]


def test_sudoku_solutions_are_those_of_backtracking():
    rng, grids = random.Random(0), backtrack("." * 16)
    assert sorted(grids) == sorted(sudoku_grids()) and len(set(grids)) == 288
    for n in range(60):
        cells = "".join(rng.choice("1234" if n % 3 == 0 and rng.random() < 0.1 else c) if rng.random() < 0.4 else "." for c in rng.choice(grids))
        assert sorted(sudoku_solutions(cells)) == sorted(backtrack(cells))


@pytest.mark.parametrize("blanks", [1, 5, 8, 12])
def test_a_sudoku_has_one_answer_and_the_checker_knows_the_rules(blanks):
    "All 288 grids and all changes of one cell: accepted if and only if the grid is valid and keeps the givens"
    task = Sudoku(blanks)
    for item in task.sample(8, 1):
        assert item.prompt.count(".") == blanks == len(item.steps) and len(backtrack(item.prompt[:-1])) == 1
        tries = {*sudoku_grids(), *(item.answer[:i] + d + item.answer[i + 1 :] for i in range(16) for d in "1234.")}
        assert {g for g in tries if task.check_answer(item, g + "\n")} == {g for g in tries if solved(g) and all(a in (".", b) for a, b in zip(item.prompt, g))} == {item.answer}


def test_each_sudoku_step_fills_the_first_forced_cell():
    for item in [*Sudoku(12).sample(20, 2), *Sudoku(6).sample(10, 2)]:
        cells = item.prompt[:-1]
        for step in item.steps:
            forced = [i for i in range(16) if cells[i] == "." and len({cells[j] for u in UNITS if i in u for j in u}) == 4]  # three digits and the blank itself
            i = ord(step[0]) - ord("a")
            assert i == forced[0] and step[1] == item.answer[i]
            cells = cells[:i] + step[1] + cells[i + 1 :]
        assert cells == item.answer


@pytest.mark.parametrize("prompt", ["", "=", "1234341221434321=", "12..3.1..1.34.2.", "12..3.1..1.34.2=", "12..3.1..1.34.2.==", "12..3.1..1.34.5.=", "11..3.1..1.34.2.=", "................=", "1234............=", "12343412.......=", "12..3.1..1.3...2.="])
def test_prompts_that_are_none_of_sudoku(prompt):
    with pytest.raises(ValueError, match="no prompt of Sudoku"): Sudoku((1, 12)).item(prompt)


# Maze

def walks(cells, side):
    "Powers of the adjacency matrix of the free cells: entry (a, b) of the k-th counts the walks of k moves"
    near = np.array([[abs(a // side - b // side) + abs(a % side - b % side) == 1 and "#" not in (cells[a], cells[b]) for b in range(side**2)] for a in range(side**2)], np.int64)
    return list(itertools.accumulate(range(side**2), lambda m, _: m @ near, initial=np.eye(side**2, dtype=np.int64)))


def test_distances_and_numbers_of_shortest_paths_are_those_of_matrix_powers():
    rng = random.Random(0)
    for side in (2, 3, 4, 5):
        for _ in range(4):
            cells = "".join(rng.choice("..#") for _ in range(side**2))
            start = rng.randrange(side**2)
            cells = cells[:start] + "S" + cells[start + 1 :]
            powers = walks(cells, side)
            want = {b: next((k, int(p[start, b])) for k, p in enumerate(powers) if p[start, b]) for b in range(side**2) if any(p[start, b] for p in powers)}
            assert shortest_paths(cells, start) == want


@pytest.mark.parametrize("task", [Maze(), Maze(3, side=3), Maze((6, 9), side=5)], ids=repr)
def test_a_maze_has_one_shortest_path_and_it_is_the_one_marked(task):
    for item in task.sample(25, 1):
        cells, k = item.prompt[:-1], len(item.steps)
        powers, s, g = walks(cells, task.side), cells.index("S"), cells.index("G")
        assert task.fits(k) and powers[k][s, g] == 1 and not any(p[s, g] for p in powers[:k])
        on = {c for c in range(len(cells)) for j in range(1, k) if powers[j][s, c] * powers[k - j][c, g]}
        assert item.answer == "".join("o" if c in on else x for c, x in enumerate(cells))
        assert s + sum({"u": -task.side, "d": task.side, "l": -1, "r": 1}[m] for m in item.steps) == g


@pytest.mark.parametrize("prompt", ["", "=", "S.G.#....", "S..#...G=", "SS..#..G.=", "S...#..GG=", "S...#....=", "S.#.#.#.G=", "S...#...G=", "S.G......=\n", "So.#G....=", "SG.......="])
def test_prompts_that_are_none_of_maze(prompt):
    with pytest.raises(ValueError, match="no prompt of Maze"): Maze((2, 6), side=3).item(prompt)


def test_a_maze_that_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="no maze of side 2 with a path of 3 moves"): Maze(3, side=2).sample(1)
    for build, message in [(lambda: Maze(4, side=1), "side 1"), (lambda: Maze(4, side=51), "side 51"), (lambda: PointerChasing(1, nodes=1), "1 nodes"), (lambda: PointerChasing(8), "from 1 to 7"), (lambda: Sudoku(13), "from 1 to 12")]:
        with pytest.raises(ValueError, match=message): build()


# Addition

@pytest.mark.parametrize("length", [1, 3, 20, (2, 5)])
def test_addition_is_python_s_and_its_carries_are_those_of_the_last_places(length):
    for item in Addition(length).sample(60, 1):
        a, b = item.prompt[:-1].split("+")
        assert len(a) == len(b) == len(item.steps) and item.answer == str(int(a) + int(b)).zfill(len(a) + 1)
        assert [int(s) // 10 for s in item.steps] == [(int(a[-i:]) + int(b[-i:])) // 10**i for i in range(1, len(a) + 1)]
        assert "".join(s[1] for s in reversed(item.steps)) == item.answer[1:]


@pytest.mark.parametrize("prompt", ["", "=", "12+34", "12+345=", "123+456=", "02+34=", "12-34=", "12+3٣=", "12+34==", " 12+34=", "12+34+56=", "+="])
def test_prompts_that_are_none_of_addition(prompt):
    with pytest.raises(ValueError, match="no prompt of Addition"): Addition(2).item(prompt)


# Countdown

def reachable(numbers):
    "For every set of positions the values made of exactly these, in positive whole numbers"
    reach = {}
    for mask in range(1, 1 << len(numbers)):
        if mask & (mask - 1) == 0: reach[mask] = {numbers[mask.bit_length() - 1]}; continue
        parts = [(sub, mask ^ sub) for sub in range(1, mask) if sub & mask == sub]
        reach[mask] = {v for p, q in parts for a in reach[p] for b in reach[q] for v in (a + b, a - b, a * b, a // b if a % b == 0 else 0) if v > 0}
    return reach


@pytest.mark.parametrize("numbers", [(1, 1), (4, 6), (2, 3, 7), (5, 5, 5), (1, 6, 10, 25)])
def test_countdown_is_solved_whenever_it_can_be_and_in_as_few_steps(numbers):
    task, reach = Countdown(len(numbers)), reachable(numbers)
    for target in range(1, 40):
        fewest = min((mask.bit_count() - 1 for mask, values in reach.items() if target in values and mask.bit_count() > 1), default=None)
        prompt = f"{' '.join(map(str, numbers))}>{target}="
        if fewest is None:
            with pytest.raises(ValueError, match="no prompt of Countdown"): task.item(prompt)
        else:
            item = task.item(prompt)
            assert len(item.steps) == fewest and eval(item.answer, {}) == target and task.check_answer(item, item.completion()) and task.check_steps(item, item.completion(worked=True))


def formulas(numbers):
    "Random expressions over some of the numbers, with their values"
    rng = random.Random(0)
    for _ in range(250):
        pool = [str(n) for n in rng.sample(numbers, rng.randint(1, len(numbers)))]
        if rng.random() < 0.2: pool.append(rng.choice(pool))
        used = Counter(pool)
        while len(pool) > 1:
            rng.shuffle(pool)
            pool = [f"({pool[0]}{rng.choice('+-*/')}{pool[1]})", *pool[2:]]
        text = pool[0].removeprefix("(").removesuffix(")") if rng.random() < 0.5 and pool[0].count("(") == 1 else pool[0]
        try: yield text, used, eval(re.sub("([0-9]+)", r"Fraction(\1)", text), {"Fraction": Fraction})
        except ZeroDivisionError: continue


def test_every_right_expression_counts_and_no_other():
    numbers, task, seen = [2, 3, 4, 12], Countdown(4), Counter()
    for text, used, value in formulas(numbers):
        assert calculate(text) == (value, re.findall("[0-9]+", text))
        for target in {24, value}:
            if target != int(target) or not 0 < target < 500: continue
            item = Item(f"2 3 4 12>{target}=", (), "")
            right = value == target and used <= Counter(map(str, numbers))
            assert task.check_answer(item, text + "\n") == right
            assert not task.check_answer(item, text) and not task.check_answer(item, text + "+\n")
            seen[right, used <= Counter(map(str, numbers))] += 1
    assert min(seen[True, True], seen[False, False], seen[False, True]) > 20


def test_ids_of_countdown_are_read_as_texts():
    task = Countdown(3)
    item = task.item("2 3 7>13=")
    texts = ["7+2*3\n+", "3*2+7\n)", "2*7-1\n ", "7+3+3\n+", "6+7\n   ", ":7+2*3\n"]
    ids = torch.stack([task.vocab.encode(t.ljust(8)) for t in texts])[None]
    assert task.check_ids([item], ids).tolist() == [[True, True, False, False, False, True]]
    thought = torch.full((1, 1, 1), len(task.vocab))
    answer = task.vocab.encode(":7+2*3\n")[None, None]
    assert task.check_ids([item], torch.cat([thought, answer], -1)).all() and not task.check_ids([item], torch.cat([thought, answer[..., 1:]], -1)).any()
    with pytest.raises(ValueError, match="give the items"): task.check_ids(task.encode([item])[1], ids)


def test_corrupted_steps_of_countdown_are_found():
    task = Countdown(4)
    for item in task.sample(30, 4):
        steps = list(item.steps)
        for i, step in enumerate(steps):
            left, _, value = step.partition("=")
            wrong = [f"{left}={int(value) + 1}", step.replace("=", "=0"), left, f"{value}{step}", f"26*1=26{step[:0]}"]
            for bad in wrong:
                check = task.check_steps(item, ",".join([*steps[:i], bad, *steps[i + 1 :]]) + ":1\n")
                assert check.first_wrong == i, (item, bad)
        assert task.check_steps(item, "".join(s + "," for s in steps[:-1])).first_wrong == len(steps) - 1
    item = task.item("2 3 5 10>21=")
    for text, right in [("5*2=10,10+10=20,20+3=23,", (True, True, True, False)), ("10/5=2,2*2=4,", (True, True, False)), ("5*2=10,10+5=15,", (True, False, False)), ("10/5=2,10+2=12,", (True, False, False)), ("3-5=2,", (False, False)), ("5-3=2,2*10=20,", (True, True, False)), ("3*2=6,6+5=11,11+10=21,10+1=11,", (True, True, True, False))]:
        assert task.check_steps(item, text).right == right


@pytest.mark.parametrize("text", ["", " ", "()", "2**3", "7//2", "-3", "+3", "3(4)", "1/0", "1/(2-2)", "1_0", "1e3", "0x1", "٣", "a", "2 3", "2+", "(2", "007", "1" * 201, "(" * 150 + "1" + ")" * 150, "(" * 90 + "1" + ")" * 80, "[2]", "2,3", "2<3", "2\n+3"])
def test_what_is_no_expression(text):
    with pytest.raises(ValueError, match="is no expression"): calculate(text)


@pytest.mark.parametrize("prompt", ["", "=", "2 3>6", "3 2>6=", "2 3>7=", "2 3>0=", "2  3>6=", "2 3 4>9=", "2>2=", "2 3>06=", "2 3>6>6=", "2 ٣>6=", "0 3>3="])
def test_prompts_that_are_none_of_countdown(prompt):
    with pytest.raises(ValueError, match="no prompt of Countdown"): Countdown(2).item(prompt)


# Words

def test_word_problems_are_python_s():
    for item in WordProblems((1, 6)).sample(60, 1):
        value = int(re.search("has ([0-9]+)", item.prompt)[1])
        things = re.search("How many ([a-z]+)", item.prompt)[1]
        for sentence, line in zip(item.prompt.split(". ")[1:-1], item.steps, strict=True):
            x = int(re.search("[0-9]+", sentence)[0])
            sign, after = {"finds": ("+", value + x), "gives": ("-", value - x), "trades": ("*", value * x), "makes": ("/", value / x)}[sentence.split(" ")[1]]
            assert line == f"{item.prompt.split(' ')[0]} has {value}{sign}{x}=<<{value}{sign}{x}={int(after)}>>{int(after)} {things}." and after == int(after) > 0
            value = int(after)
        assert item.answer == str(value) and len(check_sums(item.completion(worked=True)).right) == len(item.steps) and check_sums(item.completion(worked=True))


def test_corrupted_lines_of_word_problems_are_found():
    task = WordProblems(3)
    for item in task.sample(20, 2):
        for i, line in enumerate(item.steps):
            for bad in (re.sub("=([0-9]+)>>", lambda m: f"={int(m[1]) + 1}>>", line), line[:-1], line.replace("<<", "<")):
                text = item.completion(worked=True).replace(line, bad)
                assert task.check_steps(item, text).first_wrong == i and task.check_answer(item, text)
        assert task.check_steps(item, item.completion()).right == (False,) * 3 and task.check_steps(item, item.completion(worked=True))
        assert task.check_steps(item, "\n".join(item.steps)).right == (True, True, False)  # the last line has no end


@pytest.mark.parametrize("line, answer", [("#### 12", "12"), ("####12", "12"), ("#### -12", "-12"), ("#### +12", "12"), ("#### 1,234,567", "1234567"), ("#### 0012", "12"), ("#### -0", "0"), ("#### 12 ", "12"), ("#### 1,23", None), ("#### 1,2345", None), ("#### 12.", None),
                                          ("#### $12", None), ("#### 12 eggs", None), ("#### ", None), ("12", None), ("x #### 12", None), ("### 12", None), ("#### ٣", None), ("#### 1 2", None), ("#### --1", None), ("#### ,123", None), ("#### 5\n#### 6", "5")])
def test_the_number_of_a_last_line(line, answer):
    item = WordItem("How many?\n", (), answer or "")
    assert item.read(f"Some line.\n{line}\nmore") == (["Some line."], answer) or answer is None and item.read(f"Some line.\n{line}\nmore")[1] is None
    assert item.read(line.partition("\n")[0])[1] is None  # not ended


@pytest.mark.parametrize("prompt", ["", "\n", "Ann has 12 pens. How many pens does Ann have now?\n", "Ann has 12 pens. Ann gives away 12. How many pens does Ann have now?\n", "Ann has 12 pens. Ann makes 5 equal heaps and keeps one. How many pens does Ann have now?\n", "Ann has 12 pens. Ben finds 5 more. How many pens does Ann have now?\n",
                                    "Zoe has 12 pens. Zoe finds 5 more. How many pens does Zoe have now?\n", "Ann has 12 pens. Ann finds 5 more. How many pens does Ann have now?", "Ann has 12 pens. Ann finds 5 more. Ann finds 5 more. How many pens does Ann have now?\n", "Ann has 12 pens. Ann eats 5. How many pens does Ann have now?\n", "Ann has 12 pens. Ann finds 05 more. How many pens does Ann have now?\n"])
def test_prompts_that_are_none_of_word_problems(prompt):
    with pytest.raises(ValueError, match="no prompt of WordProblems"): WordProblems(1).item(prompt)


@pytest.mark.parametrize("length", [3, 5])
def test_of_all_orders_one_agrees_with_the_facts_and_it_gives_the_answer(length):
    places = Counter()
    for item in MultipleChoice(length).sample(40, 1):
        facts = re.findall("([A-Z][a-z]+) is taller than ([A-Z][a-z]+)", item.prompt)
        people = sorted({p for fact in facts for p in fact})
        orders = [o for o in itertools.permutations(people) if all(o.index(a) < o.index(b) for a, b in facts)]
        place = int(re.search("[0-9]+", item.prompt)[0])
        choices = dict(line.split(") ") for line in item.prompt.splitlines()[1:])
        assert len(facts) == length and len(orders) == 1 and len(set(choices.values())) == 4 and [*choices] == list("ABCD")
        assert choices[item.answer] == orders[0][place - 1] and item.steps == orders[0][:place]
        places[place] += 1
    assert len(places) == length + 1


def test_labels_are_equally_often_right():
    assert chisquare(list(Counter(i.answer for i in MultipleChoice(6).sample(2000, 1)).values())).pvalue > 1e-3


FACTS = "Ann is taller than Ben. Ben is taller than Cleo. Cleo is taller than Dan. "


@pytest.mark.parametrize("question, choices", [(FACTS + "Who is number 5 from the tallest to the smallest?", "Ann Ben Cleo Dan"), (FACTS + "Who is number 0 from the tallest to the smallest?", "Ann Ben Cleo Dan"), (FACTS + "Who is number 2 from the tallest to the smallest?", "Ben Ann Cleo Dan"),
                                               (FACTS + "Who is number 2 from the tallest to the smallest?", "Ann Ann Ben Dan"), (FACTS + "Who is number 2 from the tallest to the smallest?", "Ann Cleo Dan Eva"), (FACTS.replace("Cleo is", "Eva is") + "Who is number 2 from the tallest to the smallest?", "Ann Ben Cleo Dan"),
                                               (FACTS.replace("than Dan", "than Ann") + "Who is number 2 from the tallest to the smallest?", "Ann Ben Cleo Dan"), ("Who is number 1 from the tallest to the smallest?", "Ann Ben Cleo Dan"), (FACTS + "Who is the tallest?", "Ann Ben Cleo Dan"), ("", "Ann Ben Cleo Dan")])
def test_prompts_that_are_none_of_multiple_choice(question, choices):
    with pytest.raises(ValueError, match="no prompt of MultipleChoice"): MultipleChoice(3).item(choice_prompt(question, choices.split(" ")))


# The real sets, by made-up rows in their schema

QUESTIONS = {"question": ["A hen lays 3 eggs a day. How many in 500 days?", "What is 2 less 5?"], "answer": ["She lays 3*500=<<3*500=1500>>1500 eggs.\n#### 1,500", "2-5=<<2-5=-3>>-3\n#### -3"]}
CHOICES = {"id": ["x1", "x2"], "question": ["Which number is even?", "Which is a letter?"], "choices": [{"text": ["3", "5", "8"], "label": ["1", "2", "3"]}, {"text": ["7", "k", "!", "?"], "label": ["A", "B", "C", "D"]}], "answerKey": ["3", "B"]}


def test_gsm8k_and_arc_in_their_schema(monkeypatch):
    for rows in (datasets.Dataset.from_dict(QUESTIONS), datasets.DatasetDict(test=datasets.Dataset.from_dict(QUESTIONS))):
        hen, less = gsm8k(rows, "test")
        assert hen == WordItem("A hen lays 3 eggs a day. How many in 500 days?\n", ("She lays 3*500=<<3*500=1500>>1500 eggs.",), "1500") and less.answer == "-3"
        assert hen.read("1500\n#### 1500\n")[1] == hen.answer and less.read("#### 3\n")[1] != less.answer
    even, letter = arc(datasets.Dataset.from_dict(CHOICES))
    assert even == Item("Which number is even?\n1) 3\n2) 5\n3) 8\n", (), "3") and letter.prompt.endswith("C) !\nD) ?\n") and letter.answer == "B"
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or datasets.Dataset.from_dict(CHOICES if "arc" in a[0] else QUESTIONS))
    assert gsm8k(split="test")[0] == hen and arc(subset="ARC-Easy")[0] == even
    assert asked == [(("openai/gsm8k", "main"), {"split": "test"}), (("allenai/ai2_arc", "ARC-Easy"), {"split": "train"})]


def test_proxies_in_the_real_schema_come_back():
    items = WordProblems((1, 4)).sample(20, 1)
    assert gsm8k(datasets.Dataset.from_dict({"question": [i.prompt[:-1] for i in items], "answer": [i.completion(worked=True)[:-1] for i in items]})) == items
    items = MultipleChoice(4).sample(20, 1)
    rows = [{"id": str(k), "question": q, "choices": {"label": [c[0] for c in cs], "text": [c[3:] for c in cs]}, "answerKey": i.answer} for k, i in enumerate(items) for q, *cs in [i.prompt.splitlines()]]
    assert [(i.prompt, i.answer) for i in arc(datasets.Dataset.from_list(rows))] == [(i.prompt, i.answer) for i in items]


def test_real_sets_that_cannot_be_read(monkeypatch):
    questions, choices = datasets.Dataset.from_dict(QUESTIONS), datasets.Dataset.from_dict(CHOICES)

    def offline(*args, **kwargs): raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    for call, error, message in [(gsm8k, ConnectionError, "'openai/gsm8k'.*no route.*loaded set"), (arc, ConnectionError, "'allenai/ai2_arc'.*ARC-Challenge"),
                                 (lambda: gsm8k(questions.remove_columns("answer")), KeyError, "'answer' is missing, there are question"), (lambda: arc(questions), KeyError, "'id' is missing"), (lambda: arc(choices.rename_column("answerKey", "key")), KeyError, "'answerKey' is missing"),
                                 (lambda: gsm8k(datasets.DatasetDict(test=questions)), KeyError, "split 'train' is none of test"),
                                 (lambda: gsm8k(datasets.Dataset.from_dict(QUESTIONS | {"answer": ["12", "#### 3"]})), ValueError, "'12' has no last line"), (lambda: arc(datasets.Dataset.from_dict(CHOICES | {"answerKey": ["C", "B"]})), ValueError, "'C' of x1 is none of the labels")]:
        with pytest.raises(error, match=message): call()


def test_sums_are_exact():
    assert check_sums("<<3*4=12>> <<0.5*4=2>> <<10/4=2.5>> <<(2+3)*2=10>>").right == (True,) * 4
    assert check_sums("<<3*4=13>> <<10/3=3.33>> <<2=3=2>> <<a=1>> <<1/0=0>>").right == (False,) * 5
    assert check_sums("<<-3+5=2>> <<+3-5=-2>> <<7//2=3>> <<2*-3=-6>>").right == (True,) * 4
    assert check_sums("<<3-5=2>> <<7//2=3.5>> <<2**3=8>> <<1//0=0>>").right == (False,) * 4


def test_a_written_number_may_be_of_any_length():
    item = WordItem("?\n", (), "")
    for n in (0, 7, -7, 12_000, 10**4000):
        for text in (str(n), f"{n:,}", f"{'-' if n < 0 else '+'}00{abs(n)}"): assert item.read(f"#### {text}\n")[1] == str(n)
    assert item.read(f"#### -{'9' * 5000}\n")[1] == "-" + "9" * 5000 and item.read("#### -0\n")[1] == "0"
    assert not Countdown(3).accepts(Countdown(3).item("2 3 5>4="), "-(3-2-5)")  # a sign is no operation


def test_tasks_by_name_take_ranges_and_options():
    assert load_task("maze", [2, 4], side=5) == Maze((2, 4), 5) and load_task("pointers", 3, nodes=5) == PointerChasing(3, 5)
    with pytest.raises(TypeError): load_task("sudoku", 3, side=5)
