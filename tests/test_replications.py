"The ledger of published figures: its cards exist, its verdicts are theirs, and what is not tried has none"
import pytest
from conftest import ROOT

from refine_nb._replications import FIELDS, read_replications, replications_page
from refine_nb.cards import CardError, read_cards

LEDGER = ROOT / "experiments/replications.yaml"
CARDS = {card["id"]: "open" for card in read_cards(ROOT / "experiments/claims")}
SMALL = """
- {name: Speed, published: It is fast, source: A paper, link: "https://example.org", margin: twice, fixed: before,
   cards: [-slow], departs: Nothing.}
"""
VERDICTS = {"slow": "reproduced"}


def small(tmp_path, text=SMALL):
    "A ledger of one entry"
    (tmp_path / "replications.yaml").write_text(text)
    return read_replications(tmp_path / "replications.yaml", VERDICTS)


def test_every_published_figure_has_a_card_of_this_project():
    entries = read_replications(LEDGER, CARDS)
    page = replications_page(entries, CARDS, dict.fromkeys(CARDS, "1.0"))
    assert len(entries) >= 6 and all(f"## {e['name']}" in page for e in entries)
    assert all(e["link"].startswith("https://") for e in entries)


def test_the_opposite_of_a_reproduced_card_is_not_replicated(tmp_path):
    page = replications_page(small(tmp_path), VERDICTS, {"slow": "0.5"})
    assert "| [Speed](https://example.org): It is fast | 0.5 | twice | **not replicated** |" in page
    assert "(opposite, reproduced)" in page


def test_what_is_not_tried_has_no_verdict(tmp_path):
    entries = small(tmp_path, SMALL.replace("departs:", "untried: true, departs:"))
    assert "| **not tried** |" in replications_page(entries, VERDICTS, {"slow": "0.5"})


@pytest.mark.parametrize("field", FIELDS)
def test_an_entry_is_whole(tmp_path, field):
    text = "- {" + ", ".join(f"{f}: {'[slow]' if f == 'cards' else 'x'}" for f in FIELDS if f != field) + "}"
    with pytest.raises(CardError, match=f"no {field}"): small(tmp_path, text)


def test_an_unknown_card_is_refused_with_its_neighbour(tmp_path):
    with pytest.raises(CardError, match="Speed: no card 'slwo'; did you mean 'slow'"):
        small(tmp_path, SMALL.replace("-slow", "slwo"))
