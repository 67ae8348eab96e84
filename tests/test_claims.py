"""Verdicts: each is reached, none by accident, and the pages agree with the tables"""
import json, math, subprocess, sys

import pandas as pd
import pytest
import yaml
from toy_project import PARAMETERS, toy_cells, write_notebook

from refine_nb.claims import CardError, check_card, decide, judge, read_cards, write_claims
from refine_nb.runs import Interval, ParameterError, card_hash, card_hashes

CARD = {"id": "c", "claim": "A is better than B.", "sweep": "s", "scope": {"preset": "cpu"}, "metric": "acc", "arm": {"model": "a"}, "controls": {"b": {"model": "b"}}, "rule": {"test": "paired", "at_least": 0.02, "n": 5}}
FIXED = CARD | {"arm": {"model": "count"}, "controls": {}, "rule": {"test": "exact", "within": [0.26, 0.28], "n": 1}}


def rows(model, values, deterministic=False, card=CARD, **more):
    "One row per value, the position is the random seed"
    return [{"id": f"{model}{s}", "key": f"{model}{s}", "status": "ok", "stale": False, "parameters": "model seed preset", "model": model, "seed": s, "preset": "cpu", "acc": v, "started": "2030",
             "acc_low": v - 0.02, "acc_high": v + 0.02, "acc_windows": 200, "deterministic": deterministic, "cards": json.dumps({"c": card_hash(card)})} | more for s, v in enumerate(values)]


B = [0.50, 0.52, 0.54, 0.56, 0.58]


@pytest.mark.parametrize("gains, verdict", [
    ([0.050, 0.051, 0.049, 0.050, 0.052], "reproduced"),
    ([0.000, 0.001, -0.001, 0.000, 0.002], "refuted"),
    ([0.010, 0.030, 0.020, 0.025, 0.015], "open"),
    ([0.050, 0.051, 0.049, 0.050], "open"),  # the fifth seed is missing
])
def test_each_verdict_over_seeds(gains, verdict):
    found = judge(CARD, pd.DataFrame(rows("a", [b + g for b, g in zip(B, gains)]) + rows("b", B)))
    assert found.verdict == verdict
    assert bool(found.numbers) == (len(gains) == 5)


def clear(**more): return rows("a", [b + 0.05 + i / 1000 for i, b in enumerate(B)], **more) + rows("b", B)


def test_a_card_changed_after_the_start_is_post_hoc_and_its_wording_is_free():
    table = pd.DataFrame(clear())
    assert judge(CARD | {"claim": "In other words."}, table).verdict == "reproduced"
    for change in ({"rule": CARD["rule"] | {"at_least": 0.03}}, {"metric": "acc_low"}, {"controls": {"b": {"model": "b"}, "b again": {"model": "b"}}}):
        assert judge(CARD | change, table).verdict == "post hoc"
    late = table.assign(cards=[json.dumps({})] + list(table["cards"])[1:])  # one run began before there was a card
    assert judge(CARD, late).verdict == "post hoc"


def test_a_diverged_run_leaves_the_claim_open():
    table = pd.DataFrame(clear())
    table.loc[2, ["status", "acc"]] = ["diverged", math.nan]
    assert judge(CARD, table).verdict == "open" and "1 of 5 runs diverged" in judge(CARD, table).why


def test_seeds_beyond_the_rule_do_not_count():
    more = pd.DataFrame(rows("a", [b + 0.05 + i / 1000 for i, b in enumerate(B)] + [0.0] * 3) + rows("b", B + [0.9] * 3))
    assert judge(CARD, more).numbers == judge(CARD, pd.DataFrame(clear())).numbers


def test_a_seed_without_a_value_is_not_replaced_by_the_next():
    "Of eight seeds the second is missing: the other seven are what survived, not what was asked for"
    seven = [r for r in rows("a", [b + 0.05 + i / 1000 for i, b in enumerate(B + B[:3])]) if r["seed"] != 1] + rows("b", B + B[:3])
    found = judge(CARD, pd.DataFrame(seven))
    assert found.verdict == "open" and "0 … 4, 1 is missing" in found.why
    diverged = pd.DataFrame(clear() + rows("a", B + [0.6])[5:])
    diverged.loc[diverged["seed"] == 5, ["status", "acc"]] = ["diverged", math.nan]
    assert judge(CARD, diverged).verdict == "reproduced"  # a seed beyond the rule does not count, whatever became of it


def test_one_seed_counts_once():
    "Rows of before and after a parameter was added: two runs of every seed"
    twice = pd.DataFrame(clear() + [r | {"id": r["id"] + "old", "key": r["key"] + "old"} for r in clear()])
    with pytest.raises(CardError, match="more than one run with the random seed 0"): judge(CARD, twice)
    from refine_nb.claims import first_seeds
    with pytest.raises(CardError, match="more than one run with the random seed 0"): first_seeds(twice[twice["model"] == "a"].set_index("seed"), CARD)


def test_only_parameters_select():
    with pytest.raises(CardError, match="no parameter 'status'"): judge(CARD | {"scope": {"status": "ok"}}, pd.DataFrame(clear()))


