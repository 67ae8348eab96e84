"""The recorded rows: none lost or changed when tables change their form, each reproducible from what it says"""
import csv, io, json, math
from pathlib import Path

import pytest

from refine_nb._project import git
from refine_nb.parameters import read_parameters, resolve
from refine_nb.provenance import run_key
from refine_nb.statistics import bootstrap_interval
from refine_nb.tables import read_runs, read_table, read_windows
from refine_nb.parameters import from_text

ROOT = Path(__file__).resolve().parent.parent
SWEEPS = sorted(p.parent.name for p in ROOT.glob("results/*/runs.csv"))
BEFORE = "af5e2b2002c8f050f299e0c58deded7bd3f361be"  # the last commit whose rows had a hash of all code as their id


def old_table(sweep, name):
    "A table as it was, or None where this clone has no such commit"
    text = git(ROOT, "show", f"{BEFORE}:results/{sweep}/{name}")
    return None if text is None else list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("sweep", [s for s in SWEEPS if not s.endswith("_fresh")])
def test_no_number_changed_with_the_form_of_the_tables(sweep):
    "Every cell of every row that counted is what it was, but for rows that were recorded again since"
    rows, curves = old_table(sweep, "runs.csv"), old_table(sweep, "curves.csv")
    if rows is None: pytest.skip("this clone does not reach back to the old tables")
    now = {r["id"]: r for r in read_table(ROOT / "results" / sweep / "runs.csv")}
    kept = {r["id"] for r in rows if r["id"] in now and r["started"] == now[r["id"]]["started"]}
    fresh = {r["key"] for r in rows if r["stale"] == "False"}
    assert fresh <= {r["key"] for r in now.values()}  # no question lost its row
    again = {r["key"]: r["started"] for r in now.values()}
    assert all(again[r["key"]] > r["started"] for r in rows if r["stale"] == "False" and r["id"] not in kept)
    for old in [r for r in rows if r["id"] in kept]:
        new = now[old["id"]]
        assert {k: v for k, v in old.items() if k not in ("stale", "cards")} == {k: v for k, v in new.items() if k in old and k != "cards"}
        assert json.loads(old["cards"] or "{}") == (cards(sweep)[new["cards"]] if new["cards"] else {})
    kept_curves = [c for c in read_table(ROOT / "results" / sweep / "curves.csv") if c["id"] in kept]
    assert [c for c in curves if c["id"] in kept] == [{k: c[k] for k in curves[0] if k in c} for c in kept_curves]


def cards(sweep):
    "digest → the cards that runs knew"
    return json.loads((ROOT / "results" / sweep / "cards.json").read_text())


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_row_asks_the_question_of_its_key(sweep):
    "From text alone: the typed parameters, completed by today's defaults, give the key that was recorded"
    keys = {r["id"]: r["key"] for s in SWEEPS for r in read_table(ROOT / "results" / s / "runs.csv")}
    rows = read_table(ROOT / "results" / sweep / "runs.csv")
    specs = {e: read_parameters(ROOT / "experiments" / f"{e}.ipynb") for e in {r["experiment"] for r in rows}}
    for row in rows:
        spec, names = specs[row["experiment"]], row["parameters"].split()
        params = resolve(spec, {n: from_text(row[n], spec.types[n]) for n in names if n in spec.types})
        if set(names) == set(spec.types): assert run_key(row["experiment"], params, row["corpus_name"] or None, keys) == row["key"]
        for name in spec.choices.keys() & set(names): assert row[name] in ["", *spec.choices[name]]
    assert len({(r["key"], r["corpus_sha256"]) for r in rows}) == len(rows)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_row_names_a_commit_of_this_history(sweep):
    "Or nobody could verify it"
    if git(ROOT, "rev-parse", "--is-shallow-repository") != "false": pytest.skip("a shallow clone does not hold the commits")
    known = set(git(ROOT, "rev-list", "--all").split())
    rows = read_table(ROOT / "results" / sweep / "runs.csv")
    assert {r["commit"] for r in rows} <= known
    assert {r["dirty"] for r in rows} == {"False"}


@pytest.mark.parametrize("sweep", [s for s in SWEEPS if (ROOT / "results" / s / "windows").exists()])
def test_kept_windows_give_the_recorded_interval(sweep):
    rows = read_runs(ROOT / "results" / sweep).set_index("id")
    files = list((ROOT / "results" / sweep / "windows").iterdir())
    assert {f.name.removesuffix(".json.gz") for f in files} <= set(rows.index)
    for id in [f.name.removesuffix(".json.gz") for f in files][:5]:
        for metric, values in read_windows(ROOT / "results" / sweep, id).items():
            found = bootstrap_interval(values)
            assert (found.low, found.high, found.n) == tuple(rows.loc[id, [f"{metric}_low", f"{metric}_high", f"{metric}_windows"]])
            assert math.isclose(found.mean, rows.loc[id, metric], rel_tol=1e-5)
