"""What nbdev makes of a notebook before Quarto sees it, with the source of every exported definition"""
import ast
import inspect
import json
import os
import re
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import yaml
from fastcore.foundation import L
from fastcore.nbio import mk_cell, read_nb, write_nb
from nbdev import processors as nbdev
from nbdev.config import get_config
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor, Processor
from nbdev.showdoc import BasicMarkdownRenderer

ROOT = Path(__file__).resolve().parent.parent
PLACES = {"nbs": "", "experiments": "experiments"}  # folders of the repository whose notebooks are pages, and where on the site
OPEN = {"index", "start", "use"}                   # pages without a number on which code is what is read
EXPORTS = {"export", "exports", "exporti"}
REFERENCE = '<details class="reference"><summary>signature and parameters</summary>\n\n{}\n\n</details>'
LINK = re.compile(r"(\]\()([^)\s]+)")


@lru_cache
def settings():
    "nbdev's settings, read once: reading them takes longer than a page"
    return get_config()


def title(page: Path) -> tuple[str, str]:
    "A staged page's title, and the sentence below it"
    head = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb": head = "".join(json.loads(head)["cells"][0]["source"])
    front = re.match(r"---\n(.*?)\n---", head, re.S)
    told = yaml.safe_load(front[1]) if front else {}
    return told.get("title", page.stem), told.get("description", "")


def address(definition: object) -> str:
    "Where the source of a definition stands in the public repository; empty while no address is set"
    root, inner = settings().git_url, inspect.unwrap(getattr(definition, "fget", None) or definition)
    if not root: return ""
    file = Path(inspect.getsourcefile(inner)).resolve().relative_to(ROOT)
    return f"{root}/blob/{settings().branch}/{file}#L{inspect.getsourcelines(inner)[1]}"


def reference(definition: object, name: str) -> str:
    "A heading that links can name, and behind it what nbdev says of a definition; module names stay out of signatures"
    text = BasicMarkdownRenderer(definition, name=name, title_level=3)._repr_markdown_()
    heading = re.search(r"^### .*$", text, re.M)
    said = re.sub(rf"\b(?:{settings().lib_name}|jaxtyping|torch)\.(?:\w+\.)*(?=[A-Z])", "", text[heading.end():]).strip()
    source = f'[source]({address(definition)}){{.source}}' if address(definition) else ""
    return "\n\n".join(part for part in (heading[0], source, REFERENCE.format(anywhere(said))) if part)


def anywhere(text: str) -> str:
    "A text without the folder in which this copy of the repository lies"
    return text.replace(f"{ROOT}/", "").replace(str(ROOT), ".")


def definitions(source: str) -> list[ast.AST]:
    "What a cell defines at its top level"
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in ast.parse(source).body if isinstance(node, kinds)]


def anchors_in(cell: dict) -> str:
    "What links can name of an exported cell besides headings: methods of classes and private definitions, as nbdev links them"
    if cell.cell_type != "code" or not EXPORTS & (cell.directives_ or {}).keys(): return ""
    found = definitions(cell.source)
    private = [node for node in found if node.name.startswith("_") and not node.name.startswith("__")]
    names = [name for node in private for name in L(nbdev.showdoc_nm(node))]
    classes = [node for node in found if isinstance(node, ast.ClassDef)]
    names += [f"{node.name}.{inner.name}" for node in classes for inner in node.body if isinstance(inner, ast.FunctionDef)]
    return " ".join(f"[]{{#{name.lower()}}}" for name in dict.fromkeys(names))


class ShowDefinitions(Processor):
    "`show_doc` cells are answered from the exported module: nothing is executed again, and nothing comes from `__main__`"

    def begin(self):
        told = [cell.directives_["default_exp"] for cell in self.nb.cells if "default_exp" in (cell.directives_ or {})]
        self.names = vars(import_module(f"{settings().lib_name}.{told[0]}")) if told else {}

    def cell(self, cell):
        asked = re.search(r"^show_doc\((.+)\)$", cell.source, re.M) if cell.cell_type == "code" else None
        if not asked: return
        cell.cell_type, cell.source = "markdown", reference(eval(asked[1], self.names), asked[1])
        for unused in ("outputs", "execution_count"): cell.pop(unused, None)


