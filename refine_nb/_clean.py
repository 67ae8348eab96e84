"""What may be removed of a project's `runs/`: never a published record, and no checkpoint that a sweep would go on from."""
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ._attempts import dead_attempt


@dataclass(frozen=True)
class Waste:
    "A folder or file that nobody reads any more"
    path: Path
    kind: str   # failed, replaced, finished or unfinished
    size: int   # bytes


KINDS = {
    "failed": "logs of runs that failed",
    "replaced": "records and attempts that another recording took the place of",
    "finished": "attempts at runs that are published",
    "unfinished": "attempts that a sweep would go on from",
}


def size_of(
    path: Path,  # a file or folder
) -> int:
    "Bytes in a file, or in all files of a folder"
    files = [path] if path.is_file() or path.is_symlink() else path.rglob("*")
    return sum(p.lstat().st_size for p in files if not p.is_dir() or p.is_symlink())


def waste(
    runs: Path,               # the folder of runs
    unfinished: bool = False, # also attempts that a sweep would go on from
) -> Iterator[Waste]:
    "What may go; attempts at work are left out"
    for kind in ("failed", "replaced"):
        folder = runs / f".{kind}"
        yield from (Waste(p, kind, size_of(p)) for p in (sorted(folder.iterdir()) if folder.is_dir() else ()))
    for attempt in sorted((runs / ".attempts").glob("*/*")):
        kind = "finished" if (runs / attempt.parent.name / "run.json").exists() else "unfinished"
        if not attempt.is_dir() or kind == "unfinished" and not unfinished: continue
        with dead_attempt(attempt) as dead:
            if dead: yield Waste(attempt, kind, size_of(attempt))


def remove_waste(
    found: Waste,  # from `waste`
) -> bool:
    "Remove it, unless somebody has taken it up meanwhile"
    if found.path.parent.parent.name != ".attempts": return _remove(found.path)
    with dead_attempt(found.path) as dead: return dead and _remove(found.path)


def _remove(path: Path) -> bool:
    "Remove a folder or file; a folder gets another name first, so that nobody finds half of it"
    if path.is_dir() and not path.is_symlink():
        gone = path.with_name(f".gone-{os.getpid()}-{path.name}")
        path.rename(gone)
        shutil.rmtree(gone)
    else: path.unlink()
    return True


def report(
    found: list[Waste],  # what may go
) -> str:
    "How many of each kind, and how many bytes"
    lines = []
    for kind, words in KINDS.items():
        mine = [w for w in found if w.kind == kind]
        if mine: lines.append(f"{len(mine):6} {words}: {sum(w.size for w in mine):,} bytes")
    return "\n".join([*lines, f"{len(found):6} in all: {sum(w.size for w in found):,} bytes"])
