"""The site: what the gate refuses, each provoked once, and what a notebook becomes as a page"""
import json

import book
import gallery
import gate
import nbformat
import pages
import pytest
from conftest import ROOT

HOME = "/" + "home/someone"  # no path of a machine stands in a file of this project


def write(path, *cells):
    "A notebook of markdown cells and of whole cells"
    made = [nbformat.v4.new_markdown_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=made), path)


def code(source, *outputs):
    "A code cell; an output is a dict of data by type"
    made = [nbformat.v4.new_output("display_data", data=data) for data in outputs]
    return nbformat.v4.new_code_cell(source, outputs=made)


@pytest.fixture
def site(tmp_path):
    "Three staged pages, as nbdev leaves them for Quarto"
    folder = tmp_path / "_proc"
    folder.mkdir()
    (tmp_path / "_quarto.yml").touch()
    (folder / "_quarto.yml").write_text("metadata-files: [../_quarto.yml, sidebar.yml]")
    listed(folder, "index.ipynb", "01_data.ipynb", "results/data.ipynb")
    write(folder / "index.ipynb", "# Home\n\n[data](01_data.ipynb#words), [the same](/data.html#words), [elsewhere](https://example.org/x)")
    write(folder / "01_data.ipynb", "# Data\n\n## Words\n\n$e = m$ [up](#data)")
    write(folder / "results/data.ipynb", "# Result\n\n[the room](../01_data.ipynb#words), [home](../index.html)")
    return folder


def listed(folder, *names):
    "A sidebar with a part"
    contents = [names[0], {"section": "part", "contents": [{"href": name, "text": "x"} for name in names[1:]]}]
    (folder / "sidebar.yml").write_text(json.dumps({"website": {"sidebar": {"contents": contents}}}))


def test_a_whole_site_has_no_complaints(site):
    assert gate.check_site(site) == []


@pytest.mark.parametrize("text, complaint", [
    ("[x](02_nothing.ipynb)", "there is no 02_nothing.ipynb"),
    ("[x](../experiments/01_char_lm.ipynb)", "leads out of the site"),
    ("[x](/data.html#nowhere)", "no heading with the id nowhere"),
    ("[x](results/data.ipynb#nowhere)", "no heading with the id nowhere"),
    ("[x](#nowhere)", "no heading with the id nowhere"),
    ("<a href='gone.html'>x</a>", "there is no gone.html"),
    ("![words](figure.png)", "there is no figure.png"),
    ("![](https://example.org/x.png)", "1 pictures have no words"),
    ("<img src='https://example.org/x.png'>", "1 pictures have no words"),
    ("<div>\n\nnever closed", "unclosed"),
    ("closed </details>", "closes nothing"),
    ("a symbol <SOT> of ours", "<sot> is no element"),
    (f"read from {HOME}/text.txt", f"shows a path of some machine: {HOME}"),
    ("```python\ndef f(x: __main__.Item)\n```", "__main__"),
])
def test_broken_pages_are_found(site, text, complaint):
    write(site / "index.ipynb", text)
    found = gate.check_site(site)
    assert len(found) == 1 and found[0].startswith("index.ipynb: ") and complaint in found[0], found


@pytest.mark.parametrize("text", ["`<SOT>`", "<details><summary>x</summary>\n\ny\n\n</details>", "a ~/text.txt and https://x.org/tmp/y",
                                  "![words](https://example.org/x.png)", "<span id='here'></span>[x](#here)", "::: {#there}\n:::\n\n[x](#there)"])
def test_what_is_right_is_let_through(site, text):
    write(site / "index.ipynb", text)
    assert gate.check_site(site) == []


PICTURE = {"image/png": "AAAA", "text/plain": "<Figure>"}


@pytest.mark.parametrize("cell, complaint", [
    (code("draw()", PICTURE), "1 pictures have no words"),
    (code(f"x = {'1' * 120}"), "1 lines of shown code are longer than 120"),
    (code("x", {"text/plain": f"PosixPath('{HOME}/y')"}), f"shows a path of some machine: {HOME}"),
    (code("x", {"text/html": "<div><b></div>"}), "</div> closes before <b>"),
])
def test_broken_cells_are_found(site, cell, complaint):
    write(site / "index.ipynb", "# Home", cell)
    found = gate.check_site(site)
    assert len(found) == 1 and complaint in found[0], found


@pytest.mark.parametrize("cell", [
    code('#| fig-alt: "a rising line"\ndraw()', PICTURE),
    code(f"#| echo: false\nx = {'1' * 120}"),
    code(f"#| code-fold: true\nx = {'1' * 120}"),
    code(f"#| fig-alt: {'a' * 120}\nx = 1"),
    code("#| output: false\nx", PICTURE),
])
def test_cells_that_say_or_hide_it_are_let_through(site, cell):
    write(site / "index.ipynb", "# Home", cell)
    assert gate.check_site(site) == []