def test_a_value_that_no_run_has_is_named():
    found = judge(CARD | {"scope": {"preset": "cpuu"}}, pd.DataFrame(clear()))
    assert found.verdict == "open" and "no preset 'cpuu'; did you mean 'cpu'" in found.why


def test_it_must_hold_against_every_control():
    card = CARD | {"controls": {"b": {"model": "b"}, "c": {"model": "c"}}}
    better = rows("c", [b + 0.1 for b in B])
    found = judge(card, pd.DataFrame([r | {"cards": json.dumps({"c": card_hash(card)})} for r in clear() + better]))
    assert found.verdict == "refuted" and "against c" in found.why


def test_choosing_between_runs_is_refused():
    twice = pd.DataFrame(clear() + [r | {"precision": "bf16", "parameters": "model seed preset precision"} for r in rows("a", B)]).fillna({"precision": "fp32"})
    with pytest.raises(CardError, match="leave open which precision"): judge(CARD, twice)


def test_each_random_seed_may_build_on_a_run_of_its_own():
    def built(on): return pd.DataFrame([r | {"parameters": "model seed preset start", "start": on(r["seed"])} for r in clear()])
    assert judge(CARD, built(lambda s: f"run:{s}")).numbers == judge(CARD, pd.DataFrame(clear())).numbers != {}
    with pytest.raises(CardError, match="leave open which start"): judge(CARD, built(lambda s: f"run:{s}" if s else None))


@pytest.mark.parametrize("rule, verdict", [
    ({"test": "exact", "within": [0.26, 0.28], "n": 1}, "reproduced"),
    ({"test": "exact", "within": [0.28, 0.29], "n": 1}, "refuted"),
    ({"test": "windows", "within": [0.2, 0.3], "n": 100}, "reproduced"),
    ({"test": "windows", "within": [0.26, 0.28], "n": 100}, "open"),
    ({"test": "windows", "at_least": 0.3, "n": 100}, "refuted"),
    ({"test": "windows", "at_least": 0.3, "n": 300}, "open"),
])
def test_a_deterministic_method_is_judged_without_seeds(rule, verdict):
    card = FIXED | {"rule": rule}
    assert judge(card, pd.DataFrame(rows("count", [0.27], True, card))).verdict == verdict


def test_two_deterministic_methods_differ_by_the_worst_case():
    card = FIXED | {"rule": {"test": "windows", "at_least": 0.0, "n": 100}, "controls": {"other": {"model": "other"}}}
    for gap, verdict in ((0.05, "reproduced"), (0.03, "open"), (-0.05, "refuted")):
        assert judge(card, pd.DataFrame(rows("count", [0.5 + gap], True, card) + rows("other", [0.5], True, card))).verdict == verdict


def test_pseudo_evidence_is_refused():
    with pytest.raises(CardError, match="random seeds are no evidence"): judge(CARD, pd.DataFrame(rows("a", [0.9] * 5, True) + rows("b", B)))
    with pytest.raises(CardError, match="depend on their random seed"): judge(FIXED, pd.DataFrame(rows("count", [0.27], False, FIXED)))
    with pytest.raises(CardError, match="differs between random seeds"): judge(FIXED, pd.DataFrame(rows("count", [0.27, 0.271], True, FIXED)))


def test_a_learner_against_a_fixed_bar():
    card = CARD | {"controls": {"bar": {"model": "bar"}}, "rule": CARD["rule"] | {"test": "against_fixed"}}
    table = pd.DataFrame(rows("a", [0.60, 0.61, 0.62, 0.61, 0.60], card=card) + rows("bar", [0.55], True, card))
    assert judge(card, table).verdict == "reproduced" and judge(card, table).numbers["bar"].mean == pytest.approx(0.058)
    mean = CARD | {"controls": {}, "rule": {"test": "mean", "at_least": 0.62, "n": 5}}
    assert judge(mean, table.assign(cards=json.dumps({"c": card_hash(mean)}))).verdict == "refuted"


@pytest.mark.parametrize("low, high, verdict", [(0.0, 1.0, "reproduced"), (-0.1, 1.0, "open"), (-1.0, -0.1, "refuted"), (0.5, 1.1, "open"), (1.1, 2.0, "refuted"), (-math.inf, math.inf, "open")])
def test_the_edge_of_the_region(low, high, verdict): assert decide(Interval(0.5, low, high, 5), {"within": [0.0, 1.0]}) == verdict


