"The page of references: works that the pages name, each with the pages that do"
import json
import re
from collections.abc import Mapping
from pathlib import Path

from ._sources import read_ledger
from .cards import CardError

FIELDS = ("named", "authors", "title")
GUIDE = "Works that this book builds on or tests, and the pages that name them."


def read_references(
    path: Path,  # the ledger, experiments/references.yaml
) -> list[dict]:
    "The entries as written; refused where a field is missing, a name stands twice, or neither number nor place is said"
    entries = read_ledger(path)
    for entry in entries:
        missing = [f for f in FIELDS if not entry.get(f)]
        if not entry.get("arxiv") and not entry.get("where"): missing.append("where")
        if missing: raise CardError(f"{path}: {entry.get('named', 'an entry without a name')}: no {missing[0]}")
    names = [e["named"] for e in entries]
    twice = [n for n in names if names.count(n) > 1]
    if twice: raise CardError(f"{path}: {twice[0]} stands there twice")
    return entries


def words_of(
    page: Path,  # a notebook
) -> str:
    "The text of a page, without brackets and without commas between words"
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells)
    return re.sub(r"[()\[\]]|,(?!\d)", "", text)


def names(
    entry: Mapping,  # of the ledger
    words: str,      # of a page, from `words_of`
) -> bool:
    "Whether a page names a work"
    return entry["named"] in words or bool(entry.get("arxiv")) and entry["arxiv"] in words


def references_page(
    entries: list[dict],  # as read
    pages: Path,          # the folder of the notebooks
) -> str:
    "The page as markdown, in the order of names; refused where no page names a work"
    notebooks = [*sorted(pages.glob("[0-9]*.ipynb")), *sorted(pages.glob("results/*.ipynb"))]
    words = {p.relative_to(pages).as_posix(): words_of(p) for p in notebooks}
    places = {e["named"]: [p for p, text in words.items() if names(e, text)] for e in entries}
    replicated = pages.parent / "experiments" / "replications.yaml"
    tried = replicated.read_text(encoding="utf-8") if replicated.exists() else ""
    lines = []
    for entry in sorted(entries, key=lambda e: e["named"].lower()):
        found = [f"[{Path(p).stem}]({p})" for p in places[entry["named"]]]
        if (entry.get("arxiv") or entry.get("link") or "-") in tried: found.append("[Replications](replications.qmd)")
        if not found: raise CardError(f"no page names {entry['named']}: take it out of experiments/references.yaml")
        lines.append(f"- {_work(entry)} In {', '.join(found)}.")
    return f"---\ntitle: \"References: the works behind the pages\"\n---\n\n{GUIDE}\n\n" + "\n".join(lines) + "\n"


def _work(entry: Mapping) -> str:
    "Authors, title and place"
    link = entry.get("link") or (f"https://arxiv.org/abs/{entry['arxiv']}" if entry.get("arxiv") else "")
    title = f"[*{entry['title']}*]({link})" if link else f"*{entry['title']}*"
    mark = re.sub(r"[^a-z0-9]+", "-", entry["named"].lower()).strip("-")
    place = f"arXiv {entry['arxiv']}" if entry.get("arxiv") else entry["where"]
    authors = entry["authors"] if entry["authors"].endswith(".") else entry["authors"] + "."
    stop = "" if entry["title"].endswith(("?", "!")) else "."
    return f"[**{entry['named']}**]{{#{mark}}}: {authors} {title}{stop} {place}."
