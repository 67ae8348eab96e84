"""Old commits against today's code: what only looks different is equal, what gives another number is found and named"""
import csv
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from toy_project import write_notebook

from refine_nb.parameters import Parameters
from refine_nb._arms import Arm, VerifyError, shortened, typed
from refine_nb._board import Verdict
from refine_nb._definitions import Code, definitions
from refine_nb.tables import write_table
from refine_nb.verify import _cover, changed_rows, compare, row_states, verify

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
PARAMETERS = 'seed = 0\ncorpus = "markov"\nlr = 3e-3\nsteps = 500\nhow = "fine"  # or "breaks"'
IMPORTS = """
import torch

from refine_nb.data import CharVocab, Windows, eval_windows, load_corpus, split_ids
from refine_nb.evaluation import evaluate, score
from refine_nb.gpt import ContextualGPT, GPTConfig
from refine_nb.records import start_run
from refine_nb.train import TrainConfig, cross_entropy, train
"""
BODY = """
text = load_corpus(corpus)
run = start_run("tiny", globals(), corpus=text)
if how == "breaks": raise KeyError("no such key")
vocab = CharVocab.from_text(text.text)
fit, held_out = split_ids(vocab.encode(text.text))
windows = eval_windows(held_out, 16)[:120]
torch.manual_seed(seed)
model = ContextualGPT(GPTConfig(len(vocab), context=16, n_layers=1, n_heads=2, width=16))
settings = TrainConfig(steps=steps, lr=lr, warmup=0, weight_decay=0.0)
train(model, cross_entropy, Windows(fit, 16, 4, seed=seed), settings, lambda m: evaluate(m, windows), (run,))
run.finish({}, windows=dict(val_loss=score(model, windows)[0].mean(1).tolist()))
"""


def git(root, *args):
    "What git says in a project"
    given = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", "-C", root, *given, *args], check=True, capture_output=True, text=True).stdout.strip()


def record(root, runs, commit=None):
    "A table as a sweep leaves it, of runs at the last commit"
    names, commit = ["seed", "corpus", "lr", "steps", "how"], commit or git(root, "rev-parse", "HEAD")
    fixed = dict(experiment="tiny", status="ok", parameters=" ".join(names))
    fixed |= dict(corpus="markov", lr="0.003", steps="500", how="fine")
    rows = [fixed | run | dict(id=f"row{i}", commit=commit) for i, run in enumerate(runs)]
    path = root / "results" / "s" / "runs.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as f:
        table = csv.DictWriter(f, rows[0])
        table.writeheader()
        table.writerows(rows)


@pytest.fixture
def project(tmp_path):
    "A git repository with a copy of the library, one tiny experiment, and rows of it"
    root = tmp_path / "project"
    shutil.copytree(ROOT / "refine_nb", root / "refine_nb", ignore=shutil.ignore_patterns("__pycache__"))
    write_notebook(root / "experiments" / "tiny.ipynb", [(PARAMETERS, ["parameters"]), (IMPORTS, []), (BODY, [])])
    (root / ".gitignore").write_text("__pycache__/\n")
    git(tmp_path, "init", "-q", root)
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    record(root, [dict(seed="1"), dict(seed="0")])
    return root


def edit(root, module, old, new):
    "Change today's code in one place"
    path = root / "refine_nb" / f"{module}.py"
    text = path.read_text()
    assert text.count(old) >= 1, old
    path.write_text(text.replace(old, new))


@needs_git
def test_refactorings_that_change_no_number_are_equal(project):
    edit(project, "gpt", "needs at least", "has to be at least")  # the wording of an error
    edit(project, "gpt", "    def hidden(", "    def unused(self): return 0\n\n    def hidden(")
    edit(project, "train", "_reduced", "_together")  # a private helper
    assert row_states(project) == {"row0": "unverified", "row1": "unverified"}
    made, = verify(root=project)
    assert (made["outcome"], made["row"], made["difference"]) == ("equal", "row1", "")
    assert int(made["numbers"]) > 30
    assert {"train.update", "gpt.GPTConfig.__post_init__"} <= set(made["definitions"].split())
    assert "gpt.ContextualGPT.unused" not in made["definitions"]
    assert row_states(project) == {"row0": "verified", "row1": "verified"}
    assert verify(root=project) == []  # its certificate holds
    edit(project, "train", "final_lr: float = 0.1", "final_lr: float = 0.2")
    assert set(row_states(project).values()) == {"unverified"}
    git(project, "checkout", "-q", "--", ".")
    assert set(row_states(project).values()) == {"current"}