@pytest.mark.parametrize("change, says", [
    ({"rule": {"test": "paired", "at_least": 0, "n": 4}}, "at least 5"),
    ({"rule": {"test": "windows", "at_least": 0, "n": 99}}, "at least 100"),
    ({"rule": {"test": "paired", "n": 5}}, "exactly one of"),
    ({"rule": {"test": "paired", "at_least": 0, "at_most": 1, "n": 5}}, "exactly one of"),
    ({"rule": {"test": "pared", "at_least": 0, "n": 5}}, "did you mean 'paired'"),
    ({"rule": {"test": "paired", "at_lest": 0, "n": 5}}, "did you mean 'at_least'"),
    ({"controls": {}}, "needs controls"),
    ({"rule": {"test": "mean", "at_least": 0, "n": 5}}, "compares with nothing"),
    ({"metric": ""}, "metric is missing"),
    ({"rule": {"test": "paired", "at_least": math.nan, "n": 5}}, "at_least is a finite number, not nan"),
    ({"rule": {"test": "paired", "at_least": "0.02", "n": 5}}, "at_least is a finite number, not '0.02'"),
    ({"rule": {"test": "paired", "within": [0.2, 0.1], "n": 5}}, "low < high"),
    ({"rule": {"test": "paired", "within": 0.2, "n": 5}}, "within is"),
    ({"rule": {"test": "paired", "within": [0, math.inf], "n": 5}}, "finite numbers"),
    ({"rule": {"test": "paired", "at_least": 0, "n": 5.5}}, "n is a whole number"),
    ({"rule": {"test": "paired", "at_least": 0, "n": "5"}}, "n is a whole number"),
    ({"rule": {"test": "paired", "at_least": 0}}, "n is a whole number"),
    ({"scope": "cpu"}, "scope is a mapping"),
    ({"controls": {"b": "b"}}, "control 'b' is a mapping"),
])
def test_a_card_that_leaves_something_open_is_refused(change, says):
    check_card(CARD)
    with pytest.raises(CardError, match=says): check_card(CARD | change)


@pytest.fixture
def project(tmp_path):
    for folder in ("experiments/claims", "results/s", "nbs"): (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "experiments" / "claims" / "c.yaml").write_text(yaml.safe_dump(CARD))
    pd.DataFrame(clear()).to_csv(tmp_path / "results" / "s" / "runs.csv", index=False)
    return tmp_path


def test_the_pages_agree_or_the_check_fails(project):
    (verdict,), _ = write_claims(project)
    assert verdict.verdict == "reproduced" and write_claims(project / "nbs", check=True)[1] == []
    assert "### c: reproduced" in (project / "CLAIMS.md").read_text() and (project / "nbs" / "board.qmd").read_text().startswith("---\ntitle: 'The board: every claim and its verdict'\n---\n")
    (project / "CLAIMS.md").write_text((project / "CLAIMS.md").read_text().replace("reproduced", "refuted"))
    assert write_claims(project, check=True)[1] == ["CLAIMS.md"]
    command = [sys.executable, "-m", "refine_nb._cli", "claims", "--check", "--root", str(project)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "CLAIMS.md disagree" in done.stderr and "Traceback" not in done.stderr
    write_claims(project)
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_cards_are_read_strictly(project):
    path = project / "experiments" / "claims" / "c.yaml"
    path.write_text(yaml.safe_dump(CARD).replace("at_least: 0.02", "at_least: 2e-2"))
    assert read_cards(path.parent)[0] == CARD and card_hashes(path.parent) == {"c": card_hash(CARD)}
    path.write_text(yaml.safe_dump(CARD) + "metric: loss\n")
    with pytest.raises(ParameterError, match="c.yaml: 'metric' stands twice"): read_cards(path.parent)


def test_a_table_without_rows_leaves_claims_open(project):
    table = project / "results" / "s" / "runs.csv"
    table.write_text(table.read_text().split("\n")[0] + "\n")
    assert [v.why for v in write_claims(project)[0]] == ["no runs yet"]


def test_stale_rows_are_counted_on_the_page(project):
    pd.DataFrame(clear(stale=True)).to_csv(project / "results" / "s" / "runs.csv", index=False)
    (verdict,), _ = write_claims(project)
    assert verdict.stale == 5 and "5 of the rows are stale" in (project / "CLAIMS.md").read_text()


def test_a_parameter_that_no_run_has_yet_leaves_the_claim_open(project):
    "The experiment got it after its runs; what the experiment does not have either is a mistake"
    table = pd.DataFrame(clear()).assign(experiment="toy")
    table.to_csv(project / "results" / "s" / "runs.csv", index=False)
    write_notebook(project / "experiments" / "toy.ipynb", toy_cells(PARAMETERS + "depth = 3\n"))
    card = project / "experiments" / "claims" / "c.yaml"
    card.write_text(yaml.safe_dump(CARD | {"scope": {"depth": 3}}))
    (verdict,), _ = write_claims(project)
    assert verdict.verdict == "open" and verdict.why == "no run has the parameter depth yet"
    card.write_text(yaml.safe_dump(CARD | {"scope": {"dept": 3}}))
    with pytest.raises(CardError, match="no parameter 'dept'"): write_claims(project)


def test_a_project_without_results_has_open_claims(project):
    (project / "results" / "s" / "runs.csv").unlink()
    assert write_claims(project)[0][0].verdict == "open"
    (project / "experiments" / "claims" / "d.yaml").write_text(yaml.safe_dump(CARD))
    with pytest.raises(CardError, match="two cards have the id 'c'"): read_cards(project / "experiments" / "claims")
    assert card_hashes(project / "experiments" / "claims") == {"c": card_hash(CARD)}
