"""The rows behind a card's number, and the number itself. The notebook `95_claims` explains and shows both."""
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ._errors import unknown_name
from .cards import CardError, rule_seeds
from .statistics import (
    Interval, mean_interval, paired_interval, paired_proportion_interval, proportion_interval, proportion_p, t_p,
)


class Open(Exception):
    "Why a claim cannot be decided"


def select(
    table,                          # from `read_runs`
    card: Mapping[str, object],     # a claim card
    where: Mapping[str, object],    # the arm or a control; overrides the scope
):
    "Rows of one arm, indexed by random seed: one per seed, every parameter pinned"
    wanted, lists = (card.get("scope") or {}) | (where or {}), table["parameters"].tolist()
    own = {p: set(p.split()) - {"seed", *wanted} for p in set(lists)}
    names, chosen = {n for p in own for n in p.split()}, range(len(table))
    for name, value in wanted.items() if len(table) else ():
        if name not in names: raise CardError(f"{card['id']}: {unknown_name('parameter', name, sorted(names))}")
        column = table[name].tolist()
        fits = {i for i, v in enumerate(column) if (v == value if value is not None else v is None or v != v)}
        if not fits:
            raise Open(f"no run yet: {unknown_name(name, value, map(str, table[name].dropna().unique()))}")
        chosen = [i for i in chosen if i in fits]
    chosen = _pinned(table, [(i, own[lists[i]]) for i in chosen], card, wanted)
    if "seed" not in names: return table.iloc[chosen]
    seeds = table["seed"].tolist()
    chosen = sorted(chosen, key=lambda i: seeds[i])
    twice = [seeds[i] for i, j in zip(chosen, chosen[1:]) if seeds[i] == seeds[j]]
    if twice: raise CardError(f"{card['id']}: {wanted} fits more than one run with the random seed {twice[0]}")
    return table.iloc[chosen].set_index("seed", drop=False)


def _pinned(table, found: list[tuple[int, set[str]]], card: Mapping, wanted: Mapping[str, object]) -> list[int]:
    "Of rows with the parameters that nobody named, those that have none; refused where all have one"
    values = {n: [] for n in set().union(*(names for _, names in found))}
    for name, column in values.items():
        there = table[name].tolist()
        column += [there[i] for i, names in found if name in names]
    free = {n for n, column in values.items() if not all(str(v).startswith("run:") for v in column)}
    rest = [i for i, names in found if not names & free]
    if found and not rest:
        there = ", ".join(f"{n} {list(dict.fromkeys(values[n]))[:3]}" for n in sorted(free))
        raise CardError(f"{card['id']}: scope and arm leave open which {', '.join(sorted(free))} is meant: "
                        f"{dict(wanted)} fits {len(found)} runs; name each of them (there is {there})")
    return rest


class Shape(NamedTuple):
    "The possible range of a metric, and what kind of number it is"
    low: float = -math.inf
    high: float = math.inf
    zero: bool = False    # a gain by itself: 0 is "no effect"
    passes: bool = False  # every run passes or fails


_SHARES = """accuracy accuracy_200 accuracy_50 accuracy_500 accuracy_greedy accuracy_greedy_before accuracy_otherwise
    accuracy_sampled coherence_composite early_accuracy entropy_mean final_j greedy_plus1 greedy_plus2
    halfway_probability last_accuracy lines_accuracy
    smoothing_mean text_accuracy val_accuracy val_exact val_probability"""
_GAINS = "aurc_gain_after aurc_gain_before forgotten gain_greedy gain_sampled over_direct"
_AMOUNTS = """confidence_sd cpu_180 ece_last ece_sampled_head excess flops_vs_twin meets spikes thoughts_used
    val_distinct val_last val_last_200 val_loss val_loss_0 val_worsening_steps warm_cpu_180"""
_FREE_GAINS = "gain_present_entropy gain_sampled_entropy gain_teacher_entropy thought_gain val_gain"


METRICS = {name: shape for names, shape in (
    (_SHARES, Shape(0, 1)),
    (_GAINS, Shape(-1, 1, zero=True)),
    (_AMOUNTS, Shape(0)),
    (_FREE_GAINS, Shape(zero=True)),
    ("val_refinement", Shape(-math.inf, 1, zero=True)),
    ("theater_all_passed val_commonest", Shape(0, 1, passes=True)),
    ("cos_j_half log_cpu_to_95", Shape())) for name in names.split()}


def measured(
    rows,                        # from `select`
    card: Mapping[str, object],  # a claim card
    fixed: bool,                 # whether the rows must come from a deterministic method
):
    "The rows with a value each; open where there are none, or where one has none"
    metric, test = card["metric"], card["rule"]["test"]
    if not len(rows): raise Open("no runs yet")
    if (rows["status"] != "ok").any(): raise Open(f"{(rows['status'] != 'ok').sum()} of {len(rows)} runs diverged")
    if rows[metric].isna().any():
        raise Open(f"{rows[metric].isna().sum()} of {len(rows)} runs have no finite {metric}")
    known = rows["deterministic"].astype(bool)
    if fixed and not known.all():
        raise CardError(f"{card['id']}: test {test} is for deterministic methods; "
                        "these runs depend on their random seed")
    if not fixed and known.any():
        raise CardError(f"{card['id']}: these runs are deterministic, random seeds are no evidence: "
                        "test exact or windows, as a control against_fixed")
    if fixed and rows[metric].nunique() > 1:
        raise CardError(f"{card['id']}: said to be deterministic, but {metric} differs between random seeds")
    return rows


