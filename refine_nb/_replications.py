"The page of replications: figures that others have published, beside what the cards found here"
from collections.abc import Mapping
from pathlib import Path

from ._sources import card_link, check_card, read_ledger, table_row, verdict_of
from .cards import CardError

FIELDS = ("name", "published", "source", "link", "margin", "fixed", "cards", "departs")
REPLIED = {"reproduced": "replicated", "refuted": "not replicated"}
GUIDE = """What others have published, and what the same question gives in this laboratory.
The margin of each was fixed before its runs; the column says what was known at that time.
A replication in another setting is weaker than a literal one: every entry says where it departs."""


def read_replications(
    path: Path,                # the ledger, experiments/replications.yaml
    cards: Mapping[str, str],  # id → verdict of every card
) -> list[dict]:
    "The entries as written; refused where a field is missing or a card is unknown"
    entries = read_ledger(path)
    for entry in entries:
        missing = [f for f in FIELDS if not entry.get(f)]
        if missing: raise CardError(f"{path}: {entry.get('name', 'an entry without a name')}: no {missing[0]}")
        for name in (*entry["cards"], *entry.get("related", ())):
            check_card(name.removeprefix("-"), cards, f"{path}: {entry['name']}")
    return entries


def replications_page(
    entries: list[dict],         # as read
    cards: Mapping[str, str],    # id → verdict
    numbers: Mapping[str, str],  # id → the measured number in words
) -> str:
    "The page as markdown: one table, then what each entry departs in"
    title = "---\ntitle: \"Replications: figures that others have published\"\n---"
    head = ["published", "here", "margin", "verdict"]
    rows = [[f"[{e['name']}]({e['link']}): {e['published']}", _measured(e, numbers), e["margin"],
             f"**{_verdict(e, cards)}**"]
            for e in entries]
    table = "\n".join(map(table_row, [head, ["---"] * len(head), *rows]))
    return "\n\n".join([title, GUIDE, table, *(_section(e, cards) for e in entries)]) + "\n"


def _measured(entry: Mapping, numbers: Mapping[str, str]) -> str:
    "The number of the card that decides"
    return numbers[entry["cards"][0].removeprefix("-")]


def _verdict(entry: Mapping, cards: Mapping[str, str]) -> str:
    "In the words of a replication; no verdict where the published effect itself is not tried"
    if entry.get("untried"): return "not tried"
    verdict = verdict_of(entry, cards)
    return REPLIED.get(verdict, verdict)


def _section(entry: Mapping, cards: Mapping[str, str]) -> str:
    "Source, departures, cards"
    names = [card_link(n, cards) for n in (*entry["cards"], *entry.get("related", ()))]
    return f"## {entry['name']}\n\n{entry['source']}.\n\n{entry['departs']}\n\n" \
           f"Margin fixed {entry['fixed']}. Cards: {', '.join(names)}."
