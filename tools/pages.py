"""The documentation: `python tools/pages.py` parses every page and checks sidebar and links, `--render` makes the site too"""
import json, os, re, shutil, subprocess, sys
from collections import defaultdict
from pathlib import Path
from urllib.parse import unquote

import nbformat, pypandoc, yaml
from nbdev.config import get_config
from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
from nbdev.quarto_render import render_quarto
from nbdev.serve import proc_nbs

ROOT = Path(__file__).resolve().parent.parent
LOOSE = ("README.md", "CONTRIBUTING.md", "LOG.md", "CLAIMS.md")  # pages outside the site
PAGES = (".ipynb", ".qmd", ".md", ".rmd", ".html")  # what Quarto renders or copies as a page


def stage() -> Path:
    "What nbdev does before it calls Quarto; returns the folder of staged pages"
    refresh_quarto_yml()
    nbdev_sidebar.__wrapped__(file_glob=None, file_re=r"\.(?:ipynb|qmd)$")  # as the command nbdev-docs calls it
    pages = proc_nbs(n_workers=0, force=True)
    if not get_config().git_url:  # nbdev writes its "source" links even where no repository address is known
        for page in pages.rglob("*.ipynb"): page.write_text(re.sub(r"\[source\]\(/blob/[^\n]*?\\n", r"\\n", page.read_text()))
    return pages


def pandoc(text: str, *options: str) -> tuple[str, str]:
    "Pandoc's output, and its complaints, warnings included"
    command = [pypandoc.get_pandoc_path(), "--fail-if-warnings", *options]
    done = subprocess.run(command, input=text, capture_output=True, text=True, encoding="utf-8")
    return done.stdout, done.stderr.strip()


def prose(page: Path) -> str:
    "A page's markdown: of a notebook its cells and its markdown outputs"
    if page.suffix == ".qmd": return page.read_text()
    parts = []
    for cell in nbformat.read(page, 4).cells:
        if cell.cell_type == "markdown": parts.append(cell.source)
        for output in cell.get("outputs", []): parts.append(output.get("data", {}).get("text/markdown", ""))
    return "\n\n".join(parts)


def parse(page: Path) -> str:
    "Pandoc's complaints about a staged page; cleaned outputs have no execution count, and pandoc insists on one"
    if page.suffix == ".qmd": return pandoc(page.read_text(), "-f", "markdown", "-t", "html", "--mathjax")[1]
    nb = nbformat.read(page, 4)
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "execute_result": output.execution_count = output.execution_count or 0
    return pandoc(nbformat.writes(nb), "-f", "ipynb", "-t", "html", "--mathjax")[1]


def elements(tree, *kinds: str):
    "Every element of these kinds in a pandoc document"
    if isinstance(tree, dict) and tree.get("t") in kinds: yield tree["c"]
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from elements(value, *kinds)


def anchors_and_targets(markdown: str, reader: str = "markdown") -> tuple[set[str], list[str], str]:
    "The ids of a page's headings, the targets of its links and images, and pandoc's complaints"
    document, complaint = pandoc(markdown, "-f", reader, "-t", "json")
    tree = json.loads(document or "{}")
    ids = {c[1][0] for c in elements(tree, "Header")} | {c[0][0] for c in elements(tree, "Div", "Span")}
    return ids, [c[2][0] for c in elements(tree, "Link", "Image")], complaint


def broken(target: str, page: str, folder: Path, ids: dict[str, set[str]]) -> str:
    "Why a link of `page` leads nowhere; the empty string if it leads somewhere"
    if re.match(r"[a-z][a-z0-9+.-]*:", target): return ""  # another site: not followed
    path, _, anchor = unquote(target).lstrip("/").partition("#")
    path = os.path.normpath(os.path.join("" if target.startswith("/") else os.path.dirname(page), path)) if path else page
    if path not in ids and not (folder / path).exists(): return f"{target}: there is no {path}"
    if anchor and path in ids and anchor not in ids[path]: return f"{target}: {path} has no heading with the id {anchor}"
    return ""


def rendered(page: Path) -> str:
    "The name of a page on the site: nbdev drops a notebook's number, Quarto keeps the name of any other page"
    stem = re.sub(r"^\d+[a-z]?_", "", page.stem) if page.suffix == ".ipynb" else page.stem
    return page.with_name(f"{stem}.html").as_posix()


def same_name(pages: Path) -> list[str]:
    "Complaints about files that would become one page; capital letters make no difference, as on some disks"
    sources = defaultdict(list)
    for page in staged_pages(pages, PAGES): sources[rendered(page).lower()].append(page.as_posix())
    return [f"{' and '.join(names)} would both become {name}: rename one of them"
            for name, names in sources.items() if len(names) > 1]


def staged_pages(folder: Path, kinds: tuple[str, ...] = (".ipynb", ".qmd")) -> list[Path]:
    "The pages below a folder, by their paths inside it; folders that begin with _ are no part of the site"
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.suffix in kinds)
    return sorted(p for p in found if not any(part.startswith(("_", ".")) for part in p.parts))


def in_sidebar(contents: list) -> list[str]:
    "The pages that a sidebar lists, sections included"
    return [page for entry in contents for page in ([entry] if isinstance(entry, str) else in_sidebar(entry["contents"]))]


def check_site(pages: Path) -> list[str]:
    "Complaints about the staged pages: names, parsing, sidebar, links"
    found, ids, targets = same_name(pages), {}, {}
    for name in yaml.safe_load((pages / "_quarto.yml").read_text())["metadata-files"]:
        if not (pages / name).exists(): found.append(f"_quarto.yml includes {name}, which is not there")
    staged = [page.as_posix() for page in staged_pages(pages)]
    listed = in_sidebar(yaml.safe_load((pages / "sidebar.yml").read_text())["website"]["sidebar"]["contents"])
    if sorted(listed) != staged: found.append(f"sidebar.yml lists {listed}, the pages are {staged}")
    for page in staged:
        ids[page], targets[page], text = anchors_and_targets(prose(pages / page))
        found += [f"{page}: {complaint}" for complaint in (parse(pages / page), text) if complaint]
    html = {rendered(Path(name)): name for name in ids}
    for page, links in targets.items():
        everywhere = ids | {rendered: ids[name] for rendered, name in html.items()}
        found += [f"{page}: {why}" for link in links if (why := broken(link, page, pages, everywhere))]
    return found


def check_loose(root: Path) -> list[str]:
    "Complaints about the markdown files at the top of the repository"
    found = []
    for file in (root / name for name in LOOSE if (root / name).exists()):
        ids, targets, complaint = anchors_and_targets(file.read_text(), "gfm")
        if complaint: found.append(f"{file.name}: {complaint}")
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
    pages = stage()
    found = check_site(pages) + check_loose(ROOT)
    print(*found, f"{len(staged_pages(pages))} pages of the site parsed, {len(found)} complaints", sep="\n")
    if found: return 1
    if not shutil.which("quarto"):
        print("SKIPPED: Quarto is not on the PATH, so the pages were parsed and checked but no site was rendered (https://quarto.org)")
    elif "--render" in sys.argv: render(ROOT, pages)
    return 0


if __name__ == "__main__":
    sys.exit(main())
