"""Which tests a change reaches, by who imports whom"""
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

UNKNOWN = 10  # seconds of a file of tests that was never timed here


def changed_files(root: Path, commit: str) -> set[str]:
    "Paths that differ from a commit, new ones included"
    said = [subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=True).stdout
            for words in (["diff", "--name-only", commit], ["ls-files", "--others", "--exclude-standard"])]
    return set("".join(said).split("\n")) - {""}


def imports(text: str) -> set[str]:
    "Names of modules that a source mentions: rooms of the library, and modules of tools/ and tests/"
    rooms = re.findall(r"refine_nb\.(\w+)|^\s*from \.(\w+) import", text, re.M)
    listed = re.findall(r"from (?:refine_nb|\.) import ([\w, ]+)", text)
    others = re.findall(r"^\s*(?:from|import) (\w+)|import_module\(\"(\w+)\"\)", text, re.M)
    return {name for pair in rooms + others for name in pair if name} | {n.strip() for names in listed for n in names.split(",")}


def reached(root: Path, changed: set[str]) -> dict[str, int]:
    "Files of tests that changed or import what changed, and over how many steps"
    files = [f for folder in ("refine_nb", "tools", "tests") for f in sorted((root / folder).glob("*.py"))]
    paths = {f.relative_to(root).as_posix(): imports(f.read_text(encoding="utf-8")) for f in files}
    distance, front, step = {}, {p for p in paths if p in changed}, 0
    while front:
        distance |= dict.fromkeys(front, step)
        names = {Path(p).stem for p in front}
        front, step = {p for p, found in paths.items() if p not in distance and found & names}, step + 1
    experiments = any(p.startswith("experiments/") for p in changed) and {"tests/test_experiments.py": 0} or {}
    return experiments | {p: d for p, d in distance.items() if Path(p).name.startswith("test_")}


def seconds(report: Path) -> dict[str, float]:
    "File of tests → seconds, of the last whole run"
    took = {}
    for case in ElementTree.parse(report).getroot().iter("testcase") if report.exists() else []:
        file = case.get("classname", "").replace(".", "/") + ".py"
        took[file] = took.get(file, 0) + float(case.get("time", 0))
    return took


def chosen(reached: dict[str, int], took: dict[str, float], room: float) -> tuple[list[str], list[str]]:
    "The nearest files that fit into some seconds, and those that do not"
    fits, left = [], []
    for file in sorted(reached, key=lambda f: (reached[f], took.get(f, UNKNOWN))):
        own = took.get(file, UNKNOWN)
        (fits if own <= room else left).append(file)
        room -= own if own <= room else 0
    return fits, left
