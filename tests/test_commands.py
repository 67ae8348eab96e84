"""Bad command lines and broken files: each is refused with one sentence and exit code 2, none with a traceback"""
import json
import os
import subprocess

import pytest
from typer.testing import CliRunner

from refine_nb._cli import app
from refine_nb.tables import merge
from toy_project import Toy

CARD = """\
id: c1
claim: more is more
sweep: s
metric: x
scope: {mode: fine, steps: 4, pause: 0.0, warm_start: null}
arm: {seed: 0}
rule: {test: exact, n: 1, at_least: 0}
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    "A project with a sweep, one row of it, a card and a history in git"
    toy = Toy(tmp_path / "project")
    toy.sweep("  - {seed: [0, 1]}")
    for folder in ("experiments/claims", "nbs", "runs/a"): (toy.root / folder).mkdir(parents=True)
    (toy.root / "experiments/claims/c1.yaml").write_text(CARD)
    (toy.root / ".gitignore").write_text("runs/\n")
    params = {"mode": "fine", "seed": 0, "steps": 4, "pause": 0.0, "warm_start": None}
    said = {"id": "a" * 16, "key": "k", "experiment": "toy", "status": "ok", "params": params, "metrics": {"x": 4.0},
            "corpus": None, "cards": {}, "started": "2030-01-01T00:00:00+00:00", "as_saved": True, "deterministic": True}
    (toy.root / "runs/a/metrics.jsonl").write_text('{"step": 1, "val_x": 1.0}\n')
    (toy.root / "runs/a/run.json").write_text(json.dumps(said))
    merge(toy.root / "results/s", [said], toy.root / "runs", [])
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]): subprocess.run([*git, *words], cwd=toy.root, check=True)
    monkeypatch.chdir(toy.root)
    return toy


def call(*args):
    "(exit code, what it says, the error that got through)"
    done = CliRunner().invoke(app, [str(a) for a in args])
    error = None if isinstance(done.exception, SystemExit) else done.exception
    return done.exit_code, " ".join(done.output.split()), error


LINES = [
    "sweep", "sweep nothing", "sweep s.yml", "sweep experiments", "sweep /nowhere/s.yaml", "sweep experiments/toy.ipynb",
    "sweep s --dry-run --workers 0", "sweep s --dry-run --workers -1", "sweep s --dry-run --workers many", "sweep s --wehre seed=0",
    "sweep s --dry-run --where seed", "sweep s --dry-run --where sede=0", "sweep s --dry-run --where seed=x",
    "sweep s --dry-run --where seed=9", "sweep s --dry-run --where seed=0 --where seed=1", "sweep s --dry-run --where =0",
    "sweep s --dry-run --where seed=1.5", "sweep s --dry-run --where steps=", "sweep s --dry-run --where mode=",
    "sweep s --dry-run --results experiments/toy.ipynb", "sweep s --dry-run --results dangling", "sweep s --dry-run --runs dangling",
    "sweep s --dry-run --runs experiments/toy.ipynb", "sweep s t", "sweep s --refresh=yes",
    "rerun", "rerun nothing", "rerun s --where seed=1", "rerun s --where sede=0", "rerun s --where seed=0 --where seed=1",
    "rerun s --workers none", "merge", "merge nothing", "merge results", "merge results/s nothing", "merge results/s results",
    "merge experiments/toy.ipynb", "claims --root /", "claims --root nowhere/at/all", "claims --chek", "claims extra",
    "verify nothing", "verify --changed-since nothing", "verify --root /", "verify s --workers x", "verify --states --root /",
    "verify --check --root /", "clean --root /", "clean --dry", "nothing", "--versoin",
]


@pytest.mark.parametrize("line", LINES)
def test_a_bad_command_line_is_refused_in_words(toy, line):
    os.symlink("nowhere", toy.root / "dangling")
    code, said, error = call(*line.split())
    assert code == 2 and error is None and len(said) > 20, (code, said, error)
    assert not (toy.root / "nowhere").exists()


def change(path, old, new): path.write_text(path.read_text().replace(old, new))


SWEEP, BOOK, ROWS, CURVES = "experiments/sweeps/s.yaml", "experiments/toy.ipynb", "results/s/runs.csv", "results/s/curves.csv"
SETS, HISTORY, CLAIM = "results/s/cards.json", "experiments/claims/history.jsonl", "experiments/claims/c1.yaml"
FILES = [  # file, what somebody made of its text, the command, what is said
    (SWEEP, lambda t: f"<<<<<<< HEAD\n{t}=======\n{t}>>>>>>> other\n", "sweep s --dry-run", "conflict markers (line 1)"),
    (SWEEP, lambda t: "", "sweep s --dry-run", "mapping is expected"),
    (SWEEP, lambda t: "- a\n- b\n", "sweep s --dry-run", "mapping is expected"),
    (SWEEP, lambda t: t + "\tx: 1\n", "sweep s --dry-run", "line 4"),
    (SWEEP, lambda t: "notebook: toy\nruns: 5\n", "sweep s --dry-run", "`runs` is a list"),
    (SWEEP, lambda t: "notebook: toy\nruns:\n  - seed\n", "sweep s --dry-run", "an entry is a mapping"),
    (SWEEP, lambda t: "notebook: toy\nruns:\n  - {1: 2}\n", "sweep s --dry-run", "no name of a parameter"),
    (SWEEP, lambda t: "notebook: toy\ndefaults: 3\nruns:\n  - {seed: 1}\n", "sweep s --dry-run", "an entry is a mapping"),
    (SWEEP, lambda t: "notebook: [toy]\nruns:\n  - {seed: 1}\n", "sweep s --dry-run", "no notebook"),
    (SWEEP, lambda t: "notebook: toy\nruns:\n  - {seed: 010}\n", "sweep s --dry-run", "'010' is of type str"),
    (SWEEP, lambda t: "notebook: toy\nruns:\n  - {pause: 1:30}\n", "sweep s --dry-run", "'1:30' is of type str"),
    (SWEEP, lambda t: "notebook: toy\nruns:\n  - {mode: 2030-01-01, seed: [0, 1}\n", "sweep s --dry-run", "s.yaml"),
    (SWEEP, lambda t: "notebook: toy\nruns:\n  - {seed: [[1]]}\n", "sweep s --dry-run", "is of type list"),
    (SWEEP, lambda t: "notebook: toy\nruns: &a\n  - *a\n", "sweep s --dry-run", "s.yaml"),
    (SWEEP, lambda t: f"notebook: toy\nruns:\n  - {{seed: {list(range(400))}, steps: {list(range(400))}}}\n", "sweep s --dry-run", "160000 runs"),
    (SWEEP, lambda t: "notebook: toy\nruns:\n  - {warm_start: {sweep: 3, where: {seed: 0}}}\n", "sweep s --dry-run", "write {sweep: NAME"),
    (SWEEP, lambda t: "notebook: toy\nruns:\n  - {warm_start: {sweep: s, where: {seed: 0}}}\n", "sweep s --dry-run", "builds on itself"),
    (SWEEP, b"notebook: toy\nruns:\n  - {mode: f\xfcr}\n", "sweep s --dry-run", "line 3 is not UTF-8"),
    (BOOK, lambda t: f"<<<<<<< HEAD\n{t}\n=======\n{t}\n>>>>>>> other\n", "sweep s --dry-run", "toy.ipynb holds git's conflict markers"),
    (BOOK, lambda t: t[: len(t) // 2], "sweep s --dry-run", "toy.ipynb is no notebook"),
    (BOOK, lambda t: "[]", "sweep s --dry-run", "toy.ipynb is no notebook"),
    (BOOK, lambda t: '{"cells": [3]}', "sweep s --dry-run", "toy.ipynb is no notebook"),
    (BOOK, b"\xff\xfe{}", "sweep s --dry-run", "toy.ipynb: line 1 is not UTF-8"),
    (ROWS, lambda t: t + "<<<<<<< HEAD\n", "sweep s --dry-run", "runs.csv holds git's conflict markers (line 3)"),
    (ROWS, lambda t: t[:-40], "sweep s --dry-run", "runs.csv: line 2 has"),
    (ROWS, lambda t: t.replace(",", ";"), "sweep s --dry-run", "runs.csv: line 1 has no comma"),
    (ROWS, lambda t: t.replace(",", "\t"), "claims", "runs.csv: line 1 has no comma"),
    (ROWS, lambda t: t.replace("fine", '"fi'), "claims", "runs.csv: line"),
    (ROWS, lambda t: t.replace("parameters", "Parameter", 1), "claims", "no column 'parameters'"),
    (ROWS, b"id,key,parameters\n\xe4,b,c\n", "sweep s --dry-run", "runs.csv: line 2 is not UTF-8"),
    (ROWS, lambda t: t.replace(",0,4,", ",zero,4,"), "claims", "zero"),
    (ROWS, lambda t: t[:-40], "rerun s", "runs.csv: line 2 has"),
    (ROWS, lambda t: t[:-40], "verify s", "runs.csv: line 2 has"),
    (ROWS, lambda t: t[:-40], "verify --states", "runs.csv: line 2 has"),
    (ROWS, lambda t: t[:-40], "merge results/s", "runs.csv: line 2 has"),
    (CURVES, None, "merge results/s", "curves.csv"),
    (SETS, lambda t: "{", "claims", "cards.json is no JSON"),
    (SETS, lambda t: "<<<<<<< HEAD\n{}\n=======\n{\n>>>>>>> b\n", "merge results/s", "cards.json is no JSON on one side"),
    (HISTORY, lambda t: '["card", "c1", {}]\n<<<<<<< HEAD\n', "claims", "history.jsonl holds git's conflict markers (line 2)"),
    (HISTORY, lambda t: '["card", "c\n', "claims", "history.jsonl: line 1 is no JSON"),
    (CLAIM, lambda t: t[:-20], "claims", "c1.yaml"),
    (CLAIM, lambda t: t[:-20], "sweep s", "c1.yaml"),
    (CLAIM, lambda t: t.replace("id: c1", "id: 7"), "claims", "an id is text"),
    (CLAIM, lambda t: t.replace("metric: x", "metric: seed"), "claims", "seed is no result"),
    (CLAIM, lambda t: t.replace("metric: x", "metric: started"), "claims", "started is no result"),
    (CLAIM, lambda t: t.replace("exact, n: 1", "mean, n: 1000000000"), "claims", "nobody runs more"),
    (CLAIM, lambda t: t.replace("sweep: s", "sweep: [s]"), "claims", "sweep is text"),
    (CLAIM, lambda t: t.replace("claim: more is more", "claim: 3"), "claims", "claim is text"),
    (CLAIM, lambda t: t.replace("at_least: 0", "at_least: 2030-01-01"), "claims", "at_least is a finite number"),
    (CLAIM, b"id: c1\nclaim: \xfc\n", "claims", "line 2 is not UTF-8"),
    ("runs/x/run.json", lambda t: '{"id": "x", "as_sav', "clean --root /", "no folder above"),
]


@pytest.mark.parametrize("name, made, line, says", FILES, ids=[f"{f[0].split('/')[-1]}-{i}" for i, f in enumerate(FILES)])
def test_a_file_that_another_program_touched_is_refused_by_name(toy, name, made, line, says):
    path = toy.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if made is None: path.unlink()
    elif isinstance(made, bytes): path.write_bytes(made)
    else: path.write_text(made(path.read_text() if path.exists() else ""))
    code, said, error = call(*line.split())
    assert error is None and code == 2 and says in said and said.count("refine-nb:") == 1, (code, said, error)


def test_a_truncated_record_is_refused_with_the_way_out(toy):
    from refine_nb.sweep import make_plan
    plan = make_plan(toy.root / SWEEP)
    folder = toy.root / "runs" / plan.todo[0]
    folder.mkdir()
    (folder / "run.json").write_text('{"id": "x",')
    code, said, error = call("sweep", "s", "--dry-run")
    assert (code, error) == (2, None) and "run.json cannot be read" in said and "remove the folder" in said


def test_a_bad_card_of_another_sweep_stops_no_run_and_its_own_one(toy):
    toy.sweep("  - {seed: 5}", "t")
    (toy.root / "experiments/claims/d.yaml").write_text("id: d\nsweep: t\nrule: {test: [")
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", "add", "-A"], cwd=toy.root, check=True)
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "x"], cwd=toy.root, check=True)
    assert call("sweep", "s", "--dry-run")[0] == 0
    code, said, error = call("sweep", "t", "--dry-run")
    assert (code, error) == (2, None) and "d.yaml" in said


def test_what_another_editor_may_write_is_read(toy):
    "A byte order mark, Windows' line ends, a home folder, values as the cell declares them, a notebook without metadata"
    for name in (SWEEP, ROWS, CURVES, CLAIM):
        path = toy.root / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert call("sweep", "s", "--dry-run", "--where", "pause=0e0", "--results", "~/x")[0] == 0
    assert call("sweep", "s", "--dry-run", "--where", "seed=0", "--where", "seed=0", "--results", toy.root / "r")[0] == 0
    assert not (toy.root / "~").exists()
    assert call("--version")[1].startswith("refine_nb ")


def test_claims_writes_its_page_where_there_was_no_folder(toy):
    (toy.root / "nbs").rmdir()
    assert call("claims")[0] == 0 and (toy.root / "nbs" / "board.qmd").exists()


def test_equal_runs_are_said(toy):
    toy.sweep("  - {seed: [0, 1]}\n  - {seed: [1, 2]}")
    assert "1 entries ask what another entry asks" in call("sweep", "s", "--dry-run")[1]
