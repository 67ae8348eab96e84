"""Arms of recorded sweeps, and how their runs are shortened. The notebook `98_verify` explains and shows both."""
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from ._errors import unknown_name
from ._files import json_digest
from .parameters import Parameters, from_text
from .tables import read_table


class VerifyError(ValueError):
    "What cannot be verified, with the way out"


@dataclass
class Arm:
    "Rows of a sweep that differ only in their random seed, and were recorded at one commit"
    sweep: str
    id: str           # digest of experiment, parameters without the seed, and commit
    rows: list[dict]  # as text, lowest random seed first

    @property
    def row(self) -> dict:
        "The row that is run again"
        return self.rows[0]

    @property
    def commit(self) -> str:
        "Where its rows were recorded"
        return self.row["commit"]

    @property
    def experiment(self) -> str:
        "Name of its notebook"
        return self.row["experiment"]


def asked(
    row: dict,  # of a results table
) -> dict[str, str]:
    "What makes a row's arm: its parameters without the random seed and without ids of other runs"
    values = {name: row[name] for name in row["parameters"].split()}
    return {n: v for n, v in values.items() if n != "seed" and not v.startswith("run:")}


def arms_of(
    root: Path,  # project folder
    sweep: str,  # with a table in results/
) -> list[Arm]:
    "The arms of a sweep, in the order of its table"
    groups = defaultdict(list)
    for row in read_table(root / "results" / sweep / "runs.csv"):
        groups[json_digest([row["experiment"], asked(row), row["commit"]])].append(row)
    seed = lambda row: int(row.get("seed") or 0)
    return [Arm(sweep, id, sorted(rows, key=seed)) for id, rows in groups.items()]


def recorded_sweeps(
    root: Path,  # project folder
) -> list[str]:
    "Names of the sweeps that have a table"
    return sorted(p.parent.name for p in (root / "results").glob("*/runs.csv"))


def arm_label(
    arm: Arm,          # one of
    arms: list[Arm],   # those of its sweep
) -> str:
    "The parameters in which the arms of a sweep differ"
    values = [asked(a.row) for a in arms]
    own = asked(arm.row)
    names = [n for n in own if len({v.get(n) for v in values}) > 1]
    return " ".join(f"{n}={own[n]}" for n in names if own[n]) or "the only arm"


_CUTS = dict(steps=3, warm_steps=2, pre_steps=2, warm_items=200, characters=1920, repetitions=256)  # at most so many
_FEWER = dict.fromkeys(("16_thought_rl", "16_longer_problems", "10_guided_grpo"), dict(steps=2))  # there steps are dear
TEXTS = {"01_char_lm": 140_000, "10_guided_grpo": 101_500, "10_context_collapse": 60_000,
         "12_confidence_lookahead": 72_000, "14_quiet_text": 20_000}  # characters of a corpus that are kept
TEXT = 60_000                                                         # where an experiment is not named
PROBLEMS = 2000                                                       # drawn from a task at once, at most


def typed(
    row: dict,         # as text
    spec: Parameters,  # what the notebook declares
) -> dict:
    "A row's parameters with their types; an empty one is left to its default"
    lacking = [n for n in row["parameters"].split() if n not in spec.types and row[n]]
    if lacking: raise VerifyError(f"the notebook has {unknown_name('parameter', lacking[0], spec.types)}")
    values = {n: row[n] for n in row["parameters"].split() if row[n]}
    return {n: from_text(v, spec.types[n]) for n, v in values.items()}


def shortened(
    experiment: str,  # name of the notebook
    params: dict,     # of a row
) -> dict:
    "The same parameters with fewer steps; shapes stay as they are"
    cuts = _CUTS | _FEWER.get(experiment, {})
    return {n: min(v, cuts[n]) if n in cuts else v for n, v in params.items()}