PLANTED = [("train", "betas=(0.9, 0.95)", "betas=(0.9, 0.999)", "grad_norm", "train.adamw"),
           ("data", "return ids.unfold(0, con", "return ids[1:].unfold(0, con", "val_loss", "data.eval_windows"),
           ("statistics", 'method="BCa"', 'method="percentile"', "val_loss_low", "statistics.bootstrap_interval")]


@needs_git
@pytest.mark.parametrize("module, old, new, metric, definition", PLANTED, ids=[p[-1] for p in PLANTED])
def test_a_changed_number_is_found_by_name(project, module, old, new, metric, definition):
    edit(project, module, old, new)
    made, = verify(root=project)
    assert made["outcome"] == "changed"
    assert made["difference"].startswith(f"{metric} (")
    assert made["definitions"] == definition
    assert set(row_states(project).values()) == {"changed"}


@needs_git
def test_an_arm_that_breaks_costs_no_other_one(project):
    record(project, [dict(seed="0"), dict(seed="0", how="breaks"), dict(seed="0", how="fine", steps="0")])
    edit(project, "gpt", "n_layers", "n_blocks")  # today's notebook does not know it
    made = {row["row"]: row for row in verify(root=project)}
    assert {i: r["outcome"] for i, r in made.items()} == {"row0": "changed", "row1": "not run", "row2": "not run"}
    assert "n_layers" in made["row0"]["difference"] and "no such key" in made["row1"]["difference"]
    assert row_states(project) == {"row0": "changed", "row1": "unverified", "row2": "unverified"}


@needs_git
def test_what_cannot_be_run_leaves_its_certificate(project, monkeypatch):
    verify(root=project)
    before = (project / "results/s/verified.csv").read_text()
    edit(project, "train", "_reduced", "_together")
    monkeypatch.setattr("refine_nb._verify_pairs._LIMIT", 0)  # no arm comes to its end
    made, = verify(root=project)
    assert made["outcome"] == "not run" and "limit is 0 CPU-s" in made["difference"]
    assert (project / "results/s/verified.csv").read_text() == before
    record(project, [dict(seed="0")], commit="1" * 40)
    command = [sys.executable, "-m", "refine_nb._cli", "verify", "--root", project]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1 and "1 arm: 1 not run" in ended.stdout, ended.stderr


@needs_git
def test_a_lost_text_costs_only_the_arms_that_read_it(project):
    unread = (PARAMETERS.replace("markov", "lost"), IMPORTS, BODY.replace("load_corpus(corpus)", 'load_corpus("markov")'))
    write_notebook(project / "experiments/tiny.ipynb", [(unread[0], ["parameters"]), (unread[1], []), (unread[2], [])])
    git(project, "commit", "-qam", "another text")
    record(project, [dict(seed="0", corpus="lost")])
    edit(project, "train", "_reduced", "_together")
    made, = verify(root=project)
    assert made["outcome"] == "equal", made


@needs_git
def test_a_fault_is_named_alone_and_told_until_it_is_mended(project, capsys):
    edit(project, "train", "_reduced", "_together")
    edit(project, "data", "def eval_windows(", "def unused(): return 0\n\ndef eval_windows(")
    git(project, "commit", "-qam", "renamed")
    assert verify(root=project)[0]["outcome"] == "equal"  # many definitions have changed since the row was recorded
    git(project, "add", ".")
    git(project, "commit", "-qm", "certificates")
    edit(project, "train", "betas=(0.9, 0.95)", "betas=(0.9, 0.999)")
    made, = verify(root=project, changed_since="HEAD")
    assert (made["outcome"], made["definitions"]) == ("changed", "train.adamw")
    git(project, "checkout", "-q", "--", "results")
    made, = verify(root=project)
    assert (made["outcome"], made["definitions"]) == ("changed", "train.adamw")
    capsys.readouterr()
    again, = verify(root=project)  # nothing is run, and it is told all the same
    assert again["outcome"] == "changed" and "train.adamw" in capsys.readouterr().err
    git(project, "commit", "-qam", "the fault")
    edit(project, "data", "def unused(): return 0", "def unused(): return 1")
    made, = verify(root=project, changed_since="HEAD")
    assert made["outcome"] == "changed"
    made, = verify(root=project, changed_since="HEAD", again=True)
    assert made["outcome"] == "changed"


@needs_git
def test_few_arms_cover_a_change(project):
    record(project, [dict(seed="0", lr="0.001"), dict(seed="0", lr="0.002")])
    first = git(project, "rev-parse", "HEAD")
    assert [row["row"] for row in verify(root=project, where={"lr": "2e-3"})] == ["row1"]
    assert len(verify(root=project)) == 1
    edit(project, "train", "_reduced", "_together")
    made, = verify(root=project, changed_since=first)
    assert made["outcome"] == "equal"
    assert sorted(row_states(project).values()) == ["unverified", "verified"]
    git(project, "checkout", "-q", "--", ".")
    edit(project, "grpo", "def ", "def new_")  # nobody executes it
    assert verify(root=project, changed_since=first, again=True) == []


