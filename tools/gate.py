"""What a page of the site may not have: each check returns complaints, and an empty list is a page that can be published"""
import json
import re
import subprocess
from collections import defaultdict
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from posixpath import normpath
from urllib.parse import unquote

import pypandoc
import yaml
from nbdev.config import nbpath2html

PAGES = (".ipynb", ".qmd", ".md", ".rmd", ".html")  # what Quarto renders or copies as a page
SOURCES = (".ipynb", ".qmd", ".md")                 # what a page of ours is written in
WIDTH = 120                                         # characters of code that fit into the column, the house's limit too
LEAK = re.compile(r"(?<![\w./~-])/(?:tmp|root|home|work|Users|private|var/folders|mnt)/[\w.-]+|\b[A-Z]:\\Users\\")
VOID = set("area base br col embed hr img input link meta source track wbr".split())
ELEMENTS = VOID | set(
    "a abbr article aside audio b blockquote button canvas caption center cite code colgroup dd del details div dl dt em "
    "figcaption figure font footer form g h1 h2 h3 h4 h5 h6 header i iframe ins kbd label li main mark nav ol option p "
    "path picture pre q rect s samp script section select small span strong style sub summary sup svg table tbody td "
    "template text textarea tfoot th thead time title tr u ul var video line circle polyline polygon defs use".split())


def pandoc(text: str, *options: str) -> tuple[str, str]:
    "Pandoc's output, and its complaints, warnings included"
    command = [pypandoc.get_pandoc_path(), "--fail-if-warnings", *options]
    done = subprocess.run(command, input=text, capture_output=True, text=True, encoding="utf-8")
    return done.stdout, done.stderr.strip()


def elements(tree: object, *kinds: str):
    "Every element of these kinds in a pandoc document"
    if isinstance(tree, dict) and tree.get("t") in kinds: yield tree
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from elements(value, *kinds)


class Tags(HTMLParser):
    "What raw HTML opens and closes, and what it names, links and shows"

    def __init__(self, text: str):
        super().__init__()
        self.open, self.wrong, self.ids, self.targets, self.mute = [], [], set(), [], 0
        self.feed(text)
        self.close()
        self.wrong += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        if tag not in ELEMENTS: self.wrong.append(f"<{tag}> is no element of HTML; in prose it would vanish, in `code` it stays")
        if tag not in VOID and tag in ELEMENTS: self.open.append(tag)
        if "id" in told: self.ids.add(told["id"])
        self.targets += [told[name] for name in ("href", "src") if told.get(name)]
        self.mute += tag == "img" and not told.get("alt")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID and tag in ELEMENTS: self.open.pop()

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag: self.open.pop()
        elif tag in self.open:
            self.wrong.append(f"</{tag}> closes before <{self.open[-1]}>")
            while self.open.pop() != tag: pass
        elif tag in ELEMENTS: self.wrong.append(f"</{tag}> closes nothing")


@dataclass
class Page:
    "What is on one staged page"
    name: str                                        # its file, as seen from the folder of pages
    prose: str = ""                                  # markdown: cells and markdown outputs
    code: list[str] = field(default_factory=list)    # of the cells that are shown and begin open
    outputs: list[str] = field(default_factory=list)  # printed text and plain results
    html: list[str] = field(default_factory=list)    # outputs in HTML
    mute: int = 0                                    # figures of code cells without alt text
    ids: set[str] = field(default_factory=set)       # what an anchor can name
    targets: list[str] = field(default_factory=list) # of links and images
    formulas: list[str] = field(default_factory=list)  # in TeX
    wrong: list[str] = field(default_factory=list)   # complaints found while reading


def text(value: str | list[str]) -> str:
    "Notebooks store texts whole or in lines"
    return value if isinstance(value, str) else "".join(value)


