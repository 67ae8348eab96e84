"""What a verdict is, and all of them as data: what the board, the first page and board.json show"""
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ._sources import check_card, read_ledger
from .cards import CardError, accept_region

DECIDED = ("reproduced", "refuted", "no effect found")
VERDICTS = (*DECIDED, "nothing could be seen", "open", "post hoc", "retired")


@dataclass(frozen=True)
class Verdict:
    "A card and what the results say about it"
    card: dict               # the claim card
    verdict: str             # one of VERDICTS
    numbers: dict            # control's name ("" without controls) → Interval
    why: str                 # in words
    p: float | None = None   # of what the verdict says; None where chance has no part, or nothing is judged
    holm: float | None = None  # that, corrected for all cards of the study
    basis: str = ""          # predicted | confirmed
    rows: tuple = ()         # ids of the rows behind the number
    notes: tuple = ()        # what the card's entry says besides
    processors: tuple = ()   # types of processor that recorded the rows


def piloted(
    card: Mapping[str, object],  # a claim card
) -> bool:
    "Whether the card says that something was known"
    return str(card["rule"].get("pilot") or "none").strip().lower() != "none"


def kept(
    v: Verdict,  # of one card
) -> str:
    "Whether a decided verdict holds for its whole study"
    if v.verdict not in DECIDED or v.holm is None: return "—"
    return f"{'kept' if v.holm <= 0.05 else 'lost'} ({v.holm:.2g})"


GRADES = {
    "A": "predicted, and kept by Holm's rule",
    "B": "confirmed, and kept by Holm's rule, or a number without chance",
    "C": "decided, but lost among all cards of its study",
    "—": "not decided",
}


def grade(
    v: Verdict,  # of one card
) -> str:
    "How much a verdict can bear: A, B or C; a dash where nothing is decided"
    if v.verdict not in DECIDED: return "—"
    if v.holm is not None and v.holm > 0.05: return "C"
    return "A" if v.basis == "predicted" else "B"


def row_states(
    v: Verdict,                  # of one card
    states: Mapping[str, str],   # row id → current, verified, unverified, changed
) -> str:
    "How many rows are behind a verdict, and what is known of them today"
    known_states = [states[id] for id in v.rows if id in states]
    return ", ".join(f"{known_states.count(s)} {s}" for s in sorted(set(known_states))) or str(len(v.rows) or "—")


@dataclass(frozen=True)
class Evidence:
    "Everything the board is made from"
    verdicts: Mapping[str, Verdict]                          # of all cards, by id
    studies: Mapping[str, str]                               # id → experiment
    sentences: Mapping[str, str] = field(default_factory=dict)     # number of a source's claim → its verdict
    cited: Mapping[str, list[str]] = field(default_factory=dict)   # id → numbers of the claims that it judges
    choice: Mapping = field(default_factory=dict)                  # from `read_choice`
    pages: Mapping[str, str] = field(default_factory=dict)         # experiment → result page, seen from nbs/
    states: Mapping[str, str] = field(default_factory=dict)        # row id → state, from a verification
    verified: str = ""                                             # its date


def read_choice(
    path: Path,               # experiments/board.yaml
    cards: Mapping,           # by id
) -> dict:
    "What stands on the board unfolded: `rows` and `pages`; refused where a card is unknown or the table too long"
    choice = read_ledger(path)
    chosen = [row for method in choice["rows"] for row in method["cards"]]
    named = [row["card"] for row in chosen] + [
        row["control"]["card"] for row in chosen if "card" in row.get("control", ())
    ]
    for name in named: check_card(name, cards, str(path))
    for rows, most, where in ((chosen, 25, "the board"), ([r for r in chosen if r.get("front")], 12, "the first page")):
        if len(rows) > most: raise CardError(f"{path}: {len(rows)} rows for {where}, at most {most}: take some out")
    return choice


def result_page(
    root: Path,                # the project's folder
    study: str,                # an experiment, as 10_guided_grpo
    other: Mapping[str, str],  # studies whose page has another name
) -> str:
    "The page on a study, seen from nbs/; empty where there is none"
    name = study.partition("_")[2] if study[:2].isdigit() else study
    tried = [f"{folder}{stem}.ipynb" for stem in (name, other.get(name)) if stem for folder in ("results/", "")]
    return next((path for path in tried if (root / "nbs" / path).exists()), "")


def board_data(
    e: Evidence,  # verdicts and what is known of them
) -> dict:
    "The board as plain data, which is also board.json"
    used = {id for v in e.verdicts.values() for id in v.rows}
    good = sum(e.states.get(id) in ("current", "verified") for id in used)
    groups = {"cards on sentences of the sources": [v for id, v in e.verdicts.items() if id in e.cited],
              "cards on own forecasts and controls": [v for id, v in e.verdicts.items() if id not in e.cited]}
    order = sorted(e.verdicts, key=lambda id: (e.studies[id], id))
    return {
        "verified": {"rows": good, "of": len(used), "date": e.verified} if e.states else None,
        "sentences": dict(Counter(e.sentences.values())),
        "cards_by_verdict": {name: {w: _tally(vs, w) for w in VERDICTS} for name, vs in groups.items()},
        "rows": [_chosen(row, method["method"], e) for method in e.choice.get("rows", ()) for row in method["cards"]],
        "cards": [_entry(id, e) for id in order]}


