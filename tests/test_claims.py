"""Verdicts: each is reached, none by accident, and the pages agree with the tables"""
import json
import math
import os
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from conftest import ROOT
from toy_project import PARAMETERS, toy_cells, write_notebook

from refine_nb._history import FILE, read_history, write_history
from refine_nb.cards import CardError, check_card, read_cards
from refine_nb._board import _judged, kept, result_page, row_states
from refine_nb._evidence import METRICS, seed_values
from refine_nb.claims import _in_studies, decide, judge_card, judge_cards, write_claims
from refine_nb.cards import card_hash, card_hashes
from refine_nb.parameters import ParameterError
from refine_nb.statistics import Interval

CARD = {"id": "c", "claim": "A is better than B.", "sweep": "s", "scope": {"preset": "cpu"}, "metric": "acc", "arm": {"model": "a"}, "controls": {"b": {"model": "b"}}, "rule": {"test": "paired", "at_least": 0.02, "n": 5}}
_FIXED = CARD | {"arm": {"model": "count"}, "controls": {}, "rule": {"test": "exact", "within": [0.26, 0.28], "n": 1}}


def rows(model, values, deterministic=False, card=CARD, **more):
    "One row per value, the position is the random seed"
    return [{"id": f"{model}{s}", "key": f"{model}{s}", "status": "ok", "parameters": "model seed preset", "model": model, "seed": s, "preset": "cpu", "acc": v, "started": "2030-02-04T13:00:00+00:00",
             "acc_low": v - 0.02, "acc_high": v + 0.02, "acc_windows": 200, "deterministic": deterministic, "cards": json.dumps({"c": card_hash(card)})} | more for s, v in enumerate(values)]


B = [0.50, 0.52, 0.54, 0.56, 0.58]


@pytest.mark.parametrize("gains, verdict", [
    ([0.050, 0.051, 0.049, 0.050, 0.052], "reproduced"),
    ([0.000, 0.001, -0.001, 0.000, 0.002], "no effect found"),
    ([-0.050, -0.051, -0.049, -0.050, -0.052], "refuted"),
    ([0.010, 0.011, 0.009, 0.010, 0.012], "refuted"),  # an effect, but half of what was claimed
    ([-0.050, 0.001, -0.001, -0.040, 0.002], "open"),  # not 0.02, but perhaps −0.02
    ([0.010, 0.030, 0.020, 0.025, 0.015], "open"),
    ([0.050, 0.051, 0.049, 0.050], "open"),  # the fifth seed is missing
])
def test_each_verdict_over_seeds(gains, verdict):
    found = judge_card(CARD, pd.DataFrame(rows("a", [b + g for b, g in zip(B, gains)]) + rows("b", B)))
    assert found.verdict == verdict
    assert bool(found.numbers) == (len(gains) == 5)


def test_a_comparison_across_processors_is_said():
    def judged(*names):
        verdict = judge_card(CARD, pd.DataFrame([r | {"processor": names[r["seed"] % len(names)]} for r in clear()]))
        return [line for line in _judged(verdict) if "processors" in line]
    assert judged("one") == [] and judged("two", "one") == ["Recorded on different processors: one; two"]


def clear(**more): return rows("a", [b + 0.05 + i / 1000 for i, b in enumerate(B)], **more) + rows("b", B)


def test_a_card_changed_after_the_start_is_post_hoc_and_its_wording_is_free():
    table = pd.DataFrame(clear())
    assert judge_card(CARD | {"claim": "In other words."}, table).verdict == "reproduced"
    for change in ({"rule": CARD["rule"] | {"at_least": 0.03}}, {"metric": "acc_low"}, {"controls": {"b": {"model": "b"}, "b again": {"model": "b"}}}):
        assert judge_card(CARD | change, table).verdict == "post hoc"
    late = table.assign(cards=[json.dumps({})] + list(table["cards"])[1:])  # one run began before there was a card
    assert judge_card(CARD, late).verdict == "post hoc"


def test_a_diverged_run_leaves_the_claim_open():
    table = pd.DataFrame(clear())
    table.loc[2, ["status", "acc"]] = ["diverged", math.nan]
    assert judge_card(CARD, table).verdict == "open" and "1 of 5 runs diverged" in judge_card(CARD, table).why


def test_seeds_beyond_the_rule_do_not_count():
    more = pd.DataFrame(rows("a", [b + 0.05 + i / 1000 for i, b in enumerate(B)] + [0.0] * 3) + rows("b", B + [0.9] * 3))
    assert judge_card(CARD, more).numbers == judge_card(CARD, pd.DataFrame(clear())).numbers