@needs_git
def test_arms_whose_code_is_not_known_are_counted(project, capsys):
    first = git(project, "rev-parse", "HEAD")
    verify(root=project)
    (project / "results/s/executed.json").unlink()
    edit(project, "train", "_reduced", "_together")
    assert verify(root=project, changed_since=first) == []
    assert "1 arms were never run, or ran code that has other names by now" in capsys.readouterr().err


@needs_git
def test_ctrl_c_leaves_no_process_and_no_folder(project, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = [sys.executable, "-m", "refine_nb._cli", "verify", "--root", project]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job would ignore it
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heard)
    until = time.monotonic() + 60
    while not list(tmp_path.glob("refine_nb_verify_*/*/*/job.json")) and time.monotonic() < until: time.sleep(0.05)
    assert list(tmp_path.glob("refine_nb_verify_*"))
    driver.send_signal(signal.SIGINT)
    assert driver.wait(30) == 130, driver.stderr.read()
    assert not list(tmp_path.glob("refine_nb_verify_*"))
    assert str(project) not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout


@needs_git
def test_mistakes_are_told(project, tmp_path):
    with pytest.raises(VerifyError, match="no sweep with results 'S' .there is s"): verify(["S"], root=project)
    with pytest.raises(VerifyError, match="no parameter 'lrr'; did you mean 'lr'"): verify(root=project, where={"lrr": 1})
    with pytest.raises(VerifyError, match="no recorded arm has"): verify(root=project, where={"lr": "0.5"})
    with pytest.raises(VerifyError, match="there is no commit abc1234"): verify(root=project, changed_since="abc1234")
    (tmp_path / "bare" / "experiments").mkdir(parents=True)
    with pytest.raises(VerifyError, match="no git repository"): verify(root=tmp_path / "bare")
    record(project, [dict(seed="0")], commit="1" * 40)
    assert "commit 111111111 is not in this repository" in verify(root=project)[0]["difference"]
    git(project, "mv", "experiments/tiny.ipynb", "experiments/other.ipynb")
    record(project, [dict(seed="0")])
    assert "no experiment tiny" in verify(root=project)[0]["difference"]


RECORD = dict(status="ok", metrics=dict(loss=1.0, gflops=3.0))


def result(rows=({"step": 1, "loss": 2.0, "cpu_seconds": 1.0},), error=None, **record):
    "What a side gives"
    return dict(rows=list(rows), error=error, record=RECORD | record)


def test_a_card_falls_with_the_rows_behind_its_own_number(tmp_path, monkeypatch):
    "A changed count of operations is of no concern to a card that counts none"
    differences = dict(a="loss (step 1, row 1): 1.0, today 2.0", b="", c="flops (the record): 100, today 150")
    arms = [Arm("s", id, [dict(id=f"{id}0", commit="1", experiment="tiny")]) for id in differences]
    rows = [dict(arm=id, outcome="changed" if d else "equal", difference=d) for id, d in differences.items()]
    (tmp_path / "results" / "s").mkdir(parents=True)
    write_table(tmp_path / "results" / "s" / "verified.csv", rows, ["arm", "outcome", "difference"])
    for name, value in dict(_project_folder=tmp_path, recorded_sweeps=["s"], arms_of=arms).items():
        monkeypatch.setattr(f"refine_nb.verify.{name}", lambda *args, value=value: value)
    monkeypatch.setattr("refine_nb.verify.row_states", lambda root: dict(a0="changed", b0="verified", c0="changed"))
    def judged(rows, verdict="refuted", metric="acc", **controls):
        return Verdict(dict(sweep="s", metric=metric, scope={}, controls=controls), verdict, {}, "", rows=rows)
    cards = dict(one=judged(("a0", "b0")), two=judged(("b0",)), three=judged(("b0", "c0")), four=judged(("a0",), "open"),
                 five=judged(("c0",), metric="flops"), six=judged(("c0",), twin={"budget": "compute"}))
    monkeypatch.setattr("refine_nb.claims.judge_cards", lambda root, sweeps: cards if sweeps == ["s"] else {})
    assert changed_rows(tmp_path) == dict(one=["a0"], five=["c0"], six=["c0"])


def test_a_changed_cost_is_named_only_where_nothing_else_differs():
    before = result(rows=[{"step": 1, "flops": 100, "loss": 2.0}])
    for row, name in (({"step": 1, "flops": 200, "loss": 2.0}, "flops"), ({"step": 1, "flops": 200, "loss": 3.0}, "loss")):
        assert compare(before, result(rows=[row])).difference.startswith(f"{name} (step 1, row 1)")


