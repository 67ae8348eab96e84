"""The documentation: `python tools/pages.py` stages every page and checks it, `--render` makes the site too"""
import json
import os
import re
import shutil
import sys
from pathlib import Path

import gallery
import nbdev.serve
import yaml
from book import ROOT, Book, experiments, title
from gate import LEAK, broken, check_site, elements, pandoc, rendered
from nbdev.config import get_config
from nbdev.quarto import refresh_quarto_yml
from nbdev.quarto_render import render_quarto

LOOSE = ("README.md", "CONTRIBUTING.md", "LOG.md", "CLAIMS.md")  # pages outside the site
PARTS = {"0": "Ground", "1": "Problems and extra computation", "2": "Thinking", "9": "Laboratory"}
# Pages that one looks things up in, and pages that one begins with, where they exist.
REFERENCE = ("gallery", "board", "sources", "glossary", "replications", "references")
BEGIN = ("index", "start", "use")
LONG = 900  # lines of shown code that may be wider than the column, on all pages: may only shrink


def part_of(name: str) -> str:
    "The part of the sidebar that a page belongs to"
    stem = Path(name).stem
    if re.sub(r"^\d+_", "", stem) in BEGIN: return ""
    if name.startswith("experiments/") or stem == "gallery": return "Experiments"
    if stem in REFERENCE: return "To look up"
    return PARTS.get(stem[0], "What came out") if stem[0].isdigit() else "What came out"


def entry(name: str, pages: Path) -> dict[str, str]:
    "A page in the sidebar: a notebook of the book with its number, a result without the word"
    number = re.match(r"\d+(?=_)", Path(name).stem)
    words = re.sub(r"^Result: (.)", lambda m: m[1].upper(), title(pages / name)[0])
    return {"href": name, "text": f"{number[0]} {words}" if number and not name.startswith("experiments/") else words}


def ordered(names: list[str], pages: Path) -> list[str]:
    "Pages in the book's order; what has no number as the front page's list mentions it, the rest at the end"
    front = (pages / "index.ipynb").read_text(encoding="utf-8")
    known = {stem: n for n, stem in enumerate(BEGIN + REFERENCE)}

    def place(name: str) -> tuple[int, str, int, str]:
        stem, mention = Path(name).stem, front.rfind(f"({name})")
        return known.get(re.sub(r"^\d+_", "", stem), len(known)), stem if stem[0].isdigit() else "", mention if mention >= 0 else len(front), name

    return sorted(names, key=place)


def sidebar(pages: Path) -> dict[str, list[str]]:
    "Every staged page, by part"
    found = [f.relative_to(pages).as_posix() for f in pages.rglob("*") if f.suffix in (".ipynb", ".qmd")]
    parts = {part: [] for part in ("", "What came out", *PARTS.values(), "Experiments", "To look up")}
    for name in ordered(found, pages): parts[part_of(name)].append(name)
    return {part: names for part, names in parts.items() if names}


def write_sidebar(pages: Path, parts: dict[str, list[str]]) -> None:
    "The settings of Quarto's sidebar"
    contents = [entry(name, pages) for name in parts.get("", [])]
    contents += [{"section": part, "contents": [entry(name, pages) for name in names]} for part, names in parts.items() if part]
    told = {"website": {"sidebar": {"contents": contents}}}
    (pages / "sidebar.yml").write_text(yaml.safe_dump(told, sort_keys=False, allow_unicode=True), encoding="utf-8")


def write_llms(pages: Path, parts: dict[str, list[str]]) -> None:
    "The site for machines that read: every page with its one sentence"
    config = get_config()
    lines = [f"# {config.title}", "", f"> {config.description}", ""]
    for part, names in parts.items():
        lines += [f"## {part or 'Begin here'}", ""]
        for name in names:
            words, sentence = title(pages / name)
            lines.append(f"- [{words}]({rendered(name)})" + (f": {sentence}" if sentence else ""))
        lines.append("")
    (pages / "llms.txt").write_text("\n".join(lines), encoding="utf-8")


def stage() -> Path:
    "Everything that Quarto reads, in one folder: pages, experiments, gallery, sidebar, licence"
    refresh_quarto_yml()
    nbdev.serve.FilterDefaults = Book  # what nbdev hands each notebook to
    pages = nbdev.serve.proc_nbs(n_workers=0, force=True)
    shutil.copy(ROOT / "LICENSE", pages / "LICENSE.txt")
    for notebook, name in experiments(): Book.file(gallery.executed(notebook) or notebook, pages / name, notebook)
    gallery.write(pages)
    parts = sidebar(pages)
    write_sidebar(pages, parts)
    write_llms(pages, parts)
    return pages


def check_loose(root: Path) -> list[str]:
    "Complaints about the markdown files at the top of the repository"
    found = []
    for file in (root / name for name in LOOSE if (root / name).exists()):
        document, complaint = pandoc(file.read_text(encoding="utf-8"), "-f", "gfm", "-t", "json")
        tree = json.loads(document or "{}")
        ids = {e["c"][1][0] for e in elements(tree, "Header")} | {e["c"][0][0] for e in elements(tree, "Div", "Span")}
        targets = [e["c"][2][0] for e in elements(tree, "Link", "Image")]
        if complaint: found.append(f"{file.name}: {complaint}")
        found += [f"{file.name}: shows a path of some machine: {leak}" for leak in LEAK.findall(file.read_text(encoding="utf-8"))]
        found += [f"{file.name}: {why}" for link in targets if (why := broken(link, file.name, root, {file.name: ids}))]
    return found


def render(root: Path, pages: Path) -> None:
    "The site through Quarto, into `doc_path`"
    out = get_config().doc_path
    render_quarto(pages, pages / out.name, n_workers=1)  # more workers render copies elsewhere, which lose ../_quarto.yml
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(pages / out.name, out)
    print(f"the site is in {out.relative_to(root)}/: open index.html there")


def main() -> int:
    "Stage, check, and render if asked and possible"
    os.chdir(ROOT)
    if "--render" in sys.argv: gallery.execute()
    pages = stage()
    found = check_site(pages, LONG) + check_loose(ROOT)
    count = sum(len(names) for names in sidebar(pages).values())
    print(*found, f"{count} pages of the site parsed, {len(found)} complaints", sep="\n")
    if found: return 1
    if not shutil.which("quarto"):
        print("SKIPPED: Quarto is not on the PATH, so the pages were parsed and checked but no site was rendered (https://quarto.org)")
    elif "--render" in sys.argv: render(ROOT, pages)
    return 0


if __name__ == "__main__":
    sys.exit(main())