class FoldSource(Processor):
    "Exported code stays on the page and can be folded; imports begin folded"

    def cell(self, cell):
        if cell.cell_type != "code" or not EXPORTS & cell.directives_.keys() or not cell.source.strip(): return
        cell.source = re.sub(r"^#\|\s*exports?i?\b.*\n", "", cell.source, flags=re.M)
        names = [node.name for node in definitions(cell.source)]
        fold, summary = ("show", f"Source: {', '.join(names[:3])}{' …' * (len(names) > 3)}") if names else ("true", "Source")
        cell.source = f'#| code-fold: {fold}\n#| code-summary: "{summary}"\n{cell.source}'


class FoldResults(Processor):
    "On a page without a number the figures and tables are what is read: the code that draws them begins folded"

    def cell(self, cell):
        stem = Path(self.nb.path_).stem
        if cell.cell_type != "code" or stem[0].isdigit() or stem in OPEN or not cell.get("outputs"): return
        if not re.search(r"^#\|\s*(?:echo|code-fold):", cell.source, re.M):
            cell.source = f'#| code-fold: true\n#| code-summary: "the code of this"\n{cell.source}'


class ReferenceFirst(Processor):
    "The headings of what a cell defines come before the cell, in the order of the source"

    def begin(self):
        cells, place = [], 0
        for cell in self.nb.cells:
            shows = getattr(cell, "has_sd", False)
            anchors = anchors_in(cell)
            if anchors: cells.append(mk_cell(anchors, "markdown"))
            place = place if shows else len(cells)  # nbdev lists the last definition of a cell first
            cells.insert(place, cell)
        self.nb.cells = cells


def drop_hidden(cell: dict) -> None:
    "Cells that say `hide`, and those that only speak to nbdev, leave the page"
    told = cell.directives_.keys() if cell.cell_type == "code" and cell.directives_ else set()
    if told & {"hide", "default_exp"} or "nbdev_export()" in (cell.source or ""): cell.source = None


def plain_outputs(cell: dict) -> None:
    "A page has no kernel: of a widget its text would be left, which says nothing"
    view = "application/vnd.jupyter.widget-view+json"
    if cell.cell_type != "code": return
    cell.outputs = [output for output in cell.get("outputs", []) if view not in output.get("data", {})]
    for output in cell.outputs:
        if "text" in output: output["text"] = anywhere("".join(output["text"]))


def on_site(target: str, source: Path) -> str:
    "A link of the repository's file `source`, as seen from its page; links elsewhere stay what they are"
    path, hash_, anchor = target.partition("#")
    if not path or re.match(r"[a-z][a-z0-9+.-]*:|/", path): return target
    parts = Path(os.path.normpath(source.parent / path)).parts
    if not parts or parts[0] not in PLACES or source.parts[0] not in PLACES: return target
    there = Path(PLACES[parts[0]], *parts[1:])
    here = Path(PLACES[source.parts[0]], *source.parts[1:]).parent
    return os.path.relpath(there, here) + hash_ + anchor


def relink(text: str, source: Path) -> str:
    "Markdown whose links between folders of the repository lead to pages of the site"
    return LINK.sub(lambda m: m[1] + on_site(m[2], source), text)


NO_PROSE = re.compile(  # front matter, headings, code, maths, links, what has a mark of its own, and HTML
    r"\A---\n.*?\n---$|^#.*?$|^ *```.*?^ *```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]+\$|!?\[[^\]]*\](?:\([^)]*\)|\{[^}]*\})|<[^>]+>", re.M | re.S)
EVERYDAY = {"open", "key"}  # words of the glossary that mostly mean something else


