"""Fresh recordings: the arms of another sweep, nothing but the random seeds changed, and its cards with the same rule"""
import pytest
from conftest import ROOT

from refine_nb.cards import read_card
from refine_nb.parameters import resolve
from refine_nb.tables import read_runs
from refine_nb.sweep import read_sweep

SWEEPS = sorted((ROOT / "experiments/sweeps").glob("*_fresh.yaml"))
CARDS = sorted((ROOT / "experiments/claims").glob("*_fresh.yaml"))
FREE = ("seed", "warm_start")  # a warm start has the random seed of the run that goes on from it


def arm(params: dict) -> tuple:
    "What two runs of one arm have in common"
    return tuple(sorted((n, str(v)) for n, v in params.items() if n not in FREE))


def recorded(sweep: str, spec) -> dict[tuple, set[int]]:
    "The random seeds of every arm of a recorded sweep"
    arms = {}
    for row in read_runs(ROOT / "results" / sweep).to_dict("records"):
        params = {n: None if row[n] != row[n] else row[n] for n in row["parameters"].split()}
        arms.setdefault(arm(resolve(spec, params)), set()).add(row["seed"])
    return arms


def pinned(card: dict, where: dict | None) -> dict:
    "The parameters of a contestant, as its card names them"
    return card["scope"] | (where or {})


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_fresh_arms_are_recorded_arms_with_other_random_seeds(path):
    sweep = read_sweep(path)
    arms = recorded(path.stem.removesuffix("_fresh"), sweep.spec)
    for entry in sweep.entries:
        params = resolve(sweep.spec, {n: v for n, v in entry.items() if not isinstance(v, dict)})
        assert arm(params) in arms, f"{path.name}: no recorded run has {params}"
        assert params["seed"] not in arms[arm(params)], f"{path.name}: random seed {params['seed']} is not fresh: {params}"


@pytest.mark.parametrize("path", CARDS, ids=lambda p: p.stem)
def test_fresh_cards_keep_metric_and_rule_and_pin_every_parameter(path):
    card = read_card(path.read_text(encoding="utf-8"), path.name)
    first = read_card((path.parent / path.name.replace("_fresh", "")).read_text(encoding="utf-8"), path.name)
    bound = [{n: v for n, v in c["rule"].items() if n not in ("n", "seeds", "pilot")} for c in (card, first)]
    assert bound[0] == bound[1] and card["metric"] == first["metric"]
    assert (card["id"], card["sweep"]) == (f"{first['id']}_fresh", f"{first['sweep']}_fresh")
    sweep = read_sweep(ROOT / "experiments/sweeps" / f"{card['sweep']}.yaml")
    contestants = {"arm": card.get("arm"), **(card.get("controls") or {})}
    before = {"arm": first.get("arm"), **(first.get("controls") or {})}
    assert list(contestants) == list(before)
    for name, where in contestants.items():
        assert set(pinned(card, where)) == set(sweep.spec.types) - set(FREE), f"{path.name}: {name}"
        assert pinned(first, before[name]).items() <= pinned(card, where).items(), f"{path.name}: {name}"
        seeds = [e["seed"] for e in sweep.entries if fits(sweep.spec, e, pinned(card, where))]
        assert sorted(seeds) == card["rule"]["seeds"], f"{path.name}: {name}"


def fits(spec, entry: dict, wanted: dict) -> bool:
    "Whether a run of a sweep file belongs to a contestant"
    return arm(resolve(spec, {n: v for n, v in entry.items() if not isinstance(v, dict)})) == arm(wanted)
