"""Tasks against references that share no code with them: Python's own arithmetic, permutation matrices, a regular expression"""
import itertools
import random
import re
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from refine_nb.data import UnknownCharacter
from refine_nb.gpt import ContextualGPT, GPTConfig
from refine_nb.tasks import S5, TASKS, ChainedArithmetic, Item, Prompts, Task, load_task, split_of
from refine_nb.train import TrainConfig, checkpoints, cross_entropy, train

EVERY = [load_task(name, length) for name in TASKS for length in (1, 3, 6)]
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
    for item in S5(length).sample(200, seed=length):
        start, word = np.array(list(item.prompt[:5])), item.prompt[5:-1]
        want = ["".join(start[product(word[:n]).argmax(1)]) for n in range(1, length + 1)]
        assert item.steps == tuple(want) and item.answer == want[-1]


def test_the_generators_give_s5_and_not_only_half_of_it_at_one_length():
    reached = {tuple(range(5))}
    while len(reached) < len(grown := reached | {tuple(np.array(p)[MATRIX[g].argmax(1)]) for p in reached for g in MATRIX}): reached = grown
    assert len(reached) == 120
    assert {round(np.linalg.det(m)) for m in MATRIX.values()} == {-1, 1}
    assert len({S5(6).item(f"abcde{''.join(w)}=").answer for w in itertools.product("1234<>", repeat=6)}) == 120


def test_an_operation_loses_nothing():
    for op in OPERATIONS: assert len({ChainedArithmetic(1).item(f"{x:02d}{op}=").answer for x in range(100)}) == 100


# Drawing

@pytest.mark.parametrize("name, prompts", [("arithmetic", lambda n: [f"{x:02d}{''.join(w)}=" for x in range(100) for w in itertools.product(OPERATIONS, repeat=n)]),
                                           ("s5", lambda n: ["".join([*p, *w, "="]) for p in itertools.permutations("abcde") for w in itertools.product("1234<>", repeat=n)])])
def test_every_problem_and_no_other(name, prompts):
    for length in (1, 2):
        task, every = load_task(name, length), prompts(length)
        assert len(set(every)) == task.n_items and {task.item(p).prompt for p in every[::10]} == set(every[::10])
        share = np.mean([split_of(p) == "test" for p in every])
        assert abs(share - 0.1) < 4 * np.sqrt(0.09 / len(every))
    task, every = load_task(name, 1), prompts(1)
    for split, n in (("train", 20_000), ("test", 3_000)) if name == "s5" else (("train", 30_000), ("test", 4_000)): assert {i.prompt for i in task.sample(n, 5, split)} == {p for p in every if split_of(p) == split}


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
    seen = {length: Counter(map(relative, S5(length).sample(6_000, 1))) for length in (6, 32)}
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
    test = {i.prompt for i in task.sample(500, 0, "test")}
    drawn = {i.prompt for seed in range(5) for i in task.sample(1000, seed)}
    stream = Prompts(task, 500, seed=3)
    drawn |= {task.vocab.decode(row) for _ in range(4) for row in next(stream)[0]}
    assert len(test) > 50 and len(drawn) > 500 and not test & drawn
    assert {split_of(p) for p in test} == {"test"} and {split_of(p) for p in drawn} == {"train"}


def test_one_random_seed_does_not_repeat_the_words_on_the_other_side():
    for name, a in (("s5", 5), ("arithmetic", 2)):
        task = load_task(name, 8)
        words = {i.prompt[a:] for i in task.sample(8_000, 1)}
        assert np.mean([i.prompt[a:] in words for i in task.sample(400, 1, "test")]) < 0.05
        assert task.sample(50, 1) == task.sample(50, 1) != task.sample(50, 2)


# Checkers

@pytest.mark.parametrize("task", EVERY, ids=repr)
def test_no_edit_of_one_character_passes(task):
    "Every replacement, insertion and deletion in a worked completion makes a step or the answer wrong"
    item = task.sample(1, 7)[0]
    text = item.completion(worked=True)
    assert task.check_answer(item, text) and task.check_steps(item, text)
    edits = {text[:i] + c + text[i + cut :] for i in range(len(text)) for c in ["", *task.vocab.chars] for cut in (0, 1)} - {text}
    assert len(edits) > 20 * len(item.answer)
    for e in edits: assert e.startswith(text) or not (task.check_answer(item, e) and task.check_steps(item, e)), e


@pytest.mark.parametrize("task", EVERY, ids=repr)
def test_the_first_wrong_step_is_the_one_that_was_changed(task):
    item, other = task.sample(1, 7)[0], "bdace" if isinstance(task, S5) else "99"
    for i, step in enumerate(item.steps):
        assert step != other
        check = task.check_steps(item, ",".join([*item.steps[:i], other, *item.steps[i + 1 :]]) + f":{item.answer}\n")
        assert check.right == tuple(j != i for j in range(task.length)) and check.first_wrong == i and not check
        assert task.check_answer(item, ",".join([*item.steps[:i], other, *item.steps[i + 1 :]]) + f":{item.answer}\n")
        short = task.check_steps(item, "".join(s + "," for s in item.steps[:i]) + step[:1])
        assert short.first_wrong == i and sum(short.right) == i
    whole = ",".join(item.steps)
    assert task.check_steps(item, whole + ":").first_wrong is None and task.check_steps(item, whole + ",:").first_wrong == task.length
    assert task.check_steps(item, item.completion(worked=True) + ",=:\n")  # a sampler does not stop at the end
    for unfinished in (whole, whole + "\n", whole + "\n:"): assert task.check_steps(item, unfinished).first_wrong == task.length - 1
    assert task.check_steps(item, item.completion()).right == (False,) * task.length


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