def test_a_seed_without_a_value_is_not_replaced_by_the_next():
    "Of eight seeds the second is missing: the other seven are what survived, not what was asked for"
    seven = [r for r in rows("a", [b + 0.05 + i / 1000 for i, b in enumerate(B + B[:3])]) if r["seed"] != 1] + rows("b", B + B[:3])
    found = judge_card(CARD, pd.DataFrame(seven))
    assert found.verdict == "open" and "0 … 4, 1 is missing" in found.why
    diverged = pd.DataFrame(clear() + rows("a", B + [0.6])[5:])
    diverged.loc[diverged["seed"] == 5, ["status", "acc"]] = ["diverged", math.nan]
    assert judge_card(CARD, diverged).verdict == "reproduced"  # a seed beyond the rule does not count, whatever became of it


def test_one_seed_counts_once():
    "Rows of before and after a parameter was added: two runs of every seed"
    twice = pd.DataFrame(clear() + [r | {"id": r["id"] + "old", "key": r["key"] + "old"} for r in clear()])
    with pytest.raises(CardError, match="more than one run with the random seed 0"): judge_card(CARD, twice)
    with pytest.raises(CardError, match="more than one run with the random seed 0"): seed_values(twice[twice["model"] == "a"].set_index("seed"), CARD)


def test_only_parameters_select():
    with pytest.raises(CardError, match="no parameter 'status'"): judge_card(CARD | {"scope": {"status": "ok"}}, pd.DataFrame(clear()))


def test_a_value_that_no_run_has_is_named():
    found = judge_card(CARD | {"scope": {"preset": "cpuu"}}, pd.DataFrame(clear()))
    assert found.verdict == "open" and "no preset 'cpuu'; did you mean 'cpu'" in found.why


def test_it_must_hold_against_every_control():
    card = CARD | {"controls": {"b": {"model": "b"}, "c": {"model": "c"}}}
    better = rows("c", [b + 0.1 for b in B])
    found = judge_card(card, pd.DataFrame([r | {"cards": json.dumps({"c": card_hash(card)})} for r in clear() + better]))
    assert found.verdict == "refuted" and "against c" in found.why


def test_choosing_between_runs_is_refused():
    twice = pd.DataFrame([r | {"precision": p, "parameters": "model seed preset precision"} for p in ("bf16", "fp32") for r in clear()])
    with pytest.raises(CardError, match="leave open which precision"): judge_card(CARD, twice)


def test_each_random_seed_may_build_on_a_run_of_its_own():
    def built(on): return pd.DataFrame([r | {"parameters": "model seed preset start", "start": on(r["seed"])} for r in clear()])
    assert judge_card(CARD, built(lambda s: f"run:{s}")).numbers == judge_card(CARD, pd.DataFrame(clear())).numbers != {}
    with pytest.raises(CardError, match="leave open which start"): judge_card(CARD, built(lambda s: f"run:{s}" if s else None))


@pytest.mark.parametrize("rule, verdict", [
    ({"test": "exact", "within": [0.26, 0.28], "n": 1}, "reproduced"),
    ({"test": "exact", "within": [0.28, 0.29], "n": 1}, "refuted"),
    ({"test": "windows", "within": [0.2, 0.3], "n": 100}, "reproduced"),
    ({"test": "windows", "within": [0.26, 0.28], "n": 100}, "open"),
    ({"test": "windows", "at_least": 0.3, "n": 100}, "refuted"),
    ({"test": "windows", "at_least": 0.3, "n": 300}, "open"),
])
def test_a_deterministic_method_is_judged_without_seeds(rule, verdict):
    card = _FIXED | {"rule": rule}
    assert judge_card(card, pd.DataFrame(rows("count", [0.27], True, card))).verdict == verdict


def test_two_deterministic_methods_differ_by_the_worst_case():
    card = _FIXED | {"rule": {"test": "windows", "at_least": 0.0, "n": 100}, "controls": {"other": {"model": "other"}}}
    for gap, verdict in ((0.05, "reproduced"), (0.03, "open"), (-0.05, "refuted")):
        assert judge_card(card, pd.DataFrame(rows("count", [0.5 + gap], True, card) + rows("other", [0.5], True, card))).verdict == verdict


