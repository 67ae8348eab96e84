"Templates of `refine-nb new`: a method's notebook, or an experiment with its sweep, that pass the house tests."
import json
import re
from pathlib import Path

from ._files import FileError, read_text, write_atomic

_METHOD = '''%% markdown title
# {title}

> One sentence: what this method does with extra computation, and at what price.
%% markdown claim
**The answer.** Three sentences and one figure: what was found, beside which control.

**Left out.** What this page does not do.
%% code exp
#| default_exp {name}
%% code imp
#| export
from jaxtyping import Float
from torch import Tensor
%% code imp2
#| hide
import pytest
import torch
%% markdown maintext
## The smallest example

A sentence, a definition, a cell that shows it. This one keeps a gradient's direction and bounds its length.
%% code main
#| export
def shortened_{name}(
    gradient: Float[Tensor, "*b"],
    most: float = 1.0,  # its length, at most
) -> Float[Tensor, "*b"]:
    "The gradient, no longer than `most`; raises `ValueError` unless that is positive"
    if not most > 0: raise ValueError(f"most is {{most}}, needs a positive length")
    return gradient * (most / gradient.norm().clamp(min=1e-12)).clamp(max=1)
%% code mainshow
long = torch.tensor([3.0, 4.0])
assert torch.allclose(shortened_{name}(long), torch.tensor([0.6, 0.8]))
assert torch.equal(shortened_{name}(long, 9.0), long)
shortened_{name}(long)
%% markdown failtext
## Where it fails

A length that is not positive is refused.
%% code fail
with pytest.raises(ValueError, match="most is 0") as refusal: shortened_{name}(long, 0)
str(refusal.value)
%% markdown learned
## What we learned

- In numbers that a cell above asserts.
%% code end
#| hide
import nbdev; nbdev.nbdev_export()
'''
_EXPERIMENT = '''%% markdown title
# {title}

> One question, and the control that would expose a wrong answer.
%% markdown question
**Question.** What is asked, and which control decides it?

**Prediction** (fixed in `claims/` before the recorded sweep). What will come out, in numbers.
%% parameters par
preset = "cpu"
seed = 0
corpus = "pydocs"
method = "gpt"  # or "counts", the control
steps: int = None
batch: int = None
PRESETS = {{
    "smoke": {{"steps": 4, "batch": 2}},
    "cpu": {{"steps": 300, "batch": 12}},
    "gpu": {{"steps": 5000, "batch": 64}},
}}
%% code imp
import pandas as pd
import torch

from refine_nb.data import CharVocab, Windows, eval_windows, load_corpus, split_ids
from refine_nb.evaluation import evaluate
from refine_nb.gpt import ContextualGPT, GPTConfig
from refine_nb.records import start_run
from refine_nb.train import TrainConfig, cross_entropy, train
from refine_nb.trigram import NGram
%% code start
if method not in ("gpt", "counts"): raise ValueError(f"method {{method!r}} is none of gpt, counts")
text = load_corpus(corpus)
run = start_run("{stem}", globals(), corpus=text, presets=PRESETS)
run.params
%% code data
vocab = CharVocab.from_text(text.text)
fit, held_out = split_ids(vocab.encode(text.text))
shape = GPTConfig.preset(preset, len(vocab))
windows = eval_windows(held_out, shape.context)[:256]
%% code run
torch.manual_seed(seed)
rows = []
if method == "counts": learner = NGram.fit(fit, len(vocab))
else:
    learner = ContextualGPT(shape)
    settings = TrainConfig(steps=run.params["steps"], lr=2e-3, warmup=run.params["steps"] // 4)
    batches = Windows(fit, shape.context, run.params["batch"], seed=seed)
    rows = train(learner, cross_entropy, batches, settings, callbacks=(run,), checkpoint_dir=run.checkpoint_dir)
%% code result
metrics = evaluate(learner, windows)
run.finish(metrics, deterministic=method == "counts")
metrics
%% code curve
pd.DataFrame(rows).tail()
%% markdown verdict
## Verdict

One run decides nothing. The verdict is computed from `results/{name}/` once it is recorded.
'''
_SWEEP = """# {title}: five random seeds, and the control.
notebook: {stem}
defaults: {{preset: cpu, seed: [0, 1, 2, 3, 4]}}
runs:
  - {{method: [gpt, counts]}}
"""


def new(
    root: Path,   # of the project
    kind: str,    # "method" or "experiment"
    name: str,    # such as "token_merging"
    number: int,  # a free one, where it belongs in reading order
) -> list[Path]:  # the files that were written
    "Write the templates; raises `FileError` for a bad name, for a number that is taken, and for a file that is there"
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise FileError(f"the name {name!r} is not lower case letters, digits and underscores")
    if not 1 <= number <= 99: raise FileError(f"the number {number} is not from 1 to 99")
    title, stem = name.replace("_", " ").capitalize(), f"{number:02d}_{name}"
    words = dict(name=name, title=title, stem=stem)
    if kind == "experiment":
        return _write({root / f"experiments/{stem}.ipynb": _notebook(_EXPERIMENT, words),
                       root / f"experiments/sweeps/{name}.yaml": _SWEEP.format(**words)})
    taken = [p.name for p in (root / "nbs").glob("[0-9]*.ipynb") if p.name[:2] == stem[:2] or p.stem[3:] == name]
    if taken: raise FileError(f"{taken[0]} is there: choose another number or name (--number)")
    written = _write({root / f"nbs/{stem}.ipynb": _notebook(_METHOD, words)})
    return [*written, _list(root / "nbs/index.ipynb", stem)]


def _notebook(template: str, words: dict) -> str:
    "A notebook as text; each cell of a template begins with a line `%% kind name`"
    made = []
    for part in template.split("%% ")[1:]:
        head, _, source = part.partition("\n")
        kind, name = head.split()
        cell = dict(cell_type="markdown" if kind == "markdown" else "code",
                    id=f"{words['name'][:12]}-{name}".replace("_", "-"),
                    metadata=dict(tags=["parameters"]) if kind == "parameters" else {},
                    source=source.rstrip("\n").format(**words).splitlines(True))
        made.append(cell if kind == "markdown" else cell | dict(execution_count=None, outputs=[]))
    kernel = dict(kernelspec=dict(display_name="python3", language="python", name="python3"))
    return _as_json(dict(cells=made, metadata=kernel, nbformat=4, nbformat_minor=5))


def _as_json(notebook: dict) -> str: return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _write(files: dict[Path, str]) -> list[Path]:
    "Write all of them, or none where one is there"
    for path in files:
        if path.exists(): raise FileError(f"{path} is there: choose another name, or remove it first")
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    return list(files)


def _list(index: Path, stem: str) -> Path:
    "Add a line to the reading order, where its number belongs"
    notebook = json.loads(read_text(index))
    cell = next((c for c in notebook["cells"] if "In reading order" in "".join(c["source"])), None)
    if cell is None: raise FileError(f"{index} has no list that begins with 'In reading order'")
    lines = "".join(cell["source"]).splitlines(True)
    listed = [i for i, line in enumerate(lines) if re.match(r"- \[\d\d_", line)]
    after = [i for i in listed if lines[i][3:5] < stem[:2]]
    at = after[-1] + 1 if after else listed[0]
    lines.insert(at, f"- [{stem}]({stem}.ipynb): one sentence: what this method does with extra computation, and at "
                     "what price.\n")
    cell["source"] = lines
    write_atomic(index, _as_json(notebook))
    return index