@pytest.mark.parametrize("task", EVERY, ids=repr)
def test_checks_of_texts_and_of_ids_agree_with_a_regular_expression(task):
    rng, items = random.Random(0), task.sample(60, 3)
    width = len(items[0].completion(worked=True)) + 2
    texts = [list(garbled(task, [item] * 8, rng, width)) for item in items]
    want = [[re.match(f"(?:[^\n]*:)?{item.answer}\n", t) is not None for t in group] for item, group in zip(items, texts)]
    assert [[task.check_answer(item, t) for t in group] for item, group in zip(items, texts)] == want
    ids = torch.stack([torch.stack([task.vocab.encode(t) for t in group]) for group in texts])
    assert task.check_ids(task.encode(items)[1], ids).tolist() == want
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
    assert [task.vocab.decode(row) for row in torch.cat([prompt, completion], 1)] == [i.text(worked) for i in items]
    assert type(task)(9).vocab.chars == task.vocab.chars and "\n" not in items[0].prompt


@pytest.mark.parametrize("worked", [False, True])
def test_prompts_go_on_where_they_were(worked):
    task = S5(3)
    stream, other = Prompts(task, 16, worked, seed=1), Prompts(task, 16, worked, seed=2)
    first = next(stream)
    state = {k: v.clone() for k, v in stream.state_dict().items()}
    want = [next(stream) for _ in range(3)]
    assert not torch.equal(next(other)[0], first[0]) and not torch.equal(want[0][0], first[0])
    torch.manual_seed(5)  # the global random state is none of its business
    other.load_state_dict(state)
    for a, b in zip(want, [next(other) for _ in range(3)]): assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    items = [task.item(task.vocab.decode(row)) for row in first[0]]
    assert torch.equal(task.encode(items, worked)[1], first[1])
    for foreign in (Prompts(S5(4), 16, worked), Prompts(task, 15, worked), Prompts(task, 16, not worked), Prompts(ChainedArithmetic(3), 16, worked)):
        with pytest.raises(ValueError, match="belongs to prompts of another"): foreign.load_state_dict(state)


def test_training_resumes_to_the_bit(tmp_path):
    "Stopped at step 7 and resumed from the checkpoint of step 6, a warm start ends with the weights of an unbroken one"
    task = ChainedArithmetic(2)

    def run(folder, callbacks=()):
        torch.manual_seed(0)
        model = ContextualGPT(GPTConfig(len(task.vocab), context=32, n_layers=1, n_heads=2, width=16))
        cfg = TrainConfig(steps=12, warmup=2, checkpoint_every=3)
        rows = train(model, lambda m, batch: cross_entropy(m, torch.cat(batch, 1)), Prompts(task, 8, worked=True), cfg, checkpoint_dir=folder, callbacks=callbacks, progress=False)
        return [r["loss"] for r in rows], torch.cat([p.detach().flatten() for p in model.parameters()])

    def stop(row):
        if row["step"] == 7: raise RuntimeError("stop")

    with pytest.raises(RuntimeError): run(tmp_path / "broken", (stop,))
    assert checkpoints(tmp_path / "broken")[-1].name == "step-00000006"
    (losses, weights), (again, resumed) = run(tmp_path / "whole"), run(tmp_path / "broken")
    assert losses == again and torch.equal(weights, resumed)


# Refusals

@pytest.mark.parametrize("kind", TASKS.values())
@pytest.mark.parametrize("length", [0, -1, 2.0, True, "3", None])
def test_lengths_that_are_none(kind, length):
    with pytest.raises((ValueError, TypeError), match="length|parameter") as e: kind(length)
    assert type(e.value) is ValueError or not isinstance(length, int)  # run-time type checks may speak first


@pytest.mark.parametrize("prompt", ["", "=", "37+5*3=", "37+5*3-4*3=", "37+5*3-4", "37+5*3-4==", "3x+5*3-4=", "-7+5*3-4=", "٣٧+5*3-4=", "37+5*4-4=", "37+0*3-4=", "37+5*3-4=\n", " 37+5*3-4="])
def test_prompts_that_are_none_of_arithmetic(prompt):
    with pytest.raises(ValueError, match="no prompt of ChainedArithmetic"): ChainedArithmetic(3).item(prompt)


@pytest.mark.parametrize("prompt", ["", "=", "abcde12=", "abcde12<3=", "abcde12<", "abcdd12<=", "abcdf12<=", "ABCDE12<=", "abcde125=", "abcde12a=", "abcde12<\n"])
def test_prompts_that_are_none_of_s5(prompt):
    with pytest.raises(ValueError, match="no prompt of S5"): S5(3).item(prompt)


def test_other_refusals():
    task = ChainedArithmetic(2)
    items = task.sample(2, 0)
    for call, message in [(lambda: task.sample(1, 0, "val"), "'val' is none of train, test"), (lambda: task.sample(0), "0 items are no sample"), (lambda: Prompts(task, 0), "batch of 0"), (lambda: load_task("s6", 2), "'s6' is none of arithmetic, s5"),
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
