"""Which tests a change reaches, by who imports whom"""
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

UNKNOWN = 10  # seconds of a file of tests that was never timed here, but for these, which take longer
SLOW = dict(thought_rl=120, verify=150, sweep=100, train=60, attention=45, grpo=40, runs=40, commands=40, rerun=40, fresh=40)
READ = [("experiments/claims/", "claims sources"), ("experiments/sources.yaml", "sources"), ("experiments/", "experiments"),
        ("results/", "rows"), ("tools/", "tools"), ("", "house")]  # what tests read of the repository itself


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


def test_file(name: str) -> str:
    "The file of the tests of something"
    return f"tests/test_{name}.py"


def reached(root: Path, changed: set[str]) -> dict[str, int]:
    "Files of tests that changed, or import or read what changed, and over how many steps"
    files = [f for folder in ("refine_nb", "tools", "tests") for f in sorted((root / folder).glob("*.py"))]
    paths = {f.relative_to(root).as_posix(): imports(f.read_text(encoding="utf-8")) for f in files}
    distance, front, step = {}, {p for p in paths if p in changed}, 0
    while front:
        distance |= dict.fromkeys(front, step)
        names = {Path(p).stem for p in front}
        front, step = {p for p, found in paths.items() if p not in distance and found & names}, step + 1
    readers = {test_file(name) for start, names in READ for name in names.split() if any(p.startswith(start) for p in changed)}
    imported = {p: d for p, d in distance.items() if Path(p).name.startswith("test_")}
    return imported | {p: min(imported.get(p, 1), 1) for p in readers if (root / p).exists()}


def seconds(report: Path) -> dict[str, dict[str, float]]:
    "File of tests → test → seconds, of the last whole run"
    took: dict[str, dict[str, float]] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase") if report.exists() else []:
        file = case.get("classname", "").replace(".", "/") + ".py"
        took.setdefault(file, {})[f"{file}::{case.get('name')}"] = float(case.get("time", 0))
    return took


def chosen(reached: dict[str, int], took: dict[str, dict[str, float]], room: float) -> tuple[list[str], list[str]]:
    "The nearest files that fit into some seconds, of the nearest that does not its fastest tests, and the files left out"
    slow = {test_file(name): known for name, known in SLOW.items()}
    whole = {f: sum(took[f].values()) if f in took else slow.get(f, UNKNOWN) for f in reached}
    fits, left = [], []
    for file in sorted(reached, key=lambda f: (reached[f], whole[f])):
        if whole[file] <= room:
            fits.append(file)
            room -= whole[file]
            continue
        left.append(file)
        for test, own in sorted(took.get(file, {}).items(), key=lambda item: item[1]):
            if own > room: break
            fits.append(test)
            room -= own
    return fits, left