def test_a_formula_that_cannot_be_shown_is_found(site):
    write(site / "index.ipynb", "# Home\n\n$x_1 + \\frac{1}{2$")
    found = gate.check_site(site)
    assert len(found) == 1 and "Could not convert TeX math" in found[0]


def test_long_lines_may_be_as_many_as_they_were_and_a_picture_has_words(site):
    write(site / "01_data.ipynb", "# Data\n\n## Words", code(f"x = {'1' * 120}\ny = {'1' * 120}"), code("draw()", PICTURE))
    assert len(gate.check_site(site, 2)) == 1
    assert len(gate.check_site(site, 1)) == 2


def test_a_markdown_page_belongs_to_the_site(site):
    (site / "board.qmd").write_text("---\ntitle: Board\n---\n\n## One\n\n[gone](03_gone.ipynb)")
    listed(site, "index.ipynb", "01_data.ipynb", "results/data.ipynb", "board.qmd")
    assert gate.check_site(site) == ["board.qmd: 03_gone.ipynb: there is no 03_gone.ipynb"]


def test_the_sidebar_lists_every_page_once_and_settings_are_there(site):
    write(site / "02_more.ipynb", "# More")
    (site.parent / "_quarto.yml").unlink()
    listed(site, "index.ipynb", "01_data.ipynb", "01_data.ipynb", "gone.ipynb")
    assert set(gate.check_site(site)) == {
        "_quarto.yml includes ../_quarto.yml, which is not there", "sidebar.yml lacks 02_more.ipynb", "sidebar.yml lacks results/data.ipynb",
        "sidebar.yml lists gone.ipynb, which is no page", "sidebar.yml lists 01_data.ipynb twice"}


@pytest.mark.parametrize("other", ["data.qmd", "Data.ipynb", "2a_data.ipynb", "data.html"])
def test_two_sources_of_one_page_are_refused(site, other):
    (site / other).write_text("# Data")
    if other.endswith(".ipynb"): write(site / other, "# Data")
    first, last = sorted(("01_data.ipynb", other))
    assert gate.same_output(site) == [f"{first} and {last} would both become data.html: rename one of them"]
    assert set(gate.same_output(site)) <= set(gate.check_site(site))


def test_two_sources_in_a_folder_are_refused_and_equal_names_in_two_folders_are_not(site):
    (site / "results/data.qmd").write_text("# Data")
    assert gate.same_output(site) == ["results/data.ipynb and results/data.qmd would both become results/data.html: rename one of them"]


def test_a_number_stays_in_the_name_of_a_markdown_page(site):
    (site / "01_data.qmd").write_text("# Data")
    assert gate.same_output(site) == []


@pytest.mark.parametrize("source, target, page", [
    ("nbs/16_trm.ipynb", "../experiments/11_trm.ipynb#x", "experiments/11_trm.ipynb#x"),
    ("nbs/results/trm.ipynb", "../../experiments/11_trm.ipynb", "../experiments/11_trm.ipynb"),
    ("experiments/11_trm.ipynb", "../nbs/16_trm.ipynb", "../16_trm.ipynb"),
    ("nbs/16_trm.ipynb", "17_confidence.ipynb", "17_confidence.ipynb"),
    ("nbs/16_trm.ipynb", "../LOG.md", "../LOG.md"), ("nbs/16_trm.ipynb", "https://example.org/a", "https://example.org/a"),
])
def test_links_between_folders_lead_to_pages(source, target, page):
    assert book.relink(f"[a]({target})", book.Path(source)) == f"[a]({page})"


def test_numbers_of_the_sources_lead_to_their_lines():
    text = "## G18 says\n\nG18 and T1 to T8 (`G18`, [G18](x.md), $G18$, G180, B1.2.7, S5)"
    link = lambda n: f"[{n}](../sources.qmd#{n})"
    said = f"## G18 says\n\n{link('G18')} and {link('T1')} to {link('T8')} (`G18`, [G18](x.md), $G18$, G180, B1.2.7, S5)"
    assert book.linked(text, book.cite, book.Path("nbs/results/a.ipynb")) == said
    assert book.linked("T8", book.cite, book.Path("experiments/a.ipynb")) == "[T8](../nbs/sources.qmd#T8)"


def test_a_word_of_the_glossary_is_linked_once_a_page():
    told, place = set(), book.Path("nbs/a.ipynb")
    gloss = lambda text: book.linked(text, lambda part, to: book.gloss(part, to, told), place)
    assert gloss("# The control\nA control, `arm`, net refinement") == (
        "# The control\nA [control](./glossary.qmd#control){.term}, `arm`, "
        "[net refinement](./glossary.qmd#net-refinement){.term}")
    assert gloss("Arms, controls, *filler*, armed, opened") == "[Arms](./glossary.qmd#arm){.term}, controls, *filler*, armed, opened"


def test_pages_link_what_they_name(tmp_path):
    page = tmp_path / "quiet_text.ipynb"
    book.Book.file(ROOT / "nbs/results/quiet_text.ipynb", page, ROOT / "nbs/results/quiet_text.ipynb")
    text = page.read_text()
    assert "(../sources.qmd#Q60)" in text and "{.term}" in text


