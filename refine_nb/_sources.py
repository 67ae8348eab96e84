"The page of the sources: what five documents describe and claim, by number, and what became of it here"
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ._errors import unknown_name
from .cards import CardError
from .parameters import ParameterError, parse_yaml

STATES = ("present", "partly", "missing")
OPPOSITE = {"reproduced": "refuted", "refuted": "reproduced"}
NO_CARD = "no card"
GUIDE = """Five project notes were the beginning of this book.
They are unpublished, and cited here by a letter and a number.
Each line restates one system or one claim in our own words.

A claim has the verdict of its first card on [the board](board.qmd); the other cards stand beside it.
A card marked *opposite* claims the contrary, so its verdict counts the other way round."""


def read_ledger(
    path: Path,  # a YAML file in experiments/
):
    "What a ledger holds; raises `CardError` where it is no YAML"
    try: return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except ParameterError as error: raise CardError(str(error)) from None


def check_card(
    id: str,         # of a card
    cards: Mapping,  # by id
    where: str,      # that names it
) -> None:
    "Refuse a card that is not there"
    if id not in cards: raise CardError(f"{where}: {unknown_name('card', id, cards)}")


def read_sources(
    path: Path,               # the ledger, experiments/sources.yaml
    cards: Mapping[str, str], # id → verdict of every card
) -> dict[str, dict]:
    "letter → title, systems, claims, contradictions; refused where a number is double or a card is unknown"
    sources = read_ledger(path)
    entries = [e for s in sources.values() for e in (*s["systems"], *s["claims"])]
    twice = [n for n, count in Counter(e["number"] for e in entries).items() if count > 1]
    if twice: raise CardError(f"{path}: {twice[0]} stands there twice")
    for entry in entries:
        if entry.get("state", STATES[0]) not in STATES:
            raise CardError(f"{path}: {entry['number']}: {unknown_name('state', entry['state'], STATES)}")
        for name in (*entry.get("cards", ()), *entry.get("related", ())):
            check_card(name.removeprefix("-"), cards, f"{path}: {entry['number']}")
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


def cited(
    sources: Mapping[str, dict],  # as read
) -> dict[str, list[str]]:
    "id → numbers of the claims that a card judges, with a minus where the card claims the opposite"
    found = {}
    for claim in (c for s in sources.values() for c in s["claims"]):
        for name in claim.get("cards", ()):
            opposite = "-" if name.startswith("-") else ""
            found.setdefault(name.removeprefix("-"), []).append(opposite + claim["number"])
    return found


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
    lines = [table_row(["source", *names]), table_row(["---"] * (len(names) + 1))]
    total = Counter()
    for letter, source in sources.items():
        counts = Counter(e["state"] for e in source["systems"]) + verdicts[letter]
        total += counts
        lines.append(table_row([f"{letter}: {source['title']}", *(counts[n] for n in names)]))
    lines.append(table_row(["**all**", *(f"**{total[n]}**" for n in names)]))
    systems, claims = sum(total[n] for n in STATES), sum(total[n] for n in words)
    return f"{systems} systems (the first three columns) and {claims} claims (the others):\n\n" + "\n".join(lines)


def _section(letter: str, source: Mapping, cards: Mapping[str, str]) -> str:
    "One source: its claims, and folded its systems, where the runs depart, and contradictions"
    judged = [_claim_row(c, cards) for c in source["claims"]]
    claims = [["", "claim", "verdict", "cards and notes"], ["---"] * 4, *judged]
    named = [[_mark(e["number"]), e["what"], e["state"], e.get("where", "")] for e in source["systems"]]
    systems = [["", "system", "state", "where"], ["---"] * 4, *named]
    points = "\n".join(f"- {c}" for c in source["contradictions"])
    departs = "\n".join(f"- {d}" for d in source.get("departs", ()))
    return "\n\n".join([f"## {letter}: {source['title']}", "\n".join(map(table_row, claims)),
                        fold(f"{len(named)} systems", "\n".join(map(table_row, systems))),
                        *([fold("where the recorded runs depart", departs)] if departs else []),
                        fold(f"{len(source['contradictions'])} contradictions", points)])


def _claim_row(claim: Mapping, cards: Mapping[str, str]) -> list[str]:
    "A line of the table of claims"
    linked = [card_link(name, cards) for name in claim.get("cards", ())]
    beside = ["related: " + ", ".join(card_link(n, cards) for n in claim["related"])] if claim.get("related") else []
    cell = " ".join([", ".join(linked), *([claim["note"]] if claim.get("note") else []), *beside]).strip()
    return [_mark(claim["number"]), claim["what"], verdict_of(claim, cards), cell]


def _mark(number: str) -> str:
    "A number that links can name"
    return f"[{number}]{{#{number}}}"


def card_link(name: str, cards: Mapping[str, str]) -> str:
    "A card as a link to its place on the board"
    id = name.removeprefix("-")
    opposite = "opposite, " if name.startswith("-") else ""
    return f"[`{id}`](board.qmd#{id}) ({opposite}{cards[id]})"


def table_row(cells: list) -> str:
    "A line of a table"
    return "| " + " | ".join(str(c).replace("|", r"\|") for c in cells) + " |"


def fold(
    summary: str,    # what a reader opens
    body: str,       # markdown
    kind: str = "",  # its class on the site
) -> str:
    "Something a reader opens"
    name = f' class="{kind}"' if kind else ""
    return f"<details{name}>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"