def _tally(verdicts: list[Verdict], word: str) -> dict:
    "How many verdicts are this word, how many of them predicted, and how many Holm's rule keeps, of how many it judged"
    these = [v for v in verdicts if v.verdict == word]
    tried = [v for v in these if kept(v) != "—"]
    return {"all": len(these), "predicted": sum(v.basis == "predicted" for v in these),
            "kept": sum(v.holm <= 0.05 for v in tried), "tried": len(tried)}


def _entry(id: str, e: Evidence) -> dict:
    "One card: what it says, what is judged, and where it comes from"
    v = e.verdicts[id]
    numbers = [{"against": name, **{k: float(f"{x:.6g}") for k, x in zip(("mean", "low", "high"), i)}, "n": int(i.n)}
               for name, i in v.numbers.items()]
    return {
        "id": id,
        "claim": " ".join(v.card["claim"].split()),
        "sources": list(e.cited.get(id, ())),
        "verdict": v.verdict,
        "grade": grade(v),
        "basis": v.basis,
        "holm": kept(v),
        "why": v.why,
        "numbers": numbers,
        "study": e.studies[id],
        "sweep": v.card["sweep"],
        "page": e.pages.get(e.studies[id], ""),
        "rows": row_states(v, e.states),
        "processors": list(v.processors),
        "judged": _judged(v),
    }


def _judged(v: Verdict) -> list[str]:
    "How a card was judged, line by line"
    card, rule = v.card, v.card["rule"]
    listed = lambda d: ", ".join(f"{k} {x}" for k, x in (d or {}).items()) or "all"
    lines = [f"Number: {card['metric']}, {v.why}" if v.numbers else f"No number yet: {v.why}",
             f"Scope: {listed(card.get('scope'))}; arm: {listed(card.get('arm'))}"]
    lines += [f"Control, {name}: {listed(where)}" for name, where in (card.get("controls") or {}).items()]
    pilot = f" (informed by a pilot: {rule['pilot']})" if piloted(card) else ""
    lines += [f"Rule: {listed({k: x for k, x in rule.items() if k != 'pilot'})}{pilot}"]
    if v.holm is not None: lines.append(f"p = {v.p:.2g}, for its whole study {v.holm:.2g}")
    if len(v.processors) > 1: lines.append(f"Recorded on different processors: {'; '.join(v.processors)}")
    return [*lines, *v.notes]


# The few rows that stand unfolded: numbers in the reader's units

def _chosen(row: Mapping, method: str, e: Evidence) -> dict:
    "A row of the board's table"
    v, unit = e.verdicts[row["card"]], row.get("unit", "")
    against, measured = _hardest(v)
    control = row.get("control", {})
    beside = control.get("as", against)
    if "card" in control:
        other = _hardest(e.verdicts[control["card"]])[1]
        beside += f": {_scaled(other.mean, unit)} {unit}".rstrip() if other else ""
    return {
        "method": method,
        "says": row["says"],
        "card": row["card"],
        "sources": list(e.cited.get(row["card"], ())),
        "claimed": _region(v.card["rule"], unit),
        "measured": _spoken(measured, unit, bool(against)) if measured else "no runs yet",
        "n": measured.n if measured else 0,
        "control": beside,
        "verdict": v.verdict,
        "grade": grade(v),
        "page": e.pages.get(e.studies[row["card"]], ""),
        "front": row.get("front", ""),
    }


def _hardest(v: Verdict) -> tuple:
    "The control against which a claim looks worst, and the number against it"
    low, high = accept_region(v.card["rule"])
    if not v.numbers: return "", None
    if math.isinf(high): return min(v.numbers.items(), key=lambda item: item[1].mean)
    if math.isinf(low): return max(v.numbers.items(), key=lambda item: item[1].mean)
    return max(v.numbers.items(), key=lambda item: abs(item[1].mean - (low + high) / 2))


def _scaled(x: float, unit: str, signed: bool = False) -> str:
    "A number in a reader's units: three digits, a true minus, a plus where it is a difference"
    x = 100 * x if unit.startswith(("%", "points")) else x
    return f"{x:{'+' if signed else ''}.3g}".replace("-", "−")


def _spoken(i, unit: str, signed: bool) -> str:
    "A mean with its interval and how many random seeds; equal numbers have no interval"
    mean = f"{_scaled(i.mean, unit, signed)} {unit}".strip()
    if i.low == i.high: return f"{mean} (all {i.n})" if i.n > 1 else mean
    return f"{mean} ({_scaled(i.low, unit, signed)} … {_scaled(i.high, unit, signed)}, n = {i.n})"


def _region(rule: Mapping, unit: str) -> str:
    "The claimed region in words"
    if rule.get("at_least") == 0: return "above control"
    if rule.get("at_most") == 0: return "below control"
    if rule.get("at_least") == 1 and unit.startswith("%"): return f"100 {unit}"
    low, high = (_scaled(x, unit) if math.isfinite(x) else "" for x in accept_region(rule))
    said = f"{low} … {high}" if low and high else f"≥ {low}" if low else f"≤ {high}"
    return f"{said} {unit}".strip()