def test_pseudo_evidence_is_refused():
    with pytest.raises(CardError, match="random seeds are no evidence"): judge_card(CARD, pd.DataFrame(rows("a", [0.9] * 5, True) + rows("b", B)))
    with pytest.raises(CardError, match="depend on their random seed"): judge_card(_FIXED, pd.DataFrame(rows("count", [0.27], False, _FIXED)))
    with pytest.raises(CardError, match="differs between random seeds"): judge_card(_FIXED, pd.DataFrame(rows("count", [0.27, 0.271], True, _FIXED)))


def test_a_learner_against_a_fixed_bar():
    card = CARD | {"controls": {"bar": {"model": "bar"}}, "rule": CARD["rule"] | {"test": "against_fixed"}}
    table = pd.DataFrame(rows("a", [0.60, 0.61, 0.62, 0.61, 0.60], card=card) + rows("bar", [0.55], True, card))
    assert judge_card(card, table).verdict == "reproduced" and judge_card(card, table).numbers["bar"].mean == pytest.approx(0.058)
    mean = CARD | {"controls": {}, "rule": {"test": "mean", "at_least": 0.62, "n": 5}}
    assert judge_card(mean, table.assign(cards=json.dumps({"c": card_hash(mean)}))).verdict == "refuted"


@pytest.mark.parametrize("low, high, verdict", [(0.0, 1.0, "inside"), (-0.1, 1.0, "across"), (-1.0, -0.1, "outside"), (0.5, 1.1, "across"), (1.1, 2.0, "outside"), (-math.inf, math.inf, "across")])
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
    ({"rule": {"test": "paired", "at_least": 0, "seeds": [5, 6, 7, 8]}}, "at least 5"),
    ({"rule": {"test": "paired", "at_least": 0, "seeds": [5, 6, 7, 8, 8]}}, "different whole numbers"),
    ({"rule": {"test": "paired", "at_least": 0, "seeds": [5, 6, 7, 8, 9], "n": 5}}, "seeds stands instead of n"),
    ({"rule": {"test": "windows", "at_least": 0, "seeds": list(range(100))}}, "in tests over random seeds"),
    ({"metric": "cpu_180"}, "the ratio of two contestants"),
    ({"retired": "it displeases"}, "only cards on times are retired"),
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
    board = (project / "nbs" / "board.qmd").read_text()
    assert "### c\n\n🟢 reproduced, grade A" in (project / "CLAIMS.md").read_text()
    assert board.startswith('---\ntitle: "The board: every claim and its verdict"\n') and "::: {#c .board-card" in board
    (project / "CLAIMS.md").write_text((project / "CLAIMS.md").read_text().replace("reproduced, grade", "refuted, grade"))
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


def test_the_board_says_what_is_known_of_the_rows(project):
    states = {f"a{i}": "verified" for i in range(5)} | {"b0": "changed", "of another card": "verified"}
    (verdict,), _ = write_claims(project, states=states, verified="2030-03-01")
    board = (project / "CLAIMS.md").read_text()
    assert row_states(verdict, states) == "1 changed, 5 verified" and "5 of 10 rows behind the cards are verified (2030-03-01)." in board
    assert "are verified" not in (write_claims(project), (project / "CLAIMS.md").read_text())[1]


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


# What a number can be

def judged(metric, rule, a, b=None):
    "The verdict on values per random seed"
    card = CARD | {"metric": metric, "rule": rule, "controls": {"b": {"model": "b"}} if b else {}}
    found = [r | {metric: r["acc"]} for r in rows("a", a, card=card) + rows("b", b or [], card=card)]
    return judge_card(card, pd.DataFrame(found))


def test_no_interval_leaves_the_possible_range():
    "Pointers: 96, 90, 1, 0 and 0 % gave −25 … 100 %"
    found = judged("val_exact", {"test": "mean", "at_least": 0.99, "n": 5}, [0.96, 0.90, 0.01, 0.0, 0.0])
    assert found.verdict == "open" and found.numbers[""][1:3] == (0, 1)
    paired = judged("val_exact", {"test": "paired", "at_least": 0.4, "n": 5}, [1.0, 1.0, 1.0, 1.0, 0.99], [0.0, 0.0, 0.0, 0.02, 0.0])
    assert paired.numbers["b"].high == 1 and paired.verdict == "reproduced"


def test_passes_are_counted():
    "Two of five runs pass: t said −0.28 … 1.08, and left open that all do"
    found = judged("theater_all_passed", {"test": "mean", "at_least": 1.0, "n": 5}, [1.0, 0.0, 0.0, 0.0, 1.0])
    assert found.verdict == "refuted" and "2 of 5 runs, 0.053 … 0.85" in found.why
    assert judged("theater_all_passed", {"test": "mean", "at_least": 0.8, "n": 5}, [1.0] * 5).verdict == "open"