def read_cell(page: Page, cell: dict) -> None:
    "A cell's parts, sorted into the page"
    source = text(cell["source"])
    if cell["cell_type"] == "markdown": page.prose += source + "\n\n"
    if cell["cell_type"] != "code": return
    options = dict(re.findall(r"^#\|\s*([\w-]+):\s*(.*)$", source, re.M))
    if options.get("include") == "false": return
    if options.get("echo") != "false" and options.get("code-fold") != "true": page.code.append(re.sub(r"^#\|.*\n?", "", source, flags=re.M))
    figures = 0
    for output in cell.get("outputs", []) if options.get("output") != "false" else ():
        data = output.get("data", {})
        figures += any(kind.startswith("image/") for kind in data)
        if "text/markdown" in data: page.prose += text(data["text/markdown"]) + "\n\n"
        elif "text/html" in data: page.html.append(text(data["text/html"]))
        elif not any(kind.startswith("image/") for kind in data):
            page.outputs.append(text(output.get("text", "")) or text(data.get("text/plain", "")))
    if figures and "fig-alt" not in options: page.mute += figures


def read(file: Path, folder: Path) -> Page:
    "A staged page, with what pandoc says of its prose"
    page = Page(file.relative_to(folder).as_posix())
    if file.suffix == ".ipynb":
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]: read_cell(page, cell)
    else: page.prose = file.read_text(encoding="utf-8")
    document, complaint = pandoc(page.prose, "-f", "markdown", "-t", "json")
    if complaint: page.wrong.append(complaint)
    tree = json.loads(document or "{}")
    page.ids |= {e["c"][1][0] for e in elements(tree, "Header")} | {e["c"][0][0] for e in elements(tree, "Div", "Span", "CodeBlock")}
    page.targets += [e["c"][2][0] for e in elements(tree, "Link", "Image")]
    page.formulas += [e["c"][1] for e in elements(tree, "Math")]
    page.mute += sum(not alt(image) for image in elements(tree, "Image"))
    raw = [e["c"][1] for e in elements(tree, "RawBlock", "RawInline") if e["c"][0] == "html"]
    read_html(page, "\n".join(part for part in raw if not part.startswith("<!--")))
    for piece in page.html: read_html(page, piece)
    return page


def alt(image: dict) -> bool:
    "Whether a markdown image says in words what it shows"
    attributes = dict(image["c"][0][2])
    return bool(image["c"][1] or attributes.get("fig-alt") or attributes.get("alt"))


def read_html(page: Page, piece: str) -> None:
    "What a piece of raw HTML adds to a page"
    tags = Tags(piece)
    page.ids |= tags.ids
    page.targets += tags.targets
    page.wrong += tags.wrong
    page.mute += tags.mute


def rendered(name: str) -> str:
    "The address of a page on the site: nbdev drops a notebook's number, Quarto keeps the name of any other page"
    path = PurePosixPath(name)
    if path.suffix != ".ipynb": return path.with_suffix(".html").as_posix()
    return nbpath2html(path).as_posix()


def same_output(folder: Path) -> list[str]:
    "Complaints about files that would become one page; capital letters make no difference, as on some disks"
    sources = defaultdict(list)
    for file in sorted(f for f in folder.rglob("*") if f.suffix in PAGES):
        name = file.relative_to(folder).as_posix()
        if not re.search(r"(?:^|/)[_.]", name): sources[rendered(name).lower()].append(name)
    return [f"{' and '.join(names)} would both become {name}: rename one of them"
            for name, names in sources.items() if len(names) > 1]


def broken(target: str, page: str, folder: Path, ids: dict[str, set[str]]) -> str:
    "Why a link of `page` leads nowhere on the site; the empty string if it leads somewhere"
    if re.match(r"[a-z][a-z0-9+.-]*:", target): return ""  # another site: not followed
    path, _, anchor = unquote(target).partition("#")
    there = normpath(path.lstrip("/") if path.startswith("/") else (PurePosixPath(page).parent / path).as_posix()) if path else page
    if there.startswith(".."): return f"{target}: leads out of the site"
    if there not in ids and not (folder / there).is_file(): return f"{target}: there is no {there}"
    if anchor and there in ids and anchor not in ids[there]: return f"{target}: {there} has no heading with the id {anchor}"
    return ""