@pytest.mark.parametrize("after, outcome, words", [
    (result(), "equal", ""),
    (result(rows=[{"step": 1, "loss": 2.0, "cpu_seconds": 9.0}]), "equal", ""),
    (result(rows=[{"step": 1, "loss": 2.0000000000000004, "cpu_seconds": 1.0}]), "changed",
     "loss (step 1, row 1): 2.0, today 2.0000000000000004"),
    (result(rows=[{"step": 1}]), "changed", "loss (step 1, row 1): 2.0, today missing"),
    (result(rows=[]), "changed", "step (step 1, row 1): 1, today missing"),
    (result(rows=[{"step": 1, "loss": 2.0}, {"step": 2, "loss": 2.0}]), "changed", "1 rows of metrics, today 2"),
    (result(metrics=dict(loss=1.0, more=5)), "equal", ""),
    (result(metrics=dict(loss=1.5)), "changed", "loss (the result): 1.0, today 1.5"),
    (result(status="diverged"), "changed", "status (the record): 'ok', today 'diverged'"),
    (result(error="KeyError: 'x'"), "changed", "today: KeyError: 'x'")])
def test_every_logged_number_counts(after, outcome, words):
    found = compare(result(), after)
    assert (found.outcome, found.difference) == (outcome, words)
    assert found.fresh == ("more" if "more" in after["record"]["metrics"] else "")
    assert compare(result(error="x"), after).outcome == "not run"

@pytest.mark.parametrize("flops, outcome, words", [
    (1000, "equal", ""),
    (981, "equal", "only a cost: flops (the record): 1000, today 981"),
    (1021, "changed", "flops (the record): 1000, today 1021"),
    (None, "changed", "flops (the record): 1000, today None")])
def test_operations_that_code_saves_are_a_cost_within_equal_compute(flops, outcome, words):
    found = compare(result(flops=1000), result(flops=flops))
    assert (found.outcome, found.difference) == (outcome, words)
    found = compare(result(flops=1000), result(flops=flops, metrics=dict(loss=1.5)))
    assert found.difference.startswith("loss")


MODULE = """
import math
from .other import helper as other_helper
BASE, SPARE = 2, 3
class Net:
    "Doc"
    width: int = 4
    def run(self, x):
        "Doc"
        return x * BASE
    def idle(self): return 0
@patch
def late(self: Net): return math.pi
Net.depth = 3
"""


def names_of(text, lines=(("m", 8),)):
    "What a run that enters these lines of a module depends on, with digests"
    code = Code.__new__(Code)
    code.pieces = {"m": definitions("m", text)}
    code.lines = {("m", d.first): d for d in code.pieces["m"] if d.function}
    code.notebooks = {"x": ("", frozenset())}
    return {n: code.digests[n] for n in code.executed("x", [list(p) for p in lines], ["m"])}


def test_a_run_depends_on_what_it_calls_and_what_that_mentions():
    assert set(names_of(MODULE)) == {"m", "m.BASE", "m.SPARE", "m.Net", "m.Net.run"}
    assert set(names_of(MODULE, [("m", 12)])) == {"m", "m.Net", "m.Net.late", "m.math"}


@pytest.mark.parametrize("old, new, same", [
    ('"Doc"', '"Other words"', True), ("return 0", "return 1", True), ("math.pi", "math.e", True),
    ("import math", "import cmath as math", True),
    ("helper as", "help as", True), ("x * BASE", "x*BASE  # why", True), ("x * BASE", "BASE * x", False),
    ("width: int = 4", "width: int = 5", False),
    ("Net.depth = 3", "Net.depth = 4", False), ("= 2, 3", "= 7, 3", False)])
def test_what_counts_as_a_change(old, new, same):
    assert (names_of(MODULE) == names_of(MODULE.replace(old, new))) is same


def test_cover_is_small():
    assert _cover({"a": {1, 2}, "b": {2, 3}, "c": {1, 2, 3}, "d": {4}}) == ["c", "d"]
    assert _cover({"a": set()}) == [] == _cover({})


def test_parameters_are_cut_and_shapes_are_not():
    spec = Parameters({}, dict(seed=int, steps=int, width=int, lr=float, detach=bool, name=str), {})
    row = dict(parameters="seed steps width lr detach name", name="")
    row |= dict(seed="1", steps="400", width="64", lr="1e-3", detach="True")
    assert shortened("x", typed(row, spec)) == dict(seed=1, steps=3, width=64, lr=0.001, detach=True)
    with pytest.raises(VerifyError, match="no parameter 'layers'"): typed(dict(parameters="layers", layers="2"), spec)
