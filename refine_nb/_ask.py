"Questions to a model that thinks before it answers. The notebook `29_use` shows it."
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from .benchmark_tasks import load_task
from .evaluation import eval_mode
from .gpt import ContextualGPT
from .prefix import Prefix, generate
from .tasks import Item, Task
from .thoughts import ThoughtGenerator
from .use import _ids


class Answer(NamedTuple):
    "What a thinking model says"

    thought: str
    answer: str  # behind the thought
    direct: str  # without a thought
    truth: str  # as the task works it out


def ask(
    model: ContextualGPT,  # of `fit_thinking` or `load`
    question: str,  # a prompt of its task
    thought: str | None = None,  # one of your own, in the place of the model's; "" is a thought of no characters
) -> Answer:
    "A thinking model's likeliest answer, with a thought and without; raises `ValueError` for another task's question"
    return ask_all(model, [question], None if thought is None else [thought])[0]


@torch.no_grad()
def ask_all(
    model: ContextualGPT,  # of `fit_thinking` or `load`
    questions: Sequence[str],  # prompts of its task
    thoughts: Sequence[str] | None = None,  # your own, one a question, in the place of the model's
) -> list[Answer]:
    "What `ask` says to each; questions of one length are read together"
    if not hasattr(model, "thoughts"):
        raise ValueError(f"this {type(model).__name__} does not think before it answers: take a model of "
                         "`fit_thinking`")
    if thoughts is not None and len(thoughts) != len(questions):
        raise ValueError(f"{len(thoughts)} thoughts for {len(questions)} questions: give one for each, or none")
    task, groups, found = load_task(*model.task), defaultdict(list), {}
    items = [task.item(q) for q in questions]
    own = [None] * len(items) if thoughts is None else [_own_thought(model, i, t) for i, t in zip(items, thoughts)]
    for i, (item, ids) in enumerate(zip(items, own)):
        groups[len(item.prompt), len(item.completion()), None if ids is None else len(ids)].append(i)
    with eval_mode(model):
        for places in groups.values():
            texts = _written(model, task, [items[i] for i in places], [own[i] for i in places])
            found |= {i: _answer(items[i], *said) for i, said in zip(places, texts)}
    return [found[i] for i in range(len(items))]


def _own_thought(model: ContextualGPT, item: Item, thought: str) -> Int[Tensor, "t"]:
    "A thought of one's own and its end, as ids; refused where it does not fit or would end early"
    end = model.vocab.decode([model.thoughts.end])
    if end in thought: raise ValueError(f"the thought {thought!r} holds {end!r}, which ends a thought: leave it out")
    room = model.cfg.context + 1 - len(item.prompt) - 2 - len(item.completion())
    if len(thought) > room:
        raise ValueError(f"a thought of {len(thought)} characters does not fit: behind {item.prompt!r} and before an "
                         f"answer, a context of {model.cfg.context} has room for {room}")
    return _ids(model, thought + end)


def _written(model: ContextualGPT, task: Task, items: list[Item], own: list) -> list[tuple[str, str]]:
    "(thought and answer, answer without a thought) to prompts of one length"
    prompts, n = torch.stack([_ids(model, i.prompt) for i in items]), len(items[0].completion())
    begun, stop = Prefix(model, prompts), task.vocab["\n"]
    direct = generate(begun, n, temperature=0.0)[:, 0]
    if own[0] is None: rows = ThoughtGenerator(model.thoughts, n, stop)(begun, 1, temperature=0.0).ids[:, 0, 1:]
    else:
        inner = torch.stack(own)
        marked = torch.cat([prompts, prompts.new_full((len(items), 1), model.thoughts.start), inner], 1)
        rows = torch.cat([inner, generate(Prefix(model, marked), n, temperature=0.0)[:, 0]], 1)
    return [(model.vocab.decode(row), model.vocab.decode(plain)) for row, plain in zip(rows, direct)]


def _answer(item: Item, written: str, direct: str) -> Answer:
    "What was written, in its parts"
    said, _, answer = written.partition(":")
    return Answer(said, answer.partition("\n")[0], direct.partition("\n")[0], item.answer)
