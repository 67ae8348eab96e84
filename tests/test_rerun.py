"""Recorded rows run again: what they build on too, and never with old code"""
import pytest

from refine_nb.rerun import rerun, rerun_text, spreads
from refine_nb.tables import read_table
from refine_nb.sweep import SweepError
from refine_nb.tables import write_table
from toy_project import BODY, Toy, toy_cells, write_notebook


@pytest.fixture
def toy(tmp_path, monkeypatch):
    toy = Toy(tmp_path)
    monkeypatch.setenv("TOY_LOG", str(toy.log))
    return toy


def test_a_row_and_what_it_builds_on_are_run_with_the_code_of_now(toy, capsys):
    toy.sweep("  - {seed: 0}", "warm")
    sweep = toy.sweep("  - {seed: [5, 6], warm_start: {sweep: warm, where: {seed: 0}}}")
    assert toy.run("sweep", sweep)[0] == 0
    table = toy.root / "results" / "s" / "runs.csv"
    before = table.read_text()
    for runs in (5, 5):  # one run and its warm start; the second time nothing has to be executed
        again = rerun(sweep, {"seed": 5}, 1)
        assert len(toy.executions()) == runs and (again["expected"] == "bit for bit").all() and "x" in rerun_text(again)
    write_notebook(toy.notebook, toy_cells(body=BODY.replace('"x": start + steps', '"x": 100 + start + steps')))
    x = rerun(sweep, {"seed": 5}, 1).set_index("metric").loc["x"]
    assert len(toy.executions()) == 7 and x["difference"] == 100 and x["expected"].startswith("DIFFERS")
    assert table.read_text() == before and {r["here"] for r in read_table(table.with_name("reruns.csv")) if r["metric"] == "x"} == {str(x["here"])}
    capsys.readouterr()


def test_what_another_processor_did_is_the_largest_difference_of_other_rows(toy, capsys):
    sweep = toy.sweep("  - {seed: [0, 1]}")
    assert toy.run("sweep", sweep)[0] == 0
    table = toy.root / "results" / "s" / "runs.csv"
    rows = [r | {"processor": "another", "x": str(float(r["x"]) + 0.5)} for r in read_table(table)]
    write_table(table, rows, list(rows[0]))
    ids = {r["seed"]: r["id"] for r in rows}
    first = rerun(sweep, {"seed": 0}, 1).set_index("metric").loc["x"]
    assert first["expected"] == "another processor; nothing measured before" and first["difference"] == -0.5
    assert spreads(table.parent.parent, "toy")["x"] == 0.5 and spreads(table.parent.parent, "toy", frozenset([ids["0"]])) == {}
    capsys.readouterr()


def test_a_rerun_that_fails_says_so(toy, capsys):
    sweep = toy.sweep("  - {seed: 0}")
    assert toy.run("sweep", sweep)[0] == 0
    write_notebook(toy.notebook, toy_cells(body="1 / 0"))
    with pytest.raises(SweepError, match="1 of 1 runs failed"): rerun(sweep, None, 1)
    with pytest.raises(SweepError, match="no run of s has"): rerun(sweep, {"seed": 9}, 1)
    capsys.readouterr()