@pytest.fixture(scope="module")
def trigram(tmp_path_factory):
    "A room as a page"
    page = tmp_path_factory.mktemp("pages") / "02_trigram.ipynb"
    book.Book.file(ROOT / "nbs/02_trigram.ipynb", page, ROOT / "nbs/02_trigram.ipynb")
    return json.loads(page.read_text())["cells"]


def test_a_page_shows_the_source_of_what_it_exports_and_a_heading_for_links(trigram):
    sources = ["".join(cell["source"]) for cell in trigram]
    place = next(n for n, text in enumerate(sources) if "class NGram(" in text and "code-fold: show" in text)
    assert sources[place - 1].startswith("### NGram\n") and "signature and parameters" in sources[place - 1]
    assert "def __init__" in sources[place] and "#| export" not in "".join(sources)


def test_a_page_hides_what_says_so_and_names_no_module_in_signatures(trigram):
    text = "\n".join("".join(cell["source"]) for cell in trigram)
    assert "default_exp" not in text and "nbdev_export" not in text and "import pytest" not in text
    assert "__main__" not in text and "jaxtyping.Int" not in text and "ids:Int[Tensor, 'b t']" in text


def test_private_definitions_are_found_by_links(trigram):
    sources = ["".join(cell["source"]) for cell in trigram]
    assert any("[]{#_grow}" in text for text in sources), "the name of a private definition in prose is a link of nbdev's"
    assert any("[]{#ngram.fit}" in text for text in sources), "and so is that of a method"


def test_definitions_of_one_cell_keep_their_order(trigram):
    headings = [line for cell in trigram for line in "".join(cell["source"]).splitlines() if line.startswith("### ")]
    assert headings.index("### NGram.log_probs") + 1 == headings.index("### NGram.topk")


def test_a_source_link_waits_for_an_address(monkeypatch):
    class Known: git_url, branch, lib_name = "https://example.org/r", "main", "refine_nb"
    assert book.address(gate.read) == ""
    monkeypatch.setattr(book, "settings", Known)
    assert book.address(gate.read).startswith("https://example.org/r/blob/main/tools/gate.py#L")
    assert "[source](https://example.org/r/" in book.reference(gate.read, "read")


def test_the_code_of_a_result_begins_folded_and_that_of_a_room_does_not(tmp_path):
    cells = code("x", PICTURE), code("#| echo: false\nx", PICTURE)
    for name, folded in (("trm", 1), ("16_trm", 0), ("index", 0)):
        write(tmp_path / f"{name}.ipynb", "# Result", *cells)
        book.Book.file(tmp_path / f"{name}.ipynb", tmp_path / "out.ipynb", ROOT / f"nbs/{name}.ipynb")
        assert (tmp_path / "out.ipynb").read_text().count("code-fold: true") == folded


def test_the_sidebar_has_the_parts_and_the_order_of_the_book(tmp_path):
    names = ("index", "start", "02_b", "01_a", "10_c", "20_d", "90_e", "results/trm", "results/char_lm", "experiments/01_a", "experiments/99_z")
    for name in names:
        write(tmp_path / f"{name}.ipynb", nbformat.v4.new_raw_cell(f"---\ntitle: 'Result: {name}'\n---"), "(results/char_lm.ipynb) (results/trm.ipynb)")
    for name in ("sources", "board", "gallery"): (tmp_path / f"{name}.qmd").write_text(f"---\ntitle: {name}\n---")
    found = {part: [book.Path(name).stem for name in names] for part, names in pages.sidebar(tmp_path).items()}
    assert found == {"": ["index", "start"], "What came out": ["char_lm", "trm"], "Ground": ["01_a", "02_b"],
                     "Problems and extra computation": ["10_c"], "Thinking": ["20_d"], "Laboratory": ["90_e"],
                     "Experiments": ["gallery", "01_a", "99_z"], "To look up": ["board", "sources"]}
    assert list(found)[1] == "What came out" and list(found)[-1] == "To look up"
    assert pages.entry("01_a.ipynb", tmp_path)["text"] == "01 01_a"
    assert pages.entry("results/trm.ipynb", tmp_path)["text"] == "Results/trm"


def test_an_execution_counts_only_for_the_source_that_was_executed(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "FOLDER", tmp_path / "kept")
    write(tmp_path / "01_a.ipynb", "# A")
    write(tmp_path / "kept/01_a.ipynb", "# A")
    assert gallery.executed(tmp_path / "01_a.ipynb") is None
    (tmp_path / "kept/01_a.sha256").write_text(gallery.digest(tmp_path / "01_a.ipynb"))
    assert gallery.executed(tmp_path / "01_a.ipynb") == tmp_path / "kept/01_a.ipynb"
    write(tmp_path / "01_a.ipynb", "# B")
    assert gallery.executed(tmp_path / "01_a.ipynb") is None