def test_five_equal_numbers_have_no_interval():
    found = judged("flops_vs_twin", {"test": "mean", "at_most": 1.5, "n": 5}, [1.326] * 5)
    assert found.verdict == "reproduced" and found.why == "1.326 (the same with all 5 random seeds)" and found.p is None


@pytest.mark.parametrize("a, b, verdict", [
    ([1.0, 1.0, 1.0, 0.995, 1.0], [1.0, 0.995, 1.0, 1.0, 1.0], "nothing could be seen"),
    ([0.9875, 0.9875, 0.9875, 0.985, 0.9925], [1.0, 1.0, 0.9987, 0.9962, 0.9987], "refuted"),  # worse, and surely so
    ([0.9, 1.0, 0.5, 0.8, 1.0], [1.0, 1.0, 0.998, 1.0, 1.0], "open"),  # the arm is nowhere near the ceiling
])
def test_a_ceiling_hides_what_is_claimed(a, b, verdict):
    assert judged("accuracy_greedy", {"test": "paired", "at_least": 0.005, "n": 5}, a, b).verdict == verdict


def test_one_of_many_controls_refutes_only_beyond_luck():
    "Alone the first control refutes the claim; as one of four it does not"
    gains = [0.0, 0.012, 0.016, 0.001, 0.012]
    def against(k):
        card = CARD | {"controls": {f"b{i}": {"model": f"b{i}"} for i in range(k)}}
        others = [r for i in range(1, k) for r in rows(f"b{i}", [b - 0.05 + s / 1000 for s, b in enumerate(B)], card=card)]
        arm = rows("a", [b + g for b, g in zip(B, gains)], card=card)
        return judge_card(card, pd.DataFrame(arm + rows("b0", B, card=card) + others)).verdict
    assert [against(k) for k in (1, 4)] == ["no effect found", "open"]


def test_every_metric_of_a_card_has_a_shape():
    missing = {c["metric"] for c in read_cards(ROOT / "experiments" / "claims")} - set(METRICS)
    assert not missing, f"say in nbs/95_claims.ipynb what these can be: {missing}"


def test_retired_cards_stay_visible(project):
    card = CARD | {"metric": "cpu_180", "retired": "seconds differ"}
    (project / "experiments" / "claims" / "c.yaml").write_text(yaml.safe_dump(card))
    pd.DataFrame(clear()).assign(cpu_180=1.0).to_csv(project / "results" / "s" / "runs.csv", index=False)
    (verdict,), _ = write_claims(project)
    assert verdict.verdict == "retired" and verdict.numbers and "⚫ retired, grade —" in (project / "CLAIMS.md").read_text()


def test_holm_in_the_study():
    verdicts = {str(i): judge_card(CARD, pd.DataFrame(clear())) for i in range(2)}
    alone = _in_studies(verdicts, {"0": "x", "1": "y"})["0"]
    both = _in_studies(verdicts, {"0": "x", "1": "x"})["0"]
    assert alone.holm == alone.p < 0.025 and both.holm == 2 * alone.p and kept(both).startswith("kept")


# What stood before

class Lab:
    "A project under git with one experiment, its sweep, and commits on days of 2030"

    def __init__(self, root):
        self.root = root
        for folder in ("experiments/claims", "experiments/sweeps", "results/s", "nbs"): (root / folder).mkdir(parents=True)
        self.experiment(500)
        (root / "experiments" / "sweeps" / "s.yaml").write_text("notebook: toy\nruns: [{}]\n")

    def experiment(self, steps):
        "Write the notebook, whose preset says how many steps"
        text = f'model = "a"\nseed = 0\npreset = "cpu"\nsteps: int = None\nPRESETS = {{"cpu": {{"steps": {steps}}}}}'
        write_notebook(self.root / "experiments" / "toy.ipynb", toy_cells(text))

    def card(self, **changes):
        "Write a card; returns it"
        card = CARD | {"scope": {"preset": "cpu", "steps": 500}} | changes
        (self.root / "experiments" / "claims" / f"{card['id']}.yaml").write_text(yaml.safe_dump(card))
        return card

    def record(self, day, cards=(), steps=500, first=0, sweep="s"):
        "Record both arms on a day, knowing cards"
        known = json.dumps({c["id"]: card_hash(c) for c in cards})
        more = dict(experiment="toy", parameters="model seed preset steps", steps=steps, cards=known, started=f"2030-02-{day:02}T13:00:00+00:00")
        found = [r | more | {"seed": r["seed"] + first, "id": f"{r['id']}{first}{steps}"} for r in clear()]
        (self.root / "results" / sweep).mkdir(exist_ok=True)
        pd.DataFrame(found).to_csv(self.root / "results" / sweep / "runs.csv", index=False)

    def commit(self, day):
        "Commit everything on a day, at noon"
        when = f"2030-02-{day:02}T12:00:00+00:00"
        who = {f"GIT_{w}_{x}": v for w in ("AUTHOR", "COMMITTER") for x, v in (("NAME", "toy"), ("EMAIL", "toy@toy"), ("DATE", when))}
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", f"day {day}"]):
            subprocess.run(["git", "-C", self.root, *command], check=True, env=os.environ | who)

    def verdict(self, id="c"):
        "The verdict on a card"
        return judge_cards(self.root)[id]