def linked(text: str, change, source: Path) -> str:
    "Markdown whose prose is changed by a function of (piece, the way from `source` to nbs/)"
    to, end, parts = os.path.relpath("nbs", source.parent), 0, []
    for match in NO_PROSE.finditer(text):
        parts += [change(text[end : match.start()], to), match[0]]
        end = match.end()
    return "".join([*parts, change(text[end:], to)])


@lru_cache
def numbers() -> re.Pattern:
    "The numbers of systems and claims of the sources"
    sources = yaml.safe_load((ROOT / "experiments" / "sources.yaml").read_text(encoding="utf-8")).values()
    known = sorted({e["number"] for s in sources for e in (*s["systems"], *s["claims"])}, key=len, reverse=True)
    return re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, known))})(?![\w]|\.\d)")


def cite(text: str, to: str) -> str:
    "Prose in which every number of a source leads to its line"
    return numbers().sub(lambda m: f"[{m[1]}]({to}/sources.qmd#{m[1]})", text)


@lru_cache
def glossary() -> dict[str, str]:
    "word → its mark in the glossary"
    text = (ROOT / "nbs" / "glossary.qmd").read_text(encoding="utf-8")
    return {word: mark for word, mark in re.findall(r"^- \[\*\*(.+?)\*\*\]\{#(.+?)\}", text, re.M) if word not in EVERYDAY}


def gloss(text: str, to: str, told: set[str]) -> str:
    "Prose in which the first mention of a word leads to its line in the glossary; `told` keeps the words"
    left = [word for word in glossary() if word not in told]
    if not left: return text
    longest = sorted(map(re.escape, left), key=len, reverse=True)

    def link(match):
        word = next(w for w in left if w.lower() == match[1].lower())
        if word in told: return match[0]
        told.add(word)
        return f"[{match[0]}]({to}/glossary.qmd#{glossary()[word]}){{.term}}"

    return re.sub(rf"(?<![\w*-])({'|'.join(longest)})s?(?![\w*-])", link, text, flags=re.I)


class Relink(Processor):
    "Links in a notebook's prose and in its markdown outputs; numbers of the sources and words of the glossary become some"

    def begin(self):
        self.source = Path(self.nb.path_).resolve().relative_to(ROOT)
        self.told = set()  # words that are linked already: a word is linked once a page

    def text(self, text: str, words: bool) -> str:
        "One piece of markdown"
        text = linked(text, cite, self.source)
        if words: text = linked(text, lambda part, to: gloss(part, to, self.told), self.source)
        return relink(text, self.source)

    def cell(self, cell):
        if cell.cell_type == "markdown": cell.source = self.text(cell.source, words=not getattr(cell, "has_sd", False))
        for output in cell.get("outputs", []):
            text = output.get("data", {}).get("text/markdown")
            if text: output["data"]["text/markdown"] = self.text("".join(text), words=False)


class Book:
    "The processors of a page, in nbdev's order; nbdev calls it with each notebook"

    def __call__(self, nb):
        before = [FrontmatterProc, nbdev.populate_language, nbdev.add_show_docs, nbdev.strip_ansi, nbdev.hide_line,
                  nbdev.filter_stream_, nbdev.rm_header_dash]
        ours = [FoldResults, ReferenceFirst, FoldSource, ShowDefinitions, drop_hidden, plain_outputs, Relink]
        after = [nbdev.add_links, nbdev.strip_hidden_metadata]
        NBProcessor(nb=nb, procs=L(before + ours + after), rm_directives="quarto").process()

    @classmethod
    def file(cls, notebook: Path, page: Path, source: Path) -> None:
        "A notebook outside nbdev's folder becomes a page; its links are those of `source`, which it is an execution of"
        nb = read_nb(notebook)
        nb.path_ = source
        cls()(nb)
        page.parent.mkdir(parents=True, exist_ok=True)
        write_nb(nb, page)


def experiments() -> list[tuple[Path, str]]:
    "Every notebook of the experiments, and its place among the pages"
    return [(f, f"{PLACES['experiments']}/{f.name}") for f in sorted((ROOT / "experiments").glob("*.ipynb"))]
