"The page of the sources: what five documents describe and claim, by number, and what became of it here"
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ._errors import unknown_name
from .cards import CardError
from .parameters import ParameterError, strict_yaml

STATES = ("present", "partly", "missing")
OPPOSITE = {"reproduced": "refuted", "refuted": "reproduced"}
NO_CARD = "no card"
GUIDE = """Five project notes were the beginning of this book.
They are unpublished, and cited here by a letter and a number.
Each line restates one system or one claim in our own words.

A claim has the verdict of its first card on [the board](board.qmd); the other cards stand beside it.
A card marked *opposite* claims the contrary, so its verdict counts the other way round."""


def read_sources(
    path: Path,               # the ledger, experiments/sources.yaml
    cards: Mapping[str, str], # id → verdict of every card
) -> dict[str, dict]:
    "letter → title, systems, claims, contradictions; refused where a number is double or a card is unknown"
    try: sources = strict_yaml(path.read_text(encoding="utf-8"), str(path))
    except ParameterError as error: raise CardError(str(error)) from None
    entries = [e for s in sources.values() for e in (*s["systems"], *s["claims"])]
    twice = [n for n, count in Counter(e["number"] for e in entries).items() if count > 1]
    if twice: raise CardError(f"{path}: {twice[0]} stands there twice")
    for entry in entries:
        if entry.get("state", STATES[0]) not in STATES:
            raise CardError(f"{path}: {entry['number']}: {unknown_name('state', entry['state'], STATES)}")
        for name in (*entry.get("cards", ()), *entry.get("related", ())):
            if name.removeprefix("-") not in cards:
                raise CardError(f"{path}: {entry['number']}: {unknown_name('card', name.removeprefix('-'), cards)}")
    return sources


def verdict_of(
    claim: Mapping,           # one of a source
    cards: Mapping[str, str], # id → verdict
) -> str:
    "The verdict of the card that decides a claim, turned round where the card claims the opposite"
    if not claim.get("cards"): return NO_CARD
    name = claim["cards"][0]
    verdict = cards[name.removeprefix("-")]
    return OPPOSITE.get(verdict, verdict) if name.startswith("-") else verdict


def sources_page(
    sources: Mapping[str, dict],  # as read
    cards: Mapping[str, str],     # id → verdict
) -> str:
    "The page as markdown: counts, then one section for each source"
    title = "---\ntitle: \"The sources: what five documents describe and claim\"\n---"
    sections = [_section(letter, source, cards) for letter, source in sources.items()]
    return "\n\n".join([title, GUIDE, _counts(sources, cards), *sections]) + "\n"


def _counts(sources: Mapping[str, dict], cards: Mapping[str, str]) -> str:
    "How many systems are present, and how many claims have which verdict"
    verdicts = {s: Counter(verdict_of(c, cards) for c in v["claims"]) for s, v in sources.items()}
    words = [w for w in dict.fromkeys(["reproduced", "refuted", "no effect found", "nothing could be seen", "open",
                                       "post hoc", "retired", NO_CARD]) if any(w in c for c in verdicts.values())]
    names = [*STATES, *words]
    lines = [_row(["source", *names]), _row(["---"] * (len(names) + 1))]
    total = Counter()
    for letter, source in sources.items():
        counts = Counter(e["state"] for e in source["systems"]) + verdicts[letter]
        total += counts
        lines.append(_row([f"{letter}: {source['title']}", *(counts[n] for n in names)]))
    lines.append(_row(["**all**", *(f"**{total[n]}**" for n in names)]))
    systems, claims = sum(total[n] for n in STATES), sum(total[n] for n in words)
    return f"{systems} systems (the first three columns) and {claims} claims (the others):\n\n" + "\n".join(lines)


def _section(letter: str, source: Mapping, cards: Mapping[str, str]) -> str:
    "One source: its claims, and folded its systems and contradictions"
    judged = [_claim_row(c, cards) for c in source["claims"]]
    claims = [["", "claim", "verdict", "cards and notes"], ["---"] * 4, *judged]
    named = [[e["number"], e["what"], e["state"], e.get("where", "")] for e in source["systems"]]
    systems = [["", "system", "state", "where"], ["---"] * 4, *named]
    said = "\n".join(f"- {c}" for c in source["contradictions"])
    return "\n\n".join([f"## {letter}: {source['title']}", "\n".join(map(_row, claims)),
                        _fold(f"{len(named)} systems", "\n".join(map(_row, systems))),
                        _fold(f"{len(source['contradictions'])} contradictions", said)])


def _claim_row(claim: Mapping, cards: Mapping[str, str]) -> list[str]:
    "A line of the table of claims"
    linked = [_link(name, cards) for name in claim.get("cards", ())]
    beside = ["related: " + ", ".join(_link(n, cards) for n in claim["related"])] if claim.get("related") else []
    cell = " ".join([", ".join(linked), *([claim["note"]] if claim.get("note") else []), *beside]).strip()
    return [claim["number"], claim["what"], verdict_of(claim, cards), cell]


def _link(name: str, cards: Mapping[str, str]) -> str:
    "A card as a link to its place on the board"
    id = name.removeprefix("-")
    opposite = "opposite, " if name.startswith("-") else ""
    return f"[`{id}`](board.qmd#{id}-{re.sub(r' ', '-', cards[id])}) ({opposite}{cards[id]})"


def _row(cells: list) -> str:
    "A line of a table"
    return "| " + " | ".join(str(c).replace("|", r"\|") for c in cells) + " |"


def _fold(summary: str, body: str) -> str:
    "Something a reader opens"
    return f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"