@pytest.fixture
def lab(tmp_path): return Lab(tmp_path / "lab")


def test_a_card_before_its_runs_is_a_prediction(lab):
    card = lab.card()
    lab.commit(1)
    lab.record(2, [card])
    lab.commit(3)
    assert (lab.verdict().verdict, lab.verdict().basis) == ("reproduced", "predicted")


@pytest.mark.parametrize("sweep", ["s", "another"])
def test_running_the_same_seeds_again_stays_post_hoc(lab, sweep):
    "Also where the first recording was another sweep's, or its table is gone"
    lab.record(1, sweep=sweep)
    lab.commit(2)
    card = lab.card()
    lab.commit(3)
    (lab.root / "results" / sweep / "runs.csv").unlink()
    lab.record(4, [card])
    lab.commit(5)
    assert lab.verdict().verdict == "post hoc" and "10 of 10 runs had been recorded before the card, the first on 2030-02-01" in lab.verdict().why
    again = lab.card(id="again", rule={"test": "paired", "at_least": 0.02, "seeds": [5, 6, 7, 8, 9]})
    lab.commit(6)
    lab.record(7, [card, again], first=5)
    assert (lab.verdict("again").verdict, lab.verdict("again").basis) == ("reproduced", "confirmed")


def test_a_card_committed_with_its_rows_or_not_at_all_is_post_hoc(lab):
    card = lab.card()
    lab.record(2, [card])
    lab.commit(3)
    assert lab.verdict().verdict == "post hoc"
    moved = lab.card(rule=CARD["rule"] | {"at_least": 0.03})
    lab.record(4, [moved])
    assert lab.verdict().why.startswith("this version of the card is in no commit")


def test_a_note_on_a_pilot_is_no_new_prediction_and_a_threshold_is(lab):
    card = lab.card()
    lab.commit(1)
    lab.record(2, [card])
    lab.commit(3)
    lab.card(rule=CARD["rule"] | {"pilot": "an earlier recording: 0.05"})
    lab.commit(4)
    assert (lab.verdict().verdict, lab.verdict().basis) == ("reproduced", "confirmed")
    moved = lab.card(rule=CARD["rule"] | {"at_least": 0.03})
    lab.commit(5)
    lab.record(6, [moved])
    assert lab.verdict().verdict == "post hoc"
    assert any("at_least 0.02" in note and note.startswith("On 2030-02-01 12:00 it said") for note in lab.verdict().notes)


def test_a_sweep_cut_short_decides_nothing(lab):
    "From 500 to 60 steps in the preset and in the table: the card has no rows any more"
    card = lab.card()
    lab.commit(1)
    lab.record(2, [card])
    assert lab.verdict().verdict == "reproduced"
    lab.experiment(60)
    lab.record(3, [card], steps=60)
    assert lab.verdict().verdict == "open" and "no steps 500" in lab.verdict().why
    lab.card(scope={"preset": "cpu"})
    with pytest.raises(CardError, match="leave open which steps is meant"): lab.verdict()


def test_a_new_card_names_every_parameter_before_anything_runs(lab):
    lab.card(scope={"preset": "cpu"})
    with pytest.raises(CardError, match="every parameter decides: name steps in scope or arm"): lab.verdict()
    lab.card()
    assert lab.verdict().why == "no runs yet"


