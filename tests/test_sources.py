"The ledger of the source documents: what it names exists, and a claim has the verdict of its card"
import ast
import re

import pytest
from conftest import ROOT

from refine_nb._sources import NO_CARD, read_sources, sources_page, verdict_of
from refine_nb.cards import CardError, read_cards

LEDGER = ROOT / "experiments/sources.yaml"
CARDS = {card["id"]: "open" for card in read_cards(ROOT / "experiments/claims")}
SMALL = """
G:
  title: A plan
  systems: [{number: G1, what: A window, state: present, where: "`data:Windows`"}]
  claims: [{number: G2, what: It helps, cards: [-harms, other]}, {number: G3, what: It is fast, note: No time.}]
  contradictions: [It helps and it does not.]
"""


def small(tmp_path, text=SMALL):
    "A ledger of one source"
    (tmp_path / "sources.yaml").write_text(text)
    return read_sources(tmp_path / "sources.yaml", {"harms": "reproduced", "other": "open"})


def test_every_system_and_claim_of_the_ledger_stands_on_the_page():
    sources = read_sources(LEDGER, CARDS)
    entries = [e for s in sources.values() for e in (*s["systems"], *s["claims"])]
    page = sources_page(sources, CARDS)
    assert list(sources) == list("GTCQB") and len(entries) == 286
    assert all(f"| {e['number']} |" in page for e in entries)


def test_what_the_ledger_names_exists():
    text = LEDGER.read_text()
    defined = {}
    for path in (ROOT / "refine_nb").glob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        defined[path.stem] = {getattr(n, "name", None) or getattr(n, "id", None) or getattr(n, "arg", None) for n in nodes}
    named = re.findall(r"`(_?[a-z_]+):([A-Za-z_.0-9]+)`", text)
    gone = [f"{module}:{name}" for module, name in named if not set(name.split(".")) <= defined.get(module, set())]
    paths = re.findall(r"`((?:nbs|experiments|tests|benchmarks|refine_nb|tools)/[^` ]*)`", text)
    lost = [p for p in paths if not any((ROOT / f"{p}{end}").exists() for end in ("", ".ipynb"))]
    assert len(named) > 100 and not gone and not lost


def test_a_card_that_claims_the_opposite_counts_the_other_way_round(tmp_path):
    sources = small(tmp_path)
    verdicts = {"harms": "reproduced", "other": "open"}
    claims = sources["G"]["claims"]
    assert [verdict_of(c, verdicts) for c in claims] == ["refuted", NO_CARD]
    page = sources_page(sources, verdicts)
    assert "| G2 | It helps | refuted | [`harms`](board.qmd#harms-reproduced) (opposite, reproduced)" in page
    assert "1 systems (the first three columns) and 2 claims" in page


@pytest.mark.parametrize("old, new, message", [
    ("-harms", "-hamrs", "G2: no card 'hamrs'; did you mean 'harms'"),
    ("state: present", "state: gone", "G1: no state 'gone'"),
    ("number: G3", "number: G2", "G2 stands there twice"),
    ("G:", "G: {", "sources.yaml")])
def test_mistakes_are_named(tmp_path, old, new, message):
    with pytest.raises(CardError, match=message): small(tmp_path, SMALL.replace(old, new, 1))
