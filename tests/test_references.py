"The bibliography: every work that a page names is in it, every entry is whole and named somewhere"
import re

import pytest
from conftest import ROOT

from refine_nb._references import FIELDS, names, read_references, references_page, words_of
from refine_nb.cards import CardError

LEDGER = ROOT / "experiments/references.yaml"
PAGES = [*ROOT.glob("nbs/[0-9]*.ipynb"), *ROOT.glob("nbs/results/*.ipynb")]
WORK = r"\b[A-Z][\w-]+(?: et al\.| (?:and|&) [A-Z]\w+)? (?:19|20)\d\d\b"  # Author 2024, as `words_of` leaves it
NO_WORK = {"Feb", "March", "May", "June", "July", "Python", "Dated"}
ENTRY = '- {named: "Doe 2001", authors: "J. Doe", title: "On it", where: "A journal"}\n'


def test_every_work_that_a_page_names_is_in_the_bibliography():
    entries = read_references(LEDGER)
    known, numbers = " ".join(e["named"] for e in entries), {e.get("arxiv") for e in entries}
    for page in PAGES:
        words = words_of(page)
        assert set(re.findall(r"arXiv:? (\d{4}\.\d{5})", words)) <= numbers, page.name
        cited = {w for w in re.findall(WORK, words) if w.split()[0] not in NO_WORK}
        assert {w for w in cited if w not in known} == set(), page.name


def test_the_page_names_every_entry_with_its_pages():
    entries = read_references(LEDGER)
    page = references_page(entries, ROOT / "nbs")
    assert page.count("\n- [**") == len(entries) >= 30
    assert "[22_quiet_star](22_quiet_star.ipynb)" in page and "(https://arxiv.org/abs/2403.09629)" in page


def small(tmp_path, text, words="as Doe (2001) says"):
    "A ledger, and a project of one page"
    (tmp_path / "nbs").mkdir()
    cell = '{"cells": [{"cell_type": "markdown", "source": ["%s"]}]}' % words
    (tmp_path / "nbs" / "01_data.ipynb").write_text(cell)
    (tmp_path / "references.yaml").write_text(text)
    return references_page(read_references(tmp_path / "references.yaml"), tmp_path / "nbs")


def test_brackets_and_commas_are_no_part_of_a_name(tmp_path):
    line = "- [**Doe 2001**]{#doe-2001}: J. Doe. *On it*. A journal. In [01_data](01_data.ipynb)."
    assert line in small(tmp_path, ENTRY).splitlines()
    assert names({"named": "Doe 2001", "arxiv": "1234.56789"}, "see 1234.56789") and not names({"named": "Doe 2001"}, "Roe 2001")


@pytest.mark.parametrize("field", [*FIELDS, "where"])
def test_an_entry_is_whole(tmp_path, field):
    with pytest.raises(CardError, match=f"no {field}"): small(tmp_path, re.sub(field + r': "[^"]*",? ?', "", ENTRY))


def test_a_name_stands_once_and_a_page_has_it(tmp_path):
    with pytest.raises(CardError, match="Doe 2001 stands there twice"): small(tmp_path, ENTRY * 2)


def test_what_no_page_names_is_refused(tmp_path):
    with pytest.raises(CardError, match="no page names Doe 2001"): small(tmp_path, ENTRY, "nothing")
