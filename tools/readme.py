"""README.md and its figures from nbs/index.ipynb: `python tools/readme.py` (nbdev's own command needs Quarto)"""
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
FIGURES = "nbs/images"  # relative to the repository; holds nothing else


def shown(nb: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "The notebook without hidden cells, and without the code of cells that say `#| echo: false`"
    cells = []
    for cell in nb.cells:
        directives = re.findall(r"^#\|\s*(.+?)\s*$", cell.source, re.M)
        if "hide" in directives: continue
        if cell.cell_type == "code":
            cell.source = "" if "echo: false" in directives else re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
            for output in cell.outputs: output.get("data", {}).pop("text/html", None)  # markdown or text reads better on a code host
        cells.append(cell)
    return nb | {"cells": cells}


def from_the_top(link: re.Match) -> str:
    "A link as seen from nbs/, rewritten as seen from the top of the repository"
    target = link[2]
    if target.startswith("board.qmd"): return f"{link[1]}({target.replace('board.qmd', 'CLAIMS.md', 1)})"  # what a code host shows
    if re.match(r"[a-z]+:|#", target): return link[0]
    return f"{link[1]}({target.removeprefix('../') if target.startswith('../') else 'nbs/' + target})"


def alt_texts(nb: nbformat.NotebookNode) -> dict[int, str]:
    "What a cell's figure shows, in words, by the cell's place"
    said = {i: re.search(r'^#\|\s*fig-alt:\s*"(.*)"\s*$', cell.source, re.M) for i, cell in enumerate(nb.cells)}
    return {i: found[1] for i, found in said.items() if found}


def render() -> tuple[str, dict[str, bytes]]:
    "The text of README.md, and its figures by path"
    nb = nbformat.read(ROOT / "nbs/index.ipynb", 4)
    nb.cells = [cell for cell in nb.cells if not re.search(r"^#\|\s*hide\s*$", cell.source, re.M)]
    alt = alt_texts(nb)
    nb = nbformat.from_dict(shown(nb))
    text, resources = MarkdownExporter().from_notebook_node(nb)
    text = re.sub(r"(!?\[[^\]]*\])\(([^)\s]+)\)", lambda m: m[0] if m[2] in resources["outputs"] else from_the_top(m), text)
    figures = {}
    for n, (name, data) in enumerate(sorted(resources["outputs"].items()), 1):
        path = f"{FIGURES}/front-{n}{Path(name).suffix}"
        figures[path] = data
        words = alt.get(int(re.search(r"output_(\d+)", name)[1]), "")
        text = re.sub(rf"!\[[^\]]*\]\({re.escape(name)}\)", f"![{words}]({path})", text)
    head = "<!-- Written by `make readme` from nbs/index.ipynb: edit that. -->\n\n"
    return head + re.sub(r"\n{3,}", "\n\n", re.sub(r"^```(?:python)?\s*```\n", "", text, flags=re.M)).strip() + "\n", figures


def main() -> None:
    "Write README.md and its figures, and delete figures that are no longer in it"
    text, figures = render()
    (ROOT / FIGURES).mkdir(exist_ok=True)
    for old in (ROOT / FIGURES).glob("*"): old.unlink()
    for path, data in figures.items(): (ROOT / path).write_bytes(data)
    (ROOT / "README.md").write_text(text)


if __name__ == "__main__":
    main()
