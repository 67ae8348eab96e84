"""What result pages promise: the answer first, tables that fold, pictures with words, short sentences; and helpers"""
import re

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from refine_nb import _pages as page

PAGES = sorted((ROOT / "nbs/results").glob("*.ipynb"))
WORDS = 25  # of a sentence


def cells(path):
    "The cells of a page"
    return nbformat.read(path, 4).cells


def outputs(path, kind):
    "The stored outputs of one kind, joined each"
    return [o.data[kind] for c in cells(path) if c.cell_type == "code" for o in c.outputs if kind in o.get("data", {})]


def long_sentences(text):
    "Sentences with too many words; what links, code and intervals hold does not count"
    apart = ((r"\]\([^)]*\)", "]"), (r"\([^()]*…[^()]*\)", ""), (r"`[^`]*`", "x"), (r"(?m)^#.*$", ""))
    for pattern, instead in apart:
        text = re.sub(pattern, instead, text)
    blocks = [block.replace("\n", " ") for block in re.split(r"\n\s*\n|\n- ", text)]
    sentences = [s for block in blocks for s in re.split(r"(?<=[.?!:;])\W*\s+", block)]
    return [s for s in sentences if sum(bool(re.search(r"\w", w)) for w in s.split()) > WORDS]


def test_long_sentences_are_found():
    assert not long_sentences("word " * 25 + ". " + "word " * 25 + ".")
    assert len(long_sentences("word " * 26 + ". Two words.")) == 1


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_a_page_begins_with_its_answer_and_a_figure(path):
    found = cells(path)
    headings = [c.source.splitlines()[0] for c in found if c.cell_type == "markdown" and c.source.startswith("## ")]
    assert headings[0] == "## The answer"
    place = next(i for i, c in enumerate(found) if c.source.startswith("## The answer"))
    answer, figure = found[place + 1:place + 3]
    kinds = lambda cell: {kind for o in cell.outputs for kind in o.get("data", {})}
    assert "text/markdown" in kinds(answer) and "image/png" in kinds(figure)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_sentences_are_short(path):
    said = [text for text in outputs(path, "text/markdown") if not text.startswith("<details>")]  # the words of cards
    texts = [c.source for c in cells(path) if c.cell_type == "markdown"] + said
    assert not (found := [s for text in texts for s in long_sentences(text)]), "\n".join(found)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_tables_fold_and_speak_in_words(path):
    for html in outputs(path, "text/html"):
        assert "NaN" not in html and ">nan<" not in html
        open_part = re.sub(r"<details>.*?</details>", "", html, flags=re.S)
        assert open_part.count("<tr>") + open_part.count("<tr style") <= page.ROWS + 2
        for heading in re.findall(r"<th>([^<]*)</th>", html.split("<tbody>")[0]):
            assert not re.search(r"[a-z]_[a-z]", heading), f"{heading} is a column's name"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_pictures_have_captions_and_words(path):
    for cell in cells(path):
        if cell.cell_type == "code" and any("image/png" in o.get("data", {}) for o in cell.outputs):
            assert "#| fig-cap:" in cell.source and "#| fig-alt:" in cell.source, f"{path.stem}#{cell.id}"


# The helpers

def test_numbers_have_real_minus_signs():
    assert page.number(-0.123, 1, 100) == "−12.3" and page.number(-0.0001) == "0.0"
    assert page.number(12345, 0) == "12,345"
    assert page.within((0.1, 0.05, 0.2, 5), 1, 100) == "10.0 (5.0 … 20.0)"
    assert page.within((0.1, 0.05, 0.2), 1, -100) == "−10.0 (−20.0 … −5.0)"


def shown(monkeypatch, *args, **options):
    "The HTML that a call displays"
    kept = []
    monkeypatch.setattr(page, "display", lambda what: kept.append(what.data))
    page.show_table(*args, **options)
    return kept[0]


def test_a_table_folds_after_a_dozen_rows(monkeypatch):
    table = pd.DataFrame({"x": [np.nan, *range(14)]}, index=[f"arm {n}" for n in range(15)])
    html = shown(monkeypatch, table, {"x": ("points", 100, 1)})
    first, folded = html.split("<details>")
    assert "arm 11" in first and "arm 12" not in first and "arm 14" in folded and "more (3 rows)" in folded
    assert "–" in first and "NaN" not in html and "points" in first and "1,000.0" in first
    assert shown(monkeypatch, table, {"x": ("points", 100, 1)}, rows=0).startswith("<details>")


def drawn(**options):
    "The axes of a figure of two arms, and the interval of the first"
    table = pd.DataFrame({"arm": ["a"] * 3 + ["b"] * 3, "y": [0.0, 0.5, 1.0, 0.2, 0.2, 0.2]})
    fig, ax = plt.subplots()
    page.draw_arms(ax, table, "y", ["b"], 100, **options)
    plt.close(fig)
    return ax


def test_intervals_stay_inside_the_possible_range():
    line = drawn(bounds=(0, 100)).lines[0]
    assert line.get_xdata().tolist() == [0, 100]
    assert drawn().lines[0].get_xdata()[0] < 0


def test_a_control_differs_in_colour_and_shape_and_every_seed_is_drawn():
    ax = drawn()
    marks = [line for line in ax.lines if line.get_marker() != "None"]
    assert {m.get_marker() for m in marks} == {"D", "s"} and len({m.get_color() for m in marks}) == 2
    assert [len(c.get_offsets()) for c in ax.collections] == [3, 3]


def test_an_order_keeps_a_place_for_an_arm_without_runs():
    ax = drawn(order=["b", "none", "a"])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["b", "none", "a"]
    assert ax.lines[0].get_ydata()[0] == 0 and ax.lines[2].get_ydata()[0] == 2
