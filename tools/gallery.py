"""The experiments as pages: each is executed once in its smallest preset for the site, and stands beside its result"""
import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from book import ROOT, experiments, title
from smoke import smoke_sweep

FOLDER = ROOT / "build/gallery"  # executed notebooks, kept as long as their sources stay what they are
LIMIT = 600                      # seconds for one of them
HEAD = """---
title: "Experiments"
description: "One notebook a question, run by papermill with other parameters for every row of a table."
---

The numbers of this book come from these notebooks.
Where a site was made with `make docs`, each page shows one small run; the recorded runs stand in the tables behind its result.

"""
CARD = """::: {{.experiment}}
{figure}

::: {{.words}}
**[{title}]({page})**

{sentence}

{links}
:::
:::

"""


def digest(notebook: Path) -> str:
    "What an execution of this notebook is valid for"
    return hashlib.sha256(notebook.read_bytes()).hexdigest()


def executed(notebook: Path) -> Path | None:
    "The execution of this notebook, if there is one of just this source"
    page, mark = FOLDER / notebook.name, FOLDER / f"{notebook.stem}.sha256"
    return page if page.exists() and mark.exists() and mark.read_text() == digest(notebook) else None


def keep_smoke_run(notebook: Path) -> None:
    "One run of the smoke preset through the sweep runner; its executed notebook is kept"
    work = FOLDER / "work" / notebook.stem
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    sweep = smoke_sweep(ROOT, notebook)
    (work / "sweep.yaml").write_text(yaml.safe_dump(sweep | {"runs": sweep["runs"][:1]}))
    command = [Path(sys.executable).parent / "refine-nb", "sweep", work / "sweep.yaml", "--results", work / "results",
               "--runs", work / "runs", "--workers", "1"]
    try:
        done = subprocess.run(list(map(str, command)), cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT)
        said = "" if done.returncode == 0 else done.stderr[-2000:] or "it failed without a word"
    except subprocess.TimeoutExpired: said = f"it took more than {LIMIT} seconds"
    found = sorted((work / "runs").glob("*/executed.ipynb"))
    if said or not found:
        print(f"{notebook.name} could not be executed for the gallery, its page shows only the source: {said or 'no run came out'}")
        return
    shutil.copy(found[0], FOLDER / notebook.name)
    (FOLDER / f"{notebook.stem}.sha256").write_text(digest(notebook))


def execute() -> None:
    "Every experiment that has no execution yet"
    for notebook, _ in experiments():
        if not executed(notebook): keep_smoke_run(notebook)


def results_of(pages: Path, notebook: Path) -> list[Path]:
    "The pages without a number that link to this experiment"
    found = [page for page in sorted(pages.rglob("*.ipynb")) if "experiments" not in page.relative_to(pages).parts]
    plain = [page for page in found if not page.stem[0].isdigit() and page.stem != "index"]
    own = notebook.stem.split("_", 1)[1]
    return sorted((p for p in plain if f"experiments/{notebook.name}" in p.read_text(encoding="utf-8") or p.stem == own),
                  key=lambda page: page.stem != own)


def figure(page: Path) -> tuple[bytes, str]:
    "The first picture on a page and its words; empty if it has none"
    for cell in json.loads(page.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {}).get("image/png")
            if data:
                words = re.search(r"^#\| fig-alt: *(.*)$", "".join(cell["source"]), re.M)
                return base64.b64decode("".join(data)), words[1].strip("\"'[]") if words else ""
    return b"", ""


def card(pages: Path, notebook: Path, name: str) -> str:
    "An experiment on the gallery's page: its picture, its question, and where its answer stands"
    words, sentence = title(pages / name)
    results = results_of(pages, notebook)
    links = [f"[result: {title(page)[0].removeprefix('Result: ')}]({page.relative_to(pages).as_posix()})" for page in results]
    picture, said = figure(results[0]) if results else (b"", "")
    if picture:
        (pages / "gallery").mkdir(exist_ok=True)
        (pages / "gallery" / f"{notebook.stem}.png").write_bytes(picture)
    said = re.sub(r"[\[\]\\]", "", said) or f"The first figure of the result page on: {words}"
    shown = f"![{said}](gallery/{notebook.stem}.png)\\ " if picture else ""
    return CARD.format(figure=shown, title=words, page=name, sentence=sentence, links=" · ".join(links))


def write(pages: Path) -> None:
    "The gallery's page"
    cards = [card(pages, notebook, name) for notebook, name in experiments()]
    (pages / "gallery.qmd").write_text(HEAD + "".join(cards), encoding="utf-8")
