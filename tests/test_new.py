"""Templates: a method and an experiment as `refine-nb new` writes them keep the house rules, and run"""
import json
import subprocess
import sys

import pytest
from conftest import ROOT
from typer.testing import CliRunner

from refine_nb import _new
from refine_nb._cli import app
from refine_nb._files import FileError
from refine_nb.parameters import read_parameters
from refine_nb.sweep import read_sweep


@pytest.fixture
def project(tmp_path):
    "An empty project with the index of this one"
    for room in ("nbs", "experiments/sweeps"): (tmp_path / room).mkdir(parents=True)
    (tmp_path / "nbs/index.ipynb").write_bytes((ROOT / "nbs/index.ipynb").read_bytes())
    return tmp_path


def cells(path, kind="code"): return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def run(sources, names):
    "Execute cells one after the other"
    for source in sources: exec(compile(source, "cell", "exec"), names)
    return names


def test_a_method_keeps_the_house_rules_and_runs(project):
    done = CliRunner().invoke(app, ["new", "method", "token_merging", "--number", "31", "--root", str(project)])
    assert done.exit_code == 0 and done.output.splitlines()[:2] == ["nbs/31_token_merging.ipynb", "nbs/index.ipynb"], done.output
    path = project / "nbs/31_token_merging.ipynb"
    code = cells(path)
    assert cells(path, "markdown")[0].startswith("# Token merging\n\n> ") and code[0] == "#| default_exp token_merging" and "nbdev_export()" in code[-1]
    assert run(code[:-1], {})["shortened_token_merging"]
    lines = [line[3:5] for source in cells(project / "nbs/index.ipynb", "markdown") for line in source.splitlines() if line.startswith("- [") and line[3:5].isdigit()]
    assert "31" in lines and lines == sorted(lines)


def test_an_experiment_keeps_the_house_rules_and_runs(project, monkeypatch):
    notebook, sweep = _new.new(project, "experiment", "more_layers", 31)
    declared = read_parameters(notebook)
    assert {"preset", "seed"} <= set(declared.defaults) and set(declared.presets) == {"smoke", "cpu", "gpu"}
    assert len(read_sweep(sweep).entries) == 10
    assert not [c for c in json.loads(notebook.read_text())["cells"] if c.get("outputs") or c.get("execution_count")]
    monkeypatch.chdir(project)
    small = [c.replace('preset = "cpu"', 'preset = "smoke"') for c in cells(notebook)]
    assert run(small, {})["metrics"]["val_loss"] < 5
    assert run([c.replace('"gpt"  #', '"counts"  #') for c in small], {})["metrics"]["val_loss"] < 3


def test_templates_pass_the_linter(project):
    _new.new(project, "experiment", "more_layers", 31), _new.new(project, "method", "token_merging", 32)
    ruff = [sys.executable, "-m", "ruff", "check", "--no-cache", "--config", str(ROOT / "pyproject.toml"), str(project / "experiments"), str(project / "nbs/32_token_merging.ipynb")]
    done = subprocess.run(ruff, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind, name, number, message", [
    ("method", "Bad-Name", 31, "lower case letters"), ("method", "fine", 0, "from 1 to 99"), ("method", "taken", 31, "31_taken.ipynb is there"),
    ("method", "other", 31, "31_taken.ipynb is there"), ("experiment", "taken", 31, "is there: choose another name"),
])
def test_what_is_there_stays(project, kind, name, number, message):
    for made in ("method", "experiment"): _new.new(project, made, "taken", 31)
    before = {p: p.read_bytes() for p in project.rglob("*") if p.is_file()}
    with pytest.raises(FileError, match=message): _new.new(project, kind, name, number)
    assert {p: p.read_bytes() for p in project.rglob("*") if p.is_file()} == before


def test_an_unknown_kind_is_refused(project):
    done = CliRunner().invoke(app, ["new", "metod", "x", "--number", "31", "--root", str(project)])
    assert done.exit_code == 2 and "neither method nor experiment" in done.output