def complaints(page: Page) -> list[str]:
    "What is wrong with one page by itself"
    everything = [page.prose, *page.outputs, *page.html]
    found = list(page.wrong)
    found += [f"shows a path of some machine: {leak}" for part in everything for leak in sorted(set(LEAK.findall(part)))]
    found += ["says __main__ in a signature, where a reader expects a name"] * ("__main__." in page.prose)
    return found


def too_wide(page: Page) -> int:
    "Lines of shown code that do not fit into the column"
    return sum(len(line) > WIDTH for cell in page.code for line in cell.splitlines())


def listed(contents: list) -> list[str]:
    "The pages that a sidebar lists, parts opened"
    found = []
    for item in contents:
        if isinstance(item, str): found.append(item)
        else: found += ([item["href"]] if "href" in item else []) + listed(item.get("contents", []))
    return found


def check_sidebar(folder: Path, names: list[str]) -> list[str]:
    "Complaints about settings that are missing, and pages that the sidebar lacks or names twice"
    found = [f"_quarto.yml includes {name}, which is not there"
             for name in yaml.safe_load((folder / "_quarto.yml").read_text())["metadata-files"] if not (folder / name).exists()]
    told = listed(yaml.safe_load((folder / "sidebar.yml").read_text())["website"]["sidebar"]["contents"])
    found += [f"sidebar.yml lacks {name}" for name in sorted(set(names) - set(told))]
    found += [f"sidebar.yml lists {name}, which is no page" for name in sorted(set(told) - set(names))]
    return found + [f"sidebar.yml lists {name} twice" for name in sorted({n for n in told if told.count(n) > 1})]


def check_formulas(pages: list[Page]) -> list[str]:
    "Complaints about formulas that cannot be shown as mathematics"
    text = "\n\n".join(f"${formula.strip()}$" for page in pages for formula in page.formulas)
    complaint = pandoc(text, "-f", "markdown", "-t", "html", "--mathml")[1] if text else ""
    return [complaint] if complaint else []


def site_files(folder: Path) -> list[Path]:
    "The staged pages; what begins with an underscore or a point is none"
    found = [f for f in folder.rglob("*") if f.suffix in SOURCES]
    return sorted(f for f in found if not re.search(r"(?:^|/)[_.]", f.relative_to(folder).as_posix()))


def check_width(pages: list[Page], allowed: int) -> list[str]:
    "A complaint if more lines of code are wider than the column than the site may have; they wrap, and read badly"
    wide = {page.name: too_wide(page) for page in pages if too_wide(page)}
    most = ", ".join(f"{name} {wide[name]}" for name in sorted(wide, key=wide.get, reverse=True)[:5])
    total = sum(wide.values())
    return [f"{total} lines of shown code are longer than {WIDTH} characters ({allowed} may be): {most}"] if total > allowed else []


def check_pictures(page: Page) -> list[str]:
    "A complaint if a page has pictures without words"
    return [f"{page.mute} pictures have no words for those who cannot see them: `#| fig-alt: …`, or `![words](file)`"] * bool(page.mute)


def check_site(folder: Path, long: int = 0) -> list[str]:
    "Complaints about the staged pages: addresses, sidebar, links, each page by itself; `long` says what may remain"
    pages = [read(file, folder) for file in site_files(folder)]
    ids = {page.name: page.ids for page in pages} | {rendered(page.name): page.ids for page in pages}
    found = same_output(folder) + check_sidebar(folder, [page.name for page in pages])
    found += check_formulas(pages) + check_width(pages, long)
    for page in pages:
        said = complaints(page) + check_pictures(page)
        said += [why for target in page.targets if (why := broken(target, page.name, folder, ids))]
        found += [f"{page.name}: {why}" for why in said]
    return found