def one(
    rows,                        # of a deterministic method
    card: Mapping[str, object],  # a claim card
) -> Interval:
    "The value of a deterministic method: exact, or with its interval over windows"
    row, metric = measured(rows, card, True).iloc[0], card["metric"]
    value, n = float(row[metric]), card["rule"].get("n")
    if card["rule"]["test"] != "windows": return Interval(value, value, value, 1)
    if not row.get(f"{metric}_windows", 0) >= n: raise Open(f"fewer than {n} windows")
    return Interval(value, float(row[f"{metric}_low"]), float(row[f"{metric}_high"]), int(row[f"{metric}_windows"]))


def seed_values(
    rows,                        # from `select`
    card: Mapping[str, object],  # a claim card
):
    "The value of each of the rule's random seeds; open where one is missing"
    rule = card["rule"]
    seeds = rule_seeds(rule)
    if len(rows) and rows.index.name != "seed":
        raise CardError(f"{card['id']}: these runs have no parameter `seed`: test exact or windows")
    if rows.index.has_duplicates:
        twice = rows.index[rows.index.duplicated()][0]
        raise CardError(f"{card['id']}: more than one run with the random seed {twice}")
    missing = [s for s in seeds if s not in rows.index]
    if len(rows) and missing and not rows["deterministic"].astype(bool).all():
        asked = ", ".join(map(str, seeds)) if rule.get("seeds") else f"0 … {rule['n'] - 1}"
        verb = "is" if len(missing) == 1 else "are"
        raise Open(f"of the random seeds {asked}, {', '.join(map(str, missing))} {verb} missing")
    return measured(rows[rows.index.isin(seeds)], card, False)[card["metric"]]


@dataclass(frozen=True)
class Number:
    "What is compared with the rule: arm, or arm − control"
    interval: Interval           # at 95 %
    corrected: Interval          # at 1 − 0.05/k, for k controls
    kind: str                    # random seeds | runs | same | windows | exact
    values: tuple = ()           # one per random seed
    room: tuple = (math.inf, math.inf)  # from the control's mean up and down to the metric's bounds

    def p(self,
        null: float,  # a bound of the rule
    ) -> float | None:
        "Two-sided p-value of a mean equal to `null`, None where chance has no part"
        if self.kind == "random seeds": return t_p(self.values, null)
        if self.kind == "windows": return self.interval.p_value(null)
        if self.kind != "runs" or min(self.values) < 0: return None
        return proportion_p(int(sum(self.values)), len(self.values), min(max(null, 0), 1))


def over_seeds(
    arm,                         # rows of the arm
    control,                     # rows of the control, or None
    card: Mapping[str, object],  # a claim card
) -> Number:
    "The number over the rule's random seeds"
    test, shape = card["rule"]["test"], METRICS.get(card["metric"], Shape())
    levels = 0.95, 1 - 0.05 / max(1, len(card.get("controls") or {}))
    a, b = seed_values(arm, card), seed_values(control, card) if test == "paired" else None
    base = float(b.mean()) if test == "paired" else one(control, card).mean if test == "against_fixed" else None
    d = a - (b if test == "paired" else base or 0.0)
    values, room = tuple(d), (shape.high - base, base - shape.low) if base is not None else Number.room
    if shape.passes and {*a, *(b if b is not None else ())} <= {0, 1} and test != "against_fixed":
        return Number(*(_count(a, b, level) for level in levels), "runs", values, room)
    both = [paired_interval(a, b, level) if test == "paired" else mean_interval(d, level) for level in levels]
    low, high = (shape.low, shape.high) if base is None else (shape.low - shape.high, shape.high - shape.low)
    kind = "same" if d.nunique() == 1 else "random seeds"
    return Number(*(i.clip(low, high) for i in both), kind, values, room)


def _count(a, b, level: float) -> Interval:
    "The exact interval of a share of runs, or of a difference of two"
    return proportion_interval(int(a.sum()), len(a), level) if b is None else paired_proportion_interval(a, b, level)


def over_windows(
    arm,                         # rows of the arm
    control,                     # rows of the control, or None
    card: Mapping[str, object],  # a claim card
) -> Number:
    "A deterministic value, or a difference of two: its interval reaches from the worst case to the best (conservative)"
    i, kind = one(arm, card), card["rule"]["test"]
    if control is not None:
        b = one(control, card)
        i = Interval(i.mean - b.mean, i.low - b.high, i.high - b.low, min(i.n, b.n))
    return Number(i, i.widen(max(1, len(card.get("controls") or {}))), kind)