def test_pins_complete_an_old_card_and_are_those_first_committed(lab):
    card = lab.card(scope={"preset": "cpu"})
    pins = lambda steps: json.dumps(["pins", card_hash(card), {"scope": {"steps": steps}}]) + "\n"
    (lab.root / FILE).write_text(pins(500))
    lab.commit(1)
    lab.record(2, [card])
    assert lab.verdict().verdict == "reproduced" and any("steps 500" in note for note in lab.verdict().notes)
    (lab.root / FILE).write_text(pins(60))
    lab.record(3, [card], steps=60)
    assert lab.verdict().verdict == "open"
    other = lab.card(id="other", scope={"preset": "cpu"}, metric="acc_low")
    (lab.root / FILE).write_text(json.dumps(["pins", card_hash(other), {"scope": {"steps": 60}}]) + "\n")
    with pytest.raises(CardError, match="leave open which steps"): lab.verdict()


def test_a_shallow_clone_uses_the_file_and_does_not_shrink_it(lab, tmp_path):
    lab.record(1)
    lab.commit(2)
    card = lab.card()
    lab.commit(3)
    lab.record(4, [card])
    write_claims(lab.root)
    lab.commit(5)
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{lab.root}", tmp_path / "shallow"], check=True)
    assert judge_cards(tmp_path / "shallow")["c"].verdict == "post hoc"
    before = (tmp_path / "shallow" / FILE).read_text()
    write_claims(tmp_path / "shallow")
    assert (tmp_path / "shallow" / FILE).read_text() == before and write_claims(tmp_path / "shallow", check=True)[1] == []
    write_claims(lab.root)
    grown = (lab.root / FILE).read_text()
    assert set(before.splitlines()) <= set(grown.splitlines())
    write_history(read_history(lab.root))
    assert (lab.root / FILE).read_text() == grown


def test_the_history_of_this_book():
    "Two thresholds that were written knowing the numbers, and repeated"
    verdicts = judge_cards(ROOT, ["guided_grpo", "context_collapse"])
    assert {verdicts[id].verdict for id in ("renormalized_beats_stratified", "collapse_ends_with_one_guess")} == {"post hoc"}


# The board as data

def _chosen(project, **more):
    "The board's data with one card shown"
    row = {"card": "c", "says": "A wins", "unit": "points"} | more
    (project / "experiments" / "board.yaml").write_text(yaml.safe_dump({"rows": [{"method": "letters", "cards": [row]}]}))
    write_claims(project)
    return json.loads((project / "nbs" / "board.json").read_text())


def test_a_row_of_the_board_is_computed(project):
    row, = _chosen(project)["rows"]
    assert (row["claimed"], row["control"], row["verdict"], row["grade"]) == ("≥ 2 points", "b", "reproduced", "A")
    assert row["measured"] == "+5.2 points (+5 … +5.4, n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}5)"
    card = CARD | {"controls": {"b": {"model": "b"}, "other": {"model": "a"}}}
    (project / "experiments" / "claims" / "c.yaml").write_text(yaml.safe_dump(card))
    assert _chosen(project)["rows"][0]["control"] == "other"  # the control against which it gains least


def test_every_card_of_the_board_stands_in_its_data(project):
    data = _chosen(project)
    card, = data["cards"]
    assert card["numbers"] == [{"against": "b", "mean": 0.052, "low": 0.0500368, "high": 0.0539632, "n": 5}]
    assert data["cards_by_verdict"]["cards on own forecasts and controls"]["reproduced"] == {"all": 1, "predicted": 1, "kept": 1, "tried": 1}


@pytest.mark.parametrize("change, says", [({"card": "d"}, "no card 'd'"),
                                          ({"control": {"card": "cc"}}, "no card 'cc'")])
def test_a_wrong_choice_for_the_board_is_refused(project, change, says):
    with pytest.raises(CardError, match=says): _chosen(project, **change)


def test_the_board_stays_short(project):
    rows = [{"card": "c", "says": "A wins"}] * 26
    (project / "experiments" / "board.yaml").write_text(yaml.safe_dump({"rows": [{"method": "letters", "cards": rows}]}))
    with pytest.raises(CardError, match="26 rows for the board, at most 25"): write_claims(project)


def test_a_result_page_is_found_where_it_lies(project):
    (project / "nbs" / "results").mkdir()
    (project / "nbs" / "toss.ipynb").touch()
    assert result_page(project, "10_toss", {}) == "toss.ipynb" and result_page(project, "10_coins", {}) == ""
    (project / "nbs" / "results" / "toss.ipynb").touch()
    assert result_page(project, "10_toss", {}) == result_page(project, "s", {"s": "toss"}) == "results/toss.ipynb"
