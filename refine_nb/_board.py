"""What a verdict is, and the board on which all stand. The notebook `95_claims` explains and shows both."""
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

DECIDED = ("reproduced", "refuted", "no effect found")
WORDS = (*DECIDED, "nothing could be seen", "open", "post hoc", "retired")


@dataclass(frozen=True)
class Verdict:
    "A card and what the results say about it"
    card: dict               # the claim card
    verdict: str             # one of WORDS
    numbers: dict            # control's name ("" without controls) → Interval
    why: str                 # in words
    p: float | None = None   # of what the verdict says; None where chance has no part, or nothing is judged
    holm: float | None = None  # that, corrected for all cards of the study
    basis: str = ""          # predicted | confirmed
    rows: tuple = ()         # ids of the rows behind the number
    notes: tuple = ()        # what the card's entry says besides


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


def describe(
    v: Verdict,  # of one card
) -> str:
    "A card as markdown"
    card, rule = v.card, v.card["rule"]
    pilot = f" (informed by a pilot: {rule['pilot']})" if piloted(card) else ""
    listed = lambda d: ", ".join(f"{k} {x}" for k, x in (d or {}).items()) or "all"
    lines = [f"- Number: {card['metric']}, {v.why}" if v.numbers else f"- No number yet: {v.why}",
             f"- Scope: {listed(card.get('scope'))}; arm: {listed(card.get('arm'))}"]
    lines += [f"- Control, {name}: {listed(where)}" for name, where in (card.get("controls") or {}).items()]
    spoken = listed({k: x for k, x in rule.items() if k != "pilot"})
    lines += [f"- Rule: {spoken}{pilot}; table: `results/{card['sweep']}/runs.csv`"]
    if v.holm is not None: lines.append(f"- p = {v.p:.2g}, for its whole study {v.holm:.2g}")
    lines += [f"- {note}" for note in v.notes]
    return f"### {card['id']}: {v.verdict}\n\n{card['claim'].strip()}\n\n" + "\n".join(lines)


def row_states(
    v: Verdict,                  # of one card
    states: Mapping[str, str],   # row id → current, verified, unverified, changed
) -> str:
    "How many rows are behind a verdict, and what is known of them today"
    found = [states[id] for id in v.rows if id in states]
    return ", ".join(f"{found.count(s)} {s}" for s in sorted(set(found))) or str(len(v.rows) or "—")


def _table_row(
    v: Verdict,                 # of one card
    states: Mapping[str, str],  # row id → state
) -> str:
    "One line of the board"
    cell = lambda text: " ".join(str(text).split()).replace("|", "\\|")
    anchor = f"{v.card['id']}: {v.verdict}".lower().replace(":", "").replace(" ", "-")
    claim = f"{cell(v.card['claim'])} [`{v.card['id']}`](#{anchor})"
    return f"| {claim} | {v.verdict} | {cell(v.why)} | {kept(v)} | {v.basis or '—'} | {row_states(v, states)} |"


_GUIDE = """Written by `refine-nb claims` from the tables in `results/`; edits here are overwritten.

A verdict needs a rule that stood before the run; the notebook on claims explains the five tests and these words:

- **reproduced**: the whole 95 % interval lies in the claimed region, against every control.
- **refuted**: the region is excluded, and the opposite is shown, or an effect of another size.
  With k controls the interval has level 1 − 0.05/k.
- **no effect found**: the interval contains zero and lies within a margin, the smallest effect that the card claims.
- **nothing could be seen**: arm and control are closer to the metric's bound than the claimed effect is large.
- **post hoc**: an answer to the same question was recorded before the card. Only fresh random seeds can settle it.
- **retired**: the number is a time, which processors differ in by up to two. **open**: anything else.

*Holm*: whether a decided verdict is kept when all cards of its study are one family, with the corrected p-value.
*Predicted*: no pilot and no earlier recording of its arms; *confirmed* otherwise.
Intervals are Student's t over random seeds, cut to the possible range; "runs" are counts, with an exact interval.
With five random seeds no two-sided sign-flip test can pass 5 %."""


def counts(
    verdicts: Iterable[Verdict],  # of all cards
) -> str:
    "How many verdicts of each word, predicted and confirmed apart, and how many decided ones Holm's rule keeps"
    verdicts = list(verdicts)
    lines = ["| verdict | all | predicted | confirmed | kept by Holm |", "|---|---|---|---|---|"]
    for word in WORDS:
        these = [v for v in verdicts if v.verdict == word]
        basis = [sum(v.basis == b for v in these) for b in ("predicted", "confirmed")]
        tried = [v for v in these if kept(v) != "—"]
        held = f"{sum(v.holm <= 0.05 for v in tried)} of {len(tried)}" if tried else "—"
        lines.append(f"| {word} | {len(these)} | {basis[0]} | {basis[1]} | {held} |")
    return "\n".join(lines)


def page(
    verdicts: Mapping[str, Verdict],    # of all cards, by id
    studies: Mapping[str, str],         # id → study
    states: Mapping[str, str] = {},     # row id → current, verified, unverified, changed
    verified: str = "",                 # when the rows were verified last
) -> str:
    "The board as markdown: one table, the cards folded below it"
    used = {id for v in verdicts.values() for id in v.rows}
    good = sum(states.get(id) in ("current", "verified") for id in used)
    head = [f"**{good} of {len(used)} rows verified** ({verified})."] if states else []
    head = [_GUIDE, *head, counts(verdicts.values())]
    order = sorted(verdicts, key=lambda id: (studies[id], id))
    lines = ["| claim | verdict | number | Holm | basis | rows |", "|---|---|---|---|---|---|"]
    lines += [_table_row(verdicts[id], states) for id in order]
    folds = []
    for study in dict.fromkeys(studies[id] for id in order):
        of = [id for id in order if studies[id] == study]
        folds += [f"<details>\n<summary>{study}: {len(of)} cards</summary>"]
        folds += [*(describe(verdicts[id]) for id in of), "</details>"]
    return "\n\n".join([*head, "\n".join(lines), "## The cards", *folds]) + "\n"
